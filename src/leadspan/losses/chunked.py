"""The mixed loss from hidden states and head weights, one chunk of logits at a time.

Full logits `[N, V]` never exist. Gradients are formed in the forward pass, so that nothing of a chunk is kept: per
chunk the products `z_s = H_s W_s^T`, `z_t = H_t W_t^T`, `dH = dz W_s`, `dW += dz^T H_s`, that is `2 N V (3 d_s + d_t)`
operations in all; one less with a frozen head, one less without a teacher's head. Memory beyond inputs and gradients:
one chunk of logits for each of student and teacher, whatever `N`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch.autograd.function import once_differentiable

from leadspan.losses.dispatch import ChunkRows, chunk_rows
from leadspan.losses.rows import ROW_COLUMNS, RowLosses
from leadspan.losses.settings import LossSettings
from leadspan.models.heads import LogitTransform, products_of
from leadspan.teacher.targets import DenseTargets, Targets

# 64 MiB of logits keep a CPU's cores busy and leave room for the activations; 2048 rows fill a GPU's matrix units, and
# more rows only cost memory.
_CPU_CHUNK_BYTES = 64 << 20
_CUDA_CHUNK_TOKENS = 2048


def chunked_loss(
    hidden: Float[torch.Tensor, "N d_s"],
    head: Float[torch.Tensor, "V d_s"],
    targets: Targets | None,
    labels: Int[torch.Tensor, "N"],
    hard_weights: Float[torch.Tensor, "N"],
    soft_weights: Float[torch.Tensor, "N"],
    settings: LossSettings,
    transform: LogitTransform | None = None,
    vocab_size: int | None = None,
    normaliser: float | Float[torch.Tensor, ""] = 1.0,
    end_ids: tuple[int, ...] = (),
) -> tuple[Float[torch.Tensor, ""], RowLosses]:
    """`sum_i (hard_i CE_i + soft_i T^2 D_i) / normaliser`, logits in float32 or wider.

    Args:
        hidden: Final hidden states of the student at the weighted positions.
        head: The student's output projection.
        targets: The teacher's side; None for cross-entropy only.
        labels: Tokens to predict.
        hard_weights: Weight of the cross-entropy per position.
        soft_weights: Weight of the divergence per position.
        settings: Divergence, temperature, chunk; its `kl_weight` is in the weights already.
        transform: What the student does to its logits; None for nothing.
        vocab_size: Compare the first `vocab_size` entries only (heads padded to different sizes); all when None.
        normaliser: Divides the sum.
        end_ids: Tokens that are one outcome in the divergence; fewer than two are as they are.

    Returns:
        The loss (differentiable once in `hidden` and `head`), and the rows' quantities.

    Raises:
        TargetsError: The targets do not define this divergence, or not at this temperature, or not this outcome.
    """
    # The matrix products here run outside autocast, so the type that autocast would choose is taken by hand.
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if not torch.is_grad_enabled():  # an autograd function sees whether its inputs need a gradient, not the mode
        hidden, head = hidden.detach(), head.detach()
    wide = torch.promote_types(hidden.dtype, torch.float32)
    # Dividing the weights divides loss and gradients at once, before anything is rounded to a narrow type.
    hard, soft = hard_weights.to(wide) / normaliser, soft_weights.to(wide) / normaliser
    num_entries = vocab_size or head.shape[0]
    shape = settings.chunk_tokens or default_chunk(hidden.device, num_entries), num_entries
    rows, multiple = chunk_rows(settings, transform or LogitTransform(), targets, shape, hidden.device, end_ids)
    weights, shape = (hard, soft, settings.temperature), (*shape, multiple)
    value, statistics = _ChunkedLoss.apply(hidden, head, targets, labels, weights, rows, shape)
    return value, RowLosses(*statistics.unbind(1))


def default_chunk(device: torch.device, num_entries: int) -> int:
    """Positions a chunk, for a vocabulary of `num_entries`."""
    if device.type == "cuda":
        return _CUDA_CHUNK_TOKENS
    # 4 bytes a logit; at least 16 rows, however large the vocabulary.
    return max(16, _CPU_CHUNK_BYTES // (4 * num_entries))


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        targets: Targets | None,
        labels: torch.Tensor,
        weights: tuple[torch.Tensor, torch.Tensor, float],
        rows: ChunkRows,
        shape: tuple[int, int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (hard, soft, temperature), (size, num_entries, multiple) = weights, shape
        narrow = head.detach()[:num_entries].to(hidden.dtype)
        weight = _factor(narrow)
        # Sparse targets bring the teacher's probabilities with them; only dense ones need its logits here.
        teacher = (targets.hidden, targets.head) if isinstance(targets, DenseTargets) else None
        teacher_weight = None if teacher is None else _factor(teacher[1][:num_entries].to(teacher[0].dtype))
        # One buffer serves all chunks. It starts at 0 because compiled blocks also read the rows after the last one.
        z_s = hard.new_zeros(-(-min(size, len(labels)) // multiple) * multiple, num_entries)
        z_t = None if teacher is None else torch.zeros_like(z_s)
        # The head's gradient is summed over chunks, hence float32; each row of `d_hidden` is written once.
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_head = hard.new_zeros(head.shape) if ctx.needs_input_grad[1] else None
        statistics = hard.new_empty(len(labels), len(ROW_COLUMNS))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(labels), size):
                part = slice(start, min(start + size, len(labels)))
                length = part.stop - start
                _multiply(hidden[part], weight.T, z_s[:length])
                if teacher is not None and teacher_weight is not None and z_t is not None:
                    _multiply(teacher[0][part], teacher_weight.T, z_t[:length])
                # From here on `z_s` holds the gradient of the logits: the row part overwrites it.
                statistics[part] = rows(z_s, z_t, part, labels[part], hard[part], soft[part])
                dz = z_s[:length]
                if dz.dtype != hidden.dtype:
                    # The teacher's logits are used up, so their memory takes the narrow copy.
                    scratch = None if z_t is None else z_t.view(hidden.dtype)[:length, :num_entries]
                    dz = dz.to(hidden.dtype) if scratch is None else scratch.copy_(dz)
                if d_hidden is not None:
                    torch.mm(dz, narrow, out=d_hidden[part])
                if d_head is not None:
                    _multiply(dz.T, hidden[part], d_head[:num_entries], is_added=True)
        ctx.gradients, ctx.head_dtype = (d_hidden, d_head), head.dtype
        ctx.mark_non_differentiable(statistics)  # metrics; autograd would ask `backward` for their gradient
        weighted = torch.stack([hard, soft * temperature**2], dim=1)
        # Columns 0 and 1 are cross-entropy and divergence; `where`, because a position without weight may have no
        # divergence (NaN).
        return torch.where(weighted == 0, 0.0, weighted * statistics[:, :2]).sum(), statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradients is None:
            raise RuntimeError(
                "a second backward pass through the loss; keep the first one's graph (retain_graph=True)"
            )
        d_total, (d_hidden, d_head) = gradients[0], ctx.gradients
        keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
        if not keeps_graph:  # kept, as by gradcheck: another backward pass needs them
            ctx.gradients = None
        scaled: list[torch.Tensor | None] = []
        for gradient in (d_hidden, d_head):
            if gradient is None:
                scaled.append(None)
                continue
            # The factor is not rounded to a narrow type of the gradient.
            wide = torch.promote_types(gradient.dtype, torch.float32)
            factor = d_total.to(wide)
            if gradient.dtype != wide:
                scaled.append((gradient.to(wide) * factor).to(gradient.dtype))
            else:
                scaled.append(gradient * factor if keeps_graph else gradient.mul_(factor))
        return scaled[0], None if scaled[1] is None else scaled[1].to(ctx.head_dtype), *(None,) * 5


def _factor(weight: torch.Tensor) -> torch.Tensor:
    """A head as a factor of `_multiply`: on the CPU, where no product of narrow types has a wide result, it is wide."""
    return weight if weight.is_cuda else weight.to(torch.promote_types(weight.dtype, torch.float32))


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, is_added: bool = False) -> None:
    """`out = left @ right`, or `out +=` it, in the type of `out`, float32 or wider, however narrow the factors."""
    if left.is_cuda and left.dtype != out.dtype:
        if is_added:
            torch.addmm(out, left, right, out_dtype=out.dtype, out=out)
        else:
            torch.mm(left, right, out_dtype=out.dtype, out=out)
        return
    with products_of(left.dtype):
        left, right = left.to(out.dtype), right.to(out.dtype)
        if is_added:
            out.addmm_(left, right)
        else:
            torch.mm(left, right, out=out)
