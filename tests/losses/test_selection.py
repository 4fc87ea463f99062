import itertools
import math
from pathlib import Path

import pytest
import torch

from leadspan.data.packing import pack
from leadspan.data.supervision import (
    APPENDED,
    ByDivergence,
    ByGap,
    ByStudentEntropy,
    ByTeacherEntropy,
    ScoredSelection,
    Supervision,
)
from leadspan.data.truncation import Lead
from leadspan.errors import TargetsError
from leadspan.losses.chunked import RowLosses
from leadspan.losses.objective import batch_loss, select, selected_weight
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.teacher.targets import freeze, live_targets
from toys import tiny, toy_examples

SUPERVISION = Supervision(prompt=0, cot=1, answer=2)
KINDS = [ByStudentEntropy, ByTeacherEntropy, ByGap, ByDivergence]


def toy_batch(tmp_path: Path, number: int = 3):
    examples, _ = toy_examples(tmp_path, Lead(p=0.95, stop="append_eos"), SUPERVISION, number=number)
    return pack([examples[i] for i in range(number)])


def rows_of(scores: torch.Tensor) -> RowLosses:
    return RowLosses(*([scores] * 6))


def by_hand(scores: list[float], batch, share: float, highest: bool) -> list[bool]:
    """Group by example and weight with plain loops; ties go to the earlier position."""
    keep = [section == APPENDED for section in batch["section_ids"].tolist()]
    for start, end in itertools.pairwise(batch["borders"]):
        own = [i for i, at in enumerate(batch["positions"].tolist()) if start <= at < end and not keep[i]]
        for weight in {batch["weights"][i].item() for i in own}:
            group = [i for i in own if batch["weights"][i].item() == weight]
            ranked = sorted(group, key=lambda i: (-scores[i] if highest else scores[i], i))
            for i in ranked[: max(1, math.floor(share * len(group)))]:
                keep[i] = True
    return keep


@pytest.mark.parametrize("keep", ["highest", "lowest"])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_the_share_of_every_example_and_weight_is_exact_and_ties_too(tmp_path: Path, share: float, keep: str) -> None:
    batch = toy_batch(tmp_path)
    number = len(batch["labels"])
    generator = torch.Generator().manual_seed(0)
    for scores in (
        torch.rand(number, generator=generator),
        torch.randint(0, 3, (number,), generator=generator).float(),  # many ties
        torch.zeros(number),
    ):
        selection = ByStudentEntropy.model_validate({"share": share, "keep": keep})
        found = select(rows_of(scores), batch, selection)
        assert found.tolist() == by_hand(scores.tolist(), batch, share, keep == "highest")
        assert selected_weight(batch, share).item() == batch["weights"][found].sum().item()


def test_the_number_selected_is_what_the_layout_counts(tmp_path: Path) -> None:
    selecting = SUPERVISION.model_copy(update={"token_selection": ByGap(share=0.3)})
    examples, _ = toy_examples(tmp_path, Lead(p=0.95, stop="append_eos"), selecting)
    for i in range(len(examples)):
        batch = pack([examples[i]])
        found = select(rows_of(torch.rand(len(batch["labels"]))), batch, ByGap(share=0.3))
        assert int(found.sum()) == examples.layouts[i].num_weighted


@pytest.mark.parametrize(("share", "number", "selected"), [(0.7, 10_600, 7_420), (0.29, 100, 29), (0.57, 100, 57)])
def test_the_share_is_exact_for_the_decimal_that_was_written(
    tmp_path: Path, share: float, number: int, selected: int
) -> None:
    assert math.floor(share * number) == selected - 1  # what the binary product gives
    batch = toy_batch(tmp_path, 1)
    batch |= {
        "borders": [0, number],
        "positions": torch.arange(number),
        "weights": torch.ones(number),
        "section_ids": torch.ones(number, dtype=torch.int8),
    }
    assert int(select(rows_of(torch.rand(number)), batch, ByGap(share=share)).sum()) == selected
    assert selected_weight(batch, share).item() == selected


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_the_selected_positions(tmp_path: Path, kind: type[ScoredSelection]) -> None:
    batch, settings = toy_batch(tmp_path), LossSettings(kl_weight=0.3)
    selection = kind(share=0.25)
    student = load_model(tiny(seed=1), torch.float64)
    teacher = freeze(load_model(tiny(hidden=48, seed=2), torch.float64))
    targets = live_targets(teacher, batch)
    output = batch_loss(student, batch, targets, settings, selection=selection)
    output.loss_sum.backward()

    plain = load_model(tiny(seed=1), torch.float64, for_training=False)
    plain_teacher = freeze(load_model(tiny(hidden=48, seed=2), torch.float64, for_training=False))
    ids, borders = batch["input_ids"], batch["borders"]
    q, p = [], []
    for start, end in itertools.pairwise(borders):  # example by example through the plain models
        q.append(plain(ids[:, start:end]).logits[0].log_softmax(-1))
        p.append(plain_teacher(ids[:, start:end]).logits[0].log_softmax(-1))
    log_q, log_p = torch.cat(q)[batch["positions"]], torch.cat(p)[batch["positions"]]
    labels = batch["labels"][:, None]
    nll, teacher_nll = -log_q.gather(1, labels)[:, 0], -log_p.gather(1, labels)[:, 0]
    kl = (log_p.exp() * (log_p - log_q)).sum(1)
    scores = {
        ByStudentEntropy: -(log_q.exp() * log_q).sum(1),
        ByTeacherEntropy: -(log_p.exp() * log_p).sum(1),
        ByGap: nll - teacher_nll,
        ByDivergence: kl,
    }[kind]
    keep = torch.tensor(by_hand(scores.tolist(), batch, 0.25, highest=True))
    soft = torch.where(batch["section_ids"] == APPENDED, 0.0, 0.3 * batch["weights"])
    expected = ((batch["weights"] - soft) * nll + soft * kl)[keep].sum()
    expected.backward()
    torch.testing.assert_close(output.loss_sum, expected, rtol=1e-6, atol=1e-6)
    assert output.weight_sum.item() == batch["weights"][keep].sum().item() == selected_weight(batch, 0.25).item()
    for found, expected_in in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected_in.grad, rtol=1e-5, atol=1e-8)


def test_packing_does_not_change_the_selection(tmp_path: Path) -> None:
    examples, _ = toy_examples(tmp_path, Lead(p=0.95), SUPERVISION, number=4)
    student = load_model(tiny(seed=1), torch.float64)
    teacher = freeze(load_model(tiny(hidden=48, seed=2), torch.float64))

    def sums(batches: list[list[int]]) -> torch.Tensor:
        outputs = []
        for indices in batches:
            batch = pack([examples[i] for i in indices])
            targets = live_targets(teacher, batch)
            output = batch_loss(student, batch, targets, LossSettings(), selection=ByGap(share=0.2))
            outputs.append(torch.stack([output.loss_sum.detach(), output.weight_sum.double()]))
        return torch.stack(outputs).sum(0)

    torch.testing.assert_close(sums([[0, 1, 2, 3]]), sums([[3], [1, 0], [2]]), rtol=1e-7, atol=1e-7)


def test_an_unknown_score_is_refused(tmp_path: Path) -> None:
    batch = toy_batch(tmp_path)
    scores = torch.full((len(batch["labels"]),), math.nan)
    with pytest.raises(TargetsError, match=r"teacher_entropy of a position is not known"):
        select(rows_of(scores), batch, ByTeacherEntropy(share=0.5))
