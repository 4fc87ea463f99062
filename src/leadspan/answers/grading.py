r"""Grading: a pool of Math-Verify workers that can be killed, and exact match.

Two scores. *Strict* grades the last `\boxed{...}` after the closing think tag of a finished answer: what the text
commits itself to. *Flexible* grades whatever Math-Verify finds in the text after the thinking, finished or not, and in
the whole text where thinking never closed; an answer that is right by the strict score is right by it too. `equality`
decides what is equal.

Math-Verify's own time limit is an alarm: it fails off the main thread and cannot interrupt C code such as the
power of a huge integer. Here the kernel enforces a limit of processor time, so that no verdict depends on the load of
the machine; a much longer limit of wall time is for a worker that waits. A worker that exceeds a limit, dies or runs
out of memory is replaced, and its question counts as `timeout`.

Workers are fresh interpreters rather than `multiprocessing` children, because those import the caller's main
module once more, and torch with it. An idle worker ends with its pipe, a busy one whose parent is gone with its limit
(docs/decisions/0010 says why no library does this).
"""

import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Literal, Self, get_args
from unicodedata import normalize

from leadspan.answers.boxes import bare_gold, committed_boxes, last_boxed, text_after_thinking, thinks_to_the_end
from leadspan.answers.equality import Outcome, can_read, decide, decide_text
from leadspan.answers.verifiers import compare_literals, verified
from leadspan.errors import DataError, EvaluationError

logger = logging.getLogger(__name__)

START_SECONDS = 120.0
"""How long a worker may take to import Math-Verify."""
WALL_FACTOR, WALL_SECONDS = 20.0, 30.0
"""Wall time of one question: so many times its processor time, and so much more. A machine loaded twenty times over
still answers."""

Question = tuple[Literal["answer", "text", "gold", "entry"], str, str]
"""What is asked: whether an answer equals a gold, whether what a text states does, whether a gold can be read at all
(`right` or `unparsed`), whether a verifier takes an answer to its entry; then the answer or text, and the gold."""

# A worker imports sympy for more than a second, and most questions take milliseconds.
_FEWEST_OF_A_WORKER = 16
_REPLIES: Mapping[bytes, Outcome] = {outcome.encode() + b"\n": outcome for outcome in get_args(Outcome)}


@dataclass(frozen=True)
class GradeItem:
    """One generated text and its right answer; an accented letter is one character in both, however it was written."""

    text: str  # the generation as decoded, think tags included, end-of-turn token left out
    gold: str  # the right answer: a number, LaTeX or words
    finished: bool  # whether it ended with an end-of-turn token and closed its thinking, whoever opened that
    choices: tuple[str, ...] = ()  # what the choices say, `A` first, where the gold is a letter

    def __post_init__(self) -> None:
        text, gold, *choices = (normalize("NFC", each) for each in (self.text, self.gold, *self.choices))
        for name, value in (("text", text), ("gold", gold), ("choices", tuple(choices))):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one item under the two scores."""

    strict: Outcome  # of the answer a finished text commits itself to
    flexible: Outcome  # of any answer that can be found
    extracted: str | None  # the answer behind the strict outcome, as written


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


@dataclass(eq=False)
class Worker:
    """One worker process, started by its first question and again after it was stopped."""

    limits: tuple[float, int]  # processor time of a question in seconds, and bytes of memory
    _process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Question) -> Outcome:
        """The outcome of a question, `timeout` where the worker overran or died over it."""
        if self._process is None:
            command = f"from leadspan.answers.grading import serve; serve{self.limits}"
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            if self._exchange(b"", START_SECONDS) != b"ready\n":
                self.stop()
                raise EvaluationError(
                    f"math grading: no worker was ready within {START_SECONDS:g} s and {self.limits[1]} bytes "
                    f"of memory; `{sys.executable} -c 'import math_verify'` must run within both"
                )
        wall_seconds = WALL_FACTOR * self.limits[0] + WALL_SECONDS
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


class MathGrader:
    """A pool of Math-Verify workers, started when first needed and ended with the `with` block.

    May be used from any thread. To grade raises an `EvaluationError` where a worker cannot start, and outside the
    `with` block.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        item_seconds: float = 5.0,
        memory_bytes: int = 2 << 30,
        deadline: float = math.inf,
    ) -> None:
        """Set the limits; nothing is started yet.

        Args:
            num_workers: Worker processes; by default one per processor, at most eight.
            item_seconds: Processor time for one comparison, after which its worker is ended; verdicts do not depend on
                the load of the machine.
            memory_bytes: Address space of one worker (kept on Linux only).
            deadline: Time of `time.monotonic` after which no comparison starts; the rest counts as timeout.
        """
        num_workers = num_workers or min(8, os.cpu_count() or 1)
        self._deadline = deadline
        self._workers = [Worker((item_seconds, memory_bytes)) for _ in range(num_workers)]
        # Last in, first out: a few questions keep a few workers busy, and start no more.
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._lock = threading.Lock()
        self._is_open = False

    def __enter__(self) -> Self:
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_open = False
            for worker in self._workers:
                worker.stop()

    def grade(self, items: Sequence[GradeItem]) -> list[Verdict]:
        """Grade items in parallel; a question that occurs twice is decided once.

        Returns:
            One verdict per item, in the order of the items.

        Raises:
            DataError: A gold is empty; nothing has been graded.
        """
        golds = [_checked_gold(item, f"item {position}") for position, item in enumerate(items)]
        texts = [text_after_thinking(item.text) for item in items]
        # Boxes with nothing but separators between them are one list.
        boxes = [
            (committed_boxes(text) or "").strip() if item.finished and not thinks_to_the_end(item.text) else ""
            for item, text in zip(items, texts, strict=True)
        ]
        strict = self.decide_all(
            [("answer", box, gold) if box else "no_answer" for box, gold in zip(boxes, golds, strict=True)]
        )
        # What is right by the strict score is right by the flexible one.
        stated = zip(strict, texts, golds, strict=True)
        flexible = self.decide_all(
            ["right" if outcome == "right" else ("text", text, gold) for outcome, text, gold in stated]
        )
        return [Verdict(s, f, box or None) for s, f, box in zip(strict, flexible, boxes, strict=True)]

    def grade_by_verifier(self, items: Sequence[GradeItem]) -> list[Verdict]:
        """Grade by the verifiers of the data sets that generated the problems; the gold of an item is its entry.

        The answer is the last box after the thinking, or all of that text where there is no box.
        """
        answers = [_last_box_or_all(item).strip() for item in items]
        outcomes = self.decide_all(
            [
                ("entry", answer, item.gold) if answer else "no_answer"
                for answer, item in zip(answers, items, strict=True)
            ]
        )
        return [_verdict(*row) for row in zip(items, outcomes, answers, strict=True)]

    def unreadable(self, golds: Sequence[str]) -> list[int]:
        """Which golds can be compared with answers as text alone, since they cannot be read as maths or words."""
        outcomes = self.decide_all([("gold", "", bare_gold(gold)) for gold in golds])
        return [i for i, outcome in enumerate(outcomes) if outcome != "right"]

    def decide_all(self, questions: Sequence[Question | Outcome]) -> list[Outcome]:
        """The outcome of every question; what is decided already is not asked. Calls take turns."""
        unique = list(dict.fromkeys(question for question in questions if not isinstance(question, str)))

        def decide_one(question: Question) -> Outcome:
            if time.monotonic() >= self._deadline:
                return "timeout"
            worker = self._idle.get()
            try:
                return worker.ask(question)
            finally:
                self._idle.put(worker)

        num_threads = min(len(self._workers), 1 + len(unique) // _FEWEST_OF_A_WORKER)
        with self._lock, ThreadPoolExecutor(num_threads) as threads:
            if not self._is_open:
                raise EvaluationError(
                    "MathGrader.grade: the pool is closed; call it within `with MathGrader() as grader:`"
                )
            outcomes = list(threads.map(decide_one, unique))
        if num_given_up := outcomes.count("timeout"):
            logger.warning("%d of %d comparisons exceeded the limits and count as timeouts", num_given_up, len(unique))
        answers = dict(zip(unique, outcomes, strict=True))
        return [question if isinstance(question, str) else answers[question] for question in questions]


def exact_grade(item: GradeItem) -> Verdict:
    r"""Grade by equality, for tasks whose answer has one spelling.

    The last `\boxed{}` behind the closing think tag, or all of that text where there is no box, must equal the gold,
    white space folded. The strict score needs a finished text, the flexible one does not; thinking that never closes
    leaves no answer for either.

    Raises:
        DataError: The gold is empty.
    """
    return _grade_by(item, lambda text: " ".join(text.split()), lambda answer, gold: "wrong")


def literal_grade(item: GradeItem) -> Verdict:
    """As `exact_grade`, but equal as Python literals, so that quotes and spacing between values do not matter.

    White space within strings counts. See `compare_literals`.
    """
    return _grade_by(item, str.strip, compare_literals)


def _grade_by(item: GradeItem, spell: Callable[[str], str], unequal: Callable[[str, str], Outcome]) -> Verdict:
    gold = spell(_checked_gold(item, "exact_grade"))
    answer = spell(_last_box_or_all(item))
    outcome: Outcome = "right" if answer == gold else unequal(answer, gold)
    return _verdict(item, outcome if answer else "no_answer", answer)


def _last_box_or_all(item: GradeItem) -> str:
    """The last box after the thinking, or all of that text where there is no box."""
    text = "" if thinks_to_the_end(item.text) else text_after_thinking(item.text)
    box = last_boxed(text)
    return text if box is None else box


def _verdict(item: GradeItem, outcome: Outcome, answer: str) -> Verdict:
    """One outcome for both scores; the strict one needs a finished text."""
    return Verdict(outcome, outcome, answer or None) if item.finished else Verdict("no_answer", outcome, None)


def _checked_gold(item: GradeItem, grader: str) -> str:
    gold = bare_gold(item.gold)
    if not gold:
        raise DataError(f"{grader}: gold is {item.gold!r}; grading needs a reference answer, so leave this problem out")
    return gold
