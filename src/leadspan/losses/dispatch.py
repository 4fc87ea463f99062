"""Which row part a loss needs, by the kind of the teacher's targets and by what the device offers, run in blocks.

A chunk is run over blocks of rows so small that their temporaries stay in the cache.
"""

import functools
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils.import_utils import is_triton_available

from leadspan.errors import RunError, TargetsError
from leadspan.losses.rows import RowPart, dense_rows, sparse_rows, token_rows
from leadspan.losses.settings import LossSettings, PolicyGradient, check_defined, needs_probabilities
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import DenseTargets, SparseTargets, Targets

logger = logging.getLogger(__name__)

# Below this vocabulary a run ends before the compiler has paid for itself.
_COMPILED_VOCABULARY = 1024
# Uncompiled blocks: 1 MiB of float32 stays in a core's cache; on a GPU large blocks make launches negligible.
_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
# Compiled blocks on a CPU: small enough for the cache, few enough that calls do not show.
_BLOCKS_PER_CHUNK = 32
# Of `torch._dynamo` and `torch._inductor`, whose import takes seconds.
_COMPILER_FAILED = "BackendCompilerFailed", "InductorError"
Blocks = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""A row part over a chunk of `n` rows, from buffers of logits [>= n, ..] and from what belongs to each row [n, ..]."""
ChunkRows = Callable[..., Tensor]
"""From `z_s`, `z_t`, the positions of a chunk among all, its labels, hard and soft weights [n] to statistics [n, ..].

`z_s` and, with dense targets, `z_t` are buffers of a whole chunk with the raw logits of student and teacher. The first
`n` rows of `z_s` are overwritten by their gradient; what follows them is scratch.
"""


def chunk_rows(
    settings: LossSettings,
    transform: LogitTransform,
    targets: Targets | None,
    shape: tuple[int, int],
    device: torch.device,
    end_ids: tuple[int, ...],
) -> tuple[ChunkRows, int]:
    """Choose and build the row part of a loss.

    `shape` is that of a chunk: its positions, and the vocabulary that is compared.

    Returns:
        The row part, and the number of which the rows of its buffers must be a multiple.

    Raises:
        TargetsError: The targets do not define this divergence, or not at this temperature, or not this outcome.
    """
    chunk_size, num_entries = shape
    kind, temperature = settings.divergence.kind, settings.temperature
    ends = end_ids if len(end_ids) > 1 else ()
    is_compiled = settings.compiled
    if is_compiled is None:
        is_compiled = num_entries >= _COMPILED_VOCABULARY and has_compiler(device.type)
    if not is_compiled:
        size = max(1, _BLOCK_ELEMENTS.get(device.type, 1 << 26) // num_entries)
    elif device.type == "cpu":
        # One row per thread at least: the compiled code runs in parallel over rows.
        size = min(chunk_size, max(torch.get_num_threads(), chunk_size // _BLOCKS_PER_CHUNK))
    else:
        size = chunk_size
    multiple = size if is_compiled else 1

    def blocks(build: Callable[..., RowPart], *arguments: object) -> Blocks:
        part = compiled(build, *arguments) if is_compiled else build(*arguments)
        return _in_blocks(part, size, is_compiled)

    if targets is None:
        part = blocks(token_rows, transform)
        return lambda z_s, z_t, at, *per_row: part((z_s,), per_row), multiple
    if isinstance(settings.divergence, PolicyGradient):
        return _of_drawn_token(blocks(token_rows, transform), targets, ends), multiple
    if isinstance(targets, SparseTargets):
        return _of_support(blocks, settings, transform, targets, ends), multiple
    of_teacher = LogitTransform(targets.scale, targets.softcap)
    # Triton's kernel is a compiled row part too. It walks each row by itself and needs no scratch, so the whole chunk
    # is one block.
    if device.type == "cuda" and settings.compiled is not False and is_triton_available() and not ends:
        from leadspan.losses.triton_rows import KERNEL_DIVERGENCES, triton_dense_rows  # needs Triton

        if kind in KERNEL_DIVERGENCES:
            kernel = triton_dense_rows(transform, of_teacher, kind, temperature)
            return lambda z_s, z_t, at, *per_row: kernel(z_s[: len(per_row[0])], z_t, *per_row), 1
    part = blocks(dense_rows, transform, of_teacher, settings.divergence, temperature, ends)
    return lambda z_s, z_t, at, *per_row: part((z_s, z_t), per_row), multiple


def _of_drawn_token(part: Blocks, targets: Targets, ends: tuple[int, ...]) -> ChunkRows:
    """One number of the teacher per position: the log-probability of the label, stored or from its logits."""
    if ends:
        raise TargetsError("divergence policy_gradient knows the probability of one token: set loss.stop: tokens")
    if isinstance(targets, SparseTargets) and targets.label_log_probs is None:
        raise TargetsError(
            "loss.divergence is policy_gradient, and the targets keep no probability of the tokens drawn"
        )

    def rows(z_s: Tensor, z_t: Tensor, at: slice, labels: Tensor, hard: Tensor, soft: Tensor) -> Tensor:
        if isinstance(targets, DenseTargets):
            log_p = LogitTransform(targets.scale, targets.softcap).logits(z_t[: len(labels)]).log_softmax(-1)
            log_p_label = log_p.gather(1, labels[:, None]).squeeze(1)
        else:
            assert targets.label_log_probs is not None, "checked above"
            log_p_label = targets.label_log_probs[at].to(z_s.dtype)
        return part((z_s,), (labels, hard, soft, log_p_label))

    return rows


def _of_support(
    blocks: Callable[..., Blocks],
    settings: LossSettings,
    transform: LogitTransform,
    targets: SparseTargets,
    ends: tuple[int, ...],
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
        label_logits = z.gather(1, labels[:, None]).squeeze(1)
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


def _in_blocks(part: RowPart, size: int, is_compiled: bool) -> Blocks:
    """Run a row part over blocks of `size` rows; a compiled one knows that size only."""

    def run(buffers: Sequence[Tensor], per_row: Sequence[Tensor]) -> Tensor:
        length, statistics = len(per_row[0]), []
        for start in range(0, length, size):
            stop = min(start + size, length)
            filled = start + size if is_compiled else stop
            rows = [
                # Rows of weight 0 fill the last block.
                F.pad(v[start:stop], (0, 0) * (v.dim() - 1) + (0, filled - stop)) if stop < filled else v[start:stop]
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
