"""Settings of evaluation: tasks and sampling."""

import difflib
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from leadspan.evaluation.benchmarks import BENCHMARKS
from leadspan.settings import Settings


class Choices(Settings):
    """Where the choices of a multiple-choice task stand: in one column, in several, or here."""

    columns: list[str] = []
    """One column that holds all choices (a list of texts, or lists `text` and `label`), or one column for each."""
    texts: list[str] = []
    """The choices themselves, where every problem has the same."""
    first: int = Field(default=0, ge=0, le=1)
    """What number the first choice has, where the answer is a number."""
    shuffle: bool = False
    """Order the choices by a hash of problem and choice, for sources that always name the right one first."""

    @model_validator(mode="after")
    def _from_one_place(self) -> "Choices":
        if bool(self.columns) == bool(self.texts):
            raise ValueError("name either the columns of the choices or their texts")
        return self


class TaskSettings(Settings):
    """Problems with reference answers."""

    name: str = Field(pattern=r"^[\w. -]+$")
    """Name of the task in results; the benchmark's when absent."""
    benchmark: str | None = None
    """A known benchmark (see docs/evaluation.md): its settings stand for all that are not given here."""
    path: str
    """Local file or directory of records, or a Hub dataset name."""
    split: str = "test"
    """Hub split."""
    subset: str | None = None
    """Hub configuration name."""
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
    grader: Literal["math", "exact", "choice", "literal"] = "math"
    """`math`: Math-Verify on the boxed answer; `exact`: the boxed answer, or the whole answer text where there is no
    box, equals the reference; `choice`: the letter of the right choice; `literal`: equal as Python literals."""
    samples_per_problem: int = Field(default=1, ge=1)
    """Samples for each problem, unless `sampling.samples_per_problem` says otherwise."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many problems."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_benchmark(cls, values: Any) -> Any:  # Any: whatever the user wrote
        name = values.get("benchmark") if isinstance(values, dict) else None
        if name is None:
            return values
        if name not in BENCHMARKS:
            near = difflib.get_close_matches(str(name), BENCHMARKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BENCHMARKS)}"
            raise ValueError(f"benchmark {name!r} is not known; {hint}")
        return {"name": name, **BENCHMARKS[name], **values}

    @model_validator(mode="after")
    def _choices_are_graded(self) -> "TaskSettings":
        if (self.grader == "choice") != (self.choices is not None):
            raise ValueError("`grader: choice` and `choices` go together; give both or neither")
        return self


class Batched(Settings):
    """Transformers, batch after batch."""

    kind: Literal["transformers"] = "transformers"
    """Tag."""


class Continuous(Settings):
    """Transformers' continuous batching: the same samples, with finished ones replaced at once."""

    kind: Literal["continuous"] = "continuous"
    """Tag."""


class Vllm(Settings):
    """vLLM (`pip install leadspan[vllm]`); its draws differ from the other's, seed for seed."""

    kind: Literal["vllm"] = "vllm"
    """Tag."""
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
    samples_per_problem: int | None = Field(default=None, ge=1)
    """Samples for each problem of every task; each task's own number when absent."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences generated at a time; does not change what is drawn."""
    seed: int = 0
    """Seed; every sample draws from its own stream, keyed by seed, problem and sample number."""
    engine: Annotated[Batched | Continuous | Vllm, Field(discriminator="kind")] = Batched()
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
    """Limit for grading one answer."""

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluationSettings":
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks are called {twice[0]!r}; give them different names (tasks.1.name)")
        return self
