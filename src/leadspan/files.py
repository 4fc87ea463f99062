"""Files that are complete or absent, even after a power cut; and locks that one process holds at a time."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from leadspan.errors import LeadspanError, RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# Messages of libraries for these errors: safetensors keeps the error number, PyTorch's archive writer does not.
_FULL_TEXT = re.compile(
    rf"os error ({'|'.join(map(str, _FULL))})\b|No space left on|PytorchStreamWriter failed writing|"
    r"iostream error|inline_container\.cc:\d+\] \. unexpected pos"
)


@contextlib.contextmanager
def full_disk_reported(directory: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn the error of a full or unwritable disk, whichever library raises it, into a `RunError`.

    Args:
        directory: Where files are written, unless the error names one.
        needed: Computes the bytes that are needed in total.

    Raises:
        RunError: Says how much space is free and needed, and that the work can be resumed.
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
        target = Path(path or directory)
        # Free space is that of the nearest directory that exists.
        existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        takes = ""
        if needed is not None:
            with contextlib.suppress(LeadspanError):  # a model that cannot be counted can still be trained
                takes = f", and about {needed() / 1e9:.3g} GB are needed in all"
        raise RunError(
            f"{target}: cannot be written ({reason}); {free / 1e9:.3g} GB are free there{takes}; make room or lift the "
            "limit, then resume, or give another output"
        ) from error
    finally:
        threading.excepthook = before


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
    except OSError as error:
        with contextlib.suppress(OSError):
            staged.unlink()
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


def file_names(names: Sequence[str], joint: str) -> list[str]:
    """File names of letters, digits and underscores; names that would collide end in a hash of the whole name.

    Letters of different case, and the same letter in different forms, are the same to some file systems.

    >>> file_names(["long problems", "short", "long-problems"], "_")
    ['long_problems_ee71d6', 'short', 'long_problems_09b99c']
    """
    simple = [re.sub(r"\W+", joint, name).strip(joint) for name in names]
    hashes = [hashlib.sha256(name.encode()).hexdigest()[:6] for name in names]
    hashed = [f"{name}{joint}{digits}".strip(joint) for name, digits in zip(simple, hashes, strict=True)]
    number = Counter(map(_folded, simple))
    chosen = [
        name if name and number[_folded(name)] == 1 else other for name, other in zip(simple, hashed, strict=True)
    ]
    # A name may end in what is another one's hash.
    return chosen if len(set(map(_folded, chosen))) == len(chosen) else hashed


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


# Locks of this process, which a forked child must close.
_held: set[int] = set()
# How often in a row another process may remove a directory between its creation and the opening of a file in it.
_MOST_LOST = 100


@contextmanager
def locked(path: Path, refusal: Callable[[str], LeadspanError]) -> Iterator[None]:
    """Hold a lock file, which names this process, inside the context; then remove it.

    The system releases the lock when the process ends, however it ends, so the lock file of a dead process is reused.
    Directories that were created for the lock and hold nothing else at the end are removed with it.

    Args:
        path: The lock file; its directory is made.
        refusal: The error to raise, from the process id of the holder, and its host where that is another one.

    Raises:
        LeadspanError: Another process holds it.
        OSError: The file cannot be made, or its file system has no locks.
    """
    missing = [directory for directory in path.parents if not directory.exists()]
    handle = _acquired(path, refusal)
    _held.add(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        _held.discard(handle)
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty: it is the work that was done
            for directory in missing:
                directory.rmdir()


def _acquired(path: Path, refusal: Callable[[str], LeadspanError]) -> int:
    num_lost = 0
    while True:
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
                    return handle
        except BlockingIOError:
            pid, _, host = os.pread(handle, 300, 0).decode(errors="replace").partition(" ")
            os.close(handle)
            raise refusal(
                f"{pid or 'unknown'} on {host}" if host not in ("", socket.gethostname()) else pid or "unknown"
            ) from None
        except OSError as error:
            os.close(handle)
            raise OSError(error.errno, error.strerror, str(path)) from None
        os.close(handle)


def _let_go_in_child() -> None:
    """A forked child must not hold on to the lock of a parent that has been killed."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
