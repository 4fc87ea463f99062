"""Settings of evaluation: tasks and sampling."""

from typing import Literal

from pydantic import Field, model_validator

from leadspan.settings import Settings


class TaskSettings(Settings):
    """Problems with reference answers."""

    name: str = Field(pattern=r"^[\w. -]+$")
    """Name of the task in results."""
    path: str
    """Local file or directory of records, or a Hub dataset name."""
    split: str = "test"
    """Hub split."""
    subset: str | None = None
    """Hub configuration name."""
    problem: str | None = None
    """Column of the problem; found by its usual names when absent."""
    answer: str | None = None
    """Column of the reference answer; found by its usual names when absent. Behind `####` where that occurs."""
    instruction: str = ""
    """Text appended to every problem, on lines of its own."""
    grader: Literal["math", "exact"] = "math"
    """`math`: Math-Verify on the boxed answer; `exact`: the answer text equals the reference."""
    limit: int | None = Field(default=None, ge=1)
    """Use the first so many problems."""


class SamplingSettings(Settings):
    """How answers are drawn. Defaults are the paper's (arXiv 2512.21002, evaluation), one sample each."""

    temperature: float = Field(default=0.6, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus: smallest set of tokens with at least this probability."""
    max_new_tokens: int = Field(default=32768, ge=1)
    """Cap on new tokens; lowered where prompt and new tokens would not fit the model's window."""
    samples_per_problem: int = Field(default=1, ge=1)
    """Samples for each problem."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences generated at a time; does not change what is drawn."""
    seed: int = 0
    """Seed; every sample draws from its own stream, keyed by seed, problem and sample number."""


class EvaluationSettings(Settings):
    """What is evaluated after training."""

    tasks: list[TaskSettings] = []
    """Tasks, in order."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    item_seconds: float = Field(default=10.0, gt=0)
    """Limit for grading one answer."""

    @model_validator(mode="after")
    def _names_differ(self) -> "EvaluationSettings":
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks are called {twice[0]!r}; give them different names (tasks.1.name)")
        return self
