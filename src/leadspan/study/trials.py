"""From a study to its trials: every combination of the axes, for every seed, as a resolved recipe with a directory.

A trial is identified by its resolved settings and the content of the local files that it reads; its directory is named
after both.
"""

import contextlib
import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leadspan.data.truncation import Policy, with_proportion
from leadspan.errors import RunError, SettingsError
from leadspan.recipe import Recipe, TrialControl, TrialId, load_recipe
from leadspan.results import RUN_FILE, damage, load_run
from leadspan.settings import Settings, apply_overrides, validate
from leadspan.study.fingerprints import Fingerprints, without_places
from leadspan.study.settings import Axes, Study
from leadspan.teacher.settings import CaptureSettings
from leadspan.traces.read import fingerprint as fingerprint_traces
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
    combinations = (combination for axes in (study.axes, *study.more_axes) for combination in _combinations(axes, base))
    for names, values in combinations:
        # Names, rules and equality of conditions do not depend on the seed, so one seed stands for all.
        values["seed"] = study.seeds[0]
        recipe = validate(Recipe, values, ", ".join([f"study {study.name}", str(values.get("cut", "")), *names]))
        by_values.setdefault(recipe.model_dump_json(), Trial(recipe, axes=tuple(names)))
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


def load_before(study: Study, study_file: Path) -> list[Recipe]:
    """The recipes that are run before the trials.

    Raises:
        SettingsError: One cannot be read or breaks a rule.
    """
    return [load_recipe(study_file.parent / before.recipe, before.settings) for before in study.before]


def without_teacher(values: dict[str, Any]) -> None:
    """Remove the teacher, in place: the student learns from the cross-entropy of the traces alone."""
    values["loss"] = {**(values.get("loss") or {}), "kl_weight": 0}
    values["teacher"] = None
    values["targets"] = {"kind": "live"}


def _combinations(axes: Axes, base: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Names and recipe values of every combination of the axes; its policy is not among the names."""
    policies: list[Policy] = []
    for policy in axes.cut:
        has_p = policy.proportion is not None
        policies += [with_proportion(policy, p) for p in axes.p] if has_p and axes.p else [policy]
    changes: list[list[tuple[str, str, Any]]] = [[("", "cut", policy) for policy in policies]]
    for section in ("supervision", "loss", "student", "data", "settings"):
        changes.append([(name, section, value) for name, value in getattr(axes, section).items()])
    # In this order, `settings` last: they may change what the other axes have set.
    for combination in itertools.product(*filter(None, changes)):
        # Each combination changes values of its own.
        values = copy.deepcopy(base)
        for _, section, value in combination:
            new: Any = value.model_dump(mode="json") if isinstance(value, Settings) else value
            if section == "settings":
                apply_overrides(values, new)
            elif section in ("cut", "student"):
                values[section] = new
            else:
                values[section] = _merged(values.get(section) or {}, new)
        loss = values.get("loss")
        if isinstance(loss, dict) and loss.get("kl_weight") == 0:
            without_teacher(values)
        yield [name for name, _, _ in combination if name], values


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
