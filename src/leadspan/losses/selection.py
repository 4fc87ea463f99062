"""Token selection by scores of the models: an exact share of every group of positions, with ties decided by order.

The scores come from a first pass of the loss over the same hidden states, without gradients; the positions that are not
selected are left out of the second. Student and teacher run once.
"""

from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int

from leadspan.data.packing import Batch
from leadspan.data.supervision import APPENDED, ByDivergence, ByGap, ByStudentEntropy, ByTeacherEntropy, ScoredSelection
from leadspan.data.truncation import kept_tokens
from leadspan.errors import TargetsError
from leadspan.losses.chunked import RowLosses


def select(rows: RowLosses, batch: Batch, selection: ScoredSelection) -> Bool[torch.Tensor, "m"]:  # a dimension name
    """Which weighted positions of a batch get the loss.

    In every group, the `m` positions of one example and one weight, the `max(1, floor(share * m))` with the highest (or
    lowest) scores; among equal scores the earlier ones. Appended end-of-turn tokens always.

    Args:
        rows: Losses of the weighted positions.
        batch: The batch they belong to.
        selection: Score, share, and which end of the scores.

    Raises:
        TargetsError: A score is not a number: the targets do not keep it, or the loss has diverged.
    """
    scores = _scores(rows, selection)
    if (torch.isnan(scores) & (batch["section_ids"] != APPENDED)).any():
        raise TargetsError(
            f"supervision.token_selection: the {selection.kind} of a position is not known; the targets must keep it, "
            "and the loss must be finite"
        )
    # Two stable sorts give a sort by (group, score, position) without a key that would round.
    groups, quotas = _groups(batch, selection.share)
    order = torch.argsort(scores, descending=selection.keep == "highest", stable=True)
    order = order[torch.argsort(groups[order], stable=True)]  # by group, then by score, then by position
    sizes = torch.bincount(groups, minlength=len(quotas))
    starts = sizes.cumsum(0) - sizes
    ranks = torch.arange(len(order), device=order.device) - starts[groups[order]]
    selected = torch.empty_like(groups, dtype=torch.bool)
    selected[order] = ranks < quotas[groups[order]]
    return selected


def selected_weight(batch: Batch, share: float) -> Float[torch.Tensor, ""]:
    """Sum of the weights that a selection of this share leaves, known before any model has run."""
    groups, quotas = _groups(batch, share)
    weights = torch.zeros(len(quotas), dtype=batch["weights"].dtype, device=groups.device)
    weights[groups] = batch["weights"]  # one weight in a group
    return (weights * quotas).sum()


def _groups(batch: Batch, share: float) -> tuple[Int[torch.Tensor, "m"], Int[torch.Tensor, "g"]]:
    """Group of every weighted position, and how many of each group are selected."""
    borders = torch.tensor(batch["borders"][1:], device=batch["positions"].device)
    example = torch.bucketize(batch["positions"], borders, right=True)
    is_appended = batch["section_ids"] == APPENDED
    # float64 holds an example's number, a float32 weight and the mark exactly, so that equal groups are equal rows.
    keys = torch.stack([example.double(), batch["weights"].double(), is_appended.double()], dim=1)
    group_keys, groups, sizes = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    # by the exact rule of the cuts, so that planned and trained counts agree
    quotas = torch.tensor([kept_tokens(share, size) for size in sizes.tolist()], device=sizes.device)
    return groups, torch.where(group_keys[:, 2] > 0, sizes, quotas)


def _scores(rows: RowLosses, selection: ScoredSelection) -> Float[torch.Tensor, "m"]:
    match selection:
        case ByStudentEntropy():
            return rows.student_entropy
        case ByTeacherEntropy():
            return rows.teacher_entropy
        case ByGap():
            return rows.cross_entropy - rows.teacher_nll
        case ByDivergence():
            return rows.divergence
        case _:
            assert_never(selection)
