"""Commands of leadspan in processes that can be killed at any moment.

They are forked from a server that has imported torch and has computed nothing: the threads and locks of a process that
has trained, sampled or run tests do not survive a fork.
"""

import atexit
import contextlib
import functools
import gc
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_CHANGES = frozenset(("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"))
Work = Sequence[str] | Callable[[], object]
"""Arguments of `leadspan`, or a function that pickle finds by its name, or a `functools.partial` of one."""
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
    pid, started = start(directory, work, moment, max_bytes), time.monotonic()
    if moment is not None and moment.after is not None:
        _wait(pid, moment.after)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if moment.to_group else os.kill)(pid, moment.number)
    return wait(pid, directory, started)


def run_ranks(directory: Path, work: Work, num_ranks: int, patience: float = 60) -> list[Ended]:
    """Run a command as the ranks of one group, as torchrun would start them on one machine.

    When one has failed, the others get some seconds of patience: they may wait for it in a collective.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_ranks))
    ranks = [group | sizes | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(num_ranks)]
    pids, started = [start(directory, work, environment=environment) for environment in ranks], time.monotonic()
    failed_at = math.inf
    while None in (codes := [_code_so_far(pid) for pid in pids]):
        failed_at = min(failed_at, time.monotonic()) if any(codes) else failed_at
        if time.monotonic() > failed_at + patience:
            for pid, code in zip(pids, codes, strict=True):
                if code is None:
                    os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [wait(pid, directory, started) for pid in pids]


def start(
    directory: Path,
    work: Work,
    moment: Moment | None = None,
    max_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a command in this process's environment; it leads a session of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    return _ask(_Job(directory, work, moment, max_bytes, os.environ | (environment or {})))


def has_ended(pid: int) -> bool:
    """Whether a command has ended; it is still to be waited for."""
    return _code_so_far(pid) is not None


def _code_so_far(pid: int) -> int | None:
    return _ask(_Question(pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def wait(pid: int, directory: Path, started: float) -> Ended:
    """Wait for a command's end."""
    code = _ask(_Question(pid, os.WEXITED))
    log = directory / f"{pid}.{_LOG}"
    said = log.read_text(errors="replace") if log.exists() else ""  # killed before it opened its log
    return Ended(code, said, time.monotonic() - started)


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
    while time.monotonic() < deadline and not has_ended(pid):
        time.sleep(0.002)


@dataclass(frozen=True)
class _Job:
    """What the server is asked to start; the answer is the process id."""

    directory: Path
    work: Work
    moment: Moment | None
    max_bytes: int | None
    environment: Mapping[str, str]


@dataclass(frozen=True)
class _Question:
    """How a process ended, by `os.waitid`; the answer is its exit status, or None where it goes on."""

    pid: int
    options: int


def _ask(request: _Job | _Question) -> Any:
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    pickle.dump(request, server.stdin)
    server.stdin.flush()
    return pickle.load(server.stdout)


@functools.cache
def _server() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from benchmarks import hold_process; hold_process.serve()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def serve() -> None:
    """Start what is asked for on standard input; when that is closed, nothing that was started goes on."""
    gc.disable()
    import leadspan.pipeline.run  # noqa: F401  # once, and not in each of the processes

    gc.enable()
    gc.freeze()  # a run of the Trainer asks for two whole collections: of what is imported they take half a second
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    going_on: set[int] = set()
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            break
        if isinstance(request, _Job):
            answer: int | None = os.fork()
            if answer == 0:
                answers.close()
                _be(request)
            going_on.add(answer)
        else:
            ended = os.waitid(os.P_PID, request.pid, request.options)
            answer = None
            if ended is not None:
                going_on -= set() if request.options & os.WNOWAIT else {request.pid}
                answer = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        pickle.dump(answer, answers)
        answers.flush()
    for pid in going_on:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _be(job: _Job) -> NoReturn:
    code = 1
    try:
        os.setsid()
        # Ignored where the tests themselves run behind a shell's & or under nohup.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(job.environment)
        os.chdir(job.directory)
        log = os.open(f"{os.getpid()}.{_LOG}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        if job.max_bytes is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (job.max_bytes, job.max_bytes))
        _watch(job.directory, job.moment.before if job.moment else None)
        if callable(job.work):
            job.work()
            code = 0
        else:
            from leadspan.cli import main

            code = main(list(job.work))
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
            os._exit(code)  # whatever else is raised here belongs to the server


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
