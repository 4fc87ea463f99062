"""The mixed loss from hidden states and head weights, one chunk of logits at a time.

Full logits `[N, V]` never exist. Gradients are formed in the forward pass, so that nothing of a chunk is kept: per
chunk the products `z_s = H_s W_s^T`, `z_t = H_t W_t^T`, `dH = dz W_s`, `dW += dz^T H_s`, that is `2 N V (3 d_s + d_t)`
operations in all. Memory beyond inputs and gradients: a few chunks of logits, whatever `N`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int

from leadspan.losses.divergences import mixed_rows
from leadspan.teacher.targets import DenseTargets

_CPU_CHUNK_BYTES = 32 << 20
_CUDA_CHUNK_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Unweighted losses per position, for metrics; without gradient.

    Attributes:
        cross_entropy: Nats, [N].
        kl: Nats, at the loss's temperature, without `T^2`, [N]; zeros without a teacher.
    """

    cross_entropy: Float[torch.Tensor, "N"]  # a dimension name
    kl: Float[torch.Tensor, "N"]


def chunked_loss(
    hidden: Float[torch.Tensor, "N d_s"],
    head: Float[torch.Tensor, "V d_s"],
    targets: DenseTargets | None,
    labels: Int[torch.Tensor, "N"],
    hard_weights: Float[torch.Tensor, "N"],
    soft_weights: Float[torch.Tensor, "N"],
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    vocab_size: int | None = None,
) -> tuple[Float[torch.Tensor, ""], RowLosses]:
    """`sum_i hard_i CE_i + soft_i T^2 KL_i`, logits in float32 or wider.

    Args:
        hidden: Final hidden states of the student at the weighted positions.
        head: The student's output projection.
        targets: The teacher's side; None for cross-entropy only.
        labels: Tokens to predict.
        hard_weights: Weight of the cross-entropy per position.
        soft_weights: Weight of the KL per position.
        temperature: `T` of the KL.
        chunk_tokens: Positions per chunk; chosen for the device when None.
        vocab_size: Compare the first `vocab_size` entries only (heads padded to different sizes); all when None.

    Returns:
        The weighted sum (differentiable in `hidden` and `head`), and the rows' losses.
    """
    size = chunk_tokens or default_chunk(hidden.device, head.shape[0])
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    total, ce, kl = _ChunkedLoss.apply(
        hidden, head, targets, labels, hard_weights, soft_weights, temperature, size, vocab_size
    )
    return total, RowLosses(ce, kl)


def default_chunk(device: torch.device, num_entries: int) -> int:
    """Positions a chunk, for a vocabulary of `num_entries`."""
    if device.type == "cuda":
        return _CUDA_CHUNK_TOKENS
    return max(16, _CPU_CHUNK_BYTES // (4 * num_entries))


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: DenseTargets | None,
        labels: torch.Tensor,
        hard: torch.Tensor,
        soft: torch.Tensor,
        temperature: float,
        size: int,
        vocab_size: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        hard, soft = hard.to(wide), soft.to(wide)
        rows = head.detach()[:vocab_size].to(hidden.dtype)
        teacher_rows = None if targets is None else targets.head[:vocab_size]
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_head = torch.zeros(head.shape, dtype=wide, device=head.device) if ctx.needs_input_grad[1] else None
        ce, kl = torch.empty_like(hard), torch.zeros_like(hard)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), size):
                part = slice(start, start + size)
                z_t = None if targets is None else _product(targets.hidden[part], teacher_rows.T)  # pyright: ignore[reportOptionalMemberAccess]  # set with targets
                ce[part], kl_part, dz = mixed_rows(
                    _product(hidden[part], rows.T), z_t, labels[part], hard[part], soft[part], temperature
                )
                if kl_part is not None:
                    kl[part] = kl_part
                narrow = dz.to(hidden.dtype)
                if d_hidden is not None:
                    d_hidden[part] = narrow @ rows
                if d_head is not None:
                    _accumulate(d_head[: rows.shape[0]], narrow.T, hidden[part])
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(ce, kl)
        return torch.dot(hard, ce) + temperature**2 * torch.dot(soft, kl), ce, kl

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_total = gradients[0]
        d_hidden, d_head = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * d_total.to(d_hidden.dtype),
            None if d_head is None else (d_head * d_total).to(ctx.head_dtype),
            *(None,) * 7,
        )


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix product with the result in float32 or wider, however narrow the factors."""
    wide = torch.promote_types(left.dtype, torch.float32)
    if left.dtype == wide:
        return left @ right.to(wide)
    if left.is_cuda:
        return torch.mm(left, right.to(left.dtype), out_dtype=wide)
    return left.to(wide) @ right.to(wide)


def _accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """`total += left @ right`, without rounding the product below the type of `total`."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += _product(left, right)
