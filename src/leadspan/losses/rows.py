"""The row part of the loss: from the logits of a chunk of positions to losses and gradients, in place and in blocks.

Every row part takes the student's raw logits `z_s` [C, V], *overwrites them with the gradient* of
`sum_i hard_i CE_i + soft_i T^2 D_i`, and returns the rows' statistics [C, len(ROW_COLUMNS)]. The code is plain PyTorch
over rows that do not know each other.

Against sparse targets, a support of `k` tokens per position instead of the vocabulary, the student's logits have been
split into those of the support [C, k] and the rest, with -inf at the support, so that the mass of the rest is a sum of
its own terms and never `1 - sum`, which would cancel.

A head of the distribution (top-k, top-p) is compared as `k + 1` outcomes, the last being the tail on both sides. By the
data-processing inequality an f-divergence of that is a lower bound of the full one, with equality when the tail is
empty or has the student's shape. With `g` the divergence's gradient over those outcomes, a token of the tail gets
`g_tail q_j / q_tail`. A drawn support gives the unbiased estimate `sum_i w_i (log p_i - log q_i)` of the forward KL,
with gradient `q sum_i w_i - w` (Anshumann et al., arXiv 2503.16870, section 4); nothing else is unbiased there.
"""

import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float
from torch import Tensor

from leadspan.errors import RunError
from leadspan.losses.divergences import DIVERGENCES, Distribution, expectation, from_logits
from leadspan.losses.settings import AnyDivergence
from leadspan.models.heads import LogitTransform

logger = logging.getLogger(__name__)

# Below this vocabulary a run ends before the compiler has paid for itself.
_COMPILED_VOCABULARY = 1024
# Uncompiled blocks: 1 MiB of float32 stays in a core's cache; on a GPU large blocks make launches negligible.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
# Compiled blocks on a CPU: small enough for the cache, few enough that calls do not show.
_BLOCKS_PER_CHUNK = 32
# Of `torch._dynamo` and `torch._inductor`, whose import takes seconds.
_COMPILER_FAILED = "BackendCompilerFailed", "InductorError"
Logits = Float[Tensor, "C V"]
Rows = Float[Tensor, "C"]  # a dimension name
RowPart = Callable[..., Tensor]
BlockedPart = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""A row part over a chunk of `n` rows, from buffers of logits [>= n, ..] and from what belongs to each row [n, ..]."""


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

    # The order is that of `_statistics` and of the Triton kernel's stores.
    cross_entropy: Float[Tensor, "N"]  # a dimension name
    divergence: Float[Tensor, "N"]
    student_entropy: Float[Tensor, "N"]
    teacher_entropy: Float[Tensor, "N"]
    agreement: Float[Tensor, "N"]
    teacher_nll: Float[Tensor, "N"]


ROW_COLUMNS = RowLosses._fields


def token_rows(transform: LogitTransform) -> RowPart:
    """Cross-entropy, with gradient `hard (q - onehot)`; and `policy_gradient`, where `log p[label]` is given.

    That has the value `v = log q[label] - log p[label]` and the gradient `v (onehot - q)`. The value is not a loss:
    differentiated, it would have the gradient `onehot - q`, of mean 0 and without the teacher.
    """

    def rows(z_s: Logits, labels: Tensor, hard: Rows, soft: Rows, log_p_label: Rows | None = None) -> Tensor:
        logits = transform.logits(z_s)
        q = Distribution.of(logits)
        log_q_label, value, weight = at_labels(q.log, labels), None, hard
        if log_p_label is not None:
            value = log_q_label - log_p_label
            weight = hard - torch.where(soft == 0, 0.0, soft * value)
        statistics = _statistics(log_q_label, -expectation(q.prob, q.log), value, log_p_label=log_p_label)
        z_s.copy_(transform.chain(weight[:, None] * _less_onehot(q.prob, labels), logits))
        return statistics

    return rows


def dense_rows(
    transform: LogitTransform,
    teacher_transform: LogitTransform,
    divergence: AnyDivergence,
    temperature: float,
    end_ids: tuple[int, ...] = (),
) -> RowPart:
    """Cross-entropy, and a divergence from the teacher's logits, in which `end_ids`, two or more, are one outcome."""
    function = functools.partial(DIVERGENCES[divergence.kind], **divergence.model_dump(exclude={"kind"}))

    def rows(z_s: Logits, z_t: Logits, labels: Tensor, hard: Rows, soft: Rows) -> Tensor:
        student, teacher = transform.logits(z_s), teacher_transform.logits(z_t)
        q, p = Distribution.of(student), Distribution.of(teacher)
        if temperature == 1.0 and not end_ids:
            value, gradient = function(q, p)
        else:
            value, gradient = from_logits(function, student, teacher, temperature, end_ids)
        # Compared by value, not by index: where logits tie, any of the tied tokens may be the most likely.
        is_top = (student == student.amax(-1, keepdim=True)) & (teacher == teacher.amax(-1, keepdim=True))
        of_student = at_labels(q.log, labels), -expectation(q.prob, q.log)
        of_teacher = -expectation(p.prob, p.log), at_labels(p.log, labels)
        statistics = _statistics(*of_student, value, is_top.any(-1), *of_teacher)
        # The factor T^2 of the divergence; its gradient has been divided by T already. 0 times infinity must stay 0.
        soft_gradient = torch.where(soft[:, None] == 0, 0.0, (temperature**2 * soft)[:, None] * gradient)
        z_s.copy_(transform.chain(hard[:, None] * _less_onehot(q.prob, labels) + soft_gradient, student))
        return statistics

    return rows


def sparse_rows(
    transform: LogitTransform, temperature: float, divergence: AnyDivergence | None, num_ends: int = 0
) -> RowPart:
    """Cross-entropy, and a divergence from a head of the distribution; without one, the forward KL of a drawn support.

    The last `num_ends` tokens of the support are one outcome. `z_s` is overwritten by the gradient of the tail, and
    `support` by its own. `mass` is that of the tail, or the weights of a drawn support; `label_z` and `top_z` are the
    student's raw logits of the label and of the teacher's likeliest token, which a draw does not say.
    """
    function = divergence and functools.partial(DIVERGENCES[divergence.kind], **divergence.model_dump(exclude={"kind"}))

    def rows(
        z_s: Tensor, support: Tensor, log_p: Tensor, mass: Tensor, label_z: Rows, hard: Rows, soft: Rows, *top_z: Tensor
    ) -> Tensor:
        is_used = log_p > -torch.inf
        # -inf stands at the support, and in its unused slots; a transform such as a softcap would make it finite.
        tail = torch.where(z_s > -torch.inf, transform.logits(z_s), -torch.inf)
        head = torch.where(is_used, transform.logits(support), -torch.inf)
        tail_lse, lse = _logsumexps(tail, head, temperature)
        log_q, share, agreement = head / temperature - lse, (soft * temperature)[:, None], None
        if function is None:
            value = expectation(mass, log_p - log_q)
            # The weights of one draw need not add up to 1, so the gradient of `log q` carries their sum.
            total = mass.sum(-1, keepdim=True)
            tail_soft = share * total * _softmax(tail / temperature, lse)
            head_soft = share * (total * log_q.exp() - mass)
        else:
            log_q = torch.cat([log_q, tail_lse - lse], dim=1)
            # A support of the whole vocabulary has no tail; a mass that rounding left there must not count.
            rest = torch.where(is_used.sum(-1) < z_s.shape[1], mass, 0.0)[:, None]
            outcomes = torch.cat([log_p, rest.log()], dim=1)
            if num_ends:
                ends = tuple(range(log_p.shape[1] - num_ends, log_p.shape[1]))
                value, gradient = from_logits(function, log_q, outcomes, 1.0, ends)
            else:
                p = Distribution(torch.cat([log_p.exp(), rest], dim=1), outcomes)
                value, gradient = function(Distribution(log_q.exp(), log_q), p)
            gradient = torch.where(soft[:, None] == 0, 0.0, gradient)
            # The gradient of the one tail outcome is dealt to its tokens by the student's probabilities.
            tail_soft = share * gradient[:, -1:] * _softmax(tail / temperature, tail_lse)
            head_soft = share * gradient[:, :-1]
        lse = _logsumexps(tail, head, 1.0)[1]
        # `lse - sum q z` is the entropy of softmax(z): no logarithm of a probability that may underflow.
        entropy = lse[:, 0]
        for target, logits, soft_gradient in ((z_s, tail, tail_soft), (support, head, head_soft)):
            q = _softmax(logits, lse)
            entropy = entropy - expectation(q, logits)
            # The one-hot part of the cross-entropy's gradient is added when both parts are back in one.
            target.copy_(
                torch.where(logits > -torch.inf, transform.chain(soft_gradient + hard[:, None] * q, logits), 0.0)
            )
        if top_z:
            agreement = transform.logits(top_z[0]).squeeze(1) >= torch.maximum(tail.amax(-1), head.amax(-1))
        return _statistics(transform.logits(label_z) - lse[:, 0], entropy, value, agreement)

    return rows


def _statistics(
    log_q_label: Rows,
    student_entropy: Rows,
    value: Rows | None = None,
    agreement: Tensor | None = None,
    teacher_entropy: Rows | None = None,
    log_p_label: Rows | None = None,
) -> Tensor:
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


def at_labels(log_probs: Logits, labels: Tensor) -> Rows:
    """The column of the label in each row."""
    return log_probs.gather(1, labels[:, None]).squeeze(1)


def _less_onehot(probs: Logits, labels: Tensor) -> Logits:
    # Compared instead of scattered: this fuses with what follows when it is compiled.
    is_label = torch.arange(probs.shape[1], device=probs.device) == labels[:, None]
    return probs - is_label.to(probs.dtype)


def _logsumexps(tail: Tensor, head: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-normaliser of the tail, and of all, [C, 1] each."""
    tail_lse = torch.logsumexp(tail / temperature, dim=-1, keepdim=True)
    head_lse = torch.logsumexp(head / temperature, dim=-1, keepdim=True)
    return tail_lse, torch.logaddexp(tail_lse, head_lse)


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    """`exp(logits - lse)`, 0 where the logits are -inf."""
    return torch.where(logits > -torch.inf, (logits - lse).exp(), 0.0)


class Blocks:
    """Runs row parts over blocks of a chunk's rows, so small that their temporaries stay in the cache.

    Attributes:
        multiple: The number of which the rows of a chunk's buffers must be a multiple: compiled code knows one size.
    """

    def __init__(self, is_compiled: bool | None, num_rows: int, num_entries: int, device: torch.device):
        """Choose the size of a block, and whether to compile where that is not given, for a chunk and a device."""
        if is_compiled is None:
            is_compiled = num_entries >= _COMPILED_VOCABULARY and has_compiler(device.type)
        if not is_compiled:
            self.size = max(1, _BLOCK_ELEMENTS.get(device.type, 1 << 26) // num_entries)
        elif device.type == "cpu":
            # One row per thread at least: the compiled code runs in parallel over rows.
            self.size = min(num_rows, max(torch.get_num_threads(), num_rows // _BLOCKS_PER_CHUNK))
        else:
            self.size = num_rows
        self.is_compiled, self.multiple = is_compiled, self.size if is_compiled else 1

    def __call__(self, build: Callable[..., RowPart], *arguments: object) -> BlockedPart:
        """Build a row part, compiled where blocks are."""
        part = compiled(build, *arguments) if self.is_compiled else build(*arguments)

        def run(buffers: Sequence[Tensor], per_row: Sequence[Tensor]) -> Tensor:
            length, statistics = len(per_row[0]), []
            for start in range(0, length, self.size):
                stop = min(start + self.size, length)
                filled = start + self.size if self.is_compiled else stop
                rows = [
                    # Rows of weight 0 fill the last block.
                    F.pad(v[start:stop], (0, 0) * (v.dim() - 1) + (0, filled - stop))
                    if stop < filled
                    else v[start:stop]
                    for v in per_row
                ]
                statistics.append(part(*(buffer[start:filled] for buffer in buffers), *rows)[: stop - start])
            return torch.cat(statistics)

        return run


@functools.lru_cache(maxsize=32)
def compiled(build: Callable[..., RowPart], *arguments: object) -> RowPart:
    """A row part, compiled for one shape of chunk; kept, so that a run compiles once.

    Raises:
        RunError: When it is called and the compiler fails: a full disk, headers that are missing.
    """
    part = torch.compile(  # pyright: ignore[reportCallIssue]  # the stubs lack the last two options
        build(*arguments), fullgraph=True, dynamic=False, isolate_recompiles=True, recompile_limit=64
    )

    def rows(*tensors: Tensor) -> Tensor:
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
