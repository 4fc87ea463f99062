"""A live teacher: frozen, in eval mode, run beside the student on the same packed rows."""

from typing import cast

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import LogitTransform, head_of, transform_of
from leadspan.teacher.targets import DenseTargets


def freeze(teacher: PreTrainedModel, device: torch.device | None = None) -> PreTrainedModel:
    """Put a teacher into eval mode without gradients, and onto a device if one is given."""
    teacher.eval()
    teacher.requires_grad_(False)
    if device is not None:
        cast(torch.nn.Module, teacher).to(device)
    return teacher


@torch.no_grad()
def live_targets(teacher: PreTrainedModel, batch: Batch) -> DenseTargets:
    """The teacher's targets at the weighted positions of a batch; its logits are never formed here."""
    hidden = final_hidden_states(
        teacher, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
    )
    transform = transform_of(teacher)
    return DenseTargets(hidden, head_of(teacher).weight, transform.scale, transform.cap)


def teacher_logits(targets: DenseTargets, rows: slice, num_tokens: int | None = None) -> torch.Tensor:
    """Logits of some positions, in float32 or wider, scaled and capped as the teacher does.

    Args:
        targets: Hidden states and head.
        rows: Positions.
        num_tokens: Of the first rows of the head only; all when None.
    """
    hidden, head = targets.hidden[rows], targets.head[:num_tokens]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if hidden.is_cuda and hidden.dtype != wide:
        product = torch.mm(hidden, head.T, out_dtype=wide)
    else:
        product = hidden.to(wide) @ head.to(wide).T
    return LogitTransform(targets.scale, targets.softcap).logits(product)
