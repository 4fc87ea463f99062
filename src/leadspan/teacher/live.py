"""A live teacher: frozen, in eval mode, run beside the student on the same packed rows."""

from typing import cast

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.models.forward import final_hidden_states
from leadspan.models.loading import head_of
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
    return DenseTargets(hidden, head_of(teacher).weight)


def teacher_logits(targets: DenseTargets, rows: slice, num_tokens: int | None = None) -> torch.Tensor:
    """Logits of some positions, in float32 or wider: `softcap tanh(scale h W^T / softcap)`.

    Args:
        targets: Hidden states and head.
        rows: Positions.
        num_tokens: Of the first rows of the head only; all when None.
    """
    hidden, head = targets.hidden[rows], targets.head[:num_tokens]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if hidden.is_cuda and hidden.dtype != wide:
        logits = torch.mm(hidden, head.T, out_dtype=wide)
    else:
        logits = hidden.to(wide) @ head.to(wide).T
    if targets.scale != 1.0:
        logits *= targets.scale
    if targets.softcap is not None:
        logits = torch.tanh(logits / targets.softcap) * targets.softcap
    return logits
