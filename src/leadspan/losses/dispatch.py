"""Which row part a loss needs, by the kind of the teacher's targets and by what the device offers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # the field's name
from torch import Tensor
from transformers.utils.import_utils import is_triton_available

from leadspan.errors import TargetsError
from leadspan.losses.defined import check_defined, needs_probabilities
from leadspan.losses.rows import Blocks, RowPart, block_size, compiled, dense_rows, hard_rows, has_compiler, policy_rows
from leadspan.losses.settings import LossSettings, PolicyGradient
from leadspan.losses.sparse_rows import ends_apart, sampled_rows, split_support, tail_mass, tail_rows
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import DenseTargets, SparseTargets, Targets

# Below this vocabulary a run ends before the compiler has paid for itself.
_COMPILED_VOCABULARY = 1024


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """The row part of one chunk: here over the whole vocabulary, with a teacher's logits or without.

    Attributes:
        blocks: The arithmetic, and how many rows it takes at a time.
    """

    blocks: Blocks

    def __call__(
        self, z_s: Tensor, z_t: Tensor | None, part: slice, labels: Tensor, hard: Tensor, soft: Tensor
    ) -> Tensor:
        """Overwrite the first `n` rows of `z_s` with their gradient; return their statistics, [n, len(ROW_COLUMNS)].

        Args:
            z_s: The student's raw logits, the buffer of a whole chunk.
            z_t: The teacher's, with dense targets.
            part: The positions of the chunk among all positions.
            labels: Tokens to predict, [n].
            hard: Weights of the cross-entropy, [n].
            soft: Weights of the divergence, [n].
        """
        return self.blocks((z_s,) if z_t is None else (z_s, z_t), (labels, hard, soft))


@dataclass(frozen=True, slots=True)
class _DrawnToken(ChunkRows):
    """One number of the teacher per position: the log-probability of the label, stored or from its logits."""

    of_teacher: LogitTransform | None
    log_probs: Tensor | None

    def __call__(
        self, z_s: Tensor, z_t: Tensor | None, part: slice, labels: Tensor, hard: Tensor, soft: Tensor
    ) -> Tensor:
        if z_t is not None and self.of_teacher is not None:
            teacher = self.of_teacher.logits(z_t[: len(labels)]).log_softmax(-1)
            log_p = teacher.gather(1, labels[:, None]).squeeze(1)
        else:
            assert self.log_probs is not None, "checked by chunk_rows"
            log_p = self.log_probs[part].to(z_s.dtype)
        return self.blocks((z_s,), (labels, log_p, hard, soft))


@dataclass(frozen=True, slots=True)
class _Sparse(ChunkRows):
    """A support of a few tokens: its logits are taken out, compared, and replaced by their gradient.

    Attributes:
        transform: What the student does to its logits.
        targets: The teacher's side.
        token_ids: The support.
        teacher: At the loss's temperature: log-probabilities, and the tail's mass or the weights of a drawn support.
        likeliest: The teacher's likeliest token, [m, 1]; None for a drawn support, which does not say it.
    """

    transform: LogitTransform
    targets: SparseTargets
    token_ids: Tensor
    teacher: tuple[Tensor, ...]
    likeliest: Tensor | None = None

    def __call__(
        self, z_s: Tensor, z_t: Tensor | None, part: slice, labels: Tensor, hard: Tensor, soft: Tensor
    ) -> Tensor:
        targets, rows = self.targets, z_s[: len(labels)]
        teacher = tuple(values[part].to(z_s.dtype) for values in self.teacher)
        label_logits = rows.gather(1, labels[:, None]).squeeze(1)
        of_likeliest = () if self.likeliest is None else (rows.gather(1, self.likeliest[part]),)
        support, ids = split_support(rows, self.token_ids[part], teacher[0] > -torch.inf)
        # Compiled blocks read whole blocks of every buffer, the support's rows included.
        support = F.pad(support, (0, 0, 0, len(z_s) - len(rows)))
        statistics = self.blocks((z_s, support), (*teacher, *of_likeliest, label_logits, hard, soft))
        # The label may lie in the support or in the tail, so its part of the gradient is added after both are back.
        onehot = self.transform.chain(-hard, self.transform.logits(label_logits))
        rows.scatter_add_(1, ids, support[: len(rows)]).scatter_add_(1, labels[:, None], onehot[:, None])
        if targets.entropy is not None:
            # Column 3 of ROW_COLUMNS, the teacher's entropy: a support alone does not give it.
            statistics[:, 3] = targets.entropy[part]
        if targets.label_log_probs is not None:
            # Column 5, the teacher's loss on the data's token, which need not be in the support.
            statistics[:, 5] = -targets.label_log_probs[part]
        return statistics


def chunk_rows(
    settings: LossSettings,
    transform: LogitTransform,
    targets: Targets | None,
    shape: tuple[int, int],
    device: torch.device,
    end_ids: tuple[int, ...],
) -> ChunkRows:
    """Choose and build the row part of a loss.

    `shape` is that of a chunk: its positions, and the vocabulary that is compared.

    Raises:
        TargetsError: The targets do not define this divergence, or not at this temperature, or not this outcome.
    """
    chunk_size, num_entries = shape
    is_compiled = settings.compiled
    if is_compiled is None:
        is_compiled = num_entries >= _COMPILED_VOCABULARY and has_compiler(device.type)
    size = block_size(device, num_entries, chunk_size, is_compiled)

    def blocks(build: Callable[..., RowPart], *arguments: object) -> Blocks:
        return Blocks(compiled(build, *arguments) if is_compiled else build(*arguments), size, is_compiled)

    if targets is None:
        return ChunkRows(blocks(hard_rows, transform))
    divergence, temperature = settings.divergence, settings.temperature
    if isinstance(divergence, PolicyGradient):
        return _drawn_token(blocks(policy_rows, transform), targets, end_ids)
    if isinstance(targets, DenseTargets):
        of_teacher = LogitTransform(targets.scale, targets.softcap)
        kernel = _kernel(settings, transform, of_teacher, device) if len(end_ids) < 2 else None
        if kernel is not None:
            # The kernel walks each row by itself and needs no scratch, so the whole chunk is one block.
            return ChunkRows(Blocks(kernel, chunk_size, is_compiled=False))
        return ChunkRows(blocks(dense_rows, transform, of_teacher, divergence, temperature, end_ids))
    check_defined(targets.sample_weights is not None, targets.tail_mass, divergence, temperature)
    num_ends, weights = len(end_ids) if len(end_ids) > 1 else 0, targets.sample_weights
    if weights is not None and num_ends:
        raise TargetsError(needs_probabilities("the store"))
    log_probs = targets.tempered(temperature)
    if weights is None:
        # Before the ends are set apart: the likeliest token may be one of them.
        likeliest = targets.token_ids.gather(1, log_probs.argmax(-1, keepdim=True))
        support = targets.token_ids, log_probs, tail_mass(targets, log_probs, temperature)
        token_ids, *teacher = ends_apart(*support, end_ids) if num_ends else support
        tail_part = blocks(tail_rows, transform, divergence, temperature, num_ends)
        return _Sparse(tail_part, transform, targets, token_ids, tuple(teacher), likeliest)
    if temperature != 1.0:
        # Drawn at temperature 1 and used at another: importance weights p_T / p_1 keep the estimate unbiased.
        weights = torch.where(weights == 0, 0.0, weights * (log_probs - targets.log_probs).exp())
    sampled_part = blocks(sampled_rows, transform, temperature)
    return _Sparse(sampled_part, transform, targets, targets.token_ids, (log_probs, weights))


def _drawn_token(part: Blocks, targets: Targets, end_ids: tuple[int, ...]) -> ChunkRows:
    if len(end_ids) > 1:
        raise TargetsError("divergence policy_gradient knows the probability of one token: set loss.stop: tokens")
    if isinstance(targets, DenseTargets):
        return _DrawnToken(part, LogitTransform(targets.scale, targets.softcap), None)
    if targets.label_log_probs is None:
        raise TargetsError(
            "loss.divergence is policy_gradient, and the targets keep no probability of the tokens drawn"
        )
    return _DrawnToken(part, None, targets.label_log_probs)


def _kernel(
    settings: LossSettings, student: LogitTransform, teacher: LogitTransform, device: torch.device
) -> RowPart | None:
    """The Triton kernel where there is a GPU, Triton, and a divergence it knows; it is a compiled row part too."""
    if device.type != "cuda" or settings.compiled is False or not is_triton_available():
        return None
    from leadspan.losses.triton_rows import KERNEL_DIVERGENCES, triton_dense_rows  # needs Triton

    kind = settings.divergence.kind
    return triton_dense_rows(student, teacher, kind, settings.temperature) if kind in KERNEL_DIVERGENCES else None
