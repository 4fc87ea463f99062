"""Which row part a loss needs: by what there is of a teacher, and by what the device offers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # the field's name

from leadspan.losses.config import LossSettings
from leadspan.losses.rows import RowPart, compiled, dense_rows, hard_rows, run_rows, should_compile
from leadspan.losses.sparse_rows import check_defined, sampled_rows, split_support, tail_rows
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import DenseTargets, SparseTargets, Targets


class ChunkRows(Protocol):
    """The row part of one chunk."""

    @property
    def is_compiled(self) -> bool:
        """Whether the buffers must have one shape in every call."""
        ...

    def __call__(
        self,
        z_s: torch.Tensor,
        z_t: torch.Tensor | None,
        part: slice,
        labels: torch.Tensor,
        hard: torch.Tensor,
        soft: torch.Tensor,
    ) -> torch.Tensor:
        """Overwrite the first `n` rows of `z_s` by their gradient; give their statistics, [n, len(ROW_COLUMNS)].

        Args:
            z_s: The student's raw logits, the buffer of a whole chunk.
            z_t: The teacher's, with dense targets.
            part: The chunk's place among all positions.
            labels: Tokens to predict, [n].
            hard: Weights of the cross-entropy, [n].
            soft: Weights of the divergence, [n].
        """
        ...


def chunk_rows(
    settings: LossSettings,
    transform: LogitTransform,
    targets: Targets | None,
    num_entries: int,
    device: torch.device,
) -> ChunkRows:
    """Choose and build the row part of a loss.

    Args:
        settings: Divergence, temperature, whether to compile.
        transform: What the student does to its logits.
        targets: The teacher's side.
        num_entries: Vocabulary that is compared.
        device: Where it runs.

    Raises:
        TargetsError: The targets do not define this divergence, or not at this temperature.
    """
    is_compiled = should_compile(settings.compiled, num_entries, device)

    def built(build: Callable[..., RowPart], *arguments: object) -> RowPart:
        return compiled(build, *arguments) if is_compiled else build(*arguments)

    temperature = settings.temperature
    if targets is None:
        return _Dense(built(hard_rows, transform), is_compiled)
    if isinstance(targets, DenseTargets):
        of_teacher = LogitTransform(targets.scale, targets.softcap)
        return _Dense(built(dense_rows, transform, of_teacher, settings.divergence, temperature), is_compiled)
    check_defined(targets, settings.divergence)
    log_probs, weights = targets.tempered(temperature), targets.sample_weights
    if weights is None:
        part = built(tail_rows, transform, settings.divergence, temperature)
        return _Sparse(part, is_compiled, transform, targets, (log_probs,))
    if temperature != 1.0:
        weights = torch.where(weights == 0, 0.0, weights * (log_probs - targets.log_probs).exp())
    return _Sparse(built(sampled_rows, transform, temperature), is_compiled, transform, targets, (log_probs, weights))


@dataclass(frozen=True, slots=True)
class _Dense:
    """All of the vocabulary, with a teacher's logits beside the student's or without."""

    part: RowPart
    is_compiled: bool

    def __call__(
        self,
        z_s: torch.Tensor,
        z_t: torch.Tensor | None,
        part: slice,
        labels: torch.Tensor,
        hard: torch.Tensor,
        soft: torch.Tensor,
    ) -> torch.Tensor:
        logits = (z_s,) if z_t is None else (z_s, z_t)
        return _run(self.part, self.is_compiled, logits, (labels, hard, soft))


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A support: split off, compared, and its gradient put back."""

    part: RowPart
    is_compiled: bool
    transform: LogitTransform
    targets: SparseTargets
    teacher: tuple[torch.Tensor, ...]
    """Log-probabilities, and weights of a drawn support, at the loss's temperature."""

    def __call__(
        self,
        z_s: torch.Tensor,
        z_t: torch.Tensor | None,
        part: slice,
        labels: torch.Tensor,
        hard: torch.Tensor,
        soft: torch.Tensor,
    ) -> torch.Tensor:
        targets, rows = self.targets, z_s[: len(labels)]
        teacher = tuple(values[part].to(z_s.dtype) for values in self.teacher)
        label_logits = rows.gather(1, labels[:, None]).squeeze(1)
        support, ids = split_support(rows, targets.token_ids[part], teacher[0] > -torch.inf)
        support = F.pad(support, (0, 0, 0, len(z_s) - len(rows)))
        per_row = (*teacher, label_logits, hard, soft)
        statistics = _run(self.part, self.is_compiled, (z_s, support), per_row)
        onehot = self.transform.chain(-hard, self.transform.logits(label_logits))
        rows.scatter_add_(1, ids, support[: len(rows)]).scatter_add_(1, labels[:, None], onehot[:, None])
        if targets.entropy is not None:
            statistics[:, 3] = targets.entropy[part]
        if targets.label_log_probs is not None:
            statistics[:, 5] = -targets.label_log_probs[part]
        return statistics


def _run(
    part: RowPart, is_compiled: bool, buffers: tuple[torch.Tensor, ...], per_row: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Fill the rows up to the compiled shape, with weight 0, or leave the unused rows of the buffers out."""
    length, size = len(per_row[0]), len(buffers[0])
    if not is_compiled:
        return run_rows(part, *(buffer[:length] for buffer in buffers), *per_row)
    filled = (F.pad(values, (0, 0) * (values.dim() - 1) + (0, size - length)) for values in per_row)
    return part(*buffers, *filled)[:length]
