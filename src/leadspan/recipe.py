"""The whole configuration of a run, composed of the stages' own sections."""

import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from leadspan.costs.settings import PlanSettings
from leadspan.data.selection import ByDivergence, ByGap, ByTeacherEntropy
from leadspan.data.settings import DataSettings, HeldOutSource
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import AnyPolicy, Lead, Schedule
from leadspan.errors import TargetsError
from leadspan.evaluation.settings import EvaluationSettings
from leadspan.faults import Rule
from leadspan.losses.defined import check_loss
from leadspan.losses.settings import LossSettings, PolicyGradient
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.rollout.settings import RolloutSettings, TaskPrompts
from leadspan.settings import MoreFaults, Settings, load_settings
from leadspan.sources import Source
from leadspan.teacher.settings import (
    AnyTeacher,
    CaptureSettings,
    LiveTargets,
    Served,
    ServedTeachers,
    StoredTargets,
    TargetSource,
)
from leadspan.training.result import STUDENT_DIR
from leadspan.training.settings import ByExamples, TrainingSettings

Part = Literal["data", "student", "teacher", "tasks", "targets", "calibration"]
"""What of a recipe a command reads; `data` needs the tokenizer."""


TrialControl = Literal["equal_tokens", "equal_steps", "random_window", "cross_entropy", "base", "teacher", "before"]


class TrialId(Settings):
    """Which trial of a study a run is. The study writes it, and no number of the run depends on it."""

    study: str
    """Name of the study."""
    axes: list[str] = []
    """What the condition varies besides the cut, in the words of the study's axes."""
    control: TrialControl | None
    """The control that the run is, or `before` for a run that the trials need; null for a condition of the axes."""


class Recipe(Settings):
    """One run: data, cut, supervision, models, loss, training, evaluation."""

    name: str
    """Name of the run in results and reports."""
    role: Literal["student", "base", "teacher"] = "student"
    """Role of the trained model in a report: only students are compared by their cut."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything that is drawn: split, random cuts, order, dropout."""
    output: Path
    """Run directory."""
    data: DataSettings
    """Traces and rendering."""
    tokenizer: str | None = None
    """Tokenizer that renders the data; the student's own when absent."""
    student: ModelSettings
    """Starting weights."""
    teacher: AnyTeacher | None = None
    """The teacher, run here or on a server; needed unless `loss.kl_weight` is 0 or `targets` is a store. With a store
    it is not loaded, and the store must have been captured from its weights."""
    targets: TargetSource = LiveTargets()
    """Where the teacher's targets come from."""
    capture: CaptureSettings = CaptureSettings()
    """What `leadspan capture` writes."""
    cut: AnyPolicy = Lead(p=0.5)
    """Truncation policy of the training traces; validation is never cut."""
    rollout: RolloutSettings | None = None
    """On-policy distillation: text that the student generates in training. Absent: it learns from the traces alone."""
    supervision: Supervision = Supervision()
    """Weight of the loss per section."""
    loss: LossSettings = LossSettings()
    """The objective."""
    training: TrainingSettings
    """Optimiser, batches, validation."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is evaluated after training."""
    push: str | None = None
    """Name on the Hugging Face Hub, `USER/MODEL`, under which student and card are uploaded when all is evaluated."""
    plan: PlanSettings = PlanSettings()
    """The machine for which the cost is predicted; does not change training."""
    trial: TrialId | None = None
    """Set by `leadspan study` for its trials: which of them the run is."""

    def conflicts(self) -> Iterator[Rule]:
        """Teacher, targets, loss, token selection, rollouts and tokenizer fit together."""
        if self.rollout is not None:
            yield from self._rollout_conflicts(self.rollout)
        if isinstance(self.loss.divergence, PolicyGradient):
            yield from self._policy_gradient_conflicts()
        is_stored = isinstance(self.targets, StoredTargets)
        if isinstance(self.student, Pretrained) and self.student.quantization is not None:
            text = (
                f"student.quantization is {self.student.quantization}: quantised weights cannot be trained; "
                "leave it out, or quantise the teacher"
            )
            yield ("student.quantization",), text
        if is_stored and self.loss.kl_weight == 0:
            text = "loss.kl_weight is 0, so the store of targets is not read; set targets: {kind: live}"
            yield ("targets", "loss.kl_weight"), text
        if not is_stored and (self.teacher is None) != (self.loss.kl_weight == 0):
            text = (
                f"loss.kl_weight is {self.loss.kl_weight:g} with {'no' if self.teacher is None else 'a'} teacher: "
                "give a teacher or targets: {kind: store, path: ...}, or set loss.kl_weight: 0 without a teacher"
            )
            yield ("teacher", "targets", "loss.kl_weight"), text
        if self.loss.stop == "event" and (self.teacher is None or self.loss.kl_weight == 0):
            text = (
                "loss.stop is event with no teacher to say which tokens end its turns: name the teacher "
                "(beside a store, too), or set loss.stop: tokens"
            )
            yield ("loss.stop", "teacher"), text
        if isinstance(self.teacher, Served) and not is_stored:
            yield from self._served_conflicts(self.teacher)
        selection = self.supervision.token_selection
        if self.teacher is None and not is_stored and isinstance(selection, ByTeacherEntropy | ByGap | ByDivergence):
            text = (
                f"supervision.token_selection.kind is {selection.kind} with no teacher: give one or a store, "
                "or select by student_entropy or random"
            )
            yield ("teacher", "targets", "supervision.token_selection"), text
        if self.tokenizer is None and not isinstance(self.student, Pretrained):
            text = "tokenizer is missing: a student built from a config has none of its own"
            yield ("tokenizer", "student"), text

    def _policy_gradient_conflicts(self) -> Iterator[Rule]:
        """A policy gradient needs tokens that the student has just drawn, and each end-of-turn token by itself."""
        rollout, kind = self.rollout, "policy_gradient"
        if rollout is None or rollout.trace_share or self.targets.kind == "store":
            text = f"{kind} learns of tokens that the student has just drawn: give a rollout, without traces or a store"
            yield ("loss.divergence", "rollout", "targets"), text
        if self.loss.stop != "tokens":
            text = f"{kind} knows the teacher's probability of one token, not of every end of a turn: set tokens"
            yield ("loss.stop", "loss.divergence"), text

    def _served_conflicts(self, teacher: Served) -> Iterator[Rule]:
        """The loss is defined on the likeliest tokens at temperature 1."""
        selection, where = self.supervision.token_selection, f"teacher.kind {teacher.kind}, k {teacher.k}"
        if isinstance(teacher, ServedTeachers) and "teacher" not in self.data.train.columns:
            text = f"teacher.kind is {teacher.kind}, and no column names a trace's: set data.train.columns.teacher"
            yield ("teacher", "data.train.columns"), text
        if isinstance(teacher, ServedTeachers) and self.rollout and isinstance(self.rollout.prompts, TaskPrompts):
            text = (
                f"teacher.kind is {teacher.kind}, and the problems of a task name none: take prompts: {{kind: traces}}"
            )
            yield ("teacher", "rollout.prompts"), text
        if self.merges_stops and self.loss.stop is None:
            text = (
                f"{where}: the server returns the likeliest tokens only, so that the probability of every end-of-turn "
                "token, which loss.stop: event of rollouts needs, is not known: set loss.stop: tokens, and take a "
                "student and a teacher that end turns with the same tokens"
            )
            yield ("teacher", "loss.stop", "rollout"), text
        losses, cold = {"loss": self.loss}, None if self.rollout is None else self.rollout.cold_start
        if cold is not None and cold.kl_weight:
            losses["rollout.cold_start"] = self.loss.model_copy(update={"divergence": cold.divergence})
        for name, loss in losses.items():
            try:
                check_loss(loss, selection, teacher.kept_targets, where)
            except TargetsError as error:
                yield ("teacher", name, "supervision.token_selection"), str(error)

    def _rollout_conflicts(self, rollout: RolloutSettings) -> Iterator[Rule]:
        """Rollouts have a live teacher, a loss that needs nothing else, and steps of a known number of examples."""
        if isinstance(self.targets, StoredTargets) and rollout.steps_per_draw > 1:
            text = "rollouts of a store are not drawn by the student that learns of them: set steps_per_draw: 1"
            yield ("rollout.steps_per_draw", "targets"), text
        if self.loss.kl_weight != 1:
            text = (
                f"loss.kl_weight is {self.loss.kl_weight:g}, and the rest of the loss would teach the student the "
                "tokens that it drew itself, which says nothing of the teacher: set loss.kl_weight: 1"
            )
            yield ("rollout", "loss.kl_weight"), text
        batching = self.training.batching
        if not isinstance(batching, ByExamples):
            text = (
                "training.batching.kind is tokens, and lengths of rollouts are not known before they are drawn: "
                "set kind: examples"
            )
            yield ("rollout", "training.batching"), text
        elif batching.examples_per_step % rollout.samples_per_prompt:
            text = (
                f"training.batching.examples_per_step {batching.examples_per_step} is no multiple of "
                f"rollout.samples_per_prompt {rollout.samples_per_prompt}"
            )
            yield ("rollout.samples_per_prompt", "training.batching.examples_per_step"), text
        supervision = self.supervision
        is_partial = supervision.token_selection is not None or not (supervision.cot and supervision.answer)
        if rollout.steps_per_draw > 1 and is_partial:
            text = (
                f"rollout.steps_per_draw is {rollout.steps_per_draw}, and positions are weighed by all tokens drawn "
                "before them: set supervision.cot and supervision.answer above 0 and no token_selection, or 1"
            )
            yield ("rollout.steps_per_draw", "supervision"), text
        if rollout.cold_start is not None and isinstance(rollout.cold_start.divergence, PolicyGradient):
            text = "traces are no draws of the student's, of which policy_gradient learns: take another divergence"
            yield ("rollout.cold_start.divergence",), text
        is_plain = isinstance(self.student, Pretrained) and self.student.gguf_file is None and not self.training.lora
        if rollout.engine.kind == "vllm" and not is_plain:
            text = (
                "rollout.engine.kind is vllm, and its weights are updated from those of a student in a directory or on "
                "the Hub without adapters: leave training.lora and gguf_file out, or set engine: {kind: transformers}"
            )
            yield ("rollout.engine", "student", "training.lora"), text
        if rollout.has_traces and isinstance(self.cut, Schedule):
            text = "cut.kind is schedule, and traces beside rollouts keep one cut: take the scheduled policy itself"
            yield ("rollout", "cut"), text

    @property
    def label(self) -> str:
        """Short name of the condition."""
        if self.role != "student":
            return self.role
        if self.rollout is None:
            return self.cut.label
        return f"{self.rollout.label}, {self.cut.label}" if self.rollout.has_traces else self.rollout.label

    @property
    def local_teacher(self) -> ModelSettings | None:
        """The teacher, where it is none that a server runs."""
        return None if isinstance(self.teacher, Served) else self.teacher

    @property
    def merges_stops(self) -> bool:
        """Whether the tokens that end a turn are one outcome in the divergence."""
        return self.loss.stop == "event" or (self.loss.stop is None and self.rollout is not None)

    @property
    def loss_with_stop(self) -> LossSettings:
        """The loss with its `stop` resolved."""
        return self.loss.model_copy(update={"stop": "event" if self.merges_stops else "tokens"})

    @property
    def store_path(self) -> Path | None:
        """Directory of the store that the targets are read from; None where they are not stored."""
        return self.targets.path if isinstance(self.targets, StoredTargets) else None

    def sources(self, parts: Sequence[Part] = typing.get_args(Part)) -> Iterator[Source]:
        """Paths and Hub names that parts of the recipe read."""
        if "data" in parts:
            yield from self._prompt_sources()
            yield Source("data.train.path", self.data.train.path, "dataset")
            if isinstance(self.data.validation, HeldOutSource):
                yield Source("data.validation.source.path", self.data.validation.source.path, "dataset")
            if self.data.rendering.chat_template is not None:
                yield Source("data.rendering.chat_template", str(self.data.rendering.chat_template), "path")
            yield from self._tokenizer_sources()
        for name, model in (("student", self.student), ("teacher", self.teacher)):
            is_own_tokenizer = name == "student" and self.tokenizer is None and "data" in parts
            if name in parts and isinstance(model, Pretrained) and not is_own_tokenizer:
                yield Source(f"{name}.path", model.path, "model")
        if "tasks" in parts:
            yield from self._task_sources()
        if "targets" in parts and isinstance(self.targets, StoredTargets):
            yield Source("targets.path", str(self.targets.path), "path")
        if "calibration" in parts and self.plan.calibration is not None:
            yield Source("plan.calibration", str(self.plan.calibration), "path")

    def _task_sources(self) -> Iterator[Source]:
        for number, task in enumerate(self.evaluation.tasks):
            if task.generated is None:
                yield Source(f"evaluation.tasks.{number}.path", task.path, "dataset")

    def _tokenizer_sources(self) -> Iterator[Source]:
        if self.tokenizer is not None or isinstance(self.student, Pretrained):
            yield Source("student.path" if self.tokenizer is None else "tokenizer", self.tokenizer_path, "model")

    def _prompt_sources(self) -> Iterator[Source]:
        prompts = self.rollout.prompts if self.rollout is not None else None
        if isinstance(prompts, TaskPrompts) and prompts.task.generated is None:
            yield Source("rollout.prompts.task.path", prompts.task.path, "dataset")

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher's targets are part of the loss."""
        return self.loss.kl_weight != 0

    @property
    def student_directory(self) -> Path:
        """Where the trained student is written."""
        return self.output / STUDENT_DIR

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer comes from."""
        if self.tokenizer is not None:
            return self.tokenizer
        assert isinstance(self.student, Pretrained), "checked above"
        return self.student.tokenizer_path

    @property
    def tokenizer_revision(self) -> str | None:
        """Hub revision of the tokenizer: the student's, where the tokenizer is its own."""
        return self.student.revision if self.tokenizer is None and isinstance(self.student, Pretrained) else None


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), more_faults: MoreFaults[Recipe] | None = None
) -> Recipe:
    """Read a recipe, with `key.sub=value` overrides.

    Args:
        path: The file.
        overrides: `dotted.key=value`.
        more_faults: Finds further faults of the recipe.

    Raises:
        SettingsError: The file cannot be read, or a setting breaks a rule; names every fault.
    """
    return load_settings(Recipe, Path(path), overrides, more_faults)
