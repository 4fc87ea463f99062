"""Files that are there whole or not at all, also after a power cut."""

import contextlib
import errno
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under another name, let it reach the disk, and rename it; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Let a rename in a directory reach the disk, where the file system can be asked to."""
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
