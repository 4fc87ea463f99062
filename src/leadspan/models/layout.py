"""How the rows of a batch go through a model, found by running it: there is no list of architectures.

A few tokens go through the model alone, with its own attention, and through each layout of a row. The first layout that
gives every example the hidden states that it has alone is chosen. A model that looks ahead, or whose logits are not
those of its hidden states and head, is refused.
"""

import contextlib
import copy
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from leadspan.errors import ModelError
from leadspan.models.forward import ATTENTION, LAYOUT, Layout, final_hidden_states
from leadspan.models.heads import head_of, head_weight, transform_of
from leadspan.models.reading import reading

logger = logging.getLogger(__name__)

_LENGTHS = 5, 7, 6  # tokens of the examples in a row
_SHORT = 8  # lengths in a config are lowered to this, so that short examples lie on both sides of them
_LENGTHS_AROUND = 5, 13, 9, 8  # the last two would share a padded batch
_LENGTH_FIELDS = ("position_embeddings", "seq_len", "window", "chunk_size")
_NARROW_TOLERANCE = 3e-2  # bfloat16 rounds to 4e-3 in every layer
_TOLERANCE = 1e-4
_MAX_PROBE_WEIGHTS = 200_000_000  # a second of work, under 1 GB
_UNFIT = "it does not run on a few tokens, so values of its config do not fit each other"


def settle_layout(model: PreTrainedModel, attention: str, name: str) -> None:
    """Choose how rows go through a model, and set the attention for it.

    `attention` is as in the settings; `name` begins messages, e.g. `model PATH`.

    Raises:
        ModelError: The model is not causal, does not run, or computes logits that the loss does not know.
    """
    head_of(model)
    with torch.no_grad(), reading(f"{name}: {_UNFIT}"), _probe(model) as probe:
        own_attention = _own_attention(probe)
        row = _tokens(probe, _LENGTHS[1], 0)
        hidden, start = (_in_layout(probe, [tokens], "alone") for tokens in (row, row[: _LENGTHS[0]]))
        if not hidden.isfinite().all():
            raise ModelError(
                f"{name}: its hidden states are not finite, so its weights are damaged or not those of its "
                "config.json; save or download it again"
            )
        ahead = _difference(hidden[: len(start)], start)
        # `not <`, here and below, so that NaN is refused as well.
        if not ahead < _tolerance(probe):
            raise ModelError(
                f"{name}: a position changes with what follows it (relative difference {ahead:.2g}), so the model is "
                "not causal and would see the tokens it is to predict; use another model, or a config of it that is "
                "causal"
            )
        output: Any = probe(input_ids=row[None], use_cache=False)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        ours = transform_of(probe).logits(hidden.to(wide) @ head_weight(probe).to(wide).T)
        apart = _difference(output.logits[0], ours)
        if not apart < _tolerance(probe):
            raise ModelError(
                f"{name}: its logits are not those of its hidden states and head (relative difference {apart:.2g}), "
                "so its architecture transforms them in a way the loss does not know; use another model"
            )
        layouts: tuple[Layout, ...] = ("packed", "padded") if attention != "own" else ("padded",)
        layout = next((layout for layout in layouts if _is_exact(probe, layout, own_attention)), "alone")
    if layout != "packed" and attention.startswith("flash"):
        raise ModelError(
            f"{name}: its examples depend on each other in a packed row whatever the attention; leave out attention: "
            f"{attention}, and they go through the model {_WORDS[layout]}"
        )
    chosen = own_attention if layout != "packed" else attention if attention.startswith("flash") else ATTENTION
    with reading(name):
        model.set_attn_implementation(chosen)
    setattr(model, LAYOUT, layout)
    if layout != "packed":
        logger.info("%s: examples go through it %s, since a packed row would mix them", name, _WORDS[layout])


@contextlib.contextmanager
def _probe(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model to run: the model itself, or for a small one a copy whose weights make every layer matter.

    With the usual initial weights, the layers of a small model add too little to the embeddings to show what leaks
    through one of them, and some layers are zero. Large models come trained. Inside the block it evaluates, and
    computes in float32 where memory allows: bfloat16 would hide errors below a few per cent.
    """
    probe, on_cpu = model, model.device.type == "cpu"
    if on_cpu and sum(p.numel() for p in model.parameters()) <= _MAX_PROBE_WEIGHTS:
        probe, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
        for parameter in probe.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    narrow = [t for t in (*probe.parameters(), *probe.buffers()) if t.is_floating_point() and t.dtype.itemsize < 4]
    needed = 2 * sum(t.nbytes for t in narrow)
    if getattr(probe, "is_quantized", False) or not on_cpu or needed > psutil.virtual_memory().available:
        narrow = []
    was_training, dtypes = probe.training, [t.dtype for t in narrow]
    for tensor in narrow:
        tensor.data = tensor.data.float()
    probe.eval()
    try:
        yield probe
    finally:
        for tensor, dtype in zip(narrow, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)  # nothing is lost: each value came from that type
        probe.train(was_training)


_WORDS = {"packed": "in one row", "padded": "in padded batches", "alone": "one at a time"}


def _is_exact(model: PreTrainedModel, layout: Layout, own_attention: str) -> bool:
    """Whether every example of a row has the hidden states that it has alone, through the model's own attention."""
    with contextlib.suppress(Exception):  # a layout that the model cannot run does not fit it
        for lengths, lowered in ((_LENGTHS, contextlib.nullcontext()), (_LENGTHS_AROUND, _shortened(model))):
            rows = [_tokens(model, length, start) for start, length in enumerate(lengths)]
            with lowered:
                model.set_attn_implementation(own_attention)
                try:
                    expected = torch.cat([_in_layout(model, [row], "alone") for row in rows])
                except (RuntimeError, IndexError, ValueError):
                    return lengths is not _LENGTHS  # a lowered length may be a limit of the model, not a threshold
                if layout == "packed":
                    model.set_attn_implementation(ATTENTION)
                    if model.config._attn_implementation != ATTENTION:
                        return False  # its attention cannot be set
                if not _difference(_in_layout(model, rows, layout), expected) < _tolerance(model):
                    return False
        return True
    return False


def _in_layout(model: PreTrainedModel, rows: list[torch.Tensor], layout: Layout) -> torch.Tensor:
    positions = torch.cat([torch.arange(len(row), device=model.device) for row in rows])
    borders = (0, *itertools.accumulate(len(row) for row in rows))
    setattr(model, LAYOUT, layout)
    everywhere = torch.arange(borders[-1], device=model.device)
    return final_hidden_states(model, torch.cat(rows)[None], positions[None], borders, everywhere)


def _own_attention(model: PreTrainedModel) -> str:
    """The model's own attention: PyTorch's kernel where it computes what Transformers' plain form does."""
    hidden = {}
    for attention in ("eager", "sdpa"):
        with contextlib.suppress(Exception):
            model.set_attn_implementation(attention)
            with _shortened(model):
                hidden[attention] = _in_layout(model, [_tokens(model, _LENGTHS_AROUND[1], 0)], "alone")
    is_same = len(hidden) == 2 and _difference(hidden["sdpa"], hidden["eager"]) < _tolerance(model)
    chosen = "sdpa" if is_same else "eager"
    model.set_attn_implementation(chosen)
    if "eager" not in hidden:
        _in_layout(model, [_tokens(model, _LENGTHS[1], 0)], "alone")  # raises the error that was suppressed above
    return chosen


def _tokens(model: PreTrainedModel, length: int, start: int) -> torch.Tensor:
    rows = head_of(model).weight.shape[0]
    # Steps of 3 from different starts, so that no two examples of a row are the same text.
    return (torch.arange(length, device=model.device) * 3 + start + 2) % rows


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    wide = torch.promote_types(expected.dtype, torch.float32)
    return float((actual.to(wide) - expected.to(wide)).norm() / expected.to(wide).norm())


def _tolerance(model: PreTrainedModel) -> float:
    return _TOLERANCE if model.dtype.itemsize >= 4 else _NARROW_TOLERANCE


@contextlib.contextmanager
def _shortened(model: nn.Module) -> Iterator[None]:
    """Inside the block, lower the lengths at which a model changes its behaviour, in its config and modules.

    Such are windows, chunks of attention, and the original length of scaled rotary embeddings. With thresholds of a few
    tokens, examples of a few tokens lie on both sides of them.
    """
    modules = list(model.modules())
    configs = {id(config): config for module in modules for config in _configs(getattr(module, "config", None))}
    fields = [vars(owner) for owner in (*modules, *configs.values())]
    fields += [nested for values in fields for nested in _dicts(values.get("rope_parameters"))]
    lowered = [
        (values, key, value)
        for values in fields
        for key, value in values.items()
        if isinstance(value, int) and value > _SHORT and any(part in key for part in _LENGTH_FIELDS)
    ]
    # Rotary embeddings change their own buffers when they see a longer sequence, so these are restored as well.
    rotary = [module for module in modules if hasattr(module, "rope_type")]
    before = [
        (vars(module).copy(), {k: v.clone() for k, v in module.named_buffers(recurse=False)}) for module in rotary
    ]
    try:
        for values, key, _ in lowered:
            values[key] = _SHORT
        yield
    finally:
        for module, (attributes, buffers) in zip(rotary, before, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
            for key, buffer in buffers.items():
                module.register_buffer(key, buffer, persistent=False)
        for values, key, value in lowered:
            values[key] = value


def _configs(config: Any) -> list[Any]:
    if config is None or not hasattr(config, "sub_configs"):
        return []
    return [config, *(nested for name in config.sub_configs for nested in _configs(getattr(config, name, None)))]


def _dicts(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, dict):
        return []
    return [value, *(nested for inner in value.values() for nested in _dicts(inner))]
