"""Settings of evaluation: tasks and sampling."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from leadspan.evaluation.benchmarks import BENCHMARKS, BOXED, GENERATED
from leadspan.faults import Rule
from leadspan.settings import Settings
from leadspan.traces.settings import TraceSource


class Choices(Settings):
    """Where the choices of a multiple-choice task come from: one column, several, or these settings."""

    columns: list[str] = []
    """One column that holds all choices (a list of texts, or lists `text` and `label`), or one column for each."""
    texts: list[str] = []
    """The choices themselves, where every problem has the same."""
    first: int = Field(default=0, ge=0, le=1)
    """Number of the first choice, where the answer is a number."""
    shuffle: bool = False
    """Order the choices by a hash of problem and choice, for sources that always name the right one first."""

    def conflicts(self) -> Iterator[Rule]:
        """Choices come from columns or from texts."""
        if bool(self.columns) == bool(self.texts):
            yield ("columns", "texts"), "name either the columns of the choices or their texts"


_MAX_NAME = 100


def task_name(path: str) -> str:
    """Name of a task after the file of its problems, in letters that every file system takes.

    >>> task_name("data/my tasks (2nd).jsonl")
    'my tasks -2nd-'
    """
    return re.sub(r"[^\w. -]", "-", Path(path).stem)[:_MAX_NAME] or "task"


class TaskSettings(Settings):
    """Problems with reference answers."""

    # A known benchmark stands for the required path.
    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{"required": schema.pop("required")}, {"required": ["benchmark"]}]
        )
    )

    name: str = Field(default="task", pattern=r"^[\w. -]+$", max_length=_MAX_NAME)
    """Name of the task in results, and of the file of its samples; when absent the benchmark's, or that of the file of
    problems without its ending."""
    benchmark: str | None = None
    """A known benchmark (see docs/evaluation.md): its settings stand for all that are not given here; its `split` and
    `subset` only where its `path` does."""
    path: str
    """Local file or directory of records, a Hub dataset name, or `reasoning-gym:DATASET`, whose problems are made."""
    options: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = {}
    """Of `reasoning-gym:DATASET`: `seed` (0 when absent) and the data set's own, e.g. `{min_animals: 5}`."""
    split: str | None = None
    """Hub split; of a local path, the directory or the files whose name says it. `test` when absent; a local path whose
    names say no split is then read whole."""
    subset: str | None = None
    """Hub configuration name; of a local path, a directory in it."""
    problem: str | None = None
    """Column of the problem, or a text with columns in braces (`{Body} {Question}`); found by its usual names when
    absent."""
    answer: str | None = None
    """Column of the reference answer; found by its usual names when absent, else the last `\\boxed{}` of `solution`.
    Behind `####` where that occurs."""
    choices: Choices | None = None
    """The choices, for `grader: choice`."""
    instruction: str = ""
    """Text appended to every problem, on lines of its own."""
    grader: Literal["math", "exact", "choice", "literal", "reasoning_gym"] = "math"
    """`math`: Math-Verify on the boxed answer; `exact`: the boxed answer, or the whole answer text where there is no
    box, equals the reference; `choice`: the letter of the right choice; `literal`: equal as Python literals;
    `reasoning_gym`: the verifier of its data set scores the answer 1."""
    samples_per_problem: int = Field(default=1, ge=1, le=100_000)
    """Samples for each problem, unless `sampling.samples_per_problem` says otherwise."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many problems; of those that are made 100 when absent."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_benchmark(cls, values: Any) -> Any:  # Any: whatever the user wrote
        # Defaults come first and the user's values last, so that each default can be replaced.
        if isinstance(values, dict) and str(values.get("path")).startswith(GENERATED):
            name = values["path"].removeprefix(GENERATED)
            return {"name": name, "grader": "reasoning_gym", "instruction": BOXED, **values}
        name = values.get("benchmark") if isinstance(values, dict) else None
        if not isinstance(name, str):
            is_named = not isinstance(values, dict) or "path" not in values
            return values if is_named else {"name": task_name(str(values["path"])), **values}
        if name not in BENCHMARKS:
            return {"name": str(name), "path": "unknown", **values}  # the field `benchmark` reports the fault
        defaults = BENCHMARKS[name]
        if values.get("path", defaults["path"]) != defaults["path"]:  # names of another data set's parts
            defaults = {key: value for key, value in defaults.items() if key not in ("split", "subset")}
        return {"name": name, **defaults, **values}

    @field_validator("benchmark")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BENCHMARKS)}"
            raise ValueError(f"no known benchmark; {hint}")
        return name

    @property
    def source(self) -> TraceSource:
        """Where its records are read from."""
        return TraceSource(path=self.path, split=self.split, subset=self.subset, limit=self.limit)

    @property
    def generated(self) -> str | None:
        """The data set of reasoning-gym that makes its problems; None where they are read."""
        return self.path.removeprefix(GENERATED) if self.path.startswith(GENERATED) else None

    def conflicts(self) -> Iterator[Rule]:
        """Choices go with their grader, options and a verifier with generated problems."""
        if self.generated is None and (self.options or self.grader == "reasoning_gym"):
            yield ("path", "options", "grader"), f"options and `grader: reasoning_gym` go with path: {GENERATED}DATASET"
        if (self.grader == "choice") != (self.choices is not None):
            yield ("grader", "choices"), "`grader: choice` and `choices` go together; give both or neither"


class Batched(Settings):
    """Transformers, batch by batch; samples that have ended leave their batch."""

    kind: Literal["transformers"] = "transformers"


class Vllm(Settings):
    """vLLM (`pip install leadspan[vllm]`); with the same seed its draws differ from those of Transformers."""

    kind: Literal["vllm"] = "vllm"
    options: dict[str, bool | int | float | str] = {}
    """Passed on to `vllm.LLM`, e.g. `{tensor_parallel_size: 8, gpu_memory_utilization: 0.9}`."""


class SamplingSettings(Settings):
    """How answers are drawn. Defaults are the paper's (arXiv 2512.21002, evaluation), one sample each."""

    temperature: float = Field(default=0.6, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus: smallest set of tokens with at least this probability."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from this many most probable tokens only."""
    max_new_tokens: int = Field(default=32768, ge=1)
    """Cap on new tokens; lowered where prompt and new tokens would not fit the model's window."""
    thinking_budget: int | None = Field(default=None, ge=1)
    """Makes every sample answer: after this many tokens of thinking, or where it loops, the closing tag is inserted and
    the answer is drawn. These figures are reported in addition to those of the samples as drawn."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights that samples are drawn from; `auto` as in `training.precision`."""
    samples_per_problem: int | None = Field(default=None, ge=1, le=100_000)
    """Samples for each problem of every task; each task's own number when absent."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences generated at a time; does not change what is drawn."""
    seed: int = 0
    """Seed; every sample draws from its own stream, keyed by seed, problem and sample number."""
    engine: Annotated[Batched | Vllm, Field(discriminator="kind")] = Batched()
    """What generates."""


class EvaluationSettings(Settings):
    """What is evaluated after training."""

    tasks: list[TaskSettings] = []
    """Tasks, in order."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    system: str = ""
    """System message before every problem; none when empty."""
    item_seconds: float = Field(default=10.0, gt=0)
    """Processor time for grading one answer."""

    def conflicts(self) -> Iterator[Rule]:
        """Task names differ."""
        # Samples and results are stored by name.
        names = [task.name for task in self.tasks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            numbers = [number for number, other in enumerate(names) if other == name]
            fields = tuple(f"tasks.{number}.{key}" for number in numbers for key in ("name", "path"))
            yield fields, f"two tasks are called {name!r}; give them different names (tasks.1.name)"
