"""Which runs are seeds of one condition, how conditions are called, and which of them are controls.

All of it is read from the recipes the runs carry: renaming a run or moving its directory moves no number.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leadspan.results import RunResult

_NOT_COMPARED = ("name", "seed", "output", "plan", "capture", "student.seed")
"""Settings in which the seeds of one condition may differ: none of them changes what is learnt but by chance."""
LENGTH = ("training.steps", "training.epochs", "data.num_train")
"""What the controls of equal length set for each seed on its own."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: Unique among the conditions.
        runs: One for each seed, in the order of the seeds.
    """

    name: str
    runs: tuple[RunResult, ...]

    @property
    def role(self) -> Literal["student", "base", "teacher"]:
        """What its models are to the others."""
        return self.runs[0].role

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of its first seed."""
        return self.runs[0].recipe

    @property
    def control(self) -> str | None:
        """Which control it is, see `control_of`."""
        return control_of(self.runs[0])

    @property
    def is_full(self) -> bool:
        """Whether its students were trained on uncut traces."""
        return is_full(self.runs[0])


def find_conditions(runs: Sequence[RunResult]) -> list[Condition]:
    """Group runs by their recipes, in the order in which they first appear.

    Two runs of one recipe and one seed are no two seeds: they stay apart, by name where that differs.
    """
    groups: dict[tuple[str, str, int], list[RunResult]] = {}
    same_seed = Counter((_key(run), seed_of(run)) for run in runs)
    repeats: Counter[tuple[str, str, int]] = Counter()
    for run in runs:
        key = _key(run)
        name = run.name if any(count > 1 for (found, _), count in same_seed.items() if found == key) else ""
        number = repeats[key, name, seed_of(run)]
        repeats[key, name, seed_of(run)] += 1
        groups.setdefault((key, name, number), []).append(run)
    ordered = [tuple(sorted(found, key=seed_of)) for found in groups.values()]
    return [Condition(name, found) for name, found in zip(_names(ordered), ordered, strict=True)]


def policy_names(runs: Sequence[RunResult]) -> list[str]:
    """The condition of each run."""
    names = {id(run): condition.name for condition in find_conditions(runs) for run in condition.runs}
    return [names[id(run)] for run in runs]


def unique_labels(runs: Sequence[RunResult]) -> list[str]:
    """The condition of each run, with the seed where it has several."""
    labels = {id(run): label for condition in find_conditions(runs) for label, run in seed_labels(condition)}
    return [labels[id(run)] for run in runs]


def seed_labels(condition: Condition) -> list[tuple[str, RunResult]]:
    """A label for each run of a condition."""
    if len(condition.runs) == 1:
        return [(condition.name, condition.runs[0])]
    return [(f"{condition.name} (seed {seed_of(run)})", run) for run in condition.runs]


def seed_of(run: RunResult) -> int:
    """Seed of a run; 0 where none is recorded."""
    return int(run.recipe.get("seed", run.environment.get("seed", 0)))


def cut_of(run: RunResult) -> dict[str, Any]:
    """The `cut` of a student's recipe; empty for base and teacher."""
    cut = run.recipe.get("cut")
    return cut if run.role == "student" and isinstance(cut, dict) else {}


def is_full(run: RunResult) -> bool:
    """Whether the run is a student trained on uncut traces."""
    return cut_of(run).get("kind") == "full"


def is_random_window(run: RunResult) -> bool:
    """Whether the run's cut, or the policy in its mix or schedule, is a random window: a control, however given."""
    cut = cut_of(run)
    return "random_window" in (cut.get("kind"), (cut.get("policy") or {}).get("kind"))


def has_teacher(recipe: Mapping[str, Any]) -> bool:
    """Whether a teacher's targets are part of the loss."""
    targets = recipe.get("targets") or {}
    teaches = recipe.get("teacher") is not None or targets.get("kind") == "store"
    return teaches and (recipe.get("loss") or {}).get("kl_weight") != 0


def control_of(run: RunResult) -> str | None:
    """Which control a run is: as its study recorded it, or `base` and `teacher` by their role; else None."""
    return run.control or (run.role if run.role != "student" else None)


def proportion_of(run: RunResult) -> float | None:
    """`p` of a run's cut, or of the policy in its mix; None where it has none or draws it."""
    cut = cut_of(run)
    p = (cut.get("policy") or {} if cut.get("kind") == "mix" else cut).get("p")
    return float(p) if isinstance(p, int | float) and cut.get("kind") != "schedule" else None


def family_key(recipe: Mapping[str, Any]) -> str:
    """Equal for recipes that differ in nothing but the seed and `p`."""
    return json.dumps(without(flat(recipe), ("cut.p", "cut.policy.p")), sort_keys=True)


def _key(run: RunResult) -> str:
    control = control_of(run)
    is_of_length = control in ("equal_tokens", "equal_steps")
    settings = without(flat(run.recipe), LENGTH if is_of_length else ())
    return json.dumps([run.role, control, run.label, settings], sort_keys=True)


def _names(groups: Sequence[tuple[RunResult, ...]]) -> list[str]:
    """A study's own name of the trial; else the label, or the run's name where conditions share the label.

    Numbered where they share that too. The trials of a study are known by a name that is the same for all seeds and
    begins with the label; what differs from the base recipe follows it.
    """
    shared = Counter(runs[0].label for runs in groups)
    names = [
        runs[0].name if _is_named(runs) else _full_name(runs[0]) if shared[runs[0].label] > 1 else runs[0].label
        for runs in groups
    ]
    repeated, seen = Counter(names), Counter[str]()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = f"{name} #{seen[name]}" if repeated[name] > 1 else name
    return names


def _is_named(runs: Sequence[RunResult]) -> bool:
    """Whether the runs bear the name of a study's condition."""
    first = runs[0]
    is_condition = first.name == first.label or first.name.startswith(f"{first.label}, ")
    return len({run.name for run in runs}) == 1 and (first.control is not None or is_condition)


def _full_name(run: RunResult) -> str:
    return run.name if run.name.startswith(run.label) else f"{run.label} ({run.name})"


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted setting to value, without those in which the seeds of a condition may differ."""
    return without(dict(_leaves(recipe)), _NOT_COMPARED)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def without(settings: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """Settings but those named, and those below them."""
    return {
        key: value
        for key, value in settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }


def num_differing(left: Mapping[str, Any], right: Mapping[str, Any], ignored: Sequence[str] = ()) -> int:
    """In how many settings two flat recipes differ, apart from some."""
    one, other = without(left, ignored), without(right, ignored)
    return sum(one.get(key) != other.get(key) for key in one.keys() | other.keys())
