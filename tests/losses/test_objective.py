import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from leadspan.data.packing import Batch, pack
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Lead, Policy
from leadspan.losses.objective import batch_loss, drawn_ratios
from leadspan.losses.settings import LossSettings, PolicyGradient
from leadspan.models.heads import head_weight
from leadspan.models.loading import load_model
from leadspan.models.settings import ModelSettings, RandomInit
from leadspan.teacher.targets import freeze, live_targets
from leadspan.training.trainer import attach_objective
from toys import VOCAB, tiny, toy_examples

SETTINGS = LossSettings(kl_weight=0.5, temperature=1.0)


def plain_loss(
    student: ModelSettings, teacher: ModelSettings, example, kl_weight: float, temperature: float
) -> tuple[torch.Tensor, float]:
    """One example through plain Transformers models in float64, every position looped over by hand."""
    ids = torch.from_numpy(example.input_ids)[None]
    logits_s = load_model(student, torch.float64, for_training=False)(ids).logits[0]
    logits_t = load_model(teacher, torch.float64, for_training=False)(ids).logits[0].detach()
    total = torch.zeros((), dtype=torch.float64)
    for i in range(1, ids.shape[1]):
        weight = float(example.weights[i])
        log_q = logits_s[i - 1].log_softmax(-1)
        p = (logits_t[i - 1] / temperature).softmax(-1)
        soft_log_q = (logits_s[i - 1] / temperature).log_softmax(-1)
        kl = (p * (p.log() - soft_log_q)).sum()
        share = 0.0 if example.section_ids[i] == 3 else kl_weight
        total = total + weight * (-(1 - share) * log_q[ids[0, i]] + share * temperature**2 * kl)
    return total, float(example.weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "supervision", "temperature"),
    [
        pytest.param(Full(), Supervision(prompt=1, cot=0, answer=0), 1.0, id="prompt only"),
        pytest.param(Lead(p=0.5), Supervision(prompt=0, cot=1, answer=0), 1.0, id="CoT only, lead 0.5"),
        pytest.param(Full(), Supervision(prompt=0, cot=0, answer=1), 2.0, id="answer only, T 2"),
        pytest.param(Lead(p=0.6, stop="append_eos"), Supervision(prompt=0.5, cot=1, answer=2), 1.0, id="all, stop"),
    ],
)
def test_packed_loss_and_gradient_against_plain_float64(
    tmp_path: Path, policy: Policy, supervision: Supervision, temperature: float
) -> None:
    examples, _ = toy_examples(tmp_path, policy, supervision, number=4)
    few = [examples[i] for i in range(4)]
    student_settings, teacher_settings = tiny(seed=1), tiny(hidden=48, seed=2)
    settings = LossSettings(kl_weight=0.3, temperature=temperature)
    student = load_model(student_settings, torch.float64)
    teacher = freeze(load_model(teacher_settings, torch.float64))
    batch = pack(few)
    output = batch_loss(student, batch, live_targets(teacher, batch), settings)
    output.loss_sum.backward()

    expected, weight = torch.zeros((), dtype=torch.float64), 0.0
    for example in few:
        loss, count = plain_loss(student_settings, teacher_settings, example, 0.3, temperature)
        expected, weight = expected + loss.detach(), weight + count
    torch.testing.assert_close(output.loss_sum.detach(), expected, rtol=1e-6, atol=1e-6)
    assert output.weight_sum.item() == pytest.approx(weight)
    appended = int((batch["section_ids"] == 3).sum())
    assert output.totals[:4, 6].sum() == len(batch["labels"])
    assert output.totals[4:, 6].sum() == len(batch["labels"]) - appended


GEMMA = RandomInit(
    config={
        "model_type": "gemma2", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": None,
        "final_logit_softcapping": 2.0, "initializer_range": 0.3,
    }
)  # fmt: skip
GRANITE = RandomInit(config={**tiny().config, "model_type": "granite", "logits_scaling": 4.0}, seed=3)
COHERE = RandomInit(config={**tiny().config, "model_type": "cohere", "logit_scale": 0.3}, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student_settings", "teacher_settings"), [(GEMMA, GRANITE), (GRANITE, COHERE), (COHERE, GEMMA)]
)
def test_models_that_scale_or_cap_their_logits(
    tmp_path: Path, student_settings: RandomInit, teacher_settings: RandomInit
) -> None:
    examples, _ = toy_examples(tmp_path, number=2)
    student = load_model(student_settings, torch.float64)
    teacher = freeze(load_model(teacher_settings, torch.float64))
    batch = pack([examples[0], examples[1]])
    output = batch_loss(student, batch, live_targets(teacher, batch), SETTINGS)
    expected = sum(plain_loss(student_settings, teacher_settings, examples[i], 0.5, 1.0)[0].detach() for i in range(2))
    torch.testing.assert_close(output.loss_sum.detach(), expected, rtol=1e-6, atol=1e-6)


def gradients(batches: list[list[int]], examples, student_settings: ModelSettings, teacher) -> dict[str, torch.Tensor]:
    student = load_model(student_settings, torch.float64)
    total, weight = 0.0, 0.0
    for indices in batches:
        batch = pack([examples[i] for i in indices])
        output = batch_loss(student, batch, live_targets(teacher, batch), SETTINGS)
        output.loss_sum.backward()
        total, weight = total + output.loss_sum.item(), weight + output.weight_sum.item()
    return {name: p.grad / weight for name, p in student.named_parameters()} | {"loss": torch.tensor(total / weight)}


def test_packing_changes_neither_loss_nor_gradient(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, Lead(p=0.7), number=8)
    teacher = freeze(load_model(tiny(hidden=48, seed=2), torch.float64))
    one_by_one = gradients([[i] for i in range(8)], examples, tiny(seed=1), teacher)
    for batches in ([list(range(8))], [[7, 0, 3], [1, 2], [6, 5, 4]]):
        packed = gradients(batches, examples, tiny(seed=1), teacher)
        for name, expected in one_by_one.items():
            torch.testing.assert_close(packed[name], expected, rtol=1e-6, atol=1e-9)


def test_a_student_that_is_its_teacher_has_no_kl(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, number=3)
    model = load_model(tiny(), torch.float32)
    batch = pack([examples[i] for i in range(3)])
    teacher = freeze(load_model(tiny(), torch.float32))
    output = batch_loss(model, batch, live_targets(teacher, batch), LossSettings(kl_weight=1.0))
    assert output.loss_sum.item() == 0.0
    output.loss_sum.backward()
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-5


def test_vocabulary_padding_does_not_change_the_kl(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, number=2)
    batch = pack([examples[0], examples[1]])
    student = load_model(tiny(vocab=VOCAB + 7), torch.float64)
    teacher = freeze(load_model(tiny(vocab=VOCAB + 7, seed=2), torch.float64))
    targets = live_targets(teacher, batch)
    cut = batch_loss(student, batch, targets, SETTINGS, vocab_size=VOCAB)
    same = batch_loss(student, batch, type(targets)(targets.hidden, targets.head[: VOCAB + 3]), SETTINGS, VOCAB)
    torch.testing.assert_close(cut.loss_sum, same.loss_sum)


def ratios(ratio_per_token: list[float], borders: tuple[int, ...], positions: list[int], **loss: object) -> list[float]:
    """Of a batch whose drawn tokens are that much likelier now than when they were drawn."""
    log_ratio = torch.tensor(ratio_per_token).log()
    batch = cast(Batch, {"borders": borders, "positions": torch.tensor(positions)})
    settings = LossSettings.model_validate({"ratio_cap": 3, **loss})
    return drawn_ratios(torch.full((len(positions),), -1.0), -1.0 - log_ratio, batch, settings).tolist()


def test_ratios_are_of_the_tokens_before_in_each_example_and_cut_off() -> None:
    nan, borders, positions = math.nan, (0, 5, 8, 12), [1, 2, 3, 5, 6, 8, 9, 10]
    given = [2, 0.5, 4, nan, nan, 0.5, 4, 8]
    assert ratios(given, borders, positions) == pytest.approx([1, 2, 1, 1, 1, 1, 0.5, 2])
    of_drawn = {"divergence": {"kind": "policy_gradient"}}
    assert ratios(given, borders, positions, **of_drawn) == pytest.approx([2, 1, 3, 1, 1, 0.5, 2, 3])
    assert ratios(given, borders, positions, ratio_cap=1) == pytest.approx([1, 1, 1, 1, 1, 1, 0.5, 1])


def test_a_mean_over_old_draws_is_one_over_new_draws() -> None:
    """All texts of two tokens: what a distribution at the second is worth, weighed by how likely the first was."""
    old, new, worth = (torch.tensor(values) for values in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [1.0, 5.0, 2.0]))
    by_first = [ratios([float(new[i] / old[i]), 1.0], (0, 3), [0, 1])[1] for i in range(3)]
    assert float((old * torch.tensor(by_first) * worth).sum()) == pytest.approx(float((new * worth).sum()))


def test_old_rollouts_are_weighed_without_a_gradient_through_the_ratio(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, Full(), Supervision(), number=2)
    student = load_model(tiny(seed=1), torch.float64)
    teacher = freeze(load_model(tiny(hidden=48, seed=2), torch.float64))
    settings = LossSettings(kl_weight=1, compiled=False)
    batch = pack([examples[0], examples[1]])
    first = int(torch.searchsorted(batch["positions"], batch["borders"][1]))  # positions of the first example

    def loss(changed: Batch) -> tuple[torch.Tensor, ...]:
        output = batch_loss(student, changed, live_targets(teacher, changed), settings)
        return output.loss_sum, output.weight_sum, torch.autograd.grad(output.loss_sum, head_weight(student))[0]

    logits = load_model(tiny(seed=1), torch.float64, for_training=False)(batch["input_ids"][:, : batch["borders"][1]])
    now = logits.logits[0].log_softmax(-1)[batch["positions"][:first], batch["labels"][:first]].detach()
    old = torch.cat([now, torch.full((len(batch["positions"]) - first,), torch.nan)])
    plain = loss(batch)
    for found, expected in zip(loss({**batch, "drawn_log_probs": old}), plain, strict=True):
        torch.testing.assert_close(found, expected)
    old[2] -= math.log(1.5)  # the third token has become likelier: what follows it in its example counts more
    scaled = batch["weights"].clone()
    scaled[3:first] *= 1.5
    value, weight, gradient = loss({**batch, "drawn_log_probs": old})
    expected_value, _, expected_gradient = loss({**batch, "weights": scaled})
    torch.testing.assert_close((value, weight, gradient), (expected_value, plain[1], expected_gradient))


class CountedProducts(TorchDispatchMode):
    """How many rows each product with the head has."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.out and output.shape[-1] == VOCAB:
            self.rows.append(len(output))
        return output


def test_a_validation_under_policy_gradient_has_the_chunks_of_the_settings(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, Full(), Supervision(), number=1)
    student, batch = load_model(tiny(seed=1), torch.float32), pack([examples[0]])
    settings = LossSettings(kl_weight=1, divergence=PolicyGradient(), stop="tokens", compiled=False, chunk_tokens=4)
    attach_objective(student, settings, None)
    with torch.no_grad(), CountedProducts() as counted:
        student.eval()(batch=batch)
    assert sum(counted.rows) == len(batch["positions"]) and max(counted.rows) == 4
