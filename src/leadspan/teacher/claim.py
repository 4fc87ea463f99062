"""Claiming a store for a capture: one process at a time, one plan, and no leftovers of a killed process."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from leadspan.digests import file_hash
from leadspan.errors import TargetsError
from leadspan.locks import locked
from leadspan.teacher.manifest import (
    DRAWN_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    check_same,
    read_manifest,
    write_manifest,
)

_LOCK_FILE, _DAMAGED_DIR = "capture.lock", "damaged"
# A shard's name holds its number in the plan and the first half of its SHA-256: a file under such a name is complete.
_SHARD = re.compile(r"(?P<number>\d{5,})-(?P<digest>[0-9a-f]{32})\.arrow")
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
            raise TargetsError(f"{directory}: it is not empty and not a store; give another capture.path")
        else:
            write_manifest(manifest, directory)
        (directory / SHARDS_DIR).mkdir(exist_ok=True)
        # Safe under the lock: no other process is writing here.
        for temporary in (*directory.glob(".*.tmp"), *(directory / SHARDS_DIR).glob(".*.tmp")):
            temporary.unlink()
        yield manifest


def finished_shards(directory: Path) -> dict[int, Path]:
    """Complete shards of a store, by number; files with other names do not count."""
    named = ((_SHARD.fullmatch(path.name), path) for path in (directory / SHARDS_DIR).glob("*"))
    return {int(match["number"]): path for match, path in named if match}


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


def has_hash_of_name(path: Path, digest: str) -> bool:
    """Whether a shard's SHA-256 begins with the digest in its name."""
    match = _SHARD.fullmatch(path.name)
    return match is not None and digest.startswith(match["digest"])


def set_aside(path: Path, directory: Path) -> Path:
    """Move a damaged file or part into `damaged/` of a store, from where nothing is read; earlier ones stay there."""
    (directory / _DAMAGED_DIR).mkdir(exist_ok=True)
    # Numbered, since a shard that is captured again may be damaged again under the same name.
    number = sum(1 for _ in (directory / _DAMAGED_DIR).iterdir())
    return path.rename(directory / _DAMAGED_DIR / f"{number}-{path.name}")
