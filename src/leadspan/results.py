"""What runs leave behind: the only schema of a run directory.

Every later reader (tables, frontier, report) reads these types and nothing else. A run directory holds
`run.json` (one `RunResult`), `metrics.jsonl`, `samples/*.jsonl`, and the trained model under `student/`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.settings import Settings

RUN_FILE = "run.json"
SCHEMA_VERSION: Literal[1] = 1


class Interval(Settings):
    """A point estimate with its confidence interval."""

    value: float
    """The estimate."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    level: float = 0.95
    """Confidence level."""
    method: str = "percentile bootstrap over problems"
    """How the interval was made."""


class CutCounts(Settings):
    """What a policy and a supervision did to a set of examples, counted before training.

    Under a policy that changes over training every example is counted once for each of its stages.
    """

    num_examples: int
    """Examples before the cut."""
    num_kept: int
    """Examples left with at least one weighted position."""
    dropped: dict[str, int] = {}
    """Examples dropped, by reason."""
    tokens_before: int
    """Tokens of all examples before the cut."""
    tokens_after: int
    """Tokens that enter the forward pass, all examples once."""
    weighted_tokens: int
    """Positions with a loss, all examples once."""
    section_tokens_before: dict[str, int] = {}
    """Tokens per section before the cut."""
    section_tokens_after: dict[str, int] = {}
    """Tokens per section after the cut."""
    lost_question: int = 0
    """Kept examples that lost part of the prompt."""
    lost_think_end: int = 0
    """Kept examples without the closing think tag."""
    lost_answer: int = 0
    """Kept examples that lost part of the answer."""
    lost_stop: int = 0
    """Kept examples without an end-of-turn token."""


class FlopsByPart(Settings):
    """Floating-point operations of a training run, as integers."""

    student_body: int = 0
    """Linear layers of the student, forward and backward."""
    student_attention: int = 0
    """Attention products of the student, forward and backward."""
    student_head: int = 0
    """Output projection of the student at weighted positions, forward and backward."""
    teacher_body: int = 0
    """Linear layers of the teacher, forward."""
    teacher_attention: int = 0
    """Attention products of the teacher, forward."""
    teacher_head: int = 0
    """Output projection of the teacher at weighted positions, forward."""
    recomputation: int = 0
    """Second student forward of gradient checkpointing."""

    @property
    def total(self) -> int:
        """Sum over the parts."""
        return sum(self.model_dump().values())


class MemoryByPart(Settings):
    """Memory of one rank at one moment, in bytes."""

    weights: int = 0
    """Weights of the student, with the copies that autocast or sharding makes."""
    gradients: int = 0
    """Gradients of the trained weights, with the buckets of data-parallel training."""
    optimizer: int = 0
    """Moments of the optimiser."""
    activations: int = 0
    """What the layers of student or teacher hold, and the hidden states at weighted positions."""
    logits: int = 0
    """Chunks of logits."""
    teacher: int = 0
    """Weights of a live teacher."""
    process: int = 0
    """What a calibration measured beyond the tensors: libraries, and blocks the allocator keeps; 0 without one."""

    @property
    def total(self) -> int:
        """Sum over the parts."""
        return sum(self.model_dump().values())


class Prediction(Settings):
    """What a run was predicted to cost before it began."""

    num_steps: int
    """Optimiser steps."""
    num_tokens: int
    """Tokens through the student's forward pass."""
    num_weighted_tokens: int
    """Positions with a loss."""
    flops: FlopsByPart
    """All ranks together."""
    memory: MemoryByPart
    """One rank, at the highest moment of the largest micro-batch."""
    seconds: float | None = None
    """Wall time of the training loop, without loading and validation; absent without a calibration or a stated peak.
    The first step counts as any other, although it also compiles and allocates (`TrainResult.steady_seconds`)."""
    seconds_source: str | None = None
    """What the time was predicted from."""
    money: float | None = None
    """Price of that time on all ranks; absent without a time or a price."""
    break_point: Interval | None = None
    """LSP*, the share of a sequence below which a lead cut is predicted to hurt: mean of (|P| + f |CoT|) / T over the
    training traces whose chain of thought states the right answer, f the share before its first statement. Absent where
    none does."""
    break_point_traces: int | None = None
    """Traces that were searched for it, those without a right answer or a statement included."""
    break_point_left: int | None = None
    """Traces that were to be searched too and were left when `plan.break_point_seconds` was spent."""


class StepSeconds(Settings):
    """Wall time of all optimiser steps by what was done, on the first rank."""

    data: float = 0.0
    """Fetching and packing examples before a step begins; not part of `TrainResult.seconds`."""
    teacher: float = 0.0
    """Targets of the teacher."""
    student_forward: float = 0.0
    """Forward pass of the student with the loss, which forms the head's gradients on the way."""
    backward: float = 0.0
    """Backward pass below the head, recomputation and averaging over ranks included."""
    optimizer: float = 0.0
    """Clipping, update, and all else of a step."""


class TrainResult(Settings):
    """What one training run did and what it cost, as measured."""

    num_steps: int
    """Optimiser steps."""
    num_examples: int
    """Examples seen, repeats counted."""
    num_tokens: int
    """Tokens through the student's forward pass."""
    num_weighted_tokens: int
    """Positions with a loss."""
    seconds: float
    """Wall time of the training loop, without loading and validation."""
    peak_memory_bytes: int
    """Peak memory of training above what the process held before the models were loaded."""
    memory_source: Literal["cuda allocator", "process resident set"]
    """What measured the peak."""
    flops: FlopsByPart
    """Counted from the models' shapes and each example's own length."""
    first_loss: float
    """Training loss first logged."""
    final_loss: float
    """Training loss last logged."""
    validation_loss: dict[str, float] = {}
    """Validation loss (full sequences) by step, steps as strings."""
    best_step: int | None = None
    """Step with the lowest validation loss."""
    saved_step: int
    """Step whose weights were written to `student/`."""
    device: str
    """Device name and number of ranks."""
    num_ranks: int | None = None
    """Processes that trained together; absent in results of earlier versions."""
    step_seconds: StepSeconds | None = None
    """Where the time of the steps went."""
    first_step_seconds: float | None = None
    """Wall time of the first optimiser step, which compiles, allocates and warms up; part of `seconds`."""
    mfu: float | None = None
    """Model FLOPs utilisation: FLOPs without recomputation, a second, as a share of the peak of all ranks' devices
    (Chowdhery et al., arXiv 2204.02311, appendix B); absent where no peak is known or stated."""
    energy_joules: float | None = None
    """Energy of the GPUs of all ranks from the first step to the last, validations included; absent without NVML."""

    @property
    def steady_seconds(self) -> float:
        """Wall time with the first step taken to last as long as the others on average: what a prediction is of."""
        if self.first_step_seconds is None or self.num_steps < 2:
            return self.seconds
        return (self.seconds - self.first_step_seconds) * self.num_steps / (self.num_steps - 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens through the student's forward pass a second; 0 for a run without steps."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def flops_per_second(self) -> float:
        """Counted operations, recomputation included, a second."""
        return self.flops.total / self.seconds if self.seconds else 0.0


class EvalResult(Settings):
    """One model on one task."""

    task: str
    """Task name."""
    model: str
    """Path or name of the model."""
    weights_hash: str
    """Hash of the evaluated weights."""
    num_problems: int
    """Problems."""
    samples_per_problem: int
    """Samples drawn for each problem."""
    sampling: dict[str, Any]
    """Temperature, top-p, new-token cap and seed."""
    accuracy_strict: Interval
    """avg@n: share of samples whose finished answer is right, mean over problems."""
    accuracy_flexible: Interval
    """Share of samples in which a right answer can be found anywhere."""
    accuracy_finished: Interval | None = None
    """Strict accuracy among the samples that ended with thinking closed; absent where none did."""
    pass_at: dict[str, Interval] = {}
    """pass@k by k, where there is more than one sample: the chance that k samples hold a right one."""
    majority_at: dict[str, Interval] = {}
    """maj@k by k, where there is more than one sample: how often the most frequent of k answers is right."""
    termination_rate: Interval
    """Share of samples that ended with an end-of-turn token."""
    cap_hit_rate: float
    """Share of samples that ran into the new-token cap."""
    thinking_closed_rate: float
    """Share of samples that closed the chain of thought."""
    loop_rate: float | None = None
    """Share of samples that repeat a run of 30 tokens 10 times or more."""
    no_box_rate: float | None = None
    """Share of samples without a filled `\\boxed{}` behind the thinking; absent where no box is asked for."""
    tokens_mean: float
    """Mean number of new tokens."""
    tokens_p50: float
    """Median number of new tokens."""
    tokens_p95: float
    """95th percentile of new tokens."""
    outcomes: dict[str, int] = {}
    """Strict outcomes: right, wrong, no_answer, unparsed, timeout."""
    correct: dict[str, list[int]] = {}
    """Problem id to the strict score of each sample (0 or 1)."""
    terminated: dict[str, list[int]] = {}
    """Problem id to whether each sample ended with an end-of-turn token (0 or 1); empty in earlier results."""
    samples_file: str | None = None
    """File of all samples, relative to the run directory."""
    seconds: float = 0.0
    """Wall time of generation, interrupted sessions included, and grading."""


class RunResult(Settings):
    """One run: its recipe, what it trained, what it cost, what came out."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Version of this schema."""
    name: str
    """Name of the run."""
    label: str
    """Short label of the condition, e.g. `lead 0.5`."""
    role: Literal["student", "base", "teacher"] = "student"
    """A distilled student, the untrained-further base, or the teacher."""
    control: str | None = None
    """The control of a study that the run is; absent for its conditions and for runs outside a study."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    environment: dict[str, str]
    """Versions, commit, platform, seed."""
    cut: CutCounts | None = None
    """Counts of the cut on the training set."""
    refused: dict[str, int] = {}
    """Records of the trace source that could not be used, by reason."""
    prediction: Prediction | None = None
    """What training was predicted to cost, before it began."""
    train: TrainResult | None = None
    """Training, absent for base and teacher."""
    evaluations: list[EvalResult] = Field(default_factory=list)
    """Evaluations, one per task."""


def save_run(result: RunResult, directory: Path) -> Path:
    """Write `run.json` atomically."""
    path = directory / RUN_FILE
    write_atomically(path, result.model_dump_json(indent=1) + "\n")
    return path


def load_run(directory: Path) -> RunResult:
    """Read the `run.json` of a run directory.

    Raises:
        RunError: There is none, or it is not one of ours.
    """
    path = directory / RUN_FILE
    try:
        return RunResult.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{path}: not found; give a directory that a finished `leadspan distill` has written") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "(top level)"
        raise RunError(f"{path}: not a run file of schema {SCHEMA_VERSION} ({place}: {first['msg']})") from None
