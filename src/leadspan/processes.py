"""Processes: what they run on, forked from one server, and ended in good order.

Workers leave Ctrl-C and hang-ups to the process that started them. A process ends in good order on SIGTERM and SIGUSR1,
which schedulers send, on SIGHUP of a terminal that closes, and on Ctrl-C. The first of the signals but Ctrl-C raises
`Terminated`. Where that is deferred, the code checks for it instead: training finishes its step and writes a
checkpoint. A second SIGTERM ends the process at once; the others never do, however often they come.
"""

import atexit
import contextlib
import importlib
import importlib.metadata
import itertools
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar, cast

from leadspan.errors import RunError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
EXIT_CODE = 128 + signal.SIGTERM
# Of schedulers and `kill`, of a terminal that closes, and of Slurm's warning before a time limit.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Torchrun forwards a SIGTERM that its ranks may have received themselves: within this time it is the same one.
_ECHO_SECONDS = 1.0


def environment(seed: int) -> dict[str, str]:
    """Versions, platform and date of a run, and the commit of the source tree, `+` when it has changes."""
    import platform  # here, as most commands need none

    packages = ("leadspan", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "math-verify")
    versions = {name: importlib.metadata.version(name) for name in packages}
    # Only of a checkout of leadspan itself: an installed package may lie below another project's repository.
    questions = (["ls-files", "--error-unmatch", __file__], ["rev-parse", "HEAD"], ["status", "--porcelain"])
    here, answers = Path(__file__).parent, list[str]()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        for words in questions:
            answer = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True)
            answers.append(answer.stdout.strip())
        versions["commit"] = answers[1][:12] + ("+" if answers[2] else "")
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": str(seed),
    }


class Terminated(BaseException):
    """This process must end; the message says what it leaves behind. No `Exception`, like `KeyboardInterrupt`."""


@dataclass
class _State:
    is_listening: bool = False
    num_deferring: int = 0
    asked_at: float | None = None
    raised_by: int | None = None  # the signal for which `Terminated` was raised at once


_state = _State()


@contextmanager
def listening() -> Iterator[None]:
    """Handle the signals inside the context; outside the main thread, which alone gets signals, nothing changes.

    A signal that is ignored, such as SIGHUP under `nohup`, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in handled}
    _state.is_listening, _state.asked_at, _state.raised_by = True, None, None
    try:
        with _raised_again(Terminated, _asked_anew):
            yield
    finally:
        _state.is_listening, _state.asked_at, _state.raised_by = False, None, None
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked_anew() -> int | None:
    """The signal for which `Terminated` was raised, which will not count as a second one when it comes again."""
    _state.asked_at = None
    return _state.raised_by


@contextmanager
def _raised_again(kind: type[BaseException], number_of: Callable[[], int | None]) -> Iterator[None]:
    """Send a signal again whose exception Python has ignored, as it does in a `__del__` or a callback."""
    hook, timers = sys.unraisablehook, list[threading.Timer]()

    def raise_again(ignored: "sys.UnraisableHookArgs") -> None:
        number = number_of() if issubclass(ignored.exc_type, kind) else None
        if number is None:
            hook(ignored)
            return
        timers.append(threading.Timer(0.01, os.kill, (os.getpid(), number)))  # behind the callback
        timers[-1].start()

    sys.unraisablehook = raise_again
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()


@contextmanager
def interrupt_kept() -> Iterator[None]:
    """Raise `KeyboardInterrupt` or `Terminated` at the end, too, where the code inside makes another error of it.

    Imports do: pydantic reports a class that it could not build.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> NoReturn:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        with _raised_again(KeyboardInterrupt, lambda: came[0] if came else None):
            yield
    except Exception:
        if not came and _state.raised_by is None:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came or _state.raised_by is not None:
        raise KeyboardInterrupt if came else Terminated


@contextmanager
def deferred() -> Iterator[None]:
    """Delay `Terminated` to the end of the context; the code inside checks `is_asked_to_end`."""
    _state.num_deferring += 1
    try:
        yield
    finally:
        _state.num_deferring -= 1
    # Contexts may be nested: the outermost one raises.
    if is_asked_to_end() and not _state.num_deferring:
        raise Terminated


def is_asked_to_end() -> bool:
    """Whether a signal has asked this process to end."""
    return _state.asked_at is not None


def prepare_data_worker(worker: int = 0) -> None:
    """Let a data worker outlive the first SIGTERM and any SIGHUP, because the step needs it; a second SIGTERM ends it.

    It prints no error where the process that it serves has ended; errors of its work are raised there.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, EOFError | ConnectionError):
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.excepthook = show


def end_data_workers() -> None:
    """Kill data workers: the interpreter would send one SIGTERM and wait, and they outlive the first one."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.asked_at is not None:
        # A second SIGTERM ends at once, unless it is torchrun's copy of the first.
        is_echo = "TORCHELASTIC_RUN_ID" in os.environ and now - _state.asked_at < _ECHO_SECONDS
        if number != signal.SIGTERM or is_echo:
            return
        # Without any cleaning up but that of named semaphores, which would be reported as leaked.
        with contextlib.suppress(Exception):
            util: Any = importlib.import_module("multiprocessing.util")  # these names are in no type stubs
            synchronize: Any = importlib.import_module("multiprocessing.synchronize")
            for finalizer in list(util._finalizer_registry.values()):
                if finalizer._callback is synchronize.SemLock._cleanup:
                    finalizer()
        os._exit(EXIT_CODE)
    _state.asked_at = now
    if not _state.num_deferring:
        _state.raised_by = number
        raise Terminated


def _leave_signals_to_parent() -> None:
    """In a forked child: leave Ctrl-C to the parent, and end on SIGTERM like any program."""
    if _state.is_listening:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in _SIGNALS:
            if signal.getsignal(number) == _on_signal:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_signals_to_parent)


_preloaded: set[str] = set()


def fork_server(preload: Sequence[str] = ()) -> ForkServerContext:
    """Processes forked from a server that ignore SIGINT and SIGHUP of the terminal: this process ends them.

    The server imports the modules of `preload` once for all of them.
    """
    context = multiprocessing.get_context("forkserver")
    # A server that runs already imports nothing more, and it is needed as long as it has children.
    if not _preloaded.issuperset(preload) and not multiprocessing.active_children():
        _end_server(os.getpid())
        _preloaded.update(preload)
        context.set_forkserver_preload(sorted(_preloaded))
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


# Starting processes takes as long as about eight batches: 2.5 s for the imports, and 0.35 s for 32 traces of an audit.
_BATCHES_OF_A_START = 8


def in_batches(
    function: Callable[[list[ItemT]], ResultT], items: Iterable[ItemT], batch_size: int, num_workers: int
) -> Iterator[ResultT]:
    """Results of a function over batches of items, in their order.

    The function is sent to every process once; items are read a few batches ahead, never all at once. Few batches are
    computed in this process.

    Raises:
        RunError: A process has ended before its work, such as one that the system killed for its memory.
    """
    stream = iter(items)
    batches = iter(lambda: list(itertools.islice(stream, batch_size)), [])
    fewest = max(num_workers, _BATCHES_OF_A_START)
    group = list(itertools.islice(batches, fewest))
    if num_workers == 1 or len(group) < fewest:
        yield from map(function, itertools.chain(group, batches))
        return
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor  # here, as other commands need none

    module = getattr(function, "func", function).__module__  # of what a `functools.partial` calls
    pool = ProcessPoolExecutor(num_workers, fork_server([module]), _begin, (function,))
    try:
        while group:
            yield from pool.map(_compute, group)
            group = list(itertools.islice(batches, 8 * num_workers))  # bounded: map would read the whole source
    except BrokenProcessPool:
        if is_asked_to_end():  # by a signal to all processes
            raise Terminated from None
        raise RunError(
            "a worker process has ended, which often means that memory ran out; start fewer: data.num_workers, or "
            "--workers of an audit (a script must do its work below `if __name__ == '__main__':`)"
        ) from None
    except BaseException:  # not after their batches, which may take long
        for process in list(cast(Any, pool)._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def end_with_parent() -> None:
    """Wait for the process that started this one to end, however it does, and end at once."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in processes that another one has started"
    parent.join()
    os._exit(1)


_worker_function: list[Callable[[Any], Any]] = []


def _begin(function: Callable[[Any], Any]) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
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
        with contextlib.suppress(OSError):  # it has ended already
            os.kill(pid, signal.SIGKILL)
            server._stop()
