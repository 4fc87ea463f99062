"""Loss and gradient of architectures, against plain Transformers in float64, one example at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import VOCAB, tiny_config
from leadspan.data.examples import Example
from leadspan.data.packing import pack
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings
from leadspan.models.forward import LAYOUT
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit

LENGTHS = 19, 9, 18, 5


def _examples() -> list[Example]:
    random = np.random.default_rng(0)
    return [
        Example(
            input_ids=random.integers(3, VOCAB, length),
            weights=np.where(np.arange(length) > 2, random.random(length), 0).astype(np.float32),
            section_ids=np.ones(length, dtype=np.int8),
            tenths=np.zeros(length, dtype=np.int8),
            example_id=f"{length:032x}",
        )
        for length in LENGTHS
    ]


def _fill(model: torch.nn.Module) -> None:
    """Weights that let every layer matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
            elif name.endswith(("bias", "sinks")):
                parameter.normal_(generator=generator)


def _plain(config: dict[str, Any], examples: list[Example]) -> tuple[float, torch.nn.Module]:
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), attn_implementation="eager", dtype=torch.float64
    )
    _fill(model)
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        ids = torch.from_numpy(example.input_ids)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        total = total + (losses * torch.from_numpy(example.weights[1:])).sum()
    total.backward()
    return total.item(), model


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _check(kind: str) -> str:
    examples, config = _examples(), {**tiny_config(kind), "experts_implementation": "eager"}  # float64 has no other
    expected, plain = _plain(config, examples)
    model = load_model(RandomInit(config=config), torch.float64)
    model.load_state_dict(plain.state_dict())
    model.train()
    output = batch_loss(model, pack(examples), None, LossSettings(kl_weight=0.0))
    output.loss_sum.backward()
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-6)
    ours, gradients = _gradients(model), _gradients(plain)
    assert ours.keys() == gradients.keys()
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    for name, gradient in gradients.items():
        difference = float((ours[name] - gradient).norm())
        assert difference < 1e-5 * max(float(gradient.norm()), 1e-3 * float(whole)), name
    return getattr(model, LAYOUT)


UNIT = [("gpt_oss", "packed"), ("gemma2", "packed"), ("phi", "packed"), ("qwen3_next", "padded"), ("lfm2", "padded")]
MORE = [
    ("qwen3_5_text", "padded"),
    ("granitemoehybrid", "padded"),
    ("falcon_h1", "padded"),
    ("nemotron_h", "padded"),
    ("jamba", "padded"),
    ("mamba2", "padded"),
    ("minimax", "padded"),
    ("recurrent_gemma", "padded"),
    ("phi3", "packed"),
    ("stablelm", "padded"),
    ("nemotron", "padded"),
    ("rwkv", "padded"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layout"), UNIT)
def test_loss_and_gradient_are_those_of_plain_transformers(kind: str, layout: str) -> None:
    assert _check(kind) == layout


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layout"), MORE)
def test_loss_and_gradient_of_more_architectures(kind: str, layout: str) -> None:
    assert _check(kind) == layout
