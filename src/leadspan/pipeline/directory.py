"""A run directory: claimed by one process at a time, started once, and resumed only with the same recipe and inputs."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from leadspan.data.sections import Renderer
from leadspan.errors import RunError, SettingsError
from leadspan.evaluation.subject import SUFFIX
from leadspan.files import full_disk_reported, write_atomically
from leadspan.inputs import load_renderer
from leadspan.locks import locked
from leadspan.pipeline.identity import check_identity, identity_of, write_identity
from leadspan.recipe import Recipe, load_recipe
from leadspan.results import RunResult, load_run
from leadspan.settings import dump_yaml
from leadspan.status import report_status
from leadspan.training.process import process_state

RECIPE_FILE = "recipe.yaml"


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Lock a run directory, for all ranks together.

    Raises:
        RunError: Another process has locked it.
    """
    refusal = "{}: another process (id {}) writes this run; wait for it, or stop it"
    lock = nullcontext()
    if process_state().is_main_process:  # one lock for all ranks: the others follow the collectives of the first
        lock = locked(directory / ".lock", lambda holder: RunError(refusal.format(directory, holder)))
    with full_disk_reported(directory), lock:
        yield


def finished_run(recipe: Recipe) -> RunResult:
    """The result of a finished run of this recipe.

    Raises:
        RunError: The directory holds the run of another recipe, or one that was evaluated with other settings.
    """
    directory = recipe.output
    result = load_run(directory)
    renderer = load_renderer(recipe)
    if process_state().is_main_process:
        check_identity(identity_of(recipe, renderer), directory)
    if result.recipe is None or result.recipe.evaluation != recipe.evaluation:
        raise RunError(
            f"{directory}: it holds a finished run that was evaluated with other settings; "
            f"`leadspan evaluate {directory} TASK ... --output DIRECTORY` evaluates its student again"
        )
    report_status(f"{directory} is finished")
    return result


def begin_run(recipe: Recipe, renderer: Renderer, is_resumed: bool) -> None:
    """Write the identity and the recipe of a run; the first write into its directory."""
    if process_state().is_main_process:
        # A new run keeps none: samples that are there belong to another model.
        _keep_samples(recipe.output, _drawn_alike(recipe) if is_resumed else set())
        write_identity(recipe, renderer, is_resumed)
        write_atomically(recipe.output / RECIPE_FILE, dump_yaml(recipe))
    process_state().wait_for_everyone()


def begin_evaluation(recipe: Recipe) -> None:
    """Write the recipe of an evaluation without training; samples of an interrupted one with equal settings remain."""
    _keep_samples(recipe.output, _drawn_alike(recipe))
    write_atomically(recipe.output / RECIPE_FILE, dump_yaml(recipe))


def _drawn_alike(recipe: Recipe) -> set[str]:
    """Names of the tasks whose samples would be drawn with the same settings as when the directory was written."""
    try:
        before = load_recipe(recipe.output / RECIPE_FILE).evaluation
    except SettingsError:
        return set()
    # These two are part of every draw, whatever the task.
    now = recipe.evaluation
    if (before.sampling, before.system) != (now.sampling, now.system):
        return set()
    tasks_before = {task.name: task for task in before.tasks}
    return {task.name for task in now.tasks if tasks_before.get(task.name) == task}


def _keep_samples(directory: Path, names: set[str]) -> None:
    """Move the samples of all other tasks to a directory `samples.old-N`."""
    samples = directory / "samples"
    moved = [path for path in sorted(samples.glob("*")) if path.stem.removesuffix(SUFFIX) not in names]
    if not moved:
        return
    # Set aside, not deleted: samples of a large model cost hours.
    number = next(n for n in itertools.count(1) if not samples.with_name(f"samples.old-{n}").exists())
    aside = samples.with_name(f"samples.old-{number}")
    aside.mkdir()
    for path in moved:
        path.rename(aside / path.name)
