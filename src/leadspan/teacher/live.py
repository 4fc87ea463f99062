"""A live teacher: frozen, in eval mode, run in the training process on the same packed rows as the student."""

import types
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import LogitTransform, head_weight, transform_of
from leadspan.models.precision import products_of
from leadspan.teacher.targets import DenseTargets


def freeze(teacher: PreTrainedModel, device: torch.device | None = None) -> PreTrainedModel:
    """Put a teacher into eval mode without gradients, and let its own `forward` take a `batch`.

    Its hidden states must come from `forward`, since sharding wrappers gather weights in the hooks of that call.

    Args:
        teacher: The model.
        device: Move it there, if given.
    """
    # Dropout off, no gradients: the same input gives the same targets in every epoch.
    teacher.eval()
    teacher.requires_grad_(False)
    if device is not None and teacher.device != device:  # weights of bitsandbytes are there already, and stay
        cast(torch.nn.Module, teacher).to(device)
    plain_forward = teacher.forward

    def forward(self: PreTrainedModel, *args: Any, batch: Batch | None = None, **kwargs: Any) -> Any:
        if batch is None:
            return plain_forward(*args, **kwargs)
        return final_hidden_states(
            self, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
        )

    teacher.forward = types.MethodType(forward, teacher)
    return teacher


@torch.no_grad()
def live_targets(teacher: PreTrainedModel, batch: Batch) -> DenseTargets:
    """The teacher's targets at the weighted positions of a batch; its logits are never formed here.

    Args:
        teacher: A frozen teacher (`freeze`), as it is or sharded.
        batch: A packed row.
    """
    # Called, not `teacher.forward`: FSDP gathers weights in the hooks of the call.
    hidden = teacher(batch=batch)
    transform = transform_of(teacher)
    head = head_weight(teacher)
    return DenseTargets(hidden.to(head.dtype), head, transform.scale, transform.cap)  # accelerate widens outputs


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
        with products_of(torch.promote_types(hidden.dtype, head.dtype)):
            product = hidden.to(wide) @ head.to(wide).T
    return LogitTransform(targets.scale, targets.softcap).logits(product)
