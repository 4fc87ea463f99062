"""What the student imitates at the weighted positions of a batch, wherever it comes from, and the live teacher's.

A live teacher is frozen, in eval mode, and runs in the training process on the same packed rows as the student.
"""

import types
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from transformers import PreTrainedModel

from leadspan.data.packing import Batch
from leadspan.errors import TargetsError
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import LogitTransform, head_weight, products_of, transform_of

_AS_IT_IS = LogitTransform()


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """The teacher's full distribution, as final hidden states and its head: `z_t = hidden @ head.T`.

    Attributes:
        hidden: Final hidden states at the weighted positions, [m, d_t].
        head: Output projection, [V_t, d_t].
        transform: What the model does to the product.
    """

    hidden: Float[torch.Tensor, "m d_t"]
    head: Float[torch.Tensor, "V_t d_t"]
    transform: LogitTransform = _AS_IT_IS

    def select(self, keep: Bool[torch.Tensor, "m"]) -> "DenseTargets":
        """The targets at some of the positions."""
        return replace(self, hidden=self.hidden[keep])


@dataclass(frozen=True, slots=True)
class SparseTargets:
    """The teacher's distribution on a support of at most `k` tokens per position.

    Two kinds. Without `sample_weights` the support is the head of the distribution (top-k or top-p), and all other
    tokens are one bucket, the tail, of mass `1 - sum_K p`. With `sample_weights` the support was drawn, and
    `E[sum_i w_i f(token_i)] = sum_j p_j f(j)` for any `f` (Anshumann et al., arXiv 2503.16870, section 4).

    Attributes:
        token_ids: The support, [m, k]; distinct within a row. Unused slots hold any id, with log-probability -inf.
        log_probs: The teacher's `log p` at temperature 1 over its full vocabulary, [m, k]; -inf in unused slots.
        logsumexp: `logsumexp(z_t / T)` per position by temperature, [m] each. 1.0 is always there; `T` other than 1
            needs its own: `log p_T = (log p_1 + logsumexp_1) / T - logsumexp_T`.
        sample_weights: Importance weights of a drawn support at temperature 1, [m, k]; 0 in unused slots.
        tail_mass: Mass of the tail, [m], by temperature, where it was kept. `1 - sum_K p` in float32 resolves no tail
            below 1e-7, which matters to a divergence that needs `log p` of the tail.
        entropy: The teacher's entropy at temperature 1, [m], for metrics; None where it was not kept.
        label_log_probs: The teacher's `log p` of the token that follows, [m], for metrics; None where it was not kept.
    """

    token_ids: Int[torch.Tensor, "m k"]
    log_probs: Float[torch.Tensor, "m k"]
    logsumexp: dict[float, Float[torch.Tensor, "m"]]  # a dimension name
    sample_weights: Float[torch.Tensor, "m k"] | None = None
    tail_mass: dict[float, Float[torch.Tensor, "m"]] = field(default_factory=dict)
    entropy: Float[torch.Tensor, "m"] | None = None  # a dimension name
    label_log_probs: Float[torch.Tensor, "m"] | None = None  # a dimension name

    def select(self, keep: Bool[torch.Tensor, "m"]) -> "SparseTargets":
        """The targets at some of the positions."""

        def selected(values: Any) -> Any:
            if isinstance(values, dict):
                return {temperature: of_one[keep] for temperature, of_one in values.items()}
            return None if values is None else values[keep]

        return SparseTargets(*(selected(getattr(self, column.name)) for column in fields(self)))

    def tempered(self, temperature: float) -> Float[torch.Tensor, "m k"]:
        """`log p` of the support at a temperature.

        Where the tail's mass at that temperature was kept, each row is shifted by a constant so that the mass of its
        support is what the tail leaves: log-probabilities that were rounded add up to 1 with it.

        Raises:
            TargetsError: The normaliser of this temperature was not kept.
        """
        if temperature == 1.0:
            return self.log_probs
        if temperature not in self.logsumexp:
            temperatures = ", ".join(f"{t:g}" for t in sorted(self.logsumexp))
            raise TargetsError(
                f"loss.temperature is {temperature:g}, and the sparse targets keep the normaliser of {temperatures} "
                "only; capture them with this temperature too, or train at one of these"
            )
        shift = self.logsumexp[1.0] / temperature - self.logsumexp[temperature]
        log_probs = self.log_probs / temperature + shift[:, None]
        # A drawn support is not a set of outcomes: its mass need not be that of the head.
        if self.sample_weights is not None or temperature not in self.tail_mass:
            return log_probs
        target_mass, inside = 1 - self.tail_mass[temperature].double(), log_probs.double().exp().sum(-1)
        has_mass = (target_mass > 0) & (inside > 0)
        # Clamped, so that the logarithm is finite in the branch that `where` does not take.
        correction = torch.where(has_mass, (target_mass / inside).clamp_min(1e-300).log(), 0.0)
        return (log_probs + correction.to(log_probs.dtype)[:, None]).clamp_max(0.0)


Targets = DenseTargets | SparseTargets


def freeze(teacher: PreTrainedModel, device: torch.device | None = None) -> PreTrainedModel:
    """Put a teacher into eval mode without gradients, and let its own `forward` take a `batch`.

    Its hidden states must come from `forward`, since sharding wrappers gather weights in the hooks of that call.
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
    """The targets of a frozen teacher, sharded or not, at the weighted positions of a batch; no logits are formed."""
    # Called, not `teacher.forward`: FSDP gathers weights in the hooks of the call.
    hidden, head = teacher(batch=batch), head_weight(teacher)
    return DenseTargets(hidden.to(head.dtype), head, transform_of(teacher))  # accelerate widens outputs


def teacher_logits(targets: DenseTargets, rows: slice, num_tokens: int | None = None) -> torch.Tensor:
    """Logits of some positions, in float32 or wider, scaled and capped as the teacher does.

    With `num_tokens`, of the first rows of the head only.
    """
    hidden, head = targets.hidden[rows], targets.head[:num_tokens]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if hidden.is_cuda and hidden.dtype != wide:
        product = torch.mm(hidden, head.T, out_dtype=wide)
    else:
        with products_of(torch.promote_types(hidden.dtype, head.dtype)):
            product = hidden.to(wide) @ head.to(wide).T
    return targets.transform.logits(product)
