"""Trials in processes of their own on this machine, some at a time.

A process of its own gives a trial its own peak memory and keeps a crash from taking the others along. The processes are
forked from a server that has torch and Transformers loaded and nothing else, so that starting one costs no import. They
end with the process that started them, however that ends.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from leadspan.errors import LeadspanError, RunError
from leadspan.recipe import Recipe
from leadspan.results import RunResult, load_run
from leadspan.study.config import LocalExecutor
from leadspan.study.trials import Trial


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a trial.

    Attributes:
        trial: Place of the trial in the list that was given.
        kind: `started`, `said` (what it is doing), `done`, or `failed`.
        text: What was said, or what the trial died of.
    """

    trial: int
    kind: Literal["started", "said", "done", "failed"]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that did not end.

    Attributes:
        label: What it was to train.
        message: What it died of.
    """

    label: str
    message: str


@dataclass(frozen=True, slots=True)
class Slot:
    """What a trial may use.

    Attributes:
        threads: CPU threads; None leaves them as they are.
        gpus: Value of `CUDA_VISIBLE_DEVICES`; None leaves it as it is.
    """

    threads: int | None = None
    gpus: str | None = None


@dataclass(frozen=True, slots=True)
class _Running:
    trial: int
    slot: Slot
    process: multiprocessing.process.BaseProcess


def run_local(trials: Sequence[Trial], executor: LocalExecutor) -> Generator[Event, None, None]:
    """Run trials on this machine, in order, and tell what happens to them; closing the iterator kills what runs."""
    waiting = deque(range(len(trials)))
    free = slots(executor)
    running: dict[multiprocessing.connection.Connection, _Running] = {}
    try:
        while waiting or running:
            while waiting and free:
                number, slot = waiting.popleft(), free.pop(0)
                receiver, process = _start(trials[number], slot)
                running[receiver] = _Running(number, slot, process)
                yield Event(number, "started")
            for receiver in multiprocessing.connection.wait(list(running)):
                assert isinstance(receiver, multiprocessing.connection.Connection)
                event = _next_event(receiver, running[receiver])
                if event.kind != "said":
                    free.append(running.pop(receiver).slot)
                    receiver.close()
                yield event
    finally:
        for left in running.values():
            left.process.kill()
            left.process.join()


def run_trial(recipe: Recipe, say: Callable[[str], None]) -> RunResult:
    """Run one recipe in a process of its own.

    Raises:
        RunError: The trial failed; with its message, or its traceback when that is a defect of leadspan.
    """
    for event in run_local([Trial(recipe)], LocalExecutor()):
        if event.kind == "said":
            say(event.text)
        elif event.kind == "failed":
            raise RunError(f"{recipe.name}: {event.text}")
    return load_run(recipe.output)


def run_trials(recipes: Sequence[Recipe], say: Callable[[str], None]) -> tuple[list[RunResult], list[Failure]]:
    """Run recipes in order; a failed one is kept beside the results, not hidden."""
    results: list[RunResult] = []
    failures: list[Failure] = []
    for recipe in recipes:
        try:
            results.append(run_trial(recipe, say))
        except LeadspanError as error:
            failures.append(Failure(recipe.cut.label, str(error)))
    return results, failures


def slots(executor: LocalExecutor) -> list[Slot]:
    """One slot for each trial at a time, with its share of the machine.

    Raises:
        RunError: There are fewer GPUs than asked for.
    """
    number, each = executor.trials_at_once, executor.gpus_per_trial
    threads = executor.threads_per_trial
    if threads is None and number > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // number)
    if each is None:
        return [Slot(threads)] * number
    devices = _visible_gpus() if each else []
    if each * number > len(devices):
        raise RunError(
            f"executor: {number} trials at once with {each} GPUs each need {number * each}, and {len(devices)} are "
            "visible here; lower trials_at_once or gpus_per_trial"
        )
    return [Slot(threads, ",".join(devices[i * each : (i + 1) * each])) for i in range(number)]


def work(trial: Trial, say: Callable[[str], None]) -> None:
    """Do what a trial is for, in this process; a trial that was interrupted goes on from its last checkpoint."""
    from leadspan.pipeline import run, run_untrained

    if trial.task == "evaluate":
        run_untrained(trial.recipe, say)
    else:
        run(trial.recipe, resume=True, say=say)


def explained(error: BaseException) -> str:
    """One message for what a trial died of; the traceback only where leadspan did not foresee it."""
    if isinstance(error, LeadspanError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file of the trial'}: {error.strerror}"
    return "".join(traceback.format_exception(error))


def _start(
    trial: Trial, slot: Slot
) -> tuple[multiprocessing.connection.Connection, multiprocessing.process.BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["leadspan.pipeline"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work_in_process, args=(trial, slot, sender))
    process.start()
    sender.close()
    return receiver, process


def _next_event(receiver: multiprocessing.connection.Connection, running: _Running) -> Event:
    try:
        kind, text = receiver.recv()
        if kind == "said":
            return Event(running.trial, "said", text)
    except (EOFError, OSError):
        kind, text = "ended", ""
    running.process.join()
    code = running.process.exitcode
    if kind != "failed" and code:
        kind, text = "failed", f"its process ended with exit code {code} (-9: killed, often for memory)"
    return Event(running.trial, "failed" if kind == "failed" else "done", text)


def _work_in_process(trial: Trial, slot: Slot, sender: multiprocessing.connection.Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpus
    if slot.threads is not None:
        import torch

        os.environ["RAYON_NUM_THREADS"] = str(slot.threads)
        torch.set_num_threads(slot.threads)
    try:
        work(trial, lambda text: sender.send(("said", text)))
    except BaseException as error:
        sender.send(("failed", explained(error)))
    finally:
        sender.close()


def _end_with_parent() -> None:
    """A study that was killed must leave no trial behind that writes where its successor does."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "trials are started by a study"
    parent.join()
    os._exit(1)


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [device for device in listed.split(",") if device]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
