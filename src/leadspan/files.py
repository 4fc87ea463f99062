"""Files that are complete or absent, even after a power cut; digests of them; locks that one process holds at a time.

A directory is sealed when all its files are written: `digests.json` comes last, so a directory without it is not
complete. By the digests a damaged or missing file is detected before it is used.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leadspan.errors import LeadspanError, RunError

DIGESTS_FILE = "digests.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Messages of libraries for these errors: safetensors keeps the error number, PyTorch's archive writer does not.
_FULL_TEXT = re.compile(
    rf"os error ({'|'.join(map(str, _FULL))})\b|No space left on|PytorchStreamWriter failed writing|"
    r"iostream error|inline_container\.cc:\d+\] \. unexpected pos"
)


@contextlib.contextmanager
def full_disk_reported(directory: Path | None, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn the error of a full or unwritable disk, whichever library raises it, into a `RunError`.

    Raises:
        RunError: Names the file of the error, or else the directory; says how much space is free there, how much is
            `needed` in total, in bytes, and that the work can be resumed. Without either, it was standard output.
    """
    before = threading.excepthook

    def show(ended: threading.ExceptHookArgs) -> None:
        # Libraries that write in a thread raise the error of a full disk again at their next write.
        if ended.exc_value is None or not _of_disk(ended.exc_value)[0]:
            before(ended)

    threading.excepthook = show
    try:
        yield
    except LeadspanError:
        raise
    except Exception as error:
        reason, path = _of_disk(error)
        if not reason:
            raise
        if not path and directory is None:
            raise RunError(f"standard output: cannot be written ({reason}); make room, or write elsewhere") from error
        target, takes = Path(path or str(directory)), ""
        if needed is not None:
            with contextlib.suppress(LeadspanError):  # a model that cannot be counted can still be trained
                takes = f", and about {needed() / 1e9:.3g} GB are needed in all"
        raise RunError(
            f"{target}: cannot be written ({reason}); {free_bytes(target) / 1e9:.3g} GB are free there{takes}; make "
            "room or lift the limit, then resume, or give another output"
        ) from error
    finally:
        threading.excepthook = before


def free_bytes(path: Path) -> int:
    """Free space of the disk that a path lies on, or would lie on: that of its nearest directory that exists."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _of_disk(error: BaseException) -> tuple[str, str]:
    """The reason and, where it is known, the file of an error, or of what it came from; empty where it is another."""
    # Libraries wrap the error of the system, some without its number.
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return os.strerror(seen.errno), str(seen.filename or "")
        text = str(seen)
        if _FULL_TEXT.search(text):
            return next((os.strerror(n) for n in _FULL if f"os error {n}" in text), os.strerror(errno.ENOSPC)), ""
        seen = seen.__cause__ or seen.__context__
    return "", ""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name, flush it to disk, and rename it; creates its directory.

    A device or a pipe is written to as it is: a rename would put a file in its place.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    # The process id keeps two writers of one file apart; the dot hides the file from readers of the directory.
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException as error:  # of a signal, too
        with contextlib.suppress(OSError):
            staged.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)  # a write does not know its file, and nobody the staged one
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush a rename in a directory to disk, where the file system supports that."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(handle)


def seal(directory: Path, names: Iterable[str] | None = None, later: Mapping[str, bytes] | None = None) -> None:
    """Write the digests of files of a directory, at any depth, once they have reached the disk.

    Without `names` all of its files are sealed; those of `later` are written after this, with the given content.
    """
    from concurrent.futures import ThreadPoolExecutor  # here, as it slows down the start of every command

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
    """Rewrite one file of a directory; where that is sealed, its other files keep their digests.

    Raises:
        RunError: The digests cannot be read.
    """
    path, sealed = directory / DIGESTS_FILE, is_sealed(directory)
    if wrong := fault(directory, ()):
        raise RunError(f"{directory}: {wrong}; restore it from a copy, or remove it if no other file has changed")
    digests = json.loads(path.read_text(encoding="utf-8")) if sealed else {}
    digests.pop(name, None)
    if sealed:  # without a digest while it is written, so that a kill at any point leaves no contradiction
        write_atomically(path, json.dumps(digests, indent=1) + "\n")
    write_atomically(directory / name, content)
    if sealed:
        digests[name] = hashlib.sha256(content).hexdigest()
        write_atomically(path, json.dumps(digests, indent=1) + "\n")


def is_sealed(directory: Path) -> bool:
    """Whether all files of a directory were written."""
    return (directory / DIGESTS_FILE).exists()


def fault(directory: Path, names: Iterable[str] | None = None) -> str | None:
    """What is wrong with a sealed directory, in words: the first file that is missing or not as it was written.

    A directory without digests, of an earlier version or another program, has no fault. Looks only at those of the
    `names` that were sealed, where they are given.
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
            return f"{name} has changed since it was written (its digest differs)"
    return None


def file_hash(path: Path, is_synced: bool = False) -> str:
    """SHA-256 of a file, read in pieces; flushed to disk first if `is_synced`."""
    with path.open("rb") as file:
        if is_synced:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


# Read once while the state of the file on disk (inode, size, time of change) stays the same.
_known_hash = functools.lru_cache(maxsize=4096)(lambda path, *state: file_hash(path))


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


def checksum(values: Any) -> str:
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


def file_names(names: Sequence[str], joint: str) -> list[str]:
    """File names of letters, digits and underscores; names that would collide end in a hash of the whole name.

    Letters of different case, and the same letter in different forms, are the same to some file systems.

    >>> file_names(["long problems", "short", "long-problems"], "_")
    ['long_problems_ee71d6', 'short', 'long_problems_09b99c']
    """

    def folded(names: Sequence[str]) -> list[str]:
        return [unicodedata.normalize("NFKC", name).casefold() for name in names]

    simple = [re.sub(r"\W+", joint, name).strip(joint) for name in names]
    hashes = [hashlib.sha256(name.encode()).hexdigest()[:6] for name in names]
    hashed = [f"{name}{joint}{digits}".strip(joint) for name, digits in zip(simple, hashes, strict=True)]
    unique = {name for name, number in Counter(folded(simple)).items() if name and number == 1}
    chosen = [a if key in unique else b for key, a, b in zip(folded(simple), simple, hashed, strict=True)]
    # A name may end in what is another one's hash.
    return chosen if len(set(folded(chosen))) == len(chosen) else hashed


# Handles of this process's locks, which a forked child must close.
_locks: set[int] = set()
# How often in a row another process may remove a directory between its creation and the opening of a file in it.
_MOST_LOST = 100


@contextlib.contextmanager
def locked(path: Path, refusal: Callable[[str], LeadspanError]) -> Iterator[None]:
    """Hold a lock file, which names this process, inside the context; then remove it.

    The system releases the lock when the process ends, however it ends, so the lock file of a dead process is reused.
    Directories that were created for the lock and hold nothing else at the end are removed with it.

    Raises:
        LeadspanError: Another process holds it; made by `refusal` from its id, and its host where that is another one.
        OSError: The file cannot be made, or its file system has no locks.
    """
    missing = [directory for directory in path.parents if not directory.exists()]
    num_lost, handle, is_held = 0, -1, False
    while not is_held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            num_lost += 1
            if num_lost < _MOST_LOST:
                continue  # its last holder has just removed the directory
            raise  # a file system that makes none, such as /proc
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Otherwise a holder has removed the file between our opening and our locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(handle)):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()} {socket.gethostname()}".encode())
                    is_held = True
        except BlockingIOError:
            pid, _, host = os.pread(handle, 300, 0).decode(errors="replace").partition(" ")
            elsewhere = f" on {host}" if host not in ("", socket.gethostname()) else ""
            raise refusal(f"{pid or 'unknown'}{elsewhere}") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        finally:
            if not is_held:
                os.close(handle)
    _locks.add(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        _locks.discard(handle)
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty: it is the work that was done
            for directory in missing:
                directory.rmdir()


def _let_go_in_child() -> None:
    """A forked child must not hold on to the lock of a parent that has been killed."""
    for handle in _locks:
        os.close(handle)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
