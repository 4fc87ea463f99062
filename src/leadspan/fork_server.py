"""Worker processes that leave Ctrl-C and hang-ups to the process that started them; a function over batches in them."""

import atexit
import contextlib
import itertools
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def fork_server(preload: Sequence[str] = ()) -> ForkServerContext:
    """Processes forked from a server that ignore SIGINT and SIGHUP of the terminal: this process ends them.

    Args:
        preload: Modules that the server imports once for all of them.
    """
    context = multiprocessing.get_context("forkserver")
    if preload:
        context.set_forkserver_preload(list(preload))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        multiprocessing.resource_tracker.ensure_running()  # first, because it lifts a block of SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    atexit.unregister(_end_server)
    atexit.register(_end_server, os.getpid())
    return context


def in_batches(
    function: Callable[[list[ItemT]], ResultT], items: Iterable[ItemT], batch_size: int, num_workers: int
) -> Iterator[ResultT]:
    """Results of a function over batches of items, in their order.

    Args:
        function: Sent to every process once.
        items: Read a few batches ahead, never all at once.
        batch_size: Items of a batch.
        num_workers: Processes; fewer batches than one for each are computed in this process.
    """
    stream = iter(items)
    batches = iter(lambda: list(itertools.islice(stream, batch_size)), [])
    group = list(itertools.islice(batches, num_workers))
    if num_workers == 1 or len(group) < num_workers:
        yield from map(function, itertools.chain(group, batches))
        return
    with fork_server().Pool(num_workers, initializer=_begin, initargs=(function,)) as pool:
        while group:
            yield from pool.imap(_compute, group)
            group = list(itertools.islice(batches, 8 * num_workers))  # bounded: imap would read the whole source


_worker_function: list[Callable[[Any], Any]] = []


def _begin(function: Callable[[Any], Any]) -> None:
    # The worker processes share the cores already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_function[:] = [function]


def _compute(batch: list[Any]) -> Any:
    return _worker_function[0](batch)


def _end_server(owner: int) -> None:
    """End the server with the process that owns it: while it imports modules, it would not notice by itself."""
    server: Any = multiprocessing.forkserver._forkserver  # its fields are not in the type stubs
    pid = getattr(server, "_forkserver_pid", None)
    if pid is not None and os.getpid() == owner:
        server._forkserver_pid = None
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
