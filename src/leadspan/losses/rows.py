"""The row part of the loss: from the logits of a chunk of positions to losses and gradients, in place.

Every function here takes the student's raw logits `z_s` [C, V], *overwrites them with the gradient* of
`sum_i hard_i CE_i + soft_i T^2 D_i`, and returns the rows' statistics [C, len(ROW_COLUMNS)]. The code is plain PyTorch
over rows that do not know each other, run over blocks of rows so small that their temporaries stay in the cache.
"""

import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float, Int

from leadspan.errors import RunError
from leadspan.losses.divergences import DIVERGENCES, Distribution, from_logits, with_one_stop
from leadspan.losses.settings import AnyDivergence
from leadspan.models.heads import LogitTransform

logger = logging.getLogger(__name__)

# Uncompiled blocks: 1 MiB of float32 stays in a core's cache; on a GPU large blocks make launches negligible.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
# Compiled blocks on a CPU: small enough for the cache, few enough that calls do not show.
_BLOCKS_PER_CHUNK = 32
# Of `torch._dynamo` and `torch._inductor`, whose import takes seconds.
_COMPILER_FAILED = "BackendCompilerFailed", "InductorError"
Logits = Float[torch.Tensor, "C V"]
Rows = Float[torch.Tensor, "C"]  # a dimension name
RowPart = Callable[..., torch.Tensor]


class RowLosses(NamedTuple):
    """Unweighted quantities per position, [N] each, for metrics; without gradient, NaN where there is no teacher.

    Attributes:
        cross_entropy: `-log q[label]`, nats.
        divergence: `D(p, q)` at the loss's temperature, without `T^2`.
        student_entropy: Nats, at temperature 1.
        teacher_entropy: Nats, at temperature 1.
        agreement: 1 where student and teacher have the same most likely token, else 0.
        teacher_nll: `-log p[label]`, nats, at temperature 1.
    """

    # The order is that of `statistics_of` and of the Triton kernel's stores.
    cross_entropy: Float[torch.Tensor, "N"]  # a dimension name
    divergence: Float[torch.Tensor, "N"]
    student_entropy: Float[torch.Tensor, "N"]
    teacher_entropy: Float[torch.Tensor, "N"]
    agreement: Float[torch.Tensor, "N"]
    teacher_nll: Float[torch.Tensor, "N"]


ROW_COLUMNS = RowLosses._fields


def hard_rows(transform: LogitTransform) -> RowPart:
    """Cross-entropy alone: `-log q[label]`, gradient `hard (q - onehot)`."""

    def rows(z_s: Logits, labels: Int[torch.Tensor, "C"], hard: Rows, soft: Rows) -> torch.Tensor:  # a dimension name
        logits = transform.logits(z_s)
        q = Distribution.of(logits)
        statistics = statistics_of(_at(q.log, labels), _entropy(q))
        z_s.copy_(transform.chain(hard[:, None] * _less_onehot(q.prob, labels), logits))
        return statistics

    return rows


def dense_rows(
    transform: LogitTransform,
    teacher_transform: LogitTransform,
    divergence: AnyDivergence,
    temperature: float,
    end_ids: tuple[int, ...] = (),
) -> RowPart:
    """Cross-entropy, and a divergence from the teacher's logits, in which `end_ids` are one outcome."""
    function = functools.partial(DIVERGENCES[divergence.kind], **divergence.model_dump(exclude={"kind"}))

    def rows(z_s: Logits, z_t: Logits, labels: torch.Tensor, hard: Rows, soft: Rows) -> torch.Tensor:
        student, teacher = transform.logits(z_s), teacher_transform.logits(z_t)
        q, p = Distribution.of(student), Distribution.of(teacher)
        if len(end_ids) > 1:
            value, gradient = with_one_stop(function, student, teacher, temperature, end_ids)
        elif temperature == 1.0:
            value, gradient = function(q, p)
        else:
            value, gradient = from_logits(function, student, teacher, temperature)
        # Compared by value, not by index: where logits tie, any of the tied tokens may be the most likely.
        is_top = (student == student.amax(-1, keepdim=True)) & (teacher == teacher.amax(-1, keepdim=True))
        of_student = _at(q.log, labels), _entropy(q)
        statistics = statistics_of(*of_student, value, is_top.any(-1), _entropy(p), _at(p.log, labels))
        # The factor T^2 of the divergence; its gradient has been divided by T already. 0 times infinity must stay 0.
        soft_gradient = torch.where(soft[:, None] == 0, 0.0, (temperature**2 * soft)[:, None] * gradient)
        z_s.copy_(transform.chain(hard[:, None] * _less_onehot(q.prob, labels) + soft_gradient, student))
        return statistics

    return rows


def policy_rows(transform: LogitTransform) -> RowPart:
    """`policy_gradient`: value `log q[label] - log p[label]`, gradient `(log q[label] - log p[label]) (onehot - q)`.

    The value is not a loss: differentiated, it would have the gradient `onehot - q`, of mean 0 and without the teacher.
    """

    def rows(z_s: Logits, labels: torch.Tensor, log_p_label: Rows, hard: Rows, soft: Rows) -> torch.Tensor:
        logits = transform.logits(z_s)
        q = Distribution.of(logits)
        log_q_label = _at(q.log, labels)
        value = log_q_label - log_p_label
        weight = hard - torch.where(soft == 0, 0.0, soft * value)
        statistics = statistics_of(log_q_label, _entropy(q), value, log_p_label=log_p_label)
        z_s.copy_(transform.chain(weight[:, None] * _less_onehot(q.prob, labels), logits))
        return statistics

    return rows


def block_size(device: torch.device, num_entries: int, chunk_size: int, is_compiled: bool) -> int:
    """Rows that the row part takes at a time; its temporaries are of that size, not of the chunk's.

    Compiled: small blocks that stay in the cache, at least one row per thread. Uncompiled: large blocks, so that the
    overhead of calls is negligible.
    """
    if not is_compiled:
        return max(1, _BLOCK_ELEMENTS.get(device.type, 1 << 26) // num_entries)
    # One row per thread at least: the compiled code runs in parallel over rows.
    if device.type == "cpu":
        return min(chunk_size, max(torch.get_num_threads(), chunk_size // _BLOCKS_PER_CHUNK))
    return chunk_size


@dataclass(frozen=True, slots=True)
class Blocks:
    """A row part, run over a chunk block by block.

    Attributes:
        part: The arithmetic.
        size: Rows of a block.
        is_compiled: Whether every block must have that many rows; a smaller one is filled with rows of weight 0.
    """

    part: RowPart
    size: int
    is_compiled: bool

    def buffer_rows(self, length: int) -> int:
        """Rows a buffer needs for `length` rows: whole blocks, where every block must be whole."""
        return -(-length // self.size) * self.size if self.is_compiled else length

    def __call__(self, buffers: Sequence[torch.Tensor], per_row: Sequence[torch.Tensor]) -> torch.Tensor:
        """Statistics [n, len(ROW_COLUMNS)] of the first `n` rows of a chunk.

        Args:
            buffers: Logits and what else is overwritten, [>= n, ...]; rows after the first `n` are scratch.
            per_row: What belongs to each row, [n, ...].
        """
        length, statistics = len(per_row[0]), []
        for start in range(0, length, self.size):
            stop = min(start + self.size, length)
            filled = start + self.size if self.is_compiled else stop
            rows = [
                # A compiled part knows one shape: rows of weight 0 fill the last block.
                F.pad(v[start:stop], (0, 0) * (v.dim() - 1) + (0, filled - stop)) if stop < filled else v[start:stop]
                for v in per_row
            ]
            block_statistics = self.part(*(buffer[start:filled] for buffer in buffers), *rows)
            statistics.append(block_statistics[: stop - start])
        return torch.cat(statistics)


@functools.lru_cache(maxsize=32)
def compiled(build: Callable[..., RowPart], *arguments: object) -> RowPart:
    """A row part, compiled for one shape of chunk; kept, so that a run compiles once.

    Raises:
        RunError: When it is called and the compiler fails: a full disk, headers that are missing.
    """
    part = torch.compile(  # pyright: ignore[reportCallIssue]  # the stubs lack the last two options
        build(*arguments), fullgraph=True, dynamic=False, isolate_recompiles=True, recompile_limit=64
    )

    def rows(*tensors: torch.Tensor) -> torch.Tensor:
        try:
            return part(*tensors)
        except RuntimeError as error:
            if type(error).__name__ not in _COMPILER_FAILED:
                raise
            # The compiler's own message comes after its command, which fills a screen.
            message = (str(error).partition("Output:\n")[2] or str(error)).strip().splitlines()[0]
            raise RunError(
                f"the loss cannot be compiled ({message[:200]}); set loss.compiled: false, or see "
                f"that the C++ compiler works and {tempfile.gettempdir()} has room"
            ) from error

    return rows


@functools.cache
def has_compiler(device: str) -> bool:
    """Whether the kind of device has a compiler; warns once where it has none."""
    if device == "cuda" or any(map(shutil.which, ("g++", "clang++", "c++"))):
        return True
    logger.warning("no C++ compiler found: the loss runs uncompiled, with the same figures, several times slower")
    return False


def statistics_of(
    log_q_label: Rows,
    student_entropy: Rows,
    value: Rows | None = None,
    agreement: torch.Tensor | None = None,
    teacher_entropy: Rows | None = None,
    log_p_label: Rows | None = None,
) -> torch.Tensor:
    """Columns in the order of `ROW_COLUMNS`; NaN for what is not known."""
    unknown = torch.full_like(log_q_label, torch.nan)
    columns = (
        -log_q_label,
        unknown if value is None else value,
        student_entropy,
        unknown if teacher_entropy is None else teacher_entropy,
        unknown if agreement is None else agreement.to(unknown.dtype),
        unknown if log_p_label is None else -log_p_label,
    )
    return torch.stack(columns, dim=1)


def _at(log_probs: Logits, labels: torch.Tensor) -> Rows:
    return log_probs.gather(1, labels[:, None]).squeeze(1)


def _entropy(distribution: Distribution) -> Rows:
    return -torch.where(distribution.prob == 0, 0.0, distribution.prob * distribution.log).sum(-1)


def _less_onehot(probs: Logits, labels: torch.Tensor) -> Logits:
    # Compared instead of scattered: this fuses with what follows when it is compiled.
    is_label = torch.arange(probs.shape[1], device=probs.device) == labels[:, None]
    return probs - is_label.to(probs.dtype)
