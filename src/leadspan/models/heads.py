"""The output head of a causal language model: its weights, and what the model does to their product."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import nn
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from leadspan.errors import ModelError

# Config fields that scale or cap logits: of Cohere and Falcon-H1; of Gemma, RecurrentGemma and xLSTM.
_FACTORS = ("logit_scale", "lm_head_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


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
        ModelError: It is not a linear layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{type(model).__name__}: the output head is {type(head).__name__}, not a linear layer; "
            "leave it out of the adapter's target modules, or use another model"
        )
    return head


def head_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Rows and columns of `head_weight`, which is not formed."""
    rows, columns = head_of(model).weight.shape
    return rows, columns + (head_of(model).bias is not None)


def head_weight(model: PreTrainedModel) -> Float[torch.Tensor, "V d"]:
    """The head's weights, whole on every rank; a bias is one more column, as `with_ones` adds one to hidden states.

    A head that FSDP has sharded is gathered; its gradient is averaged over the ranks and scattered back, as FSDP does
    with the parameters it gathers itself.
    """
    head = head_of(model)
    weight = _full_tensor(head.weight)
    return weight if head.bias is None else torch.cat([weight, _full_tensor(head.bias)[:, None]], dim=1)


def with_ones(model: PreTrainedModel, hidden: Float[torch.Tensor, "m d"]) -> Float[torch.Tensor, "m d"]:
    """Hidden states as `head_weight` takes them: with a 1 appended to each where the head has a bias."""
    if head_of(model).bias is None:
        return hidden
    return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)


def _full_tensor(parameter: torch.Tensor) -> torch.Tensor:
    if not isinstance(parameter, DTensor):
        return parameter
    full = parameter.full_tensor(grad_placements=[Partial() for _ in parameter.placements])
    if full.requires_grad:
        # The gather's backward pass sums gradients over the ranks; FSDP averages them.
        full.register_hook(lambda gradient: gradient / parameter.device_mesh.size())
    return full


def transform_of(model: PreTrainedModel) -> LogitTransform:
    """How a model scales and caps its logits, read from its config."""
    config = model.config.get_text_config()
    scale = 1.0
    for name in _FACTORS:
        scale *= getattr(config, name, None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    caps = (getattr(config, name, None) for name in _CAPS)
    return LogitTransform(float(scale), next((cap for cap in caps if cap is not None), None))
