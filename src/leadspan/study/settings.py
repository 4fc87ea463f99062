"""Settings of a study: one recipe varied along axes, over seeds, with the controls that a fair comparison needs."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema

from leadspan.data.truncation import AnyPolicy
from leadspan.errors import SettingsError
from leadspan.faults import Rule
from leadspan.models.settings import ModelSettings
from leadspan.recipe import Control
from leadspan.settings import Settings
from leadspan.teacher.settings import CaptureSettings

Changes = dict[str, Any]
_OF_STUDY = {
    "seed": "give `seeds`",
    "output": "give the study's `output`",
    "name": "leave it out",
    "trial": "leave it out",
}
"""Settings that a study sets for each trial, with the remedy where they are given for all of them."""


class Axes(Settings):
    """What is varied; every combination is a condition. Tables show a value by its name."""

    cut: list[AnyPolicy] = []
    """Policies; the recipe's own `cut` when empty. Retention needs `full` among them."""
    p: list[Annotated[float, Field(gt=0, le=1)]] = []
    """Proportions at which every policy with a `p` is run."""
    supervision: dict[str, Changes] = {}
    """Changes to `supervision` by name."""
    loss: dict[str, Changes] = {}
    """Changes to `loss` by name; at `kl_weight: 0` the trial has no teacher."""
    student: dict[str, ModelSettings] = {}
    """Students by name."""
    data: dict[str, Changes] = {}
    """Changes to `data` by name."""
    settings: dict[str, list[str]] = {}
    """Any other settings by name, as on the command line: `{slow: [training.learning_rate=1e-6]}`."""

    def conflicts(self) -> Iterator[Rule]:
        """Every proportion and every setting is used."""
        # Proportions without such a policy would be ignored in silence.
        if self.p and not any(policy.proportion for policy in self.cut):
            yield ("p", "cut"), "axes.p is given, but no policy of axes.cut has a p; add one, such as {kind: lead}"
        for name, overrides in self.settings.items():
            for text in _set_by_study(overrides):
                yield ("settings",), f"settings.{name}: {text}"


def _set_by_study(overrides: Sequence[str]) -> Iterator[str]:
    for key in (override.partition("=")[0] for override in overrides):
        if key in _OF_STUDY:
            yield f"{key} is set by the study for each trial; {_OF_STUDY[key]}"


class LocalExecutor(Settings):
    """Trials on this machine, each in its own process."""

    kind: Literal["local"] = "local"
    trials_at_once: int = Field(default=1, ge=1)
    """Trials that run at the same time."""
    threads_per_trial: int | None = Field(default=None, ge=1)
    """CPU threads of a trial; an equal share of the machine's when absent, all of them for one at a time."""
    gpus_per_trial: int | None = Field(default=None, ge=0)
    """GPUs given to a trial alone (`CUDA_VISIBLE_DEVICES`); when absent every trial sees all of them."""
    ranks_per_trial: int = Field(default=1, ge=1)
    """Processes that train a trial together, started by torchrun; on GPUs each uses one."""

    def conflicts(self) -> Iterator[Rule]:
        """There is a GPU for each rank."""
        # Unless given, every trial sees all GPUs, and the ranks share them out.
        gpus, ranks = self.gpus_per_trial, self.ranks_per_trial
        if gpus and gpus != ranks:
            text = f"gpus_per_trial {gpus}, ranks_per_trial {ranks}: a rank uses one GPU, so they must be equal"
            yield ("gpus_per_trial", "ranks_per_trial"), text


class RayExecutor(Settings):
    """Trials as tasks of a Ray cluster (extra `ray`). All nodes must see the study's files under the same paths."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """Address of a running cluster (`auto`, `ray://...`); when absent one is started on this machine."""
    cpus_per_trial: int = Field(default=1, ge=1)
    """CPU cores, and threads, of a trial."""
    gpus_per_trial: float = Field(default=0, ge=0)
    """GPUs of a trial."""
    ranks_per_trial: int = Field(default=1, ge=1)
    """Processes that train a trial together on its node, started by torchrun; on GPUs each uses one."""


class Before(Settings):
    """A recipe that is run before the trials."""

    recipe: Path
    """The recipe, relative to the study's own file."""
    settings: list[str] = []
    """Settings that replace the recipe's, as on the command line."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The path of a recipe stands for the recipe as it is."""
        return {"anyOf": [{"type": "string"}, super().__get_pydantic_json_schema__(core_schema, handler)]}

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, values: Any) -> Any:  # Any: whatever the user wrote
        return {"recipe": values} if isinstance(values, str | Path) else values


Executor = Annotated[LocalExecutor | RayExecutor, Field(discriminator="kind")]


class Study(Settings):
    """A recipe, what is varied, and the controls it is compared with."""

    name: str
    """Name of the study."""
    output: Path
    """Directory of the study; every trial has a run directory below it."""
    recipe: Path
    """The recipe that is varied, relative to the study's own file."""
    settings: list[str] = []
    """Settings that replace the recipe's in all trials, as on the command line: `[training.epochs=1]`."""
    before: list[Before] = []
    """Recipes that are run first, one after the other, to make what the trials need (a teacher, a base student); a
    path is a recipe without changes."""
    axes: Axes = Axes()
    """What is varied."""
    more_axes: list[Axes] = []
    """Further sets of axes, each crossed by itself, for variations that need not be combined with all others. They get
    the seeds and, of the controls, `base` and `teacher`; a condition that occurs twice is run once."""
    needs: dict[Path, str] = {}
    """Files and directories that must exist before the study can be planned, each with the command that makes it."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = [0, 1, 2]
    """Seeds of every condition."""
    controls: list[Control] = []
    """Trials added for comparison. `equal_tokens`: each cut with more traces, until it has trained on as many tokens as
    the uncut run. `equal_steps`: each cut with as many optimiser steps as the uncut run. `random_window`: a random
    window of the same length for each `lead`. `cross_entropy`: each condition without its teacher. `base`, `teacher`:
    the students and the teacher evaluated as they are."""
    store: CaptureSettings | None = None
    """A store of the teacher's targets that all trials read, captured once, before them; if absent, each trial runs its
    teacher. `path` is the directory of the stores, one for each teacher and tokenizer; `store` in the study's directory
    when absent. The cuts of the trials are captured, and `cuts` in addition. Trials with a rollout learn from whole
    rollouts of the untrained student, drawn once for all horizons (offline); leave it out to draw in training."""
    executor: Executor = LocalExecutor()
    """Where trials run."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of finished trials, three times the size of a student or more; students always stay."""

    @field_validator("seeds", "controls")
    @classmethod
    def _no_repeats(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("each may be given only once")
        return values

    def check_needs(self) -> None:
        """Refuse a study some of whose files are missing.

        Raises:
            SettingsError: Names them, and the commands that make them.
        """
        lacking = {path: command for path, command in self.needs.items() if not path.exists()}
        if lacking:
            # Each command is named once, although it may make several files.
            commands = ", ".join(f"`{command}`" for command in dict.fromkeys(lacking.values()))
            raise SettingsError(f"study {self.name}: {', '.join(map(str, lacking))}: missing; run {commands} first")

    def conflicts(self) -> Iterator[Rule]:
        """There are seeds, and no setting is one that the study or every value of an axis sets."""
        for text in _set_by_study(self.settings):
            yield ("settings",), f"settings: {text}"
        for section in ("cut", "student"):
            has_no_effect = all(getattr(axes, section) for axes in (self.axes, *self.more_axes))
            if has_no_effect and any(re.match(rf"{section}[.=]", override) for override in self.settings):
                yield ("settings",), f"settings: every value of axes.{section} replaces {section}; change it there"
        if not self.seeds:
            yield ("seeds",), "seeds is empty; give at least one, three or more for intervals over seeds"
