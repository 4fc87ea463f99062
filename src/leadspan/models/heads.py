"""The output head of a causal language model: its weights, and what the model does to their product."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import nn
from transformers import PreTrainedModel

from leadspan.errors import ModelError


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does to the product of hidden states and head: `z <- cap tanh(scale z / cap)`.

    Attributes:
        scale: Factor on the product (`logit_scale` of Cohere, `1 / logits_scaling` of Granite).
        cap: Bound of the logits (`final_logit_softcapping` of Gemma 2), or None for none.
    """

    scale: float = 1.0
    cap: float | None = None

    def logits(self, product: Float[torch.Tensor, "..."]) -> Float[torch.Tensor, "..."]:
        """The model's logits."""
        scaled = product if self.scale == 1.0 else product * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)

    def chain(
        self, gradient: Float[torch.Tensor, "..."], logits: Float[torch.Tensor, "..."]
    ) -> Float[torch.Tensor, "..."]:
        """Gradient with respect to the product: `scale (1 - (z / cap)^2)` times that of the logits `z`."""
        scaled = gradient if self.scale == 1.0 else gradient * self.scale
        return scaled if self.cap is None else scaled * (1 - (logits / self.cap) ** 2)


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The projection to the vocabulary.

    Raises:
        ModelError: It is no linear layer, or has a bias.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError(
            f"{type(model).__name__}: the output head is {type(head).__name__}, not a linear layer without bias; "
            "leave it out of the adapter's target modules, or use another model"
        )
    return head


def transform_of(model: PreTrainedModel) -> LogitTransform:
    """How a model scales and caps its logits, read from its config."""
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(float(scale), getattr(config, "final_logit_softcapping", None))
