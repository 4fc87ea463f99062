"""Filling a store: the teacher runs once over packs of sequences; finished shards are never computed again.

The whole capture is planned before it starts: sequences into packs (`data/packing.py`), packs into shards. A shard is
the unit of work, of a rank and of a resume; it appears under its own name, which holds its hash, only when it is whole.
"""

import fcntl
import hashlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leadspan.data.examples import Example
from leadspan.data.packing import plan_by_tokens
from leadspan.errors import CacheError, TargetsError
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.config import CaptureSettings
from leadspan.teacher.manifest import (
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    ShardEntry,
    check_same,
    read_manifest,
    write_manifest,
)
from leadspan.teacher.sequences import Sequences
from leadspan.teacher.shards import SUFFIX, ShardReader, ShardWriter

_LOCK_FILE = "capture.lock"
_TELL_SECONDS = 0.2


class Engine(Protocol):
    """What runs the teacher over a pack."""

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence of a pack, besides `input_ids` and `section`."""
        ...


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


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that capture together.

    Attributes:
        rank: Its number.
        number: How many there are.
        wait: Waits for the others.
    """

    rank: int = 0
    number: int = 1
    wait: Callable[[], None] = lambda: None


def capture(
    directory: Path,
    manifest: Manifest,
    plan: CapturePlan,
    sequences: Sequences,
    engine: Engine,
    say: Callable[[str], None],
    ranks: Ranks,
) -> Manifest:
    """Compute the shards that are missing, and finish the store.

    Args:
        directory: The store; `claimed` by the first rank, with its manifest written.
        manifest: What the store is.
        plan: Packs and shards.
        sequences: What the plan counts.
        engine: Runs the teacher.
        say: Told in words how far the capture is.
        ranks: This process among others; rank `r` of `R` takes every `R`-th missing shard.

    Raises:
        CacheError: The disk is full, or a file cannot be written.
    """
    done = finished_shards(directory)
    missing = [number for number in range(len(plan.shards)) if number not in done]
    ranks.wait()  # all have seen the same shards before one of them adds to these
    own = missing[ranks.rank :: ranks.number]
    progress = _Progress(say, sum(plan.num_positions(n) for n in missing), ranks.number)
    with ThreadPoolExecutor(max_workers=1) as writing:
        for number in own:
            try:
                _capture_shard(directory / SHARDS_DIR, number, manifest, plan, sequences, engine, progress, writing)
            except OSError as error:
                raise _cannot_write(directory, error, plan, missing) from None
    ranks.wait()
    if ranks.rank == 0:
        finished = finished_shards(directory)
        entries = [_entry(finished[number], manifest) for number in range(len(plan.shards))]
        manifest = manifest.model_copy(update={"complete": True, "shards": entries})
        write_manifest(manifest, directory)
    ranks.wait()
    return manifest


def _capture_shard(
    directory: Path,
    number: int,
    manifest: Manifest,
    plan: CapturePlan,
    sequences: Sequences,
    engine: Engine,
    progress: "_Progress",
    writing: ThreadPoolExecutor,
) -> None:
    """One shard; a pack is written while the teacher runs over the next."""
    pending: Future[None] | None = None
    with ShardWriter(directory, number, manifest) as writer:
        try:
            for indices in plan.packs[slice(*plan.shards[number])]:
                pack = [sequences[i] for i in indices]
                rows = engine(pack)
                if pending is not None:
                    pending.result()
                pending = writing.submit(_write, writer, pack, rows)
                progress.add(sum(len(example.input_ids) - 1 for example in pack))
        finally:
            if pending is not None:
                pending.result()
        writer.close()


def _write(writer: ShardWriter, pack: Sequence[Example], rows: list[Arrays]) -> None:
    ids = [bytes.fromhex(example.example_id) for example in pack]
    named = [
        {"input_ids": example.input_ids.astype("<i4"), "section": example.section_ids[1:].astype("u1"), **row}
        for example, row in zip(pack, rows, strict=True)
    ]
    writer.write(ids, named)


@contextmanager
def claimed(directory: Path, manifest: Manifest) -> Iterator[Manifest]:
    """Take a store for this capture: a lock for as long as it lasts, the manifest, no leftovers of a killed one.

    Yields:
        The manifest to go on with: the one that is there, if it describes the same capture.

    Raises:
        TargetsError: Another process captures into it, it holds another capture, or the directory holds other things.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise TargetsError(
                f"{directory}: another process (id {holder}) captures into it; wait, or give another capture.path"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield _begin(directory, manifest)


def _begin(directory: Path, manifest: Manifest) -> Manifest:
    if (directory / MANIFEST_FILE).exists():
        there = read_manifest(directory)
        check_same(there.identity(), manifest.identity(), str(directory))
        if there.plan_hash != manifest.plan_hash:
            raise TargetsError(
                f"{directory}: it holds other sequences (plan {there.plan_hash}, now {manifest.plan_hash}): "
                "traces, cuts, seed and sizes of packs and shards must stay; give another capture.path"
            )
        manifest = there
    elif any(path.name != _LOCK_FILE for path in directory.iterdir()):
        raise TargetsError(f"{directory}: it is no store and not empty; give another capture.path")
    else:
        write_manifest(manifest, directory)
    (directory / SHARDS_DIR).mkdir(exist_ok=True)
    for left in (*directory.glob(".*.tmp"), *(directory / SHARDS_DIR).glob(".*.tmp")):
        left.unlink()
    return manifest


def finished_shards(directory: Path) -> dict[int, Path]:
    """Shards of a store that are whole, by number."""
    return {int(path.name.partition("-")[0]): path for path in (directory / SHARDS_DIR).glob(f"*-*{SUFFIX}")}


def _entry(path: Path, manifest: Manifest) -> ShardEntry:
    shard = ShardReader(path, manifest)
    return ShardEntry(
        name=path.name,
        num_rows=len(shard.sequences()),
        num_positions=sum(len(shard.input_ids(batch, row)) - 1 for batch, row, _ in shard.sequences()),
        num_bytes=path.stat().st_size,
    )


def check_space(directory: Path, num_bytes: float) -> None:
    """Refuse a capture that cannot fit.

    Raises:
        CacheError: The disk has less free space than the store will take.
    """
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise CacheError(
            f"{directory}: the store takes about {num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; "
            "free space, choose a smaller capture.codec, or another capture.path"
        )


def _cannot_write(directory: Path, error: OSError, plan: CapturePlan, missing: list[int]) -> CacheError:
    left = sum(number not in finished_shards(directory) for number in missing)
    return CacheError(
        f"{directory}: cannot be written ({error.strerror}); {len(plan.shards) - left} of {len(plan.shards)} shards "
        "are whole and kept; free space and run `leadspan capture` again, it goes on with the others"
    )


class _Progress:
    """Positions, tokens per second and time left, a few times a second; other ranks are taken to be as fast."""

    def __init__(self, say: Callable[[str], None], num_positions: int, num_ranks: int):
        self.say, self.total, self.ranks = say, num_positions, num_ranks
        self.done, self.start, self._told = 0, time.perf_counter(), -math.inf

    def add(self, positions: int) -> None:
        self.done = min(self.total, self.done + positions * self.ranks)
        now = time.perf_counter()
        if now - self._told < _TELL_SECONDS and self.done < self.total:
            return
        self._told = now
        speed = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / speed
        self.say(f"capture: {self.done:,}/{self.total:,} positions, {speed:,.0f} tokens/s, {duration(left)} left")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in words.

    >>> duration(75), duration(7384)
    ('1 min 15 s', '2 h 3 min')
    """
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"


def split_rows(arrays: Arrays, num_positions: Sequence[int], per_entry: frozenset[str]) -> list[Arrays]:
    """Cut the columns of a pack into those of its sequences.

    Args:
        arrays: Columns of all positions, one after the other.
        num_positions: Positions of each sequence.
        per_entry: Columns with one value per entry; where `num_entries` is there, it says how many a position has.
    """
    ends = [0, *itertools.accumulate(num_positions)]
    total = ends[-1]
    sizes = arrays.get("num_entries")
    entry_ends = ends
    if sizes is not None:
        running = [0, *itertools.accumulate(sizes.tolist())]
        entry_ends = [running[end] for end in ends]
    rows: list[Arrays] = [{} for _ in num_positions]
    for name, values in arrays.items():
        by_entry = name in per_entry and sizes is not None
        width = 1 if by_entry else len(values) // total
        marks = entry_ends if by_entry else ends
        for row, (start, end) in zip(rows, itertools.pairwise(marks), strict=True):
            row[name] = values[start * width : end * width]
    return rows
