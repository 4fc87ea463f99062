"""A live teacher: frozen, in eval mode, run beside the student on the same packed rows."""

import torch
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_of, transform_of
from leadspan.teacher.targets import DenseTargets


def freeze(teacher: PreTrainedModel) -> PreTrainedModel:
    """Put a teacher into eval mode without gradients."""
    teacher.eval()
    teacher.requires_grad_(False)
    return teacher


@torch.no_grad()
def live_targets(teacher: PreTrainedModel, batch: Batch) -> DenseTargets:
    """The teacher's targets at the weighted positions of a batch; its logits are never formed here."""
    hidden = final_hidden_states(
        teacher, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
    )
    transform = transform_of(teacher)
    return DenseTargets(hidden, head_of(teacher).weight, transform.scale, transform.cap)
