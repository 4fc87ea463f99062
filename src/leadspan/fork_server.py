"""Worker processes that leave Ctrl-C to the process that started them."""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from typing import Any


def fork_server(preload: Sequence[str] = ()) -> ForkServerContext:
    """Processes forked from a server that ignore Ctrl-C on the terminal: this process ends them.

    Args:
        preload: Modules that the server imports once for all of them.
    """
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    multiprocessing.resource_tracker.ensure_running()  # now, because it lifts the block that the server is to inherit
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    atexit.unregister(_end_server)
    atexit.register(_end_server, os.getpid())
    return context


def _end_server(owner: int) -> None:
    """End the server with the process that owns it: while it imports modules, it would not notice by itself."""
    server: Any = multiprocessing.forkserver._forkserver  # its fields are not in the type stubs
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None and os.getpid() == owner:
        server._forkserver_pid = None
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
