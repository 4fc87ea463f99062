"""One process that compares answers, at the other end of a pipe, and can be killed.

Math-Verify's own time limit is an alarm: it fails off the main thread and cannot interrupt C code such as the
power of a huge integer. Here the kernel enforces a limit of processor time, so that no verdict depends on the load of
the machine; a much longer limit of wall time is for a worker that waits. A worker that exceeds a limit, dies or runs
out of memory is replaced, and its question counts as `timeout`.

Workers are fresh interpreters rather than `multiprocessing` children, because those import the caller's main
module once more, and torch with it. An idle worker ends with its pipe, a busy one whose parent is gone with its limit.
Why no library does this: docs/decisions/0010.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from typing import Literal, get_args

from leadspan.answers.equality import Outcome, can_read, decide, decide_text
from leadspan.answers.verifiers import verified
from leadspan.errors import EvaluationError

START_SECONDS = 120.0
"""How long a worker may take to import Math-Verify."""
WALL_FACTOR, WALL_SECONDS = 20.0, 30.0
"""Wall time of one question: so many times its processor time, and so much more. A machine loaded twenty times over
still answers."""

Question = tuple[Literal["answer", "text", "gold", "entry"], str, str]
"""What is asked: whether an answer equals a gold, whether what a text states does, whether a gold can be read at all
(`right` or `unparsed`), whether a verifier takes an answer to its entry; then the answer or text, and the gold."""

_REPLIES: Mapping[bytes, Outcome] = {outcome.encode() + b"\n": outcome for outcome in get_args(Outcome)}


def serve(item_seconds: float, memory_bytes: int) -> None:
    """What a worker process does: one question a line in, one outcome a line out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # no handler: the kernel ends the process, C code or not
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints must not end up among the replies
    logging.disable()
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    decide("x + 1", "2\\text{ cm}")  # loads sympy and the grammar, so that the first question does not pay for it
    replies.write(b"ready\n")
    deciders: dict[str, Callable[[str, str], Outcome]] = {"answer": decide, "text": decide_text, "entry": verified}
    deciders["gold"] = lambda _, gold: "right" if can_read(gold) else "unparsed"
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, item_seconds)
        try:
            kind, text, gold = json.loads(line)
            outcome = deciders[kind](text, gold)
        except (MemoryError, RecursionError):
            outcome = "timeout"
        except Exception:  # a verifier that cannot read an answer raises whatever its parser does
            outcome = "unparsed"
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(outcome.encode() + b"\n")


class Worker:
    """One worker process, started by its first question and again after it was stopped."""

    def __init__(self, item_seconds: float, memory_bytes: int) -> None:
        self._limits = (item_seconds, memory_bytes)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Question) -> Outcome:
        """The outcome of a question, `timeout` where the worker overran or died over it."""
        if self._process is None:
            self._start()
        wall_seconds = WALL_FACTOR * self._limits[0] + WALL_SECONDS
        reply = self._exchange(json.dumps(question).encode() + b"\n", wall_seconds)
        outcome = _REPLIES.get(reply, "timeout")
        if outcome == "timeout":
            self.stop()
        return outcome

    def stop(self) -> None:
        """Kill the process and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> None:
        command = f"from leadspan.answers.pool import serve; serve{self._limits}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        if self._exchange(b"", START_SECONDS) != b"ready\n":
            self.stop()
            raise EvaluationError(
                f"math grading: no worker got ready within {START_SECONDS:g} s and {self._limits[1]} bytes; "
                f"`{sys.executable} -c 'import math_verify'` must work within both"
            )

    def _exchange(self, message: bytes, seconds: float) -> bytes:
        """Send, and read one line; empty when the process died or the time is over."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(message)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        return process.stdout.readline() if wait([process.stdout.fileno()], seconds) else b""
