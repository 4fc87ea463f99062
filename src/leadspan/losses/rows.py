"""The row part of the loss: from the logits of a chunk of positions to losses and gradients, in place.

Every function here takes the student's raw logits `z_s` [C, V], *overwrites them with the gradient* of
`sum_i hard_i CE_i + soft_i T^2 D_i`, and returns the rows' statistics [C, len(ROW_COLUMNS)]. The code is plain PyTorch
over rows that do not know each other: compiled it is three passes over the chunk without a temporary of its size,
uncompiled it goes over blocks of rows that fit the cache.
"""

import functools
import logging
import shutil
from collections.abc import Callable

import torch
from jaxtyping import Float, Int

from leadspan.losses.config import AnyDivergence
from leadspan.losses.divergences import DIVERGENCES, Distribution, from_logits
from leadspan.models.heads import LogitTransform

logger = logging.getLogger(__name__)

ROW_COLUMNS = ("cross_entropy", "divergence", "student_entropy", "teacher_entropy", "agreement", "teacher_nll")
_COMPILED_VOCABULARY = 1024
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
Logits = Float[torch.Tensor, "C V"]
Rows = Float[torch.Tensor, "C"]  # a dimension name
RowPart = Callable[..., torch.Tensor]


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
    transform: LogitTransform, teacher_transform: LogitTransform, divergence: AnyDivergence, temperature: float
) -> RowPart:
    """Cross-entropy, and a divergence from the teacher's logits."""
    function = functools.partial(DIVERGENCES[divergence.kind], **divergence.model_dump(exclude={"kind"}))

    def rows(z_s: Logits, z_t: Logits, labels: torch.Tensor, hard: Rows, soft: Rows) -> torch.Tensor:
        student, teacher = transform.logits(z_s), teacher_transform.logits(z_t)
        q, p = Distribution.of(student), Distribution.of(teacher)
        if temperature == 1.0:
            value, gradient = function(q, p)
        else:
            value, gradient = from_logits(function, student, teacher, temperature)
        is_top = (student == student.amax(-1, keepdim=True)) & (teacher == teacher.amax(-1, keepdim=True))
        of_student = _at(q.log, labels), _entropy(q)
        statistics = statistics_of(*of_student, value, is_top.any(-1), _entropy(p), _at(p.log, labels))
        soft_gradient = (temperature**2 * soft)[:, None] * gradient
        z_s.copy_(transform.chain(hard[:, None] * _less_onehot(q.prob, labels) + soft_gradient, student))
        return statistics

    return rows


def run_rows(part: RowPart, z_s: Logits, *others: torch.Tensor) -> torch.Tensor:
    """Run an uncompiled row part block by block, so that its temporaries stay small and, on a CPU, in the cache."""
    size = max(1, _BLOCK_ELEMENTS.get(z_s.device.type, 1 << 26) // z_s.shape[1])
    blocks = [slice(start, start + size) for start in range(0, len(z_s), size)]
    return torch.cat([part(z_s[block], *(other[block] for other in others)) for block in blocks])


@functools.lru_cache(maxsize=32)
def compiled(build: Callable[..., RowPart], *arguments: object) -> RowPart:
    """A row part, compiled for one shape of chunk; kept, so that a run compiles once."""
    part = build(*arguments)
    return torch.compile(  # pyright: ignore[reportCallIssue]  # the stubs lack the last two options
        part, fullgraph=True, dynamic=False, isolate_recompiles=True, recompile_limit=64
    )


def should_compile(wanted: bool | None, num_entries: int, device: torch.device) -> bool:
    """Whether to compile: as set, else when the vocabulary is large and the device has a compiler."""
    if wanted is not None:
        return wanted
    return num_entries >= _COMPILED_VOCABULARY and _has_compiler(device.type)


@functools.cache
def _has_compiler(device: str) -> bool:
    found = device == "cuda" or any(map(shutil.which, ("g++", "clang++", "c++")))
    if not found:
        logger.warning("no C++ compiler found: the loss runs uncompiled, with the same figures, several times slower")
    return found


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
    is_label = torch.arange(probs.shape[1], device=probs.device) == labels[:, None]
    return probs - is_label.to(probs.dtype)
