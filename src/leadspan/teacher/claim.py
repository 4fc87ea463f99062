"""Taking a store for a capture: one process at a time, one plan, no leftovers of a killed one."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leadspan.errors import TargetsError
from leadspan.teacher.manifest import MANIFEST_FILE, SHARDS_DIR, Manifest, check_same, read_manifest, write_manifest
from leadspan.teacher.shards import SUFFIX

_LOCK_FILE = "capture.lock"


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
