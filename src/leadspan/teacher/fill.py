"""Writing a store: from a teacher that runs once over what it lacks, shard by shard, or from other stores.

A shard is the unit of work, of a rank and of a resume; it appears under its own name, which holds its hash, only when
it is whole. Finished shards are never computed again. One process at a time claims a store.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leadspan.data.examples import Example
from leadspan.errors import CacheError, TargetsError
from leadspan.files import checked_line, file_hash, locked, write_atomically
from leadspan.status import Progress
from leadspan.teacher.capture_plan import CapturePlan, Sequences
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.manifest import (
    DRAWN_FILE,
    HEAD_FILE,
    LOCK_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    check_same,
    checked_for_capture,
    read_joined,
    read_manifest,
    write_manifest,
)
from leadspan.teacher.shards import ShardReader, ShardWriter, finished_shards, has_hash_of_name
from leadspan.teacher.store import TargetStore

_DAMAGED_DIR = "damaged"
Engine = Callable[[Sequence[Example]], list[Arrays]]
"""Runs the teacher over a pack: the stored columns of every sequence, besides `input_ids` and `section`."""


@contextmanager
def store_locked(directory: Path) -> Iterator[None]:
    """Lock a store, or a directory that is to be one, so that one process at a time writes into it.

    Raises:
        TargetsError: Another process captures into it, or it holds other files.
    """
    refusal = "{}: another process (id {}) captures into it; wait, or give another capture.path"
    with locked(directory / LOCK_FILE, lambda holder: TargetsError(refusal.format(directory, holder))):
        checked_for_capture(directory)
        yield


@contextmanager
def claimed(directory: Path, manifest: Manifest) -> Iterator[Manifest]:
    """Claim a store: lock it while the capture runs, write its manifest, remove the leftovers of a killed capture.

    Yields:
        The manifest to use: that of the store, if it describes the same capture.

    Raises:
        TargetsError: As of `store_locked`, or it holds another capture.
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
    clock = (started or time.perf_counter()) - manifest.seconds
    done = finished_shards(directory)
    missing = [number for number in range(len(plan.shards)) if number not in done]
    ranks.wait()  # all have seen the same shards before one of them adds to these
    total, num_done, begun = sum(plan.num_positions(n) for n in missing), 0, time.perf_counter()
    progress = Progress("capture", total, "positions")
    for number in missing[ranks.rank :: ranks.number]:
        try:
            with ShardWriter(directory / SHARDS_DIR, number, manifest) as writer:
                for indices in plan.packs[slice(*plan.shards[number])]:
                    pack = [sequences[i] for i in indices]
                    rows = _with_tokens(pack, engine(pack))
                    writer.write([bytes.fromhex(example.example_id) for example in pack], rows)
                    # As if all ranks were equally fast.
                    num_done = min(total, num_done + ranks.number * sum(len(example.input_ids) - 1 for example in pack))
                    # 1e-9: on a coarse clock the first pack may take no time at all.
                    speed = num_done / max(time.perf_counter() - begun, 1e-9)
                    progress.report(num_done, f", {speed:,.0f} tokens/s")
                writer.close()
            if ranks.rank == 0:
                manifest = manifest.model_copy(update={"seconds": round(time.perf_counter() - clock, 3)})
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
        entries = [ShardReader(finished[number], manifest).entry() for number in range(len(plan.shards))]
        changes: dict[str, Any] = {"complete": True, "shards": entries}
        changes |= {"seconds": round(time.perf_counter() - clock, 3)} if missing else {}
        manifest = manifest.model_copy(update=changes)
        write_manifest(manifest, directory)
    ranks.wait()
    return manifest


def _with_tokens(pack: Sequence[Example], captured: Sequence[Arrays]) -> list[Arrays]:
    """What is stored of each sequence: its tokens, the sections of its positions, and what was captured."""
    rows: list[Arrays] = []
    for example, columns in zip(pack, captured, strict=True):
        sections = example.section_ids[1:].astype("u1")
        rows.append({"input_ids": example.input_ids.astype("<i4"), "section": sections, **columns})
    return rows


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
    joined = read_joined(*paths)
    for store in stores:
        store.verify()
    if (output / MANIFEST_FILE).exists() and read_manifest(output).complete:
        raise TargetsError(f"{output}: it holds a complete store; give a new directory")
    drawn = [path / DRAWN_FILE for path in paths if (path / DRAWN_FILE).exists()]
    lines_of = {path: path.read_bytes().split(b"\n")[:-1] for path in drawn}
    for path, lines in lines_of.items():
        damaged = [number for number, line in enumerate(lines or [b""], 1) if checked_line(line) is None]
        if damaged:
            raise CacheError(f"{path}: line {damaged[0]} is damaged; run its `leadspan capture` again")
    headers = {lines[0].decode(): path for path, lines in lines_of.items()}
    if len(headers) > 1:
        different = "; ".join(f"{path}: {header}" for header, path in headers.items())
        raise TargetsError(f"rollouts drawn with different settings cannot be joined: {different}")
    # The header that all share, and their lines, each once.
    rollouts = dict.fromkeys(line for lines in lines_of.values() for line in lines)
    plans = hashlib.sha256(" ".join(store.manifest.plan_hash for store in stores).encode()).hexdigest()[:32]
    changes = {"plan_hash": plans, "complete": False, "shards": [], "flops": None}
    with claimed(output, joined.model_copy(update=changes)) as manifest:
        if manifest.head is not None:
            write_atomically(output / HEAD_FILE, (next(iter(stores[0].parts)) / HEAD_FILE).read_bytes())
        if rollouts:
            write_atomically(output / DRAWN_FILE, b"".join(line + b"\n" for line in rollouts))
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
                entries.append(ShardReader(writer.close(), manifest).entry())
        counts = {
            "num_sequences": sum(entry.num_rows for entry in entries),
            "num_positions": sum(entry.num_positions for entry in entries),
        }
        manifest = manifest.model_copy(update={"complete": True, "shards": entries, **counts})
        write_manifest(manifest, output)
    return manifest
