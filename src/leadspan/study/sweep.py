"""Trials one after the other, each in a process of its own.

A process of its own gives a trial its own peak memory and keeps a crash from taking the others along. The processes are
forked from a server that has torch and Transformers loaded and nothing else, so that starting one costs no import.
"""

import multiprocessing
import multiprocessing.connection
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from leadspan.errors import LeadspanError, RunError
from leadspan.recipe import Recipe
from leadspan.results import RunResult, load_run


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that did not end.

    Attributes:
        label: What it was to train.
        message: What it died of.
    """

    label: str
    message: str


def run_trial(recipe: Recipe, say: Callable[[str], None]) -> RunResult:
    """Run one recipe in a process of its own.

    Raises:
        RunError: The trial failed; with its message, or its traceback when that is a defect of leadspan.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["leadspan.pipeline"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(recipe, sender), daemon=True)
    process.start()
    sender.close()
    failure: str | None = None
    try:
        while (message := _receive(receiver)) is not None:
            kind, text = message
            if kind == "said":
                say(text)
            else:
                failure = text
        process.join()
    finally:
        process.kill()  # on an interrupt; else it has ended
    if failure is not None:
        raise RunError(f"{recipe.name}: {failure}")
    if process.exitcode:
        raise RunError(
            f"{recipe.name}: its process ended with exit code {process.exitcode} (-9: killed, often for memory)"
        )
    return load_run(recipe.output)


def run_trials(recipes: list[Recipe], say: Callable[[str], None]) -> tuple[list[RunResult], list[Failure]]:
    """Run recipes in order; a failed one is kept beside the results, not hidden."""
    results: list[RunResult] = []
    failures: list[Failure] = []
    for recipe in recipes:
        try:
            results.append(run_trial(recipe, say))
        except LeadspanError as error:
            failures.append(Failure(recipe.cut.label, str(error)))
    return results, failures


def _receive(receiver: multiprocessing.connection.Connection) -> tuple[str, str] | None:
    try:
        return receiver.recv()
    except EOFError:
        return None


def _work(recipe: Recipe, sender: multiprocessing.connection.Connection) -> None:
    from leadspan.pipeline import run

    try:
        run(recipe, say=lambda text: sender.send(("said", text)))
    except LeadspanError as error:
        sender.send(("failed", str(error)))
    except BaseException:
        sender.send(("failed", traceback.format_exc()))
    finally:
        sender.close()
