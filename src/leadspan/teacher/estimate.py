"""Before a capture: what each codec would take and lose, measured on a sample."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import on_device, pack
from leadspan.models.heads import head_of, head_shape
from leadspan.teacher.codecs import bytes_per_position, decode, encode
from leadspan.teacher.engine import TransformersEngine, default_chunk, hidden_dtype, uniform_offsets
from leadspan.teacher.sequences import Sequences
from leadspan.teacher.settings import CaptureSettings, Codec, Hidden, Sampled, SparseCodec, TopK, TopP
from leadspan.teacher.targets import live_targets, teacher_logits

COMMON_CODECS: tuple[Codec, ...] = (TopK(k=20), TopK(k=50), TopK(k=100), TopP(), Sampled(), Hidden())
"""Codecs that a dry run compares with that of the settings."""


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
    positions = sum(n - 1 for n in sequences.lengths)  # the last token of a sequence is only predicted
    estimates = []
    for codec, kl_lost, support in zip(codecs, losses, supports, strict=True):
        # Where the data decides the size of a support (top-p, sampled), that of the sample is taken.
        if isinstance(codec, Hidden):
            # Token id, section, and the states; the head is stored once.
            size = 4 + 1 + head_shape(teacher)[1] * hidden_dtype(codec, teacher.dtype).itemsize
            once = math.prod(head_shape(teacher)) * head_of(teacher).weight.element_size()
        else:
            size, once = bytes_per_position(codec, len(settings.temperatures), num_tokens, support), 0
        error = float(kl_lost.std(ddof=1) / len(kl_lost) ** 0.5) if len(kl_lost) > 1 else 0.0
        estimates.append(CodecEstimate(codec, size, size * positions + once, support, float(kl_lost.mean()), error))
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
