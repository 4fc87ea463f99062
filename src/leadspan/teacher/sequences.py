"""Which sequences to capture: of every trace the longest that any cut needs, and each context of its own once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from leadspan.data.examples import Example, Examples
from leadspan.data.supervision import Layout
from leadspan.teacher.store import TargetStore


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences to run the teacher over, built when they are asked for.

    Attributes:
        sources: Examples under one cut each.
        places: Source and index in it of every sequence.
    """

    sources: tuple[Examples, ...]
    places: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        source, place = self.places[index]
        example = self.sources[source][place]
        weights = np.ones_like(example.weights)
        weights[0] = 0.0  # nothing predicts the first token
        return replace(example, weights=weights)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [self.sources[source].lengths[place] for source, place in self.places]

    @property
    def num_apart(self) -> int:
        """Sequences whose context is not the beginning of their trace: those of cuts that change the context."""
        runs = (_runs(self.sources[source].layouts[place]) for source, place in self.places)
        return sum(borders[0] != 0 or len(borders) > 2 for borders in runs)

    def without(self, store: TargetStore) -> "Sequences":
        """Those that a store does not serve."""
        left = tuple(place for number, place in enumerate(self.places) if not store.serves(self[number]))
        return replace(self, places=left)

    @property
    def fingerprint(self) -> str:
        """Hash of what is captured: which tokens of which trace, in order."""
        digest = hashlib.sha256()
        for source, place in self.places:
            examples = self.sources[source]
            runs = _runs(examples.layouts[place])
            digest.update(f"{examples.example_ids[place]} {runs} {examples.layouts[place].append_stop};".encode())
        return digest.hexdigest()[:32]


def longest_sequences(sources: Sequence[Examples]) -> Sequences:
    """Of the sequences of all sources those that no other one serves.

    A sequence of `n` tokens needs the teacher at its first `n - 1`; it is served by any sequence of the same trace that
    begins with these and is at least as long. Sequences of a single token predict nothing and are left out.

    Args:
        sources: The traces under every cut to serve; supervision does not matter, all positions are captured.
    """
    by_trace: dict[str, list[tuple[int, int]]] = {}
    for source, examples in enumerate(sources):
        for place, example_id in enumerate(examples.example_ids):
            if examples.lengths[place] > 1:
                by_trace.setdefault(example_id, []).append((source, place))
    places: list[tuple[int, int]] = []
    for found in by_trace.values():
        kept: list[tuple[int, ...]] = []
        for source, place in sorted(found, key=lambda at: -sources[at[0]].lengths[at[1]]):
            context = _context(sources[source].layouts[place])
            if not any(_begins(other, context) for other in kept):
                kept.append(context)
                places.append((source, place))
    return Sequences(tuple(sources), tuple(places))


def _runs(layout: Layout) -> tuple[int, ...]:
    """Borders of the kept token ranges, adjacent ones joined: `(start, end, start, end, ...)`."""
    borders: list[int] = []
    for segment in layout.segments:
        if borders and borders[-1] == segment.start:
            borders[-1] = segment.end
        else:
            borders += [segment.start, segment.end]
    return tuple(borders)


def _context(layout: Layout) -> tuple[int, ...]:
    """Runs of all kept tokens but the last one, which is only predicted."""
    borders = _runs(layout)
    if layout.append_stop:
        return borders
    *rest, start, end = borders
    return (*rest, start, end - 1) if end - 1 > start else tuple(rest)


def _begins(longer: tuple[int, ...], shorter: tuple[int, ...]) -> bool:
    """Whether the tokens of some runs begin with those of others."""
    if not shorter:
        return True
    head, last_end = shorter[:-1], shorter[-1]
    return longer[: len(head)] == head and len(longer) > len(head) and longer[len(head)] >= last_end
