"""What a capture runs over, in which packs and shards, and what a codec would take and lose, measured before one.

For every trace, the longest sequence that any cut needs is captured, and once each context that is not a prefix of it.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example, Examples
from leadspan.data.packing import on_device, pack, plan_by_tokens
from leadspan.data.supervision import Layout
from leadspan.models.heads import head_of, head_shape
from leadspan.teacher.codecs import decode, encode
from leadspan.teacher.engine import TransformersEngine, default_chunk, hidden_dtype, uniform_offsets
from leadspan.teacher.settings import CaptureSettings, Codec, Hidden, KeptTargets, Sampled, TopK, TopP
from leadspan.teacher.shards import bytes_of
from leadspan.teacher.store import TargetStore
from leadspan.teacher.targets import live_targets, teacher_logits

COMMON_CODECS: tuple[Codec, ...] = (TopK(k=20), TopK(k=50), TopK(k=100), TopP(), Sampled(), Hidden())
"""Codecs that a dry run compares with that of the settings."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences to run the teacher over, built on access.

    Attributes:
        sources: Examples under one cut each.
        locations: Source and index in it of every sequence.
    """

    sources: tuple[Examples, ...]
    locations: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, index: int) -> Example:
        source, row = self.locations[index]
        example = self.sources[source][row]
        weights = np.ones_like(example.weights)
        weights[0] = 0.0  # nothing predicts the first token
        return replace(example, weights=weights)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [self.sources[source].lengths[row] for source, row in self.locations]

    @property
    def num_apart(self) -> int:
        """Sequences whose context is not the beginning of their trace: those of cuts that change the context."""
        runs = (_runs(self.sources[source].layouts[row]) for source, row in self.locations)
        return sum(borders[0] != 0 or len(borders) > 2 for borders in runs)

    def without(self, store: TargetStore) -> "Sequences":
        """Those that a store does not serve."""
        unserved = (at for number, at in enumerate(self.locations) if store.location(self[number]) is None)
        return replace(self, locations=tuple(unserved))

    @property
    def content_hash(self) -> str:
        """Hash of what is captured: which tokens of which trace, in order."""
        digest = hashlib.sha256()
        ids = [list(examples.example_ids) for examples in self.sources]
        for source, row in self.locations:
            examples = self.sources[source]
            # Layouts, not tokens: the trace's id and the kept ranges identify a sequence without building it.
            runs = _runs(examples.layouts[row])
            digest.update(f"{ids[source][row]} {runs} {examples.layouts[row].append_stop};".encode())
        return digest.hexdigest()[:32]


def longest_sequences(sources: Sequence[Examples]) -> Sequences:
    """The sequences of all sources that no other sequence serves.

    A sequence of `n` tokens needs the teacher at its first `n - 1`; it is served by any sequence of the same trace that
    begins with these and is at least as long. Sequences of a single token predict nothing and are left out.

    Args:
        sources: The traces under every cut to serve; supervision does not matter, all positions are captured.
    """
    by_trace: dict[str, list[tuple[int, int]]] = {}
    for source, examples in enumerate(sources):
        for row, example_id in enumerate(examples.example_ids):
            if examples.lengths[row] > 1:
                by_trace.setdefault(example_id, []).append((source, row))
    locations: list[tuple[int, int]] = []
    for candidates in by_trace.values():
        contexts: list[tuple[int, ...]] = []
        # Longest first: whatever a longer sequence begins with is served by it already.
        for source, row in sorted(candidates, key=lambda at: -sources[at[0]].lengths[at[1]]):
            context = _runs(sources[source].layouts[row])
            if not sources[source].layouts[row].append_stop:
                # The last token is only predicted; an appended end of turn is not part of the runs.
                *rest, start, end = context
                context = (*rest, start, end - 1) if end - 1 > start else tuple(rest)
            # A longer one that begins with it has the same borders but for the last: there it may go on.
            head, end = context[:-1], context[-1]
            longer = (run for run in contexts if run[: len(head)] == head and len(run) > len(head))
            if not any(run[len(head)] >= end for run in longer):
                contexts.append(context)
                locations.append((source, row))
    return Sequences(tuple(sources), tuple(locations))


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """Packs of sequences in order, and which packs make a shard.

    Attributes:
        packs: Indices of sequences.
        shards: Ranges of packs, `[start, end)`.
        lengths: Tokens of each sequence.
        content_hash: Hash of all of it, sequences included.
    """

    packs: list[list[int]]
    shards: list[tuple[int, int]]
    lengths: list[int]
    content_hash: str

    def num_positions(self, shard: int) -> int:
        """Positions of a shard."""
        start, end = self.shards[shard]
        return sum(self.lengths[i] - 1 for indices in self.packs[start:end] for i in indices)


def plan_capture(sequences: Sequences, settings: CaptureSettings, seed: int) -> CapturePlan:
    """Pack the sequences as training packs examples, and group the packs into shards."""
    lengths = sequences.lengths
    # A sequence beyond the budget is a pack of its own, so the budget is never below the longest.
    packs = plan_by_tokens(lengths, max(settings.tokens_per_batch, *lengths, 0), seed)
    shards: list[tuple[int, int]] = []
    start, positions = 0, 0
    for number, indices in enumerate(packs):
        positions += sum(lengths[i] - 1 for i in indices)
        if positions >= settings.positions_per_shard or number == len(packs) - 1:
            shards.append((start, number + 1))
            start, positions = number + 1, 0
    # None of the three contains a zero byte, so different plans never join to the same text.
    content = "\0".join((sequences.content_hash, str(packs), str(shards)))
    return CapturePlan(packs, shards, lengths, hashlib.sha256(content.encode()).hexdigest()[:32])


def _runs(layout: Layout) -> tuple[int, ...]:
    """Borders of the kept token ranges, adjacent ones joined: `(start, end, start, end, ...)`."""
    borders: list[int] = []
    for segment in layout.segments:
        if borders and borders[-1] == segment.start:
            borders[-1] = segment.end
        else:
            borders += [segment.start, segment.end]
    return tuple(borders)


@dataclass(frozen=True, slots=True)
class CodecEstimate:
    """One codec on the sample.

    Attributes:
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
        positions_per_second: Of the sample, with the settings' own codec.
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
    engine: TransformersEngine,
    student: PreTrainedModel,
    sequences: Sequences,
    other_codecs: Sequence[Codec],
    sample_positions: int,
    seed: int,
) -> Estimate:
    """Run teacher and student over a drawn sample, and encode the teacher's output with several codecs."""
    teacher, settings, num_tokens = engine.teacher, engine.settings, engine.num_tokens
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
    engine(sample[:1])  # warm-up: the first run of a model is slower than all others
    start = time.perf_counter()
    engine(sample)
    seconds = time.perf_counter() - start
    # The settings' own codec may be among the others: each is measured once.
    codecs = list({codec.model_dump_json(): codec for codec in (settings.codec, *other_codecs)}.values())
    losses, full, supports = _losses(engine, student, sample, codecs)
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
    engine: TransformersEngine, student: PreTrainedModel, sample: list[Example], codecs: Sequence[Codec]
) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """Per codec the KL lost at every position; the full KL; per codec the mean size of the support."""
    teacher, temperatures = engine.teacher, engine.settings.temperatures
    batch = on_device(pack(sample), teacher.device)
    theirs, ours = live_targets(teacher, batch), live_targets(student, batch)
    labels, full = batch["labels"], []
    lost: list[list[np.ndarray]] = [[] for _ in codecs]
    entries = [0.0 for _ in codecs]
    size = max(1, default_chunk(theirs.head) // 4)  # float64, and several copies
    # Heads may be padded to different sizes; the tokens that both have are compared.
    shared = min(engine.num_tokens, ours.head.shape[0])
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
                offsets = None if drawn is None else drawn[rows]
                arrays = encode(logits, labels[rows], codec, temperatures, offsets)
                decoded = {name: torch.from_numpy(a).to(logits.device) for name, a in decode(arrays, codec).items()}
                stored = _kl_of_support(decoded, arrays["outside"], log_q)
                entries[number] += int(torch.isfinite(decoded["log_probs"]).sum())
            lost[number].append((kl - stored).cpu().numpy())
    return [np.concatenate(chunks) for chunks in lost], np.concatenate(full), [n / len(labels) for n in entries]


def _kl_of_support(decoded: dict[str, torch.Tensor], outside: np.ndarray, log_q: torch.Tensor) -> torch.Tensor:
    """The KL that a sparse codec's targets give at each position.

    A drawn support: `sum_i w_i log(p_i / q_i)`. A head of the distribution and its tail, `P` (`outside`) and `Q` the
    masses outside: `sum_K p log(p / q) + P log(P / Q)`.
    """
    ids, log_p = decoded["token_ids"], decoded["log_probs"].double()
    used = torch.isfinite(log_p)  # unused slots have -inf
    ratio = torch.where(used, log_p - log_q.gather(1, ids), 0.0)
    if "sample_weights" in decoded:
        return torch.linalg.vecdot(decoded["sample_weights"].double(), ratio)
    # The student's mass outside: its probabilities with those of the support subtracted in place, then summed, since 1
    # minus the support's sum would cancel.
    off = log_q.exp()
    off.scatter_add_(1, ids, torch.where(used, -off.gather(1, ids), 0.0))
    mass, rest = torch.from_numpy(outside).to(log_q), off.sum(1)
    tail = torch.where(mass > 0, mass * (mass.clamp(min=1e-300) / rest.clamp(min=1e-300)).log(), 0.0)
    return torch.linalg.vecdot(log_p.exp(), ratio) + tail
