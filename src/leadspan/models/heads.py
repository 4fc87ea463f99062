"""From hidden states to tokens: the head's weights, what a model does to their product, and draws of tokens."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float, Int
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
    """The head's weights, whole on every rank; a bias is one more column, for which final hidden states have a 1.

    A head that FSDP has sharded is gathered; its gradient is averaged over the ranks and scattered back, as FSDP does
    with the parameters it gathers itself.
    """
    head = head_of(model)
    weight = _full_tensor(head.weight)
    return weight if head.bias is None else torch.cat([weight, _full_tensor(head.bias)[:, None]], dim=1)


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
    scale = math.prod(getattr(config, name, None) or 1.0 for name in _FACTORS)
    scale /= getattr(config, "logits_scaling", None) or 1.0
    caps = (getattr(config, name, None) for name in _CAPS)
    return LogitTransform(float(scale), next((cap for cap in caps if cap is not None), None))


@contextlib.contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Let a CPU multiply float32 matrices as what their values are: numbers of a narrower type.

    Products of bfloat16 numbers are exact in float32 and are summed in it, so nothing is rounded that would not be
    otherwise; with AVX512-BF16 they take half of the time. No operator of PyTorch has narrow factors and a wide result
    on a CPU. Does nothing for another type, or where the processor does not multiply it.
    **Source**: PyTorch, `torch.backends.mkldnn.matmul.fp32_precision`.
    """
    if dtype != torch.bfloat16:
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  # the module is replaced
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


BLOCK = 64
"""Tokens of a block that is looked at as a whole first: a vocabulary of 150,000 is a short list of blocks, and a block
a short list of tokens."""


def in_blocks(values: Float[torch.Tensor, "N V"], filling: float) -> Float[torch.Tensor, "N B BLOCK"]:
    """Rows as blocks of tokens, the last one filled up."""
    missing = -values.shape[1] % BLOCK
    padded = F.pad(values, (0, missing), value=filling) if missing else values  # padding by nothing copies all
    return padded.view(len(values), -1, BLOCK)


def tokens_at(masses: Float[torch.Tensor, "N V"], shares: Float[torch.Tensor, "N n"]) -> Int[torch.Tensor, "N n"]:
    """The tokens under some shares of each cumulative distribution: a uniform share is a draw.

    The cumulative sums are in float64, first over blocks of tokens, then within the blocks that a share falls into. A
    token of mass 0 is under none; of masses that are not finite some token is returned.

    Args:
        masses: Masses of the tokens, up to a factor for each position.
        shares: In [0, 1), float64.
    """
    blocks = in_blocks(masses, 0.0)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    points = shares * ends[:, -1:]
    block = torch.searchsorted(ends, points, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).double().cumsum(-1)
    # Rounding must not push a point past the end of its block.
    rest = torch.minimum((points - before).clamp_(min=0.0), within[:, :, -1] * (1 - 1e-12))
    ids = block * BLOCK + torch.searchsorted(within, rest[:, :, None], right=True)[:, :, 0]
    return ids.clamp_(max=masses.shape[1] - 1)
