"""The objective: weigh, sum, count. The only place where a loss is reduced.

A batch gives a weighted *sum* and a weight *sum*; both are added up over the micro-batches and ranks of an optimiser
step before they are divided. So 1 x 8, 2 x 4 and 8 x 1 examples, any packing and any number of ranks have one gradient.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.data.supervision import APPENDED, SECTION_NAMES
from leadspan.losses.chunked import RowLosses, chunked_loss
from leadspan.losses.config import LossSettings
from leadspan.models.forward import final_hidden_states
from leadspan.models.loading import head_of
from leadspan.teacher.targets import DenseTargets


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Loss of one batch.

    Attributes:
        loss_sum: Weighted sum over positions, differentiable.
        weight_sum: Sum of the weights.
        totals: `[len(SECTION_NAMES), 3]`: per section the number of positions and the unweighted sums of
            cross-entropy and KL, for metrics.
    """

    loss_sum: torch.Tensor
    weight_sum: torch.Tensor
    totals: torch.Tensor


def batch_loss(
    student: PreTrainedModel,
    batch: Batch,
    targets: DenseTargets | None,
    settings: LossSettings,
    vocab_size: int | None = None,
) -> LossOutput:
    """`sum_i w_i ((1 - l) CE_i + l T^2 KL_i)` over the weighted positions of a batch, and `sum_i w_i`.

    An appended end-of-turn token has a hard target only, at its full weight: the teacher would not stop there.

    Source: Chen et al., arXiv 2512.21002 (the mix); Hinton et al., arXiv 1503.02531 (the factor `T^2`).
    """
    hidden = final_hidden_states(
        student, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
    )
    weights, sections = batch["weights"], batch["section_ids"]
    share = settings.kl_weight if targets is not None else 0.0
    soft = torch.where(sections == APPENDED, 0.0, share * weights)
    loss_sum, rows = chunked_loss(
        hidden,
        head_of(student).weight,
        targets,
        batch["labels"],
        weights - soft,
        soft,
        settings.temperature,
        settings.chunk_tokens,
        vocab_size,
    )
    return LossOutput(loss_sum, weights.sum(), _section_totals(rows, sections))


def _section_totals(rows: RowLosses, sections: torch.Tensor) -> torch.Tensor:
    values = torch.stack([torch.ones_like(rows.kl), rows.cross_entropy, rows.kl], dim=1)
    totals = torch.zeros(len(SECTION_NAMES), 3, dtype=values.dtype, device=values.device)
    return totals.index_add_(0, sections, values)
