"""A run directory: claimed by one process at a time, started once, and resumed only with the same recipe and inputs.

The identity of a run is what it is resumed by: the settings that change its training, and the content of its inputs.
It is written once, before training. Settings that do not change training are left out: evaluation, plan, capture,
trackers, numbers of processes, and paths.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from leadspan.data.sections import Renderer
from leadspan.data.settings import HeldOutSource
from leadspan.errors import RunError, SettingsError
from leadspan.evaluation.subject import SUFFIX
from leadspan.files import DIGESTS_FILE, checksum, fault, full_disk_reported, is_sealed, locked, write_atomically
from leadspan.models.loading import content_id
from leadspan.pipeline.tracking import TRACKERS_FILE
from leadspan.ranks import process_state
from leadspan.recipe import Recipe, load_recipe
from leadspan.results import METRICS_FILE, RUN_FILE, SAMPLES_DIR
from leadspan.rollout.record import ROLLOUTS_FILE
from leadspan.rollout.settings import TaskPrompts
from leadspan.settings import Settings, dump_yaml, flat
from leadspan.teacher.manifest import read_joined
from leadspan.teacher.settings import NO_ACCESS, Served, StoredTargets
from leadspan.text import shortened
from leadspan.traces.read import fingerprint
from leadspan.training.checkpoints import step_directories
from leadspan.training.result import ADAPTER_DIR, CHECKPOINTS_DIR, IDENTITY_FILE, STUDENT_DIR

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
# What a run replaces or removes in its directory; samples it sets aside.
_WRITTEN = (
    *(RECIPE_FILE, IDENTITY_FILE, METRICS_FILE, ROLLOUTS_FILE, TRACKERS_FILE, DIGESTS_FILE),
    *(STUDENT_DIR, ADAPTER_DIR, CHECKPOINTS_DIR, "profile"),
)
# Settings that change no training; and paths and names whose content is hashed instead, so that a run may resume after
# its inputs have moved.
_NOT_COMPARED: dict[str, Any] = {
    **dict.fromkeys(("name", "role", "output", "evaluation", "plan", "capture", "trial", "push", "tokenizer"), True),
    "student": {"path", "revision"},
    "teacher": {**NO_ACCESS, "path": True, "revision": True},
    "targets": {"path"},
    "rollout": {"prompts": {"task": {"path"}}},
    "data": {
        **dict.fromkeys(("cache_dir", "num_workers", "max_refused_share"), True),
        "train": {"path"},
        "validation": {"source": {"path"}},
        "rendering": {"chat_template"},
    },
    "training": {"keep", "keep_checkpoints", "num_workers", "report_to"},
}


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


def check_nothing_is_lost(directory: Path) -> None:
    """Refuse a directory with files that a run would replace, and that none has written.

    Raises:
        RunError: Names the first of these files.
    """
    if any((directory / name).exists() for name in (IDENTITY_FILE, RUN_FILE)):
        return
    with suppress(SettingsError, OSError, UnicodeDecodeError):  # a run that was killed early has left its recipe alone
        text = (directory / RECIPE_FILE).read_text(encoding="utf-8")
        if text == dump_yaml(load_recipe(directory / RECIPE_FILE)):
            return
    if lost := next((directory / name for name in _WRITTEN if (directory / name).exists()), None):
        raise RunError(f"{lost}: was written by no run, and would be replaced; give another output, or rename it")


def check_evaluation_output(directory: Path) -> None:
    """Refuse a directory with an unfinished run, which would count as finished, or with digests of other files.

    Raises:
        RunError: Names what the directory holds.
    """
    with suppress(FileNotFoundError):
        content, seals_samples = (directory / DIGESTS_FILE).read_bytes(), False
        with suppress(ValueError, AttributeError):
            names = json.loads(content).keys()  # after a kill, those of an evaluation
            seals_samples = all(name == RUN_FILE or Path(name).parent.name == SAMPLES_DIR for name in names)
        if not seals_samples:
            raise RunError(
                f"{directory / DIGESTS_FILE}: is of no evaluation, and would be replaced; give another --output"
            )
    if (directory / IDENTITY_FILE).exists():
        raise RunError(f"{directory}: it holds a run that is not finished; give another --output")


def begin(recipe: Recipe, renderer: Renderer | None, is_resumed: bool) -> None:
    """Write the recipe of a run; the first write into its directory. Samples of other settings move to `samples.old-N`.

    Args:
        recipe: The recipe.
        renderer: Of a training, whose identity is written too; None for an evaluation without training.
        is_resumed: Keep what is there of this run: its identity, and samples of tasks that would be drawn with the same
            settings as when the directory was written. A new training keeps no samples: they belong to another model.
    """
    if process_state().is_main_process:
        recipe_file, now, kept_tasks = recipe.output / RECIPE_FILE, recipe.evaluation, set[str]()
        with suppress(SettingsError):
            before = load_recipe(recipe_file).evaluation
            # These two are part of every draw, whatever the task; how many are drawn at a time is of none.
            drawn = [each.sampling.model_copy(update={"batch_size": 1}) for each in (before, now)]
            if is_resumed and drawn[0] == drawn[1] and before.system == now.system:
                kept_tasks = {task.name for task in now.tasks if task in before.tasks}
        samples = recipe.output / SAMPLES_DIR
        # A hidden file is what a kill has left of one that was being written.
        moved = [path for path in sorted(samples.glob("[!.]*")) if path.stem.removesuffix(SUFFIX) not in kept_tasks]
        if moved:
            # Set aside, not deleted: samples of a large model cost hours.
            number = next(n for n in itertools.count(1) if not samples.with_name(f"samples.old-{n}").exists())
            aside = samples.with_name(f"samples.old-{number}")
            aside.mkdir()
            for path in moved:
                path.rename(aside / path.name)
        path = recipe.output / IDENTITY_FILE
        # A resumed run may have its identity already.
        if renderer is not None and not (is_resumed and isinstance(_read(path), Identity)):
            values = identity_of(recipe, renderer).model_dump(mode="json")
            write_atomically(path, json.dumps(values | {"checksum": checksum(values)}, indent=1) + "\n")
        write_atomically(recipe_file, dump_yaml(recipe))
    process_state().wait_for_everyone()


class Identity(Settings):
    """The identity of a run."""

    settings: dict[str, Any]
    """Settings that change its training, by dotted name."""
    contents: dict[str, str]
    """Fingerprints of traces, tokenizer, chat template, starting weights and the teacher or its store, by setting."""


def identity_of(recipe: Recipe, renderer: Renderer) -> Identity:
    """The identity of a run of a recipe, from the files as they are.

    Raises:
        DataError: A trace file cannot be read.
        ModelError: A model cannot be read.
        TargetsError: There is no store where the recipe names one.
    """
    contents = {"data.train": fingerprint(recipe.data.train)}
    if isinstance(recipe.data.validation, HeldOutSource):
        contents["data.validation"] = fingerprint(recipe.data.validation.source)
    if recipe.rollout is not None and isinstance(recipe.rollout.prompts, TaskPrompts):
        task = recipe.rollout.prompts.task
        # The options of generated problems are among the settings.
        contents["rollout.prompts.task"] = task.path if task.generated else fingerprint(task.source, "test")
    contents |= {"tokenizer": renderer.tokenizer_hash, "data.rendering.chat_template": renderer.template_hash}
    contents["student"] = content_id(recipe.student)
    if isinstance(recipe.targets, StoredTargets):
        # Sorted, so that equal identities are equal texts.
        contents["targets"] = json.dumps(read_joined(recipe.targets.path).identity(), sort_keys=True)
    elif recipe.teacher is not None:
        teacher = recipe.teacher
        contents["teacher"] = teacher.identity if isinstance(teacher, Served) else content_id(teacher)
    values = recipe.model_dump(mode="json", exclude=_NOT_COMPARED)
    if isinstance(recipe.targets, StoredTargets):
        del values["teacher"]  # not loaded; the store's manifest has the hash of its weights
    return Identity(settings=dict(flat(values)), contents=contents)


def check_identity(now: Identity, directory: Path) -> None:
    """Compare a resumed run with the one that was started.

    A damaged identity is taken from the last whole checkpoint.

    Raises:
        RunError: Another recipe, or other inputs; names all that differs. Or there is no readable identity.
    """
    path = directory / IDENTITY_FILE
    begun = wrong = _read(path)
    for checkpoint in reversed(step_directories(directory)):
        if isinstance(begun, Identity):
            break
        # A copy counts where the digests of its checkpoint vouch for it.
        if is_sealed(checkpoint) and not fault(checkpoint, [IDENTITY_FILE]):
            begun = _read(checkpoint / IDENTITY_FILE)
            if isinstance(begun, Identity):
                logger.warning("%s: %s; that of %s is taken", path, wrong, checkpoint.name)
    if not isinstance(begun, Identity):
        raise RunError(f"{path}: {wrong}, so the recipe that the run was started with is unknown; give another output")
    old, new, differences = begun.settings, now.settings, list[str]()
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            was, now_is = (shortened(json.dumps(of[name]), 80) if name in of else "absent" for of in (old, new))
            differences.append(f"{name} was {was}, is {now_is}")
    for name in {**begun.contents, **now.contents}:
        if begun.contents.get(name) != now.contents.get(name):
            differences.append(f"{name} has another content")
    if differences:
        raise RunError(
            f"{directory}: the run was started with another recipe or other inputs ({'; '.join(differences)}); resume "
            "with what it was started with, or give another output"
        )


def _read(path: Path) -> Identity | str:
    """The identity in a file, or what is wrong with it."""
    try:
        values = json.loads(path.read_bytes())
        if values.pop("checksum", None) not in (None, checksum(values)):  # earlier versions wrote none
            return "damaged"
        return Identity.model_validate(values)
    except OSError:
        return "not found"
    except (ValueError, AttributeError, TypeError, RecursionError):  # pydantic's is a ValueError
        return "damaged"
