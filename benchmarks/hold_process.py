"""Commands of leadspan in forked processes: torch is imported once, and the process can be killed at any moment."""

import atexit
import contextlib
import multiprocessing.forkserver
import multiprocessing.util
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"))
Work = Sequence[str] | Callable[[], object]
"""Arguments of `leadspan`, or what else to do."""
_LOG, _KINDS = "said.log", "changes.log"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit status, as of `subprocess`.
        said: What it wrote to the terminal.
        seconds: How long it took.
    """

    code: int
    said: str
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether no traceback was shown."""
        return "Traceback (most recent call last)" not in self.said


@dataclass(frozen=True)
class Moment:
    """When a process gets a signal: after some seconds, or before the n-th change of a kind to a file."""

    number: int = signal.SIGKILL
    after: float | None = None
    before: tuple[str, int] | None = None
    to_group: bool = False


def run(directory: Path, work: Work, moment: Moment | None = None, max_bytes: int | None = None) -> Ended:
    """Run a command in a directory to its end, or until a signal."""
    started = time.monotonic()
    pid = start(directory, work, moment, max_bytes)
    if moment is not None and moment.after is not None:
        _wait(pid, moment.after)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if moment.to_group else os.kill)(pid, moment.number)
    return wait(pid, directory, started)


def run_ranks(directory: Path, work: Work, num_ranks: int) -> list[Ended]:
    """Run a command as the ranks of one group, as torchrun would start them on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = time.monotonic()
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_ranks))
    ranks = [group | sizes | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(num_ranks)]
    pids = [start(directory, work, environment=environment) for environment in ranks]
    return [wait(pid, directory, started) for pid in pids]


def start(
    directory: Path,
    work: Work,
    moment: Moment | None = None,
    max_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a command; its process leads a session of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.environ.update(environment or {})
        _be(directory, work, moment, max_bytes)
    return pid


def wait(pid: int, directory: Path, started: float) -> Ended:
    """Wait for a command's end."""
    _, status = os.waitpid(pid, 0)
    said = (directory / f"{pid}.{_LOG}").read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - started)


def is_session_empty(pid: int, seconds: float = 10) -> bool:
    """Whether every process of a command's session ends soon; zombies are none of ours to wait for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def kinds_of_change(directory: Path) -> Counter[str]:
    """The kinds of file changes of the last command in a directory that was watched, with their numbers."""
    return Counter((directory / _KINDS).read_text().splitlines())


def _wait(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)


def _be(directory: Path, work: Work, moment: Moment | None, max_bytes: int | None) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(directory)
        log = os.open(f"{os.getpid()}.{_LOG}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        _forget_the_parent()
        if max_bytes is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        _watch(directory, moment.before if moment else None)
        if callable(work):
            work()
            code = 0
        else:
            from leadspan.cli import main

            code = main(list(work))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()  # what an interpreter does at its end
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)  # whatever else is raised here belongs to the process that was forked


def _forget_the_parent() -> None:
    """Undo what libraries know of the process that was forked: its one rank, its threads, its processes."""
    atexit._clear()  # what the parent would do at its end, with processes that are its own
    atexit.register(multiprocessing.util._exit_function)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads were not forked either, and would be waited for
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)  # OpenMP would wait for threads that were not forked
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
    server = multiprocessing.forkserver._forkserver  # the parent's, which only the parent can wait for
    for name in ("_forkserver_pid", "_forkserver_fd", "_forkserver_alive_fd"):
        setattr(server, name, None)


def _watch(directory: Path, fatal: tuple[str, int] | None) -> None:
    """Note every change to a file of the directory, and die before one of them."""
    seen: Counter[str] = Counter()
    notes = os.open(_KINDS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    owner, top = os.getpid(), str(directory)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if os.getpid() != owner or not _is_change(event, arguments):
            return
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(top) or path.endswith(".log"):
            return
        kind = f"{event} {re.sub(r'[0-9a-f]{8,}|[0-9]+', '#', os.path.relpath(path, top))}"
        seen[kind] += 1
        os.write(notes, f"{kind}\n".encode())
        if fatal is not None and (kind, seen[kind]) == fatal:
            os.kill(owner, signal.SIGKILL)

    sys.addaudithook(hook)


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
        return isinstance(arguments[0], str | bytes) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    return event in _CHANGES and isinstance(arguments[0], str | bytes)
