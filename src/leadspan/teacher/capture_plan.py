"""The plan of a capture, made before it starts: sequences into packs (`data/packing.py`), packs into shards."""

import hashlib
from dataclasses import dataclass

from leadspan.data.packing import plan_by_tokens
from leadspan.teacher.config import CaptureSettings
from leadspan.teacher.sequences import Sequences


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """Packs of sequences in order, and which packs make a shard.

    Attributes:
        packs: Indices of sequences.
        shards: Ranges of packs, `[start, end)`.
        lengths: Tokens of each sequence.
        fingerprint: Hash of all of it, sequences included.
    """

    packs: list[list[int]]
    shards: list[tuple[int, int]]
    lengths: list[int]
    fingerprint: str

    def num_positions(self, shard: int) -> int:
        """Positions of a shard."""
        start, end = self.shards[shard]
        return sum(self.lengths[i] - 1 for pack in self.packs[start:end] for i in pack)


def plan_capture(sequences: Sequences, settings: CaptureSettings, seed: int) -> CapturePlan:
    """Pack the sequences as training packs examples, and group the packs into shards."""
    lengths = sequences.lengths
    packs = plan_by_tokens(lengths, max(settings.tokens_per_batch, *lengths, 0), None, seed)
    shards: list[tuple[int, int]] = []
    start, positions = 0, 0
    for number, pack in enumerate(packs):
        positions += sum(lengths[i] - 1 for i in pack)
        if positions >= settings.positions_per_shard or number == len(packs) - 1:
            shards.append((start, number + 1))
            start, positions = number + 1, 0
    parts = (sequences.fingerprint, str(packs), str(shards))
    return CapturePlan(packs, shards, lengths, hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32])
