"""Writing a store: one process at a time claims it, and the teacher runs once over what it lacks, shard by shard.

A shard is the unit of work, of a rank and of a resume; it appears under its own name, which holds its hash, only when
it is whole. Finished shards are never computed again.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leadspan.data.examples import Example
from leadspan.errors import CacheError, TargetsError
from leadspan.files import file_hash, locked
from leadspan.status import Progress
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.manifest import (
    DRAWN_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    ShardEntry,
    check_same,
    read_manifest,
    write_manifest,
)
from leadspan.teacher.sequences import CapturePlan, Sequences
from leadspan.teacher.shards import ShardReader, ShardWriter, finished_shards, has_hash_of_name

_LOCK_FILE, _DAMAGED_DIR = "capture.lock", "damaged"
# A file that was written, and whose process was killed before it gave it its name.
_UNNAMED = re.compile(rf"\.({re.escape(MANIFEST_FILE)}|{re.escape(DRAWN_FILE)})\.\d+\.tmp")


@contextmanager
def store_locked(directory: Path) -> Iterator[None]:
    """Lock a store, so that one process at a time writes into it.

    Raises:
        TargetsError: Another process captures into it.
    """

    def refusal(holder: str) -> TargetsError:
        return TargetsError(
            f"{directory}: another process (id {holder}) captures into it; wait, or give another capture.path"
        )

    with locked(directory / _LOCK_FILE, refusal):
        yield


@contextmanager
def claimed(directory: Path, manifest: Manifest) -> Iterator[Manifest]:
    """Claim a store: lock it while the capture runs, write its manifest, remove the leftovers of a killed capture.

    Yields:
        The manifest to use: that of the store, if it describes the same capture.

    Raises:
        TargetsError: Another process captures into it, it holds another capture, or the directory is not a store.
    """
    with store_locked(directory):
        if (directory / MANIFEST_FILE).exists():
            existing = read_manifest(directory)
            check_same(existing.identity(), manifest.identity(), str(directory))
            if existing.plan_hash != manifest.plan_hash:
                raise TargetsError(
                    f"{directory}: it holds other sequences (plan {existing.plan_hash}, now {manifest.plan_hash}): "
                    "traces, cuts, seed and sizes of packs and shards must stay; give another capture.path"
                )
            manifest = existing
        # The lock is there already, and rollouts may have been drawn before the capture.
        elif not all(
            path.name in (_LOCK_FILE, DRAWN_FILE) or _UNNAMED.fullmatch(path.name) for path in directory.iterdir()
        ):
            raise TargetsError(f"{directory}: it is not empty and not a store; give another directory")
        else:
            write_manifest(manifest, directory)
        (directory / SHARDS_DIR).mkdir(exist_ok=True)
        # Safe under the lock: no other process is writing here.
        for temporary in (*directory.glob(".*.tmp"), *(directory / SHARDS_DIR).glob(".*.tmp")):
            temporary.unlink()
        yield manifest


def set_aside_damaged(directory: Path) -> list[Path]:
    """Hash all finished shards of a store, and move those that do not match the hash in their name to `damaged/`.

    Returns:
        Their former paths.
    """
    paths = list(finished_shards(directory).values())
    # Hashing releases the interpreter lock, so threads read several shards at once.
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(file_hash, paths)
        broken = [path for path, digest in zip(paths, hashes, strict=True) if not has_hash_of_name(path, digest)]
    for path in broken:
        set_aside(path, directory)
    return broken


def set_aside(path: Path, directory: Path) -> Path:
    """Move a damaged file or part into `damaged/` of a store, from where nothing is read; earlier ones stay there."""
    (directory / _DAMAGED_DIR).mkdir(exist_ok=True)
    # Numbered, since a shard that is captured again may be damaged again under the same name.
    number = sum(1 for _ in (directory / _DAMAGED_DIR).iterdir())
    return path.rename(directory / _DAMAGED_DIR / f"{number}-{path.name}")


class Engine(Protocol):
    """Runs the teacher over a pack."""

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence of a pack, besides `input_ids` and `section`."""
        ...


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process as one of those that capture together.

    Attributes:
        rank: Its number.
        number: How many there are.
        wait: Waits for the others.
    """

    rank: int = 0
    number: int = 1
    wait: Callable[[], None] = lambda: None


class CaptureRate:
    """Positions done and tokens per second, reported as the status; assumes that all ranks are equally fast."""

    def __init__(self, num_positions: int, num_ranks: int):
        self.num_positions, self.num_ranks, self.num_done = num_positions, num_ranks, 0
        self._start, self._progress = time.perf_counter(), Progress("capture", num_positions, "positions")

    def add(self, num_positions: int) -> None:
        """Count positions of this rank as done."""
        self.num_done = min(self.num_positions, self.num_done + num_positions * self.num_ranks)
        # 1e-9: on a coarse clock the first pack may take no time at all.
        speed = self.num_done / max(time.perf_counter() - self._start, 1e-9)
        self._progress.report(self.num_done, f", {speed:,.0f} tokens/s")


def fill_store(
    directory: Path,
    manifest: Manifest,
    plan: CapturePlan,
    sequences: Sequences,
    engine: Engine,
    ranks: Ranks,
    started: float | None = None,
) -> Manifest:
    """Compute the missing shards, and complete the store.

    The first rank has `claimed` the store, with its manifest. Rank `r` of `R` takes every `R`-th missing shard. The
    clock of this attempt has `started` by `time.perf_counter`; now when absent.

    Raises:
        CacheError: The disk is full, or a file cannot be written.
    """
    # A store's seconds add up over its attempts; those of loading the teacher are part of them.
    clock, before = started or time.perf_counter(), manifest.seconds
    done = finished_shards(directory)
    missing = [number for number in range(len(plan.shards)) if number not in done]
    ranks.wait()  # all have seen the same shards before one of them adds to these
    rate = CaptureRate(sum(plan.num_positions(n) for n in missing), ranks.number)
    # One thread is enough: Arrow and SHA-256 release the interpreter lock, and shards are written in order.
    with ThreadPoolExecutor(max_workers=1) as writing:
        for number in missing[ranks.rank :: ranks.number]:
            try:
                _capture_shard(directory / SHARDS_DIR, number, manifest, plan, sequences, engine, rate, writing)
                if ranks.rank == 0:
                    manifest = _timed(manifest, before, clock)
                    write_manifest(manifest, directory)
            except OSError as error:
                num_missing = sum(number not in finished_shards(directory) for number in missing)
                raise CacheError(
                    f"{directory}: cannot be written ({error.strerror}); {len(plan.shards) - num_missing} of "
                    f"{len(plan.shards)} shards are complete; free space and run `leadspan capture` again, which "
                    "continues with the others"
                ) from None
    ranks.wait()
    if ranks.rank == 0:
        finished = finished_shards(directory)
        # Read back from disk, not remembered: the manifest vouches for the files as they are.
        entries = [_entry(finished[number], manifest) for number in range(len(plan.shards))]
        if missing:
            manifest = _timed(manifest, before, clock)
        manifest = manifest.model_copy(update={"complete": True, "shards": entries})
        write_manifest(manifest, directory)
    ranks.wait()
    return manifest


def _timed(manifest: Manifest, before: float, started: float) -> Manifest:
    return manifest.model_copy(update={"seconds": round(before + time.perf_counter() - started, 3)})


def _capture_shard(
    directory: Path,
    number: int,
    manifest: Manifest,
    plan: CapturePlan,
    sequences: Sequences,
    engine: Engine,
    rate: CaptureRate,
    writing: ThreadPoolExecutor,
) -> None:
    """Capture one shard; each pack is written while the teacher runs over the next one."""
    pending: Future[None] | None = None
    with ShardWriter(directory, number, manifest) as writer:
        try:
            # At most one pack waits to be written, so memory does not grow when the disk is slower than the teacher.
            for indices in plan.packs[slice(*plan.shards[number])]:
                pack = [sequences[i] for i in indices]
                rows = engine(pack)
                if pending is not None:
                    pending.result()
                pending = writing.submit(_write, writer, pack, rows)
                rate.add(sum(len(example.input_ids) - 1 for example in pack))
        finally:
            # Also after an error: the writer must not be closed while a thread still writes.
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
    # The directory itself may not be there yet: its nearest parent is on the same disk.
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise CacheError(
            f"{directory}: the store takes about {num_bytes / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; "
            "free space, choose a smaller capture.codec, or another capture.path"
        )
