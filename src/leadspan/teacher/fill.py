"""Writing a store: from a teacher that runs once over what it lacks, shard by shard, or from other stores.

A shard is the unit of work, of a rank and of a resume; it appears under its own name, which holds its hash, only when
it is whole. Finished shards are never computed again. One process at a time claims a store.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from leadspan.data.examples import Example
from leadspan.errors import CacheError, TargetsError
from leadspan.files import checked_line, file_hash, locked, write_atomically
from leadspan.status import Progress
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.manifest import (
    DRAWN_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    ShardEntry,
    check_same,
    joined,
    read_manifest,
    write_manifest,
)
from leadspan.teacher.sequences import CapturePlan, Sequences
from leadspan.teacher.shards import ShardReader, ShardWriter, finished_shards, has_hash_of_name
from leadspan.teacher.store import TargetStore

_LOCK_FILE, _DAMAGED_DIR = "capture.lock", "damaged"
# A file that was written, and whose process was killed before it gave it its name.
_UNNAMED = re.compile(rf"\.({re.escape(MANIFEST_FILE)}|{re.escape(DRAWN_FILE)})\.\d+\.tmp")
Engine = Callable[[Sequence[Example]], list[Arrays]]
"""Runs the teacher over a pack: the stored columns of every sequence, besides `input_ids` and `section`."""


def store_locked(directory: Path) -> AbstractContextManager[None]:
    """Lock a store, so that one process at a time writes into it.

    Raises:
        TargetsError: Another process captures into it.
    """
    return locked(
        directory / _LOCK_FILE,
        lambda holder: TargetsError(
            f"{directory}: another process (id {holder}) captures into it; wait, or give another capture.path"
        ),
    )


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
                    "traces, cuts, seed and sizes of packs and shards must stay the same; give another capture.path"
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

    def timed() -> Manifest:
        return manifest.model_copy(update={"seconds": round(before + time.perf_counter() - clock, 3)})

    done = finished_shards(directory)
    missing = [number for number in range(len(plan.shards)) if number not in done]
    ranks.wait()  # all have seen the same shards before one of them adds to these
    total, num_done, begun = sum(plan.num_positions(n) for n in missing), 0, time.perf_counter()
    progress = Progress("capture", total, "positions")

    def count(num_positions: int) -> None:
        nonlocal num_done
        num_done = min(total, num_done + num_positions * ranks.number)  # as if all ranks were equally fast
        # 1e-9: on a coarse clock the first pack may take no time at all.
        speed = num_done / max(time.perf_counter() - begun, 1e-9)
        progress.report(num_done, f", {speed:,.0f} tokens/s")

    for number in missing[ranks.rank :: ranks.number]:
        packs = ([sequences[i] for i in indices] for indices in plan.packs[slice(*plan.shards[number])])
        try:
            with ShardWriter(directory / SHARDS_DIR, number, manifest) as writer:
                _capture_shard(writer, packs, engine, count)
                writer.close()
            if ranks.rank == 0:
                manifest = timed()
                write_manifest(manifest, directory)
        except OSError as error:
            raise CacheError(
                f"{directory}: cannot be written ({error.strerror}); {len(finished_shards(directory))} of "
                f"{len(plan.shards)} shards are complete; free space and run `leadspan capture` again, which "
                "continues with the others"
            ) from None
    ranks.wait()
    if ranks.rank == 0:
        finished = finished_shards(directory)
        # Read back from disk, not remembered: the manifest vouches for the files as they are.
        entries = [_entry(finished[number], manifest) for number in range(len(plan.shards))]
        manifest = (timed() if missing else manifest).model_copy(update={"complete": True, "shards": entries})
        write_manifest(manifest, directory)
    ranks.wait()
    return manifest


def _capture_shard(
    writer: ShardWriter, packs: Iterable[list[Example]], engine: Engine, count: Callable[[int], None]
) -> None:
    """Capture the packs of a shard; each is written while the teacher runs over the next one."""
    pending: Future[None] | None = None
    # One thread is enough: Arrow and SHA-256 release the interpreter lock. Leaving its context waits for it, so that
    # after an error too the shard is not closed while a pack is written.
    with ThreadPoolExecutor(max_workers=1) as writing:
        # At most one pack waits to be written, so memory does not grow when the disk is slower than the teacher.
        for pack in packs:
            rows = engine(pack)
            if pending is not None:
                pending.result()
            pending = writing.submit(_write, writer, pack, rows)
            count(sum(len(example.input_ids) - 1 for example in pack))
        if pending is not None:
            pending.result()


def _write(writer: ShardWriter, pack: Sequence[Example], rows: list[Arrays]) -> None:
    ids = [bytes.fromhex(example.example_id) for example in pack]
    named = [
        {"input_ids": example.input_ids.astype("<i4"), "section": example.section_ids[1:].astype("u1"), **row}
        for example, row in zip(pack, rows, strict=True)
    ]
    writer.write(ids, named)


def _entry(path: Path, manifest: Manifest) -> ShardEntry:
    shard = ShardReader(path, manifest)
    lengths = [len(shard.values(batch, row, "input_ids")) for batch, row, _ in shard.sequences()]
    num_positions, size = sum(n - 1 for n in lengths), path.stat().st_size
    return ShardEntry(name=path.name, num_rows=len(lengths), num_positions=num_positions, num_bytes=size)


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


def merge_stores(paths: Sequence[Path], output: Path) -> Manifest:
    """Write a new store with the rows of all, and their rollouts where they have any.

    Every source is verified first; an interrupted join of the same stores is begun again. A shard of the result is a
    shard of a source without the rows that came before.

    Raises:
        TargetsError: They are not of one teacher, tokenizer, template and codec, their rollouts were drawn with other
            settings, or the output holds anything but an interrupted join of them.
        CacheError: A source is damaged.
    """
    stores = [TargetStore(path) for path in paths]
    for store in stores:
        where = f"{store.directory} and {stores[0].directory}"
        check_same(store.manifest.identity(), stores[0].manifest.identity(), where)
        store.verify()
    if (output / MANIFEST_FILE).exists() and read_manifest(output).complete:
        raise TargetsError(f"{output}: it holds a complete store; give a new directory")
    rollouts = _joined_rollouts([path / DRAWN_FILE for path in paths])
    plans = hashlib.sha256(" ".join(store.manifest.plan_hash for store in stores).encode()).hexdigest()[:32]
    changes = {"plan_hash": plans, "complete": False, "shards": [], "flops": None}
    with claimed(output, joined([store.manifest for store in stores]).model_copy(update=changes)) as manifest:
        if manifest.head is not None:
            write_atomically(output / HEAD_FILE, (next(iter(stores[0].parts)) / HEAD_FILE).read_bytes())
        if rollouts:
            write_atomically(output / DRAWN_FILE, rollouts)
        seen: set[tuple[bytes, bytes]] = set()
        entries = []
        for shard in (shard for store in stores for shard in store.shards):
            new_rows: dict[int, list[tuple[int, bytes]]] = {}  # by record batch
            for batch, row, example_id in shard.sequences():
                # A row is found by the id of its trace, and a cut may leave the same tokens of two traces.
                if (key := (example_id, shard.key(batch, row, "sequence_hash"))) not in seen:
                    seen.add(key)
                    new_rows.setdefault(batch, []).append((row, example_id))
            with ShardWriter(output / SHARDS_DIR, len(entries), manifest) as writer:
                for batch, rows in new_rows.items():
                    writer.write([example_id for _, example_id in rows], [shard.row(batch, row) for row, _ in rows])
                entries.append(writer.close())
        counts = {
            "num_sequences": sum(entry.num_rows for entry in entries),
            "num_positions": sum(entry.num_positions for entry in entries),
        }
        manifest = manifest.model_copy(update={"complete": True, "shards": entries, **counts})
        write_manifest(manifest, output)
    return manifest


def _joined_rollouts(paths: Sequence[Path]) -> bytes:
    """The header that all files of rollouts share, and their lines, each once; nothing where there is no file."""
    files = {path: path.read_bytes().split(b"\n")[:-1] for path in paths if path.exists()}
    for path, lines in files.items():
        damaged = [number for number, line in enumerate(lines or [b""], 1) if checked_line(line) is None]
        if damaged:
            raise CacheError(f"{path}: line {damaged[0]} is damaged; run its `leadspan capture` again")
    headers = {lines[0].decode(): path for path, lines in files.items()}
    if len(headers) > 1:
        different = "; ".join(f"{path}: {header}" for header, path in headers.items())
        raise TargetsError(f"rollouts drawn with different settings cannot be joined: {different}")
    return b"".join(line + b"\n" for line in dict.fromkeys(line for lines in files.values() for line in lines))
