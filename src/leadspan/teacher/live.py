"""A live teacher: frozen, in eval mode, run beside the student on the same packed rows."""

import types
from typing import Any

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_weight, transform_of
from leadspan.teacher.targets import DenseTargets


def freeze(teacher: PreTrainedModel) -> PreTrainedModel:
    """Put a teacher into eval mode without gradients, and let its own `forward` take a `batch`.

    Its hidden states must come from `forward`, since sharding wrappers gather weights in the hooks of that call.
    """
    teacher.eval()
    teacher.requires_grad_(False)
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
    hidden = teacher(batch=batch)
    transform = transform_of(teacher)
    return DenseTargets(hidden, head_weight(teacher), transform.scale, transform.cap)
