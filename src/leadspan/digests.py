"""Digests of the files of a directory, by which a damaged or missing file is detected before it is used.

A directory is sealed when all its files are written: `digests.json` comes last, so a directory without it is not
complete.
"""

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from leadspan.files import write_atomically

DIGESTS_FILE = "digests.json"


def seal(directory: Path, names: Iterable[str] | None = None, later: Mapping[str, bytes] | None = None) -> None:
    """Write the digests of files of a directory, once they have reached the disk.

    Args:
        directory: The directory.
        names: Which files of it; all, at any depth, when absent.
        later: Files that are written after this, with their content.
    """
    if names is None:
        paths = (path for path in directory.rglob("*") if path.is_file())
        names = [str(path.relative_to(directory)) for path in paths if path.name != DIGESTS_FILE]
    names = sorted(names)
    with ThreadPoolExecutor() as pool:  # a checkpoint has few large files, and training waits for it
        hashes = pool.map(lambda name: file_hash(directory / name, is_synced=True), names)
        digests = dict(zip(names, hashes, strict=True))
    digests |= {name: hashlib.sha256(content).hexdigest() for name, content in (later or {}).items()}
    write_atomically(directory / DIGESTS_FILE, json.dumps(digests, indent=1) + "\n")


def unseal(directory: Path) -> None:
    """Remove the digests, before a file of the directory is rewritten or removed."""
    (directory / DIGESTS_FILE).unlink(missing_ok=True)


def renew(directory: Path, name: str, content: bytes) -> None:
    """Rewrite one file of a sealed directory; its other files keep their digests."""
    path = directory / DIGESTS_FILE
    if not path.exists():
        write_atomically(directory / name, content)
        return
    # Other files keep the digests that they were sealed with.
    digests = json.loads(path.read_text(encoding="utf-8"))
    digests.pop(name, None)
    # Without a digest while it is written, so that a kill at any point leaves no contradiction.
    write_atomically(path, json.dumps(digests, indent=1) + "\n")
    write_atomically(directory / name, content)
    digests[name] = hashlib.sha256(content).hexdigest()
    write_atomically(path, json.dumps(digests, indent=1) + "\n")


def is_sealed(directory: Path) -> bool:
    """Whether all files of a directory were written."""
    return (directory / DIGESTS_FILE).exists()


def fault(directory: Path, names: Iterable[str] | None = None) -> str | None:
    """What is wrong with a sealed directory, in words: the first file that is missing or not as it was written.

    Args:
        directory: The directory; one without digests, of an earlier version or another program, has no fault.
        names: Look at these files only, those of them that were sealed.
    """
    if not is_sealed(directory):
        return None
    try:
        digests = json.loads((directory / DIGESTS_FILE).read_text(encoding="utf-8"))
        to_check = digests.keys() if names is None else digests.keys() & set(names)
        # As text: a damaged file may hold anything.
        expected = {str(name): str(digests[name]) for name in sorted(to_check)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return f"{DIGESTS_FILE} is damaged"
    for name, digest in expected.items():
        try:
            status = (directory / name).stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
                return f"{name} is not a file"
            known_hash = _known_hash(directory / name, status.st_ino, status.st_size, status.st_mtime_ns)
        except (OSError, ValueError):  # ValueError: a damaged name
            return f"{name} is missing or cannot be read"
        if known_hash != digest:
            return f"{name} is not as it was written, its digest differs"
    return None


def file_hash(path: Path, is_synced: bool = False) -> str:
    """SHA-256 of a file, read in pieces; flushed to disk first if `is_synced`."""
    with path.open("rb") as file:
        if is_synced:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def beginning_hash(path: Path, size: int) -> str | None:
    """SHA-256 of the first bytes of a file that grows; None where it cannot be read or has fewer."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while size and (piece := file.read(min(size, 1 << 20))):
                digest.update(piece)
                size -= len(piece)
    except OSError:
        return None
    return None if size else digest.hexdigest()


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def with_checksum(values: Mapping[str, Any]) -> str:
    """One line of JSON of plain values, and the checksum of these."""
    return json.dumps({**values, "checksum": checksum(values)}, ensure_ascii=False) + "\n"


def checked_line(line: bytes) -> dict[str, Any] | None:
    """The values of a line of `with_checksum`; None where they do not have the checksum that it states."""
    try:
        values = json.loads(line)
        return values if values.pop("checksum") == checksum(values) else None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None


@functools.lru_cache(maxsize=4096)
def _known_hash(path: Path, inode: int, size: int, modified: int) -> str:
    """The hash of a file, read once while its state on disk stays the same."""
    return file_hash(path)
