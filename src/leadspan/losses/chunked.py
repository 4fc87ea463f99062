"""The mixed loss from hidden states and head weights, one chunk of logits at a time.

Full logits `[N, V]` never exist. Gradients are formed in the forward pass, so that nothing of a chunk is kept: per
chunk the products `z_s = H_s W_s^T`, `z_t = H_t W_t^T`, `dH = dz W_s`, `dW += dz^T H_s`, that is `2 N V (3 d_s + d_t)`
operations in all; one less with a frozen head, one less without a teacher's head. Memory beyond inputs and gradients:
one chunk of logits for each of student and teacher, whatever `N`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.utils.import_utils import is_triton_available

from leadspan.errors import TargetsError
from leadspan.losses.rows import ROW_COLUMNS, Blocks, RowLosses, at_labels, dense_rows, sparse_rows, token_rows
from leadspan.losses.settings import LossSettings, PolicyGradient, check_defined, needs_probabilities
from leadspan.models.heads import LogitTransform, products_of
from leadspan.teacher.targets import DenseTargets, SparseTargets, Targets

# 64 MiB of logits keep a CPU's cores busy and leave room for the activations; 2048 rows fill a GPU's matrix units, and
# more rows only cost memory.
_CPU_CHUNK_BYTES = 64 << 20
_CUDA_CHUNK_TOKENS = 2048
ChunkRows = Callable[..., Tensor]
"""From `z_s`, `z_t`, the positions of a chunk among all, its labels, hard and soft weights [n] to statistics [n, ..].

`z_s` and, with dense targets, `z_t` are buffers of a whole chunk with the raw logits of student and teacher. The first
`n` rows of `z_s` are overwritten by their gradient; what follows them is scratch.
"""


def chunked_loss(
    hidden: Float[Tensor, "N d_s"],
    head: Float[Tensor, "V d_s"],
    targets: Targets | None,
    labels: Int[Tensor, "N"],
    hard_weights: Float[Tensor, "N"],
    soft_weights: Float[Tensor, "N"],
    settings: LossSettings,
    transform: LogitTransform | None = None,
    vocab_size: int | None = None,
    normaliser: float | Float[Tensor, ""] = 1.0,
    end_ids: tuple[int, ...] = (),
) -> tuple[Float[Tensor, ""], RowLosses]:
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
    size = settings.chunk_tokens or default_chunk(hidden.device, num_entries)
    blocks = Blocks(settings.compiled, size, num_entries, hidden.device)
    rows, multiple = _chunk_rows(settings, transform or LogitTransform(), targets, blocks, hidden.device, end_ids)
    weights, shape = (hard, soft, settings.temperature), (size, num_entries, multiple)
    value, statistics = _ChunkedLoss.apply(hidden, head, targets, labels, weights, rows, shape)
    return value, RowLosses(*statistics.unbind(1))


def default_chunk(device: torch.device, num_entries: int) -> int:
    """Positions a chunk, for a vocabulary of `num_entries`."""
    if device.type == "cuda":
        return _CUDA_CHUNK_TOKENS
    # 4 bytes a logit; at least 16 rows, however large the vocabulary.
    return max(16, _CPU_CHUNK_BYTES // (4 * num_entries))


def _chunk_rows(
    settings: LossSettings,
    transform: LogitTransform,
    targets: Targets | None,
    blocks: Blocks,
    device: torch.device,
    end_ids: tuple[int, ...],
) -> tuple[ChunkRows, int]:
    """The row part of a loss, by the kind of the teacher's targets and by what the device offers.

    Also returns the number of which the rows of its buffers must be a multiple.
    """
    ends = end_ids if len(end_ids) > 1 else ()
    if targets is None:
        part = blocks(token_rows, transform)
        return lambda z_s, z_t, at, *per_row: part((z_s,), per_row), blocks.multiple
    is_drawn = isinstance(settings.divergence, PolicyGradient)
    if is_drawn and ends:
        raise TargetsError("divergence policy_gradient knows the probability of one token: set loss.stop: tokens")
    if isinstance(targets, SparseTargets):
        if not is_drawn:
            return _support_rows(blocks, settings, transform, targets, ends), blocks.multiple
        if (log_probs := targets.label_log_probs) is None:
            raise TargetsError(
                "loss.divergence is policy_gradient, and the targets keep no probability of the tokens drawn"
            )
        part = blocks(token_rows, transform)
        return lambda z_s, z_t, at, *per_row: part((z_s,), (*per_row, log_probs[at].to(z_s.dtype))), blocks.multiple
    of_teacher = targets.transform
    if is_drawn:
        part = blocks(token_rows, transform)

        def rows(z_s: Tensor, z_t: Tensor, at: slice, labels: Tensor, *weights: Tensor) -> Tensor:
            log_p = of_teacher.logits(z_t[: len(labels)]).log_softmax(-1)
            return part((z_s,), (labels, *weights, at_labels(log_p, labels)))

        return rows, blocks.multiple
    # Triton's kernel is a compiled row part too. It walks each row by itself and needs no scratch, so the whole chunk
    # is one block.
    if device.type == "cuda" and settings.compiled is not False and is_triton_available() and not ends:
        from leadspan.losses.triton_rows import KERNEL_DIVERGENCES, triton_dense_rows  # needs Triton

        if settings.divergence.kind in KERNEL_DIVERGENCES:
            kernel = triton_dense_rows(transform, of_teacher, settings.divergence.kind, settings.temperature)
            return lambda z_s, z_t, at, *per_row: kernel(z_s[: len(per_row[0])], z_t, *per_row), 1
    part = blocks(dense_rows, transform, of_teacher, settings.divergence, settings.temperature, ends)
    return lambda z_s, z_t, at, *per_row: part((z_s, z_t), per_row), blocks.multiple


def _support_rows(
    blocks: Blocks, settings: LossSettings, transform: LogitTransform, targets: SparseTargets, ends: tuple[int, ...]
) -> ChunkRows:
    """A support of a few tokens: its logits are taken out, compared, and replaced by their gradient."""
    temperature, weights = settings.temperature, targets.sample_weights
    check_defined(weights is not None, targets.tail_mass, settings.divergence, temperature)
    if weights is not None and ends:
        raise TargetsError(needs_probabilities("the store"))
    token_ids, log_probs, likeliest = targets.token_ids, targets.tempered(temperature), None
    if weights is None:
        # Before the ends are set apart: the likeliest token may be one of them.
        likeliest = token_ids.gather(1, log_probs.argmax(-1, keepdim=True))
        mass = targets.tail_mass.get(temperature)
        if mass is None:
            # Rounded log-probabilities may sum to above 1.
            mass = (1 - log_probs.double().exp().sum(-1)).clamp_min(0).to(log_probs.dtype)
        if ends:
            token_ids, log_probs, mass = ends_apart(token_ids, log_probs, mass, ends)
        part = blocks(sparse_rows, transform, temperature, settings.divergence, len(ends))
    else:
        mass = weights
        if temperature != 1.0:
            # Drawn at temperature 1 and used at another: importance weights p_T / p_1 keep the estimate unbiased.
            mass = torch.where(mass == 0, 0.0, mass * (log_probs - targets.log_probs).exp())
        part = blocks(sparse_rows, transform, temperature, None)

    def rows(z_s: Tensor, z_t: Tensor, at: slice, labels: Tensor, hard: Tensor, soft: Tensor) -> Tensor:
        z, log_p = z_s[: len(labels)], log_probs[at].to(z_s.dtype)
        label_logits = at_labels(z, labels)
        per_row = [log_p, mass[at].to(z.dtype), label_logits, hard, soft]
        if likeliest is not None:
            per_row.append(z.gather(1, likeliest[at]))
        is_used = log_p > -torch.inf
        # An unused slot points to a used token of its row, if there is one, so that -inf put there a second time
        # changes nothing. In a row of which all is tail every slot points to the same token, and puts it back.
        ids = token_ids[at]
        ids = torch.where(is_used, ids, ids.gather(1, is_used.int().argmax(1, keepdim=True)))
        support = z.gather(1, ids)
        z.scatter_(1, ids, torch.where(is_used.any(1, keepdim=True), -torch.inf, support))
        # Compiled blocks read whole blocks of every buffer, the support's rows included.
        support = F.pad(support, (0, 0, 0, len(z_s) - len(z)))
        statistics = part((z_s, support), per_row)
        # The label may lie in the support or in the tail, so its part of the gradient is added after both are back.
        onehot = transform.chain(-hard, transform.logits(label_logits))
        z.scatter_add_(1, ids, support[: len(z)]).scatter_add_(1, labels[:, None], onehot[:, None])
        if targets.entropy is not None:
            # Column 3 of ROW_COLUMNS, the teacher's entropy: a support alone does not give it.
            statistics[:, 3] = targets.entropy[at]
        if targets.label_log_probs is not None:
            # Column 5, the teacher's loss on the data's token, which need not be in the support.
            statistics[:, 5] = -targets.label_log_probs[at]
        return statistics

    return rows


def ends_apart(
    token_ids: Int[Tensor, "m k"],
    log_probs: Float[Tensor, "m k"],
    tail: Float[Tensor, "m"],  # a dimension name
    end_ids: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the tokens that end a turn the last columns of the support, where all of them are in it.

    In a row that lacks one of them, those that it has join the tail, where the others are: what is known of a stop
    there is its mass with the tail's. Both are sums of known masses over a partition that is coarser than that with
    one stop and single tokens, so that an f-divergence over it is a lower bound of the one over that.

    `tail` is the mass of all tokens that are not in the support.

    Returns:
        The three with the end tokens apart, [m, k + len(end_ids)] and [m].
    """
    ends = torch.tensor(end_ids, device=token_ids.device)
    is_end = (token_ids[..., None] == ends) & (log_probs > -torch.inf)[..., None]
    of_ends = torch.where(is_end, log_probs[..., None], -torch.inf).amax(1)
    has_all = (of_ends > -torch.inf).all(-1, keepdim=True)
    tail = tail + torch.where(has_all, 0.0, of_ends.exp()).sum(-1)
    others = torch.where(is_end.any(-1), -torch.inf, log_probs)
    log_probs = torch.cat([others, torch.where(has_all, of_ends, -torch.inf)], dim=1)
    return torch.cat([token_ids, ends.expand(len(token_ids), -1)], dim=1), log_probs, tail


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Targets | None,
        labels: Tensor,
        weights: tuple[Tensor, Tensor, float],
        rows: ChunkRows,
        shape: tuple[int, int, int],
    ) -> tuple[Tensor, Tensor]:
        (hard, soft, temperature), (size, num_entries, multiple) = weights, shape
        weight = narrow = head.detach()[:num_entries].to(hidden.dtype)
        # Sparse targets bring the teacher's probabilities with them; only dense ones need its logits here.
        teacher = targets if isinstance(targets, DenseTargets) else None
        teacher_weight = None if teacher is None else teacher.head[:num_entries].to(teacher.hidden.dtype)
        if not hidden.is_cuda:
            # No product of narrow types has a wide result there, so the heads as factors are wide.
            weight = weight.to(hard.dtype)
            teacher_weight = None if teacher_weight is None else teacher_weight.to(hard.dtype)
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
                    _multiply(teacher.hidden[part], teacher_weight.T, z_t[:length])
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradients is None:
            raise RuntimeError(
                "a second backward pass through the loss; keep the first one's graph (retain_graph=True)"
            )
        d_total, (d_hidden, d_head) = gradients[0], ctx.gradients
        keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
        if not keeps_graph:  # kept, as by gradcheck: another backward pass needs them
            ctx.gradients = None
        scaled: list[Tensor | None] = []
        for gradient in (d_hidden, d_head):
            if gradient is not None:
                # The factor is not rounded to a narrow type of the gradient.
                wide = torch.promote_types(gradient.dtype, torch.float32)
                factor = d_total.to(wide)
                if gradient.dtype != wide:
                    gradient = (gradient.to(wide) * factor).to(gradient.dtype)
                else:
                    gradient = gradient * factor if keeps_graph else gradient.mul_(factor)
            scaled.append(gradient)
        return scaled[0], None if scaled[1] is None else scaled[1].to(ctx.head_dtype), *(None,) * 5


def _multiply(left: Tensor, right: Tensor, out: Tensor, is_added: bool = False) -> None:
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
