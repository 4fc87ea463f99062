"""The objective: weigh, sum, count. The only place where a loss is reduced.

A batch gives a weighted *sum* and a weight *sum*; both are added up over the micro-batches and ranks of an optimiser
step before they are divided. So 1 x 8, 2 x 4 and 8 x 1 examples, any packing and any number of ranks have one gradient.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.data.selection import ScoredSelection
from leadspan.data.supervision import APPENDED, SECTION_NAMES
from leadspan.losses.chunked import RowLosses, chunked_loss
from leadspan.losses.config import LossSettings
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.losses.selection import select
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_weight, transform_of
from leadspan.teacher.targets import Targets

GROUPS = (*SECTION_NAMES, *(f"tenth_{i}" for i in range(10)))
"""Groups of positions in metrics: sections, and tenths of the uncut conversation from 0 to 9."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Loss of one batch.

    Attributes:
        loss_sum: Weighted sum over positions, differentiable.
        weight_sum: Sum of the weights.
        totals: `[len(GROUPS), 2 * len(ROW_COLUMNS)]`, for metrics: per group of positions the unweighted sum of each
            row quantity where it is known, then the number of positions where it is.
    """

    loss_sum: torch.Tensor
    weight_sum: torch.Tensor
    totals: torch.Tensor


def batch_loss(
    student: PreTrainedModel,
    batch: Batch,
    targets: Targets | None,
    settings: LossSettings,
    vocab_size: int | None = None,
    selection: ScoredSelection | None = None,
) -> LossOutput:
    """`sum_i w_i ((1 - l) CE_i + l T^2 D_i)` over the weighted positions of a batch, and `sum_i w_i`.

    An appended end-of-turn token has a hard target only, at its full weight: the teacher would not stop there. With a
    selection both sums are over the selected positions; the metrics are over all weighted ones nevertheless.

    Source: Chen et al., arXiv 2512.21002 (the mix); Hinton et al., arXiv 1503.02531 (the factor `T^2`).
    """
    hidden = final_hidden_states(
        student, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
    )
    weights, sections = batch["weights"], batch["section_ids"]
    share = settings.kl_weight if targets is not None else 0.0
    soft = torch.where(sections == APPENDED, 0.0, share * weights)
    hard, labels, head = weights - soft, batch["labels"], head_weight(student)
    transform = transform_of(student)
    if selection is None:
        loss_sum, rows = chunked_loss(hidden, head, targets, labels, hard, soft, settings, transform, vocab_size)
        return LossOutput(loss_sum, weights.sum(), _totals(rows, sections, batch["tenths"]))
    with torch.no_grad():
        zero = torch.zeros_like(weights)
        _, rows = chunked_loss(hidden, head, targets, labels, zero, zero, settings, transform, vocab_size)
    keep = select(rows, batch, selection)
    kept = None if targets is None else targets.select(keep)
    loss_sum, _ = chunked_loss(
        hidden[keep], head, kept, labels[keep], hard[keep], soft[keep], settings, transform, vocab_size
    )
    return LossOutput(loss_sum, weights[keep].sum(), _totals(rows, sections, batch["tenths"]))


def _totals(rows: RowLosses, sections: torch.Tensor, tenths: torch.Tensor) -> torch.Tensor:
    columns = [getattr(rows, name) for name in ROW_COLUMNS]
    found = torch.stack(columns, dim=1)
    is_known = ~found.isnan()
    values = torch.cat([torch.where(is_known, found, 0.0), is_known.to(found)], dim=1)
    totals = values.new_zeros(len(GROUPS), values.shape[1]).index_add_(0, sections, values)
    own = sections != APPENDED  # an appended token has no place in the uncut conversation
    return totals.index_add_(0, len(SECTION_NAMES) + tenths[own], values[own])


def group_means(totals: torch.Tensor) -> dict[str, float]:
    """`COLUMN/GROUP`, the mean per position of each row quantity over each group that has positions.

    Args:
        totals: As in `LossOutput`, possibly of many batches.
    """
    means: dict[str, float] = {}
    sums, counts = totals.tensor_split(2, dim=1)
    for group, values, numbers in zip(GROUPS, sums.tolist(), counts.tolist(), strict=True):
        for column, value, number in zip(ROW_COLUMNS, values, numbers, strict=True):
            if number:
                means[f"{column}/{group}"] = value / number
    return means
