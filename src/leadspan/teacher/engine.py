"""Transformers as the engine of a capture, and what each codec would take and lose, measured on a sample before one.

A pack is one forward pass, projected to the vocabulary chunk by chunk.
"""

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import on_device, pack
from leadspan.models.heads import LogitTransform, head_of, head_shape
from leadspan.teacher.codecs import Arrays, decode, encode
from leadspan.teacher.manifest import HeadEntry
from leadspan.teacher.sequences import Sequences
from leadspan.teacher.settings import CaptureSettings, Codec, Hidden, KeptTargets, Sampled, SparseCodec, TopK, TopP
from leadspan.teacher.shards import borders_of, bytes_of, sequence_hash
from leadspan.teacher.targets import live_targets, teacher_logits

_CPU_CHUNK_BYTES, _CUDA_CHUNK_TOKENS = 32 << 20, 2048
_CPU_SLAB_BYTES = 8 << 20  # of logits, so that every pass over them reads from the cache
COMMON_CODECS: tuple[Codec, ...] = (TopK(k=20), TopK(k=50), TopK(k=100), TopP(), Sampled(), Hidden())
"""Codecs that a dry run compares with that of the settings."""


class TransformersEngine:
    """Runs a frozen teacher over packs and encodes its distributions."""

    def __init__(self, teacher: PreTrainedModel, settings: CaptureSettings, num_tokens: int):
        """Take a teacher.

        Args:
            teacher: Frozen, on its device.
            settings: Codec, temperatures, chunk.
            num_tokens: The first rows of the head that the distribution is over.
        """
        self.teacher, self.settings, self.num_tokens = teacher, settings, num_tokens
        self.hidden_dtype = hidden_dtype(settings.codec, teacher.dtype)

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        batch = on_device(pack(sequences), self.teacher.device)
        targets = live_targets(self.teacher, batch)
        codec = self.settings.codec
        num_positions = [len(example.input_ids) - 1 for example in sequences]
        if isinstance(codec, Hidden):
            hidden = targets.hidden.to(self.hidden_dtype).reshape(-1).cpu()
            # NumPy has no bfloat16: its bits travel as uint16.
            array = (hidden.view(torch.uint16) if hidden.dtype == torch.bfloat16 else hidden).numpy()
            return _split_rows({"hidden": array.copy()}, num_positions)
        labels, offsets = batch["labels"], uniform_offsets(sequences, codec)
        size = self.settings.chunk_tokens or default_chunk(targets.head)
        slabs: list[Arrays] = []
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            # Two levels: chunks keep the matrix product large, slabs keep the passes over its result in the cache.
            logits = teacher_logits(targets, rows, self.num_tokens)
            slab = len(logits) if logits.is_cuda else max(1, _CPU_SLAB_BYTES // (4 * self.num_tokens))
            for first in range(0, len(logits), slab):
                positions = slice(start + first, start + min(first + slab, len(logits)))
                drawn = None if offsets is None else offsets[positions]
                slab_logits = logits[first : first + slab]
                slabs.append(encode(slab_logits, labels[positions], codec, self.settings.temperatures, drawn))
        columns = {name: np.concatenate([part[name] for part in slabs]) for name in slabs[0]}
        return _split_rows(columns, num_positions)


def _split_rows(arrays: Arrays, num_positions: Sequence[int]) -> list[Arrays]:
    """Cut the columns of a pack, all positions one after the other, into those of its sequences."""
    ends = np.cumsum([0, *num_positions])
    rows: list[Arrays] = [{} for _ in num_positions]
    for name, values in arrays.items():
        borders = borders_of(arrays, name, ends[-1])[ends].tolist()
        for row, (start, end) in zip(rows, itertools.pairwise(borders), strict=True):
            row[name] = values[start:end]
    return rows


def hidden_dtype(codec: Codec, teacher: torch.dtype) -> torch.dtype:
    """Type in which hidden states are stored."""
    if isinstance(codec, Hidden) and codec.dtype != "teacher":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[codec.dtype]
    return teacher


def head_file(weight: torch.Tensor, transform: LogitTransform) -> tuple[bytes, HeadEntry]:
    """Content of the file of the teacher's head, and its entry in the manifest."""
    content = save({"weight": weight.detach().cpu().contiguous()})
    return content, HeadEntry(sha256=hashlib.sha256(content).hexdigest(), scale=transform.scale, softcap=transform.cap)


def default_chunk(head: torch.Tensor) -> int:
    """Positions projected at a time."""
    # 4 bytes a logit; at least 16 rows, however large the vocabulary.
    return _CUDA_CHUNK_TOKENS if head.is_cuda else max(16, _CPU_CHUNK_BYTES // (4 * head.shape[0]))


def uniform_offsets(sequences: Sequence[Example], codec: object) -> torch.Tensor | None:
    """One uniform number per position, from the seed and the sequence alone: the same in any pack, on any rank."""
    if not isinstance(codec, Sampled):
        return None
    drawn = [
        # Seeded by the sequence itself: packs, ranks and resumes may order sequences in any way.
        np.random.default_rng([codec.seed, *np.frombuffer(sequence_hash(e.input_ids), dtype="<u4").tolist()]).random(
            len(e.input_ids) - 1
        )
        for e in sequences
    ]
    return torch.from_numpy(np.concatenate(drawn))


@dataclass(frozen=True, slots=True)
class CodecEstimate:
    """One codec on the sample.

    Attributes:
        codec: The codec.
        bytes_per_position: Bytes.
        num_bytes: Of the whole store.
        support: Mean entries of a position; the vocabulary for `hidden`.
        kl_lost: `KL(teacher || student)` less what the codec's targets give for it, nats per position.
        standard_error: Of `kl_lost`, over positions.
    """

    codec: Codec
    bytes_per_position: float
    num_bytes: float
    support: float
    kl_lost: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated size and speed of a capture.

    Attributes:
        num_sequences: Sequences.
        num_positions: Positions.
        positions_per_second: Of the sample, with the settings' own codec.
        sample_positions: Positions of the sample.
        kl: Mean `KL(teacher || student)` of the sample, the student at its start.
        codecs: The settings' own codec first, then others to choose from.
    """

    num_sequences: int
    num_positions: int
    positions_per_second: float
    sample_positions: int
    kl: float
    codecs: list[CodecEstimate]


def estimate(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    sequences: Sequences,
    settings: CaptureSettings,
    other_codecs: Sequence[Codec],
    num_tokens: int,
    sample_positions: int,
    seed: int,
) -> Estimate:
    """Run teacher and student over a drawn sample, and encode the teacher's output with several codecs."""
    sample: list[Example] = []
    remaining = sample_positions
    for index in np.random.default_rng(seed).permutation(len(sequences)).tolist():
        example = sequences[index]
        n = min(remaining + 1, len(example.input_ids))  # the last sequence is cut
        arrays = {name: getattr(example, name)[:n] for name in ("input_ids", "weights", "section_ids", "tenths")}
        sample.append(replace(example, **arrays))
        remaining -= n - 1
        if remaining <= 0:
            break
    engine = TransformersEngine(teacher, settings, num_tokens)
    engine(sample[:1])  # warm-up: the first run of a model is slower than all others
    start = time.perf_counter()
    engine(sample)
    seconds = time.perf_counter() - start
    # The settings' own codec may be among the others: each is measured once.
    codecs = list({codec.model_dump_json(): codec for codec in (settings.codec, *other_codecs)}.values())
    losses, full, supports = _losses(teacher, student, sample, codecs, settings, num_tokens)
    lengths = sequences.lengths
    positions = sum(n - 1 for n in lengths)  # the last token of a sequence is only predicted
    estimates = []
    for codec, kl_lost, support in zip(codecs, losses, supports, strict=True):
        # Other codecs than top-k need whole distributions, which Transformers alone returns.
        engine_name = settings.engine if isinstance(codec, TopK) else "transformers"
        kept, width = KeptTargets(codec, tuple(settings.temperatures), engine_name), head_shape(teacher)[1]
        # Where the data decides the size of a support (top-p, sampled), that of the sample is taken.
        num_values = min(codec.k, num_tokens) if isinstance(codec, TopK) else support
        once, dtype = 0, None
        if isinstance(codec, Hidden):  # the head is stored once
            num_values, dtype = width, str(hidden_dtype(codec, teacher.dtype)).removeprefix("torch.")
            once = num_tokens * width * head_of(teacher).weight.element_size()
        size, num_bytes = bytes_of(kept, num_values, lengths, dtype)
        error = float(kl_lost.std(ddof=1) / len(kl_lost) ** 0.5) if len(kl_lost) > 1 else 0.0
        estimates.append(CodecEstimate(codec, size, num_bytes + once, support, float(kl_lost.mean()), error))
    sampled = sum(len(e.input_ids) - 1 for e in sample)
    return Estimate(len(sequences), positions, sampled / seconds, sampled, float(full.mean()), estimates)


@torch.no_grad()
def _losses(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    sample: list[Example],
    codecs: Sequence[Codec],
    settings: CaptureSettings,
    num_tokens: int,
) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """Per codec the KL lost at every position; the full KL; per codec the mean size of the support."""
    batch = on_device(pack(sample), teacher.device)
    theirs, ours = live_targets(teacher, batch), live_targets(student, batch)
    labels, full = batch["labels"], []
    lost: list[list[np.ndarray]] = [[] for _ in codecs]
    entries = [0.0 for _ in codecs]
    size = max(1, default_chunk(theirs.head) // 4)  # float64, and several copies
    # Heads may be padded to different sizes; the tokens that both have are compared.
    shared = min(num_tokens, ours.head.shape[0])
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        logits = teacher_logits(theirs, rows, shared)
        # float64: a codec may lose 1e-6 nats, the difference of two divergences of about one.
        log_p = torch.log_softmax(logits.double(), dim=-1)
        log_q = torch.log_softmax(teacher_logits(ours, rows, shared).double(), dim=-1)
        kl = torch.linalg.vecdot(log_p.exp(), log_p - log_q)
        full.append(kl.cpu().numpy())
        for number, codec in enumerate(codecs):
            if isinstance(codec, Hidden):
                # Log-probabilities from hidden states rounded to the type they are stored in.
                rounded_hidden = theirs.hidden[rows].to(hidden_dtype(codec, teacher.dtype)).to(theirs.hidden.dtype)
                rounded_logits = teacher_logits(replace(theirs, hidden=rounded_hidden), slice(None), shared)
                rounded = torch.log_softmax(rounded_logits.double(), dim=-1)
                stored = torch.linalg.vecdot(rounded.exp(), rounded - log_q)
                entries[number] += shared * len(kl)
            else:
                drawn = uniform_offsets(sample, codec)
                stored, support = _sparse_kl(
                    logits, log_q, labels[rows], codec, settings, None if drawn is None else drawn[rows]
                )
                entries[number] += support
            lost[number].append((kl - stored).cpu().numpy())
    return [np.concatenate(chunks) for chunks in lost], np.concatenate(full), [n / len(labels) for n in entries]


def _sparse_kl(
    logits: torch.Tensor,
    log_q: torch.Tensor,
    labels: torch.Tensor,
    codec: SparseCodec,
    settings: CaptureSettings,
    offsets: torch.Tensor | None,
) -> tuple[torch.Tensor, int]:
    """The KL that a sparse codec's targets give, per position, and the entries they take.

    A head of the distribution and its tail: `sum_K p log(p / q) + P log(P / Q)`, `P` and `Q` the masses outside; a
    drawn support: `sum_i w_i log(p_i / q_i)`.
    """
    arrays = encode(logits, labels, codec, settings.temperatures, offsets)
    decoded = {name: torch.from_numpy(a).to(logits.device) for name, a in decode(arrays, codec).items()}
    log_p = decoded["log_probs"].double()
    used = torch.isfinite(log_p)  # unused slots have -inf
    ratio = torch.where(used, log_p - log_q.gather(1, decoded["token_ids"]), 0.0)
    if isinstance(codec, Sampled):
        return torch.linalg.vecdot(decoded["sample_weights"].double(), ratio), int(used.sum())
    # The student's mass outside the support: its probabilities with those of the support subtracted in place, then
    # summed, since 1 minus the support's sum would cancel.
    off = log_q.exp()
    off.scatter_add_(1, decoded["token_ids"], torch.where(used, -off.gather(1, decoded["token_ids"]), 0.0))
    outside, rest = torch.from_numpy(arrays["outside"]).to(log_q), off.sum(1)
    tail = torch.where(outside > 0, outside * (outside.clamp(min=1e-300) / rest.clamp(min=1e-300)).log(), 0.0)
    return torch.linalg.vecdot(log_p.exp(), ratio) + tail, int(used.sum())
