"""From a study to its trials: every combination of the axes, for every seed, as a resolved recipe with a place."""

import copy
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leadspan.data.truncation import Mix, Policy, Schedule, with_proportion
from leadspan.errors import SettingsError
from leadspan.recipe import Recipe, load_recipe
from leadspan.settings import Settings, apply_overrides, parse_yaml, validate
from leadspan.study.config import Axes, Study
from leadspan.study.fingerprint import Fingerprints
from leadspan.teacher.config import CaptureSettings

Task = Literal["distill", "evaluate", "capture"]


class SharedStore(Settings):
    """A store that several trials read."""

    directory: Path
    """Where it is."""
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
        note: What a reader must know about it.
        store: What to capture.
    """

    recipe: Recipe
    fingerprint: str = ""
    task: Task = "distill"
    control: str | None = None
    note: str = ""
    store: SharedStore | None = None

    @property
    def title(self) -> str:
        """Condition and seed."""
        if self.store is not None:
            return self.store.title
        return self.recipe.name if self.task == "evaluate" else f"{self.recipe.name}, seed {self.recipe.seed}"


def load_base(study: Study, place: Path) -> dict[str, Any]:
    """Values of the recipe that is varied, with the study's changes for all trials; not validated yet.

    Args:
        study: The study.
        place: The study's own file, which relative paths of recipes start from.

    Raises:
        SettingsError: The recipe cannot be read.
    """
    path = place.parent / study.recipe
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{place}: recipe {path} cannot be read ({error}); mend the path") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: a recipe is a mapping of settings, this is {type(values).__name__}")
    values.setdefault("name", study.name)
    values["output"] = str(study.output)
    apply_overrides(values, study.settings)
    return values


def conditions(study: Study, base: dict[str, Any]) -> list[Recipe]:
    """The recipe of every combination of the axes, at the first seed, equal ones once; the name says what is varied.

    Those of `axes` come first, then those of each set in `more_axes`.

    Raises:
        SettingsError: A combination breaks a rule; names it and every fault.
    """
    found: dict[str, Recipe] = {}
    combinations = (found for axes in (study.axes, *study.more_axes) for found in _combinations(axes, base))
    for names, values in combinations:
        values["seed"] = study.seeds[0]
        recipe = validate(Recipe, values, ", ".join([f"study {study.name}", str(values.get("cut", "")), *names]))
        named = recipe.model_copy(update={"name": ", ".join([recipe.cut.label, *names])})
        found.setdefault(recipe.model_dump_json(), named)
    return _told_apart(list(found.values()))


def _told_apart(recipes: list[Recipe]) -> list[Recipe]:
    """Different cuts under one name, which labels leave out what is usual of, are named with what is not."""
    names = Counter(recipe.name for recipe in recipes)
    found: list[Recipe] = []
    for recipe in recipes:
        inner = recipe.cut.policy if isinstance(recipe.cut, Mix) else recipe.cut
        own = inner.model_dump(include={"stop", "align"}, exclude_defaults=True)
        more = ", ".join(f"{key} {value}" for key, value in own.items())
        renamed = {"name": recipe.name.replace(recipe.cut.label, f"{recipe.cut.label} ({more})", 1)}
        found.append(recipe.model_copy(update=renamed) if names[recipe.name] > 1 and more else recipe)
    return found


def over_seeds(study: Study, recipe: Recipe) -> list[Recipe]:
    """The same condition for every seed."""
    return [recipe.model_copy(update={"seed": seed}) for seed in study.seeds]


def placed(trial: Trial, study: Study, fingerprints: Fingerprints) -> Trial:
    """The trial with its fingerprint, and the run directory that follows from it.

    A changed setting or changed data gives another directory, so that no run is ever taken for another.
    """
    found = fingerprints.of(trial.recipe)
    slug = re.sub(r"[^\w.+-]+", "-", trial.recipe.name).strip("-").lower()[:80]
    seed = "" if trial.task == "evaluate" else f"-seed{trial.recipe.seed}"
    directory = study.output / "trials" / f"{slug}{seed}-{found[:8]}"
    known = sorted(directory.parent.glob(f"*{seed}-{found[:8]}"))  # its condition may have had another name
    directory = known[0] if known and not directory.exists() else directory
    return replace(trial, recipe=trial.recipe.model_copy(update={"output": directory}), fingerprint=found)


def load_before(study: Study, place: Path) -> list[Recipe]:
    """The recipes that are run before the trials.

    Raises:
        SettingsError: One cannot be read or breaks a rule.
    """
    return [load_recipe(place.parent / before.recipe, before.settings) for before in study.before]


def without_teacher(values: dict[str, Any]) -> None:
    """Leave the teacher out, in place: the cross-entropy of the traces is all that is learnt."""
    values["loss"] = {**(values.get("loss") or {}), "kl_weight": 0}
    values["teacher"] = None
    values["targets"] = {"kind": "live"}


def _combinations(axes: Axes, base: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    changes: list[list[tuple[str, Callable[[dict[str, Any]], None]]]] = [
        [("", _setter("cut", cut.model_dump(mode="json"))) for cut in _policies(axes)] or [("", lambda values: None)]
    ]
    for section in ("supervision", "loss", "student", "data", "settings"):
        named: Mapping[str, Any] = getattr(axes, section)
        if named:
            changes.append([(name, _setter(section, value)) for name, value in named.items()])
    for combination in itertools.product(*changes):
        values = copy.deepcopy(base)
        for _, change in combination:
            change(values)
        loss = values.get("loss")
        if isinstance(loss, dict) and loss.get("kl_weight") == 0:
            without_teacher(values)
        yield [name for name, _ in combination if name], values


def _policies(axes: Axes) -> list[Policy]:
    """Policies at every proportion; those without one as they are."""
    found: list[Policy] = []
    for policy in axes.cut:
        inner = policy.policy if isinstance(policy, Mix) else policy
        has_p = getattr(inner, "p", None) is not None and not isinstance(policy, Schedule)
        found += [with_proportion(policy, p) for p in axes.p] if has_p and axes.p else [policy]
    return found


def _setter(section: str, value: Any) -> Callable[[dict[str, Any]], None]:
    plain: Any = value.model_dump(mode="json") if isinstance(value, Settings) else value

    def change(values: dict[str, Any]) -> None:
        if section == "settings":
            apply_overrides(values, plain)
        elif section in ("cut", "student"):
            values[section] = plain
        else:
            values[section] = _merged(values.get(section) or {}, plain)

    return change


def _merged(old: Any, new: Any) -> Any:
    """Nested mappings key by key; one that names another `kind` replaces."""
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("kind", old.get("kind")) != old.get("kind"):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
