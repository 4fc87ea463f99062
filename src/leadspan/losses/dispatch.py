"""Which row part a loss needs: by what there is of a teacher, and by what the device offers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # the field's name
from transformers.utils.import_utils import is_triton_available

from leadspan.losses.config import LossSettings
from leadspan.losses.defined import check_defined
from leadspan.losses.rows import Blocks, RowPart, block_size, compiled, dense_rows, hard_rows, should_compile
from leadspan.losses.sparse_rows import sampled_rows, split_support, tail_mass, tail_rows
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import DenseTargets, SparseTargets, Targets


class ChunkRows(Protocol):
    """The row part of one chunk."""

    @property
    def blocks(self) -> Blocks:
        """The arithmetic, and how many rows it takes at a time."""
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
    shape: tuple[int, int],
    device: torch.device,
) -> ChunkRows:
    """Choose and build the row part of a loss.

    Args:
        settings: Divergence, temperature, whether to compile.
        transform: What the student does to its logits.
        targets: The teacher's side.
        shape: Of a chunk: positions, and the vocabulary that is compared.
        device: Where it runs.

    Raises:
        TargetsError: The targets do not define this divergence, or not at this temperature.
    """
    is_compiled = should_compile(settings.compiled, shape[1], device)
    size = block_size(device, shape[1], shape[0], is_compiled)

    def blocks(build: Callable[..., RowPart], *arguments: object) -> Blocks:
        return Blocks(compiled(build, *arguments) if is_compiled else build(*arguments), size, is_compiled)

    temperature = settings.temperature
    if targets is None:
        return _Dense(blocks(hard_rows, transform))
    if isinstance(targets, DenseTargets):
        of_teacher = LogitTransform(targets.scale, targets.softcap)
        kernel = _kernel(settings, transform, of_teacher, device)
        if kernel is not None:
            return _Dense(Blocks(kernel, shape[0], is_compiled=False))
        return _Dense(blocks(dense_rows, transform, of_teacher, settings.divergence, temperature))
    check_defined(targets.sample_weights is not None, targets.tail_mass, settings.divergence, temperature)
    log_probs, weights = targets.tempered(temperature), targets.sample_weights
    if weights is None:
        part = blocks(tail_rows, transform, settings.divergence, temperature)
        return _Sparse(part, transform, targets, (log_probs, tail_mass(targets, log_probs, temperature)))
    if temperature != 1.0:
        weights = torch.where(weights == 0, 0.0, weights * (log_probs - targets.log_probs).exp())
    return _Sparse(blocks(sampled_rows, transform, temperature), transform, targets, (log_probs, weights))


def _kernel(
    settings: LossSettings, student: LogitTransform, teacher: LogitTransform, device: torch.device
) -> RowPart | None:
    """The Triton kernel where there is a GPU, Triton, and a divergence it knows; it is a compiled row part too."""
    if device.type != "cuda" or settings.compiled is False or not is_triton_available():
        return None
    from leadspan.losses.triton_rows import KERNEL_DIVERGENCES, triton_dense_rows  # needs Triton

    kind = settings.divergence.kind
    return triton_dense_rows(student, teacher, kind, settings.temperature) if kind in KERNEL_DIVERGENCES else None


@dataclass(frozen=True, slots=True)
class _Dense:
    """All of the vocabulary, with a teacher's logits beside the student's or without."""

    blocks: Blocks

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
        return self.blocks(logits, (labels, hard, soft))


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A support: split off, compared, and its gradient put back."""

    blocks: Blocks
    transform: LogitTransform
    targets: SparseTargets
    teacher: tuple[torch.Tensor, ...]
    """At the loss's temperature: log-probabilities, and the tail's mass or the weights of a drawn support."""

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
        statistics = self.blocks((z_s, support), per_row)
        onehot = self.transform.chain(-hard, self.transform.logits(label_logits))
        rows.scatter_add_(1, ids, support[: len(rows)]).scatter_add_(1, labels[:, None], onehot[:, None])
        if targets.entropy is not None:
            statistics[:, 3] = targets.entropy[part]
        if targets.label_log_probs is not None:
            statistics[:, 5] = -targets.label_log_probs[part]
        return statistics
