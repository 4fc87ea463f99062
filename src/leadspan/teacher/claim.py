"""Taking a store for a capture: one process at a time, one plan, no leftovers of a killed one."""

import fcntl
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from leadspan.errors import TargetsError
from leadspan.teacher.manifest import (
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    check_same,
    file_hash,
    read_manifest,
    write_manifest,
)

_LOCK_FILE, _DAMAGED_DIR = "capture.lock", "damaged"
_SHARD = re.compile(r"(?P<number>\d{5,})-(?P<digest>[0-9a-f]{32})\.arrow")


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
        check_same(there.kept(), manifest.kept(), str(directory))
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
    """Shards of a store that were written to their end, by number; files with other names are none."""
    named = ((_SHARD.fullmatch(path.name), path) for path in (directory / SHARDS_DIR).glob("*"))
    return {int(match["number"]): path for match, path in named if match}


def foreign_files(directory: Path) -> list[Path]:
    """Files among the shards of a store that are none."""
    return sorted(path for path in (directory / SHARDS_DIR).glob("*") if not _SHARD.fullmatch(path.name))


def set_aside_damaged(directory: Path) -> list[Path]:
    """Hash all finished shards of a store, and move those that do not have the hash of their name to `damaged/`.

    Returns:
        Where they were.
    """
    paths = list(finished_shards(directory).values())
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(file_hash, paths)
        broken = [path for path, found in zip(paths, hashes, strict=True) if not has_hash_of_name(path, found)]
    for path in broken:
        set_aside(path, directory)
    return broken


def has_hash_of_name(path: Path, digest: str) -> bool:
    """Whether a shard's SHA-256 is the one that its name begins."""
    match = _SHARD.fullmatch(path.name)
    return match is not None and digest.startswith(match["digest"])


def set_aside(path: Path, directory: Path) -> Path:
    """Move a damaged file or part into `damaged/` of a store, where nothing is read; earlier ones stay."""
    (directory / _DAMAGED_DIR).mkdir(exist_ok=True)
    number = sum(1 for _ in (directory / _DAMAGED_DIR).iterdir())
    return path.rename(directory / _DAMAGED_DIR / f"{number}-{path.name}")
