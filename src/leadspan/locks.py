"""A lock for one process at a time in a directory, however the process before it ended."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from leadspan.errors import LeadspanError

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
