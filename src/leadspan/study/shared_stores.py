"""Stores that the trials of a study share: a teacher runs once, over all that its trials need.

A trial with a live teacher becomes one that reads a store, and nothing else of it changes. There is a store for each
teacher, tokenizer, template and precision among the trials. For every trace it holds the longest cut that a trial
needs, validation traces whole, and in addition each cut with another context (`tail`, `middle`, `random_window`, ...).
When the study grows, what its store does not serve yet is captured into another part of it.

Whole rollouts of the untrained student are drawn once for all trials that differ in horizon, shares, loss or training
alone, and these learn from their beginnings (`rollout.record`): there is a store for each seed and way of drawing, too.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from leadspan.data.sections import Renderer
from leadspan.errors import CacheError, LeadspanError, SettingsError, TargetsError
from leadspan.models.loading import name_of
from leadspan.models.reading import load_tokenizer
from leadspan.pipeline.run import prepare_capture
from leadspan.ranks import leave_ranks, process_state
from leadspan.recipe import Recipe
from leadspan.settings import load_json, validate
from leadspan.status import report_status
from leadspan.study.settings import Study
from leadspan.study.trials import Fingerprints, SharedStore, Trial
from leadspan.teacher.capture import CaptureJob, run_capture
from leadspan.teacher.fill import set_aside, set_aside_damaged
from leadspan.teacher.manifest import MANIFEST_FILE, read_manifest
from leadspan.teacher.settings import CaptureSettings, Served, StoredTargets
from leadspan.teacher.store import TargetStore

# 8 hex digits distinguish four billion stores; a study has a handful.
_ID_DIGITS = 8
_VALUES = {"codec", "temperatures", "vocabulary", "engine"}
"""Settings that say what is stored; the others say how."""


def share_stores(
    study: Study, trials: Sequence[Trial], fingerprints: Fingerprints
) -> tuple[list[Trial], list[SharedStore]]:
    """Make the trials that have a teacher read stores, and list these.

    Args:
        study: A study with a `store`.
        trials: Its trials, without run directories yet.
        fingerprints: The stores' fingerprints are added to its `made_before`.

    Raises:
        SettingsError: A recipe has a store of its own, or rollouts that cannot be those of a store.
        TargetsError: The codec does not define a trial's loss, or the store does not keep its temperature.
        ModelError: A tokenizer cannot be loaded.
    """
    assert study.store is not None, "called for studies that have one"
    settings = study.store
    renderers: dict[str, tuple[str, str]] = {}
    stores: dict[str, SharedStore] = {}
    shared: list[Trial] = []
    for trial in trials:
        recipe = trial.recipe
        if recipe.store_path is not None:
            raise SettingsError(
                f"store: {trial.title} reads {recipe.store_path} already (targets); leave one of the two out"
            )
        # Trials without training or without a teacher read no store.
        if trial.task != "distill" or recipe.teacher is None:
            shared.append(trial)
            continue
        where = f"store.codec {settings.codec.label}, {trial.title}"
        recipe.check_losses(settings.kept_targets, where)
        fingerprint = _identity(recipe, settings, fingerprints, renderers)
        name = recipe.teacher.identity if isinstance(recipe.teacher, Served) else name_of(recipe.teacher)
        slug = re.sub(r"[^\w.+-]+", "-", Path(name).name).strip("-").lower()[:40]
        directory = (settings.path or study.output / "store") / f"{slug}-{fingerprint[:_ID_DIGITS]}"
        capture = CaptureSettings.model_validate(settings.model_dump(include=_VALUES))
        reading = recipe.model_copy(update={"targets": StoredTargets(path=directory), "capture": capture})
        if recipe.rollout is not None:  # some rollouts cannot be stored ones, which the recipe's rules say
            validate(Recipe, reading.model_dump(mode="json"), f"store: {trial.title}")
        store = stores.get(fingerprint)
        # A store serves all trials of its identity, whatever their cuts.
        stores[fingerprint] = SharedStore(
            directory=directory,
            fingerprint=fingerprint,
            settings=settings,
            recipes=[*(store.recipes if store else []), recipe],
        )
        fingerprints.made_before[directory] = fingerprint
        shared.append(replace(trial, recipe=reading))
    return shared, list(stores.values())


def missing(store: SharedStore, draws: bool = True) -> CaptureJob | None:
    """The capture of what the complete parts of a store do not serve; None when they serve every trial.

    Args:
        store: The store.
        draws: Whether to draw the rollouts that it lacks; else the job says how many these are.

    Raises:
        LeadspanError: The data of a trial cannot be prepared.
    """
    first, settings = store.recipes[0], store.settings
    capturing = first.model_copy(update={"capture": settings.model_copy(update={"path": store.directory})})
    complete = [part for part in _stores_in(store.directory).values() if part is not None]
    # What complete parts serve is left out, so that a study that grows captures the difference.
    job = prepare_capture(capturing, [*settings.cuts, first.cut], store.recipes[1:], complete, draws)
    # A part of the store is named after its plan, so that a resumed capture finds its own shards.
    part = store.directory / job.plan.content_hash[:_ID_DIGITS]
    return replace(job, directory=part) if len(job.sequences) or job.undrawn else None


def capture_shared(store: SharedStore) -> None:
    """Capture what a store does not serve yet, if anything; a damaged part is repaired, or moved aside and replaced.

    Raises:
        LeadspanError: The data, the teacher or the store cannot be used.
    """
    state = process_state()
    if state.is_main_process:
        report_status("checking the store")
        for manifest in store.directory.glob(f"*/{MANIFEST_FILE}"):
            for path in set_aside_damaged(manifest.parent):
                report_status(f"{path}: damaged, set aside")
    state.wait_for_everyone()
    report_status("preparing data")
    job = missing(store)
    state.wait_for_everyone()  # all have seen the same parts before one of these moves
    if state.is_main_process:
        for path, part in _stores_in(store.directory).items():
            # A capture repairs the part that it continues, if it can read the manifest.
            is_continued = False
            if job is not None and path == job.directory:
                with suppress(CacheError):
                    read_manifest(path)
                    is_continued = True
            if part is None and not is_continued:
                report_status(f"{path}: damaged, set aside as {set_aside(path, store.directory)}")
    state.wait_for_everyone()
    if job is not None:
        run_capture(job)


def _stores_in(directory: Path) -> dict[Path, TargetStore | None]:
    """The parts of a store, None for a damaged one; without those whose capture has not ended."""
    stores: dict[Path, TargetStore | None] = {}
    for path in sorted(manifest.parent for manifest in directory.glob(f"*/{MANIFEST_FILE}")):
        try:
            store = TargetStore(path)
            store.load_head()
            stores[path] = store
        except TargetsError:
            continue
        except CacheError:
            stores[path] = None
    return stores


def _identity(
    recipe: Recipe, settings: CaptureSettings, fingerprints: Fingerprints, renderers: dict[str, tuple[str, str]]
) -> str:
    assert recipe.teacher is not None, "the caller picks recipes with a teacher"
    key = f"{recipe.tokenizer_path} {recipe.tokenizer_revision} {recipe.data.rendering}"
    # Trials mostly share a tokenizer, which takes seconds to load.
    if key not in renderers:
        renderer = Renderer(load_tokenizer(recipe.tokenizer_path, recipe.tokenizer_revision), recipe.data.rendering)
        renderers[key] = renderer.tokenizer_hash, renderer.template_hash
    # Everything that a stored number depends on.
    contents = (
        fingerprints.of_model(recipe.teacher),
        *renderers[key],
        recipe.training.precision,
        settings.model_dump_json(include=_VALUES),
        *([] if recipe.draws is None else [fingerprints.of_model(recipe.student), recipe.draws]),
    )
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()


def main(path: str) -> int:
    """Capture a store as one of several ranks that torchrun has started.

    Args:
        path: A JSON file of the store.
    """
    try:
        capture_shared(load_json(SharedStore, Path(path)))
        leave_ranks()
    except LeadspanError as error:
        print(f"leadspan capture: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
