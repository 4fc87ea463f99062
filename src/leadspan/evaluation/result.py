"""The outcome of one model on one task."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from leadspan.settings import Amount, Count, Settings, Share
from leadspan.statistics.intervals import Interval

Marks = dict[str, list[Literal[0, 1]]]
"""Problem id to 0 or 1 for each of its samples."""


class EvalResult(Settings):
    """One model on one task."""

    task: str
    """Task name, followed by `, made to answer` where samples were."""
    answering: Literal["by itself", "made to answer"] = "by itself"
    """Whether samples ended their thinking themselves, or `sampling.thinking_budget` closed it where they did not."""
    closed_for_rate: Share | None = None
    """Share of samples whose thinking was closed for them; absent by itself."""
    model: str
    """Path or name of the model."""
    weights_hash: str
    """Hash of the evaluated weights."""
    num_problems: Annotated[Count, Field(gt=0)]
    """Problems."""
    samples_per_problem: Annotated[Count, Field(gt=0)]
    """Samples drawn for each problem."""
    sampling: dict[str, Any]
    """The settings of sampling, `precision` the one that was used."""
    accuracy_strict: Interval
    """avg@n: share of samples whose finished answer is right, mean over problems."""
    accuracy_flexible: Interval
    """Share of samples that hold a right answer anywhere."""
    accuracy_finished: Interval | None = None
    """Strict accuracy among the samples that ended with thinking closed; absent where none did."""
    pass_at: dict[str, Interval] = {}
    """pass@k by k, where there is more than one sample: the chance that k samples hold a right one."""
    majority_at: dict[str, Interval] = {}
    """maj@k by k, where there is more than one sample: how often the most frequent of k answers is right."""
    termination_rate: Interval
    """Share of samples that ended with an end-of-turn token."""
    cap_hit_rate: Share
    """Share of samples that ran into the new-token cap."""
    thinking_closed_rate: Share
    """Share of samples that closed the chain of thought."""
    loop_rate: Share | None = None
    """Share of samples that repeat a run of 30 tokens 10 times or more."""
    no_box_rate: Share | None = None
    """Share of samples without a filled `\\boxed{}` behind the thinking; absent where no box is asked for."""
    tokens_mean: Amount
    """Mean number of new tokens."""
    tokens_p50: Amount
    """Median number of new tokens."""
    tokens_p95: Amount
    """95th percentile of new tokens."""
    outcomes: dict[str, Count] = {}
    """Strict outcomes: right, wrong, no_answer, unparsed, timeout."""
    correct: Marks = {}
    """Problem id to the strict score of each sample (0 or 1)."""
    terminated: Marks = {}
    """Problem id to whether each sample ended with an end-of-turn token (0 or 1); empty in earlier results."""
    samples_file: str | None = None
    """File of all samples, relative to the run directory."""
    seconds: Amount = 0.0
    """Wall time of generation, interrupted sessions included, and grading."""

    @model_validator(mode="after")
    def _figures_fit(self) -> "EvalResult":
        shares = [self.accuracy_strict, self.accuracy_flexible, self.termination_rate]
        shares += [self.accuracy_finished] if self.accuracy_finished else []
        # A report must not compute with figures of a file that was edited or damaged.
        if not all(0 <= end <= 1 for share in shares for end in (share.value, share.low, share.high)):
            raise ValueError("an accuracy or rate is not a share between 0 and 1")
        for scores in (self.correct, self.terminated):
            if scores and len(scores) != self.num_problems:
                raise ValueError(f"scores of {len(scores)} problems where num_problems is {self.num_problems}")
            if any(len(each) != self.samples_per_problem for each in scores.values()):
                raise ValueError(f"a problem has other than samples_per_problem = {self.samples_per_problem} scores")
        return self
