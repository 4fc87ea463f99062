"""Which sequences to capture, and the plan of a capture: sequences into packs, packs into shards.

For every trace, the longest sequence that any cut needs is captured, and once each context that is not a prefix of it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from leadspan.data.examples import Example, Examples
from leadspan.data.packing import plan_by_tokens
from leadspan.data.supervision import Layout
from leadspan.teacher.settings import CaptureSettings
from leadspan.teacher.store import TargetStore


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
        return sum(self.lengths[i] - 1 for pack in self.packs[start:end] for i in pack)


def plan_capture(sequences: Sequences, settings: CaptureSettings, seed: int) -> CapturePlan:
    """Pack the sequences as training packs examples, and group the packs into shards."""
    lengths = sequences.lengths
    # A sequence beyond the budget is a pack of its own, so the budget is never below the longest.
    packs = plan_by_tokens(lengths, max(settings.tokens_per_batch, *lengths, 0), seed)
    shards: list[tuple[int, int]] = []
    start, positions = 0, 0
    for number, pack in enumerate(packs):
        positions += sum(lengths[i] - 1 for i in pack)
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
