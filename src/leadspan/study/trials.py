"""From a study to its trials: every combination of the axes, for every seed, as a resolved recipe with a directory.

A trial is identified by its settings without names and paths, and by the content of the local files that it reads; its
directory is named after both.
"""

import contextlib
import copy
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from leadspan.costs.settings import PlanSettings
from leadspan.data.settings import HeldOutSource
from leadspan.data.truncation import Policy, with_proportion
from leadspan.errors import RunError, SettingsError
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe, TrialControl, TrialId
from leadspan.results import RUN_FILE, damage, load_run
from leadspan.rollout.settings import TaskPrompts
from leadspan.settings import Settings, apply_overrides, validate
from leadspan.study.settings import Study
from leadspan.teacher.manifest import read_joined
from leadspan.teacher.settings import NO_ACCESS, AnyTeacher, CaptureSettings
from leadspan.traces.files import digest_file
from leadspan.traces.read import fingerprint as fingerprint_traces
from leadspan.traces.settings import TraceSource
from leadspan.training.result import IDENTITY_FILE
from leadspan.yaml_text import read_yaml_mapping


class SharedStore(Settings):
    """A store that several trials read."""

    directory: Path
    """Its directory."""
    fingerprint: str
    """Identifies teacher, tokenizer, template, precision and what is kept of a distribution."""
    settings: CaptureSettings
    """How it is captured."""
    recipes: list[Recipe]
    """The trials it serves."""

    @property
    def title(self) -> str:
        """Name and codec."""
        return f"store {self.directory.name}, {self.settings.codec.label}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a study.

    Attributes:
        recipe: The resolved recipe; its name is the condition, the same for all seeds; its output the run directory.
        fingerprint: Identifies settings and data; the run directory ends in its first 8 digits.
        task: `evaluate` trains nothing: the starting weights are evaluated as they are. `capture` fills a store.
        control: The control it belongs to; None for a condition of the axes.
        axes: What the condition varies apart from the cut, in the words of the study's axes.
        note: Remark for readers of results.
        store: The store to capture.
    """

    recipe: Recipe
    fingerprint: str = ""
    task: Literal["distill", "evaluate", "capture"] = "distill"
    control: TrialControl | None = None
    axes: tuple[str, ...] = ()
    note: str = ""
    store: SharedStore | None = None

    @property
    def title(self) -> str:
        """Condition and seed."""
        if self.store is not None:
            return self.store.title
        return self.recipe.name if self.task == "evaluate" else f"{self.recipe.name}, seed {self.recipe.seed}"


# 4 MiB a file: training changes every part of a weights file, so samples show it, at a fraction of the time.
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 16, 64
# Names, paths and prices change no number; what lies at the paths enters by its content, in `Fingerprints.of`.
_PLACES: dict[str, Any] = {
    **dict.fromkeys(("name", "output", "tokenizer", "trial", "push", "plan"), True),
    "student": {"path"},
    "teacher": {"path": True, **NO_ACCESS},
    "targets": {"path"},
    "data": {"cache_dir": True, "train": {"path"}, "validation": {"source": {"path"}}, "rendering": {"chat_template"}},
    "training": {"keep_checkpoints"},
    "evaluation": {"tasks": {"__all__": {"path"}}},
    "rollout": {"prompts": {"task": {"path"}}},
}


def without_places(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe without its name, its plan, and the paths that it writes to and reads from."""
    return recipe.model_dump(mode="json", exclude=_PLACES)


@dataclass
class Fingerprints:
    """Fingerprints of recipes; each file is read once.

    Attributes:
        made_before: Run directories of recipes that the study runs first, and stores it captures, with their
            fingerprints. Files below one of them are identified by the recipe that makes them, whether they exist yet
            or not.
        hashes: Hash by what has been read: a path, or the split and subset of one.
    """

    made_before: dict[Path, str]
    hashes: dict[str, str] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> str:
        """SHA-256 over a recipe without names, plan and paths, and over the local data, models and tokenizers it names.

        Files on disk enter by their content, so that a study can be moved; anything else enters by its name. A store
        enters by the teacher, tokenizer, template and codec of its manifest; models and tokenizers by the names, sizes
        and evenly spaced samples (4 MiB in all) of their files: any training changes every part of them.

        Raises:
            DataError: A trace file cannot be read.
            TargetsError: There is no store where the recipe names one.
        """
        sources = [recipe.data.train]
        if isinstance(recipe.data.validation, HeldOutSource):
            sources.append(recipe.data.validation.source)
        paths = [recipe.tokenizer, *(m.path for m in (recipe.student, recipe.teacher) if isinstance(m, Pretrained))]
        # A store counts by what its manifest says, wherever it lies.
        store, settings = recipe.store_path, without_places(recipe)
        if store is not None:
            del settings["targets"]
        # The plan of a new recipe, so that the fingerprints of studies without settings of a plan stay what they were.
        settings["plan"] = PlanSettings().model_dump(mode="json")
        contents = [json.dumps(settings, sort_keys=True)]
        if store is not None:
            contents.append(self.made_before.get(store) or json.dumps(read_joined(store).identity(), sort_keys=True))
        contents += [self._records(source) for source in sources]
        contents += [self._content(Path(path)) for path in paths if path]
        read = {source.path for source in sources}
        for task in recipe.evaluation.tasks:
            path = Path(task.path)
            # Of a directory with splits or subsets, those that the task reads; a file of traces counts as these do.
            is_read = (task.subset is not None or task.path in read) if path.is_dir() else str(path) in read
            contents.append(self._records(task.source, "test") if is_read else self._content(path))
        prompts = recipe.rollout and recipe.rollout.prompts
        if isinstance(prompts, TaskPrompts):
            path, evaluated = Path(prompts.task.path), {str(Path(task.path)) for task in recipe.evaluation.tasks}
            # A file of a task that is evaluated counts as that does.
            is_evaluated = path.is_file() and prompts.task.path in evaluated - read
            contents.append(self._content(path) if is_evaluated else self._records(prompts.task.source, "test"))
        if recipe.data.rendering.chat_template:
            contents.append(self._content(Path(recipe.data.rendering.chat_template)))
        return hashlib.sha256("\0".join(contents).encode()).hexdigest()

    def of_model(self, model: AnyTeacher) -> str:
        """A hash of a model's settings and, of one on disk, of its files."""
        path = model.path if isinstance(model, Pretrained) else None
        return model.model_dump_json(exclude={"path": True, **NO_ACCESS}) + (self._content(Path(path)) if path else "")

    def _records(self, source: TraceSource, usual_split: str = "train") -> str:
        """A hash of the records that are read of a source; a name on the Hub itself."""
        path = Path(source.path)
        # A directory may hold several splits. Not the path alone, which is the key of the content of a file.
        key = f"{path} {source.split or usual_split} {source.subset}"
        if key not in self.hashes:
            self.hashes[key] = fingerprint_traces(source, usual_split) if path.exists() else source.path
        return self.hashes[key]

    def _content(self, path: Path) -> str:
        """A hash of what is there, or of how it will be made; a name on the Hub itself."""
        # Trained weights may differ in their last bits from machine to machine; the recipe that makes them does not.
        for directory, fingerprint in self.made_before.items():
            if path.absolute().is_relative_to(directory.absolute()):
                return fingerprint
        key = str(path)
        if key not in self.hashes and path.is_dir():
            digest = hashlib.sha256()
            for file in (file for file in sorted(path.iterdir()) if file.is_file()):
                size = file.stat().st_size
                # Size and samples; a small file is read whole.
                samples = hashlib.sha256(str(size).encode())
                with file.open("rb") as opened:
                    for number in range(_NUM_SAMPLES):
                        opened.seek(max(0, size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
                        samples.update(opened.read(_SAMPLE_BYTES))
                digest.update(file.name.encode() + samples.digest())
            self.hashes[key] = digest.hexdigest()
        elif key not in self.hashes:
            self.hashes[key] = digest_file(path).hex() if path.is_file() else key
        return self.hashes[key]


def load_base(study: Study, study_file: Path) -> dict[str, Any]:
    """Values of the recipe that is varied, with the study's changes for all trials; not validated yet.

    A relative path of a recipe starts from the study's file.

    Raises:
        SettingsError: The recipe cannot be read.
    """
    # Plain values, not a Recipe: an axis may complete what the recipe alone leaves out.
    values = read_yaml_mapping(study_file.parent / study.recipe)
    values.setdefault("name", study.name)
    values["output"] = str(study.output)
    apply_overrides(values, study.settings)
    return values


def conditions(study: Study, base: dict[str, Any]) -> list[Trial]:
    """Every combination of the axes, at the first seed, equal ones once; the name says what is varied.

    Those of `axes` come first, then those of each set in `more_axes`.

    Raises:
        SettingsError: A combination breaks a rule (names it and every fault), or two that differ have one name.
    """
    by_values: dict[str, Trial] = {}
    for axes in (study.axes, *study.more_axes):
        policies: list[Policy] = []
        for policy in axes.cut:
            has_p = policy.proportion is not None
            policies += [with_proportion(policy, p) for p in axes.p] if has_p and axes.p else [policy]
        changes: list[list[tuple[str, str, Any]]] = [[("", "cut", policy) for policy in policies]]
        # In this order, `settings` last: they may change what the other axes have set.
        for section in ("supervision", "loss", "student", "data", "settings"):
            changes.append([(name, section, value) for name, value in getattr(axes, section).items()])
        for combination in itertools.product(*filter(None, changes)):
            # Each combination changes values of its own. Names and rules do not depend on the seed: one stands for all.
            values = copy.deepcopy(base) | {"seed": study.seeds[0]}
            for _, section, value in combination:
                if section == "settings":
                    apply_overrides(values, value)
                elif section in ("cut", "student"):
                    values[section] = value.model_dump(mode="json")
                else:
                    values[section] = _merged(values.get(section) or {}, value)
            loss = values.get("loss")
            if isinstance(loss, dict) and loss.get("kl_weight") == 0:
                without_teacher(values)
            names = tuple(name for name, _, _ in combination if name)
            recipe = validate(Recipe, values, ", ".join([f"study {study.name}", str(values.get("cut", "")), *names]))
            by_values.setdefault(recipe.model_dump_json(), Trial(recipe, axes=names))
    return named(study, list(by_values.values()))


def named(study: Study, trials: Sequence[Trial]) -> list[Trial]:
    """Conditions, or controls of one kind, under names that say what is varied.

    Raises:
        SettingsError: Two that differ have one name.
    """
    num_alike = Counter((trial.recipe.cut.label, trial.axes) for trial in trials)
    renamed: list[Trial] = []
    for trial in trials:
        cut, shown = trial.recipe.cut, ""
        if num_alike[cut.label, trial.axes] > 1:
            # A label leaves out the usual values of these; two cuts that share it differ in unusual ones.
            unusual = cut.model_dump(include={"num_stages"}, exclude_defaults=True)
            unusual |= cut.inner.model_dump(include={"stop", "align"}, exclude_defaults=True)
            shown = ", ".join(f"{key} {value}" for key, value in unusual.items())
        name = ", ".join([f"{cut.label} ({shown})" if shown else cut.label, *trial.axes])
        renamed.append(replace(trial, recipe=trial.recipe.model_copy(update={"name": name})))
    repeated = [name for name, number in Counter(trial.recipe.name for trial in renamed).items() if number > 1]
    if repeated:
        raise SettingsError(
            f"study {study.name}: axes, more_axes: {len(repeated)} names stand for several conditions each, which "
            f"tables would show as one ({repeated[0]!r}); give what differs another name"
        )
    return renamed


def over_seeds(study: Study, trial: Trial) -> list[Trial]:
    """The same trial for every seed."""
    return [replace(trial, recipe=trial.recipe.model_copy(update={"seed": seed})) for seed in study.seeds]


def placed(trial: Trial, study: Study, fingerprints: Fingerprints) -> Trial:
    """The trial with its fingerprint, and the run directory that follows from it.

    Changed settings or data give another directory, so that one run is never mistaken for another.
    """
    fingerprint = fingerprints.of(trial.recipe)
    # 200 bytes keep the directory below the file systems' limit of 255 with seed and fingerprint.
    slug = re.sub(r"[^\w.+-]+", "-", trial.recipe.name).strip("-").lower()[:80].encode()[:200].decode(errors="ignore")
    seed = "" if trial.task == "evaluate" else f"-seed{trial.recipe.seed}"
    directory = study.output / "trials" / f"{slug}{seed}-{fingerprint[:8]}"
    # The fingerprint identifies the run; the rest of the name is for readers.
    existing = sorted(directory.parent.glob(f"*{seed}-{fingerprint[:8]}"))  # its condition may have had another name
    directory = existing[0] if existing and not directory.exists() else directory
    # The run writes into run.json which trial it is, so that no reader has to take a name or a path apart.
    identity = TrialId(study=study.name, axes=list(trial.axes), control=trial.control)
    # Which checkpoints stay is the study's to say: it takes them away when it has recorded the run.
    training = trial.recipe.training.model_copy(update={"keep_checkpoints": True})
    changes = {"output": directory, "trial": identity, "push": None, "training": training}
    recipe = trial.recipe.model_copy(update=changes)
    return replace(trial, recipe=recipe, fingerprint=fingerprint)


def without_teacher(values: dict[str, Any]) -> None:
    """Remove the teacher, in place: the student learns from the cross-entropy of the traces alone."""
    values["loss"] = {**(values.get("loss") or {}), "kl_weight": 0}
    values["teacher"] = None
    values["targets"] = {"kind": "live"}


def _merged(old: Any, new: Any) -> Any:
    """Merge nested mappings key by key; a mapping of another `kind` replaces the old one."""
    # Fields of one kind mean nothing to another, so a new kind replaces the whole mapping.
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("kind", old.get("kind")) != old.get("kind"):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def is_done(trial: Trial) -> bool:
    """Whether the run directory of a trial holds a finished run of exactly its recipe.

    Raises:
        RunError: It holds a finished run of another recipe.
    """
    directory = trial.recipe.output
    if not (directory / RUN_FILE).exists():
        return False
    if trial.control == "before" and damage(directory):
        return False  # trials that build on it would be refused; running it again replaces it
    try:
        stored = load_run(directory).recipe
    except RunError:
        return False  # running it again reports the fault, or replaces it
    expected, trained = without_places(trial.recipe), {} if stored is None else without_places(stored)
    differing = sorted(key for key in expected if expected[key] != trained.get(key))
    if trial.control == "before" and not differing:
        # The name of its directory does not show the content of its traces; of runs without training nothing is known.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            trained_on = json.loads((directory / IDENTITY_FILE).read_bytes())["contents"]["data.train"]
            source = trial.recipe.data.train
            if Path(source.path).exists() and trained_on != fingerprint_traces(source):
                differing = ["traces"]
    if differing:
        raise RunError(
            f"{directory}: it holds a finished run of another recipe (its {', '.join(differing)} differ); "
            "give that recipe another output, or remove the directory"
        )
    return True
