"""Stores that the trials of a study share: a teacher runs once, over all that its trials need.

A trial with a live teacher becomes one that reads a store, and nothing else of it changes. There is a store for each
teacher, tokenizer, template and precision among the trials. It holds of every trace the longest cut that a trial needs,
validation traces whole, and each context of its own (`tail`, `middle`, `random_window`, ...) besides. When the study
grows, what its store does not serve yet is captured into another part of it.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from leadspan.data.config import Rendering
from leadspan.data.sections import Renderer
from leadspan.errors import CacheError, LeadspanError, SettingsError, TargetsError
from leadspan.losses.defined import check_codec, check_selection
from leadspan.models.loading import load_tokenizer, name_of
from leadspan.recipe import Recipe
from leadspan.settings import load_json
from leadspan.study.config import Study
from leadspan.study.fingerprint import Fingerprints
from leadspan.study.storing.capture import run_capture
from leadspan.study.storing.job import Capture, prepare_capture
from leadspan.study.trials import SharedStore, Trial
from leadspan.teacher.claim import set_aside, set_aside_damaged
from leadspan.teacher.config import CaptureSettings, StoredTargets
from leadspan.teacher.manifest import MANIFEST_FILE, read_manifest
from leadspan.teacher.store import TargetStore
from leadspan.training.process import leave_ranks, process_state

_ID_DIGITS = 8
_VALUES = {"codec", "temperatures", "vocabulary", "engine"}
"""Settings that say what is stored; the others say how."""


def share_stores(
    study: Study, trials: Sequence[Trial], fingerprints: Fingerprints
) -> tuple[list[Trial], list[SharedStore]]:
    """Let the trials that have a teacher read a store, and say which stores that takes.

    Args:
        study: A study with a `store`.
        trials: Its trials, not placed yet.
        fingerprints: Told of the stores.

    Raises:
        SettingsError: A recipe has a store of its own.
        TargetsError: The codec does not define a trial's loss, or its temperature is not kept.
        ModelError: A tokenizer cannot be loaded.
    """
    assert study.store is not None, "asked for by studies that have one"
    settings = study.store
    renderers: dict[str, tuple[str, str]] = {}
    stores: dict[str, SharedStore] = {}
    shared: list[Trial] = []
    for trial in trials:
        recipe = trial.recipe
        if isinstance(recipe.targets, StoredTargets):
            raise SettingsError(
                f"store: {trial.title} reads {recipe.targets.path} already (targets); leave one of the two out"
            )
        if trial.task != "distill" or recipe.teacher is None:
            shared.append(trial)
            continue
        place = f"store.codec {settings.codec.label}, {trial.title}"
        check_codec(recipe.loss, settings.codec, settings.temperatures, settings.temperatures, place)
        check_selection(recipe.supervision.token_selection, settings.engine, place)
        found = _identity(recipe, settings, fingerprints, renderers)
        directory = (settings.path or study.output / "store") / f"{_slug(recipe)}-{found[:_ID_DIGITS]}"
        capture = CaptureSettings.model_validate(settings.model_dump(include=_VALUES))
        reading = recipe.model_copy(update={"targets": StoredTargets(path=directory), "capture": capture})
        known = stores.get(found)
        stores[found] = SharedStore(
            directory=directory,
            fingerprint=found,
            settings=settings,
            recipes=[*(known.recipes if known else []), recipe],
        )
        fingerprints.made_before[directory] = found
        shared.append(replace(trial, recipe=reading))
    return shared, list(stores.values())


def missing(store: SharedStore) -> Capture | None:
    """What is to be captured, besides what its whole parts serve; None when these serve every trial.

    Raises:
        LeadspanError: The data of a trial cannot be prepared.
    """
    first, settings = store.recipes[0], store.settings
    own = first.model_copy(update={"capture": settings})
    whole = [part for part in _parts(store.directory).values() if part is not None]
    job = prepare_capture(own, [*settings.cuts, first.cut], store.recipes[1:], whole)
    return _placed(job, store.directory) if len(job.sequences) else None


def capture_shared(store: SharedStore, say: Callable[[str], None]) -> None:
    """Capture what a store does not serve yet, or nothing; a damaged part is mended, or set aside and replaced.

    Raises:
        LeadspanError: Whatever is wrong with the data, the teacher or the store.
    """
    state = process_state()
    if state.is_main_process:
        say("checking the store")
        for manifest in store.directory.glob(f"*/{MANIFEST_FILE}"):
            for path in set_aside_damaged(manifest.parent):
                say(f"{path}: damaged, set aside")
    state.wait_for_everyone()
    say("preparing data")
    job = missing(store)
    state.wait_for_everyone()  # all have seen the same parts before one of these moves
    if state.is_main_process:
        _set_parts_aside(store.directory, job, say)
    state.wait_for_everyone()
    if job is not None:
        run_capture(job, say)


def _parts(directory: Path) -> dict[Path, TargetStore | None]:
    """The parts of a store, None for a damaged one; without those whose capture has not ended."""
    parts: dict[Path, TargetStore | None] = {}
    for path in sorted(manifest.parent for manifest in directory.glob(f"*/{MANIFEST_FILE}")):
        try:
            part = TargetStore(path)
            part.load_head()
            parts[path] = part
        except TargetsError:
            continue
        except CacheError:
            parts[path] = None
    return parts


def _set_parts_aside(directory: Path, job: Capture | None, say: Callable[[str], None]) -> None:
    """Move damaged parts out of a store, but the one that the capture goes on with."""
    for path, part in _parts(directory).items():
        is_mended = job is not None and path == job.directory and _is_readable(path)
        if part is None and not is_mended:
            say(f"{path}: damaged, set aside as {set_aside(path, directory)}")


def _is_readable(part: Path) -> bool:
    try:
        read_manifest(part)
    except CacheError:
        return False
    return True


def _placed(job: Capture, directory: Path) -> Capture:
    """The capture, into a part of the store that is named after its plan."""
    capture = job.recipe.capture.model_copy(update={"path": directory / job.plan.fingerprint[:_ID_DIGITS]})
    return replace(job, recipe=job.recipe.model_copy(update={"capture": capture}))


def _identity(
    recipe: Recipe, settings: CaptureSettings, fingerprints: Fingerprints, renderers: dict[str, tuple[str, str]]
) -> str:
    assert recipe.teacher is not None, "the caller picks recipes with a teacher"
    key = f"{recipe.tokenizer_path} {recipe.tokenizer_revision} {recipe.data.rendering}"
    if key not in renderers:
        renderers[key] = _hashes(recipe.tokenizer_path, recipe.tokenizer_revision, recipe.data.rendering)
    parts = (
        fingerprints.of_model(recipe.teacher),
        *renderers[key],
        recipe.training.precision,
        settings.model_dump_json(include=_VALUES),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _hashes(path: str, revision: str | None, rendering: Rendering) -> tuple[str, str]:
    renderer = Renderer(load_tokenizer(path, revision), rendering)
    return renderer.tokenizer_hash, renderer.template_hash


def _slug(recipe: Recipe) -> str:
    assert recipe.teacher is not None, "the caller picks recipes with a teacher"
    return re.sub(r"[^\w.+-]+", "-", Path(name_of(recipe.teacher)).name).strip("-").lower()[:40]


def main(path: str) -> int:
    """Capture a store as one of several ranks that torchrun has started.

    Args:
        path: A JSON file of the store.
    """
    try:
        capture_shared(load_json(SharedStore, Path(path)), lambda text: None)
        leave_ranks()
    except LeadspanError as error:
        print(f"leadspan capture: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
