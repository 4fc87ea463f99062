"""The weighted loss sum and the weight sum of one micro-batch, over all weighted positions or those selected by scores.

`DistillationTrainer.compute_loss` divides the first by the second, once per optimiser step and over all micro-batches
and ranks. So 1 x 8, 2 x 4 and 8 x 1 examples, any packing and any number of ranks have the same gradient.

A selection takes an exact share of every group of positions, with ties decided by order. Its scores come from a first
pass of the loss over the same hidden states, without gradients; the positions that are not selected are left out of the
second. Student and teacher run once.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.data.supervision import APPENDED, SECTION_NAMES, ScoredSelection
from leadspan.data.truncation import kept_tokens
from leadspan.errors import TargetsError
from leadspan.losses.chunked import chunked_loss
from leadspan.losses.rows import ROW_COLUMNS, RowLosses
from leadspan.losses.settings import LossSettings, PolicyGradient
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
        agreement: As in `RowLosses`, of all weighted positions.
    """

    loss_sum: torch.Tensor
    weight_sum: torch.Tensor
    totals: torch.Tensor
    agreement: torch.Tensor


def batch_loss(
    student: PreTrainedModel,
    batch: Batch,
    targets: Targets | None,
    settings: LossSettings,
    vocab_size: int | None = None,
    selection: ScoredSelection | None = None,
    end_ids: tuple[int, ...] = (),
) -> LossOutput:
    """`sum_i w_i ((1 - l) CE_i + l T^2 D_i)` over the weighted positions of a batch, and `sum_i w_i`.

    For rollouts that an earlier student drew, `D_i` is multiplied by `drawn_ratios` as well; the weight sum is not.

    An appended end-of-turn token has a hard target only, at its full weight: the teacher would not stop there. With a
    selection both sums are over the selected positions; the metrics are still over all weighted ones.

    Source: Chen et al., arXiv 2512.21002 (the mix); Hinton et al., arXiv 1503.02531 (the factor `T^2`).
    """
    hidden = final_hidden_states(
        student, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
    )
    weights, sections = batch["weights"], batch["section_ids"]
    # Without a teacher the cross-entropy has all of the weight.
    share = settings.kl_weight if targets is not None else 0.0
    # `hard + soft` is the weight itself, so that the normaliser does not depend on the mix.
    soft = torch.where(sections == APPENDED, 0.0, share * weights)
    hard, labels, head = weights - soft, batch["labels"], head_weight(student)
    options = {"transform": transform_of(student), "vocab_size": vocab_size, "end_ids": end_ids}
    old = batch.get("drawn_log_probs")
    if old is not None:
        # The distribution that was drawn from, which padding of the head need not be part of.
        drawn = options | {"vocab_size": batch.get("drawn_from")}
        now = _row_losses(hidden, head, None, labels, settings, **drawn)
        soft = soft * drawn_ratios(-now.cross_entropy, old, batch, settings)
    if selection is None:
        loss_sum, rows = chunked_loss(hidden, head, targets, labels, hard, soft, settings, **options)
        return LossOutput(loss_sum, weights.sum(), _totals(rows, sections, batch["tenths"]), rows.agreement)
    rows = _row_losses(hidden, head, targets, labels, settings, **options)
    keep = select(rows, batch, selection)
    selected_targets = None if targets is None else targets.select(keep)
    loss_sum, _ = chunked_loss(
        hidden[keep], head, selected_targets, labels[keep], hard[keep], soft[keep], settings, **options
    )
    return LossOutput(loss_sum, weights[keep].sum(), _totals(rows, sections, batch["tenths"]), rows.agreement)


def drawn_ratios(log_probs: torch.Tensor, old: torch.Tensor, batch: Batch, settings: LossSettings) -> torch.Tensor:
    """`min(prod_s q(y_s) / q_old(y_s), cap)` at every weighted position of a batch; 1 where nothing was drawn.

    The product is over the drawn tokens before the position, of which the student's and the teacher's distributions
    there are a function; with `policy_gradient`, whose term is a function of the drawn token too, over that as well.
    Without the cap, means over old draws are those over new ones. No gradient goes through it.

    Source: importance sampling per decision, Precup et al., ICML 2000; cut off above as in Ionides, J. Comput. Graph.
    Stat. 17(2), 2008.

    `old` is NaN of tokens that were not drawn.
    """
    # A token that was not drawn has the ratio 1, so its logarithm is 0.
    ratios = (log_probs.double() - old.double()).nan_to_num(nan=0.0)
    borders = torch.tensor(batch["borders"], device=ratios.device)
    starts = torch.searchsorted(batch["positions"], borders[:-1])  # the first weighted position of each example
    # One running sum over the packed row; what an example began with is subtracted below. float64 keeps that exact
    # enough over thousands of tokens.
    sums = torch.cat([ratios.new_zeros(1), ratios.cumsum(0)])
    example = torch.bucketize(batch["positions"], borders[1:], right=True)
    upto = sums[1:] if isinstance(settings.divergence, PolicyGradient) else sums[:-1]
    # Capped before the exponential, which could overflow.
    return (upto - sums[starts][example]).clamp_max(math.log(settings.ratio_cap)).exp().to(log_probs.dtype)


@torch.no_grad()
def token_losses(model: PreTrainedModel, batch: Batch) -> Float[torch.Tensor, "m"]:  # a dimension name
    """`-log q[label]` at each weighted position of a batch, nats."""
    hidden = final_hidden_states(model, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"])
    settings, transform = LossSettings(kl_weight=0), transform_of(model)
    return _row_losses(hidden, head_weight(model), None, batch["labels"], settings, transform=transform).cross_entropy


@torch.no_grad()
def _row_losses(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: Targets | None,
    labels: torch.Tensor,
    settings: LossSettings,
    **options: Any,  # of `chunked_loss`
) -> RowLosses:
    """The row quantities alone: a pass with weights of 0 needs the heads, and no gradient."""
    zero = hidden.new_zeros(len(labels))
    return chunked_loss(hidden, head, targets, labels, zero, zero, settings, **options)[1]


def _totals(rows: RowLosses, sections: torch.Tensor, tenths: torch.Tensor) -> torch.Tensor:
    # NaN marks what is not known (no teacher, no stored entropy): it counts neither in the sum nor in the number.
    quantities = torch.stack(rows, dim=1)
    is_known = ~quantities.isnan()
    values = torch.cat([torch.where(is_known, quantities, 0.0), is_known.to(quantities)], dim=1)
    totals = values.new_zeros(len(GROUPS), values.shape[1]).index_add_(0, sections, values)
    is_in_trace = sections != APPENDED  # an appended token has no place in the uncut conversation
    return totals.index_add_(0, len(SECTION_NAMES) + tenths[is_in_trace], values[is_in_trace])


def group_means(totals: torch.Tensor) -> dict[str, float]:
    """`COLUMN/GROUP`, the mean per position of each row quantity over each group that has positions.

    `totals` are as in `LossOutput`, possibly of many batches.
    """
    means: dict[str, float] = {}
    sums, counts = totals.tensor_split(2, dim=1)
    for group, values, numbers in zip(GROUPS, sums.tolist(), counts.tolist(), strict=True):
        for column, value, number in zip(ROW_COLUMNS, values, numbers, strict=True):
            if number:
                means[f"{column}/{group}"] = value / number
    return means


def select(rows: RowLosses, batch: Batch, selection: ScoredSelection) -> Bool[torch.Tensor, "m"]:  # a dimension name
    """Which weighted positions of a batch get the loss.

    In every group, the `m` positions of one example and one weight, the `max(1, floor(share * m))` with the highest (or
    lowest) scores; among equal scores the earlier ones. Appended end-of-turn tokens always.

    Raises:
        TargetsError: A score is not a number: the targets do not keep it, or the loss has diverged.
    """
    # All others are named as the quantity that they score by.
    scores = rows.cross_entropy - rows.teacher_nll if selection.kind == "gap" else getattr(rows, selection.kind)
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
