"""The whole configuration of a run, composed of the stages' own sections."""

import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from leadspan.costs.settings import PlanSettings
from leadspan.data.settings import DataSettings, HeldOutSource
from leadspan.data.supervision import ByDivergence, ByGap, ByTeacherEntropy, Supervision
from leadspan.data.truncation import AnyPolicy, Lead, Schedule
from leadspan.errors import SettingsError, TargetsError
from leadspan.evaluation.settings import EvaluationSettings
from leadspan.faults import Rule
from leadspan.losses.settings import LossSettings, PolicyGradient, check_loss
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.rollout.settings import RolloutSettings, TaskPrompts
from leadspan.settings import MoreFaults, Settings, load_settings
from leadspan.sources import Source
from leadspan.teacher.settings import (
    AnyTeacher,
    CaptureSettings,
    KeptTargets,
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
Control = Literal["equal_tokens", "equal_steps", "random_window", "cross_entropy", "base", "teacher"]
TrialControl = Literal[Control, "before"]


class TrialId(Settings):
    """Which trial of a study a run is. The study writes it, and no number of the run depends on it."""

    study: str
    """Name of the study."""
    axes: list[str] = []
    """What the condition varies apart from the cut, in the words of the study's axes."""
    control: TrialControl | None
    """The control that the run is, or `before` for a run that the trials need; null for a condition of the axes."""


class Recipe(Settings):
    """One run: data, cut, supervision, models, loss, training, evaluation."""

    name: str
    """Name of the run in results and reports."""
    role: Literal["student", "base", "teacher"] = "student"
    """Role of the trained model in a report: only students are compared by their cut."""
    seed: int = Field(default=0, ge=0, lt=2**32)  # numpy takes no larger one
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
        # A rule names the settings it involves: it is not checked where one of them is wrong by itself.
        kind, is_stored = self.loss.divergence.kind, isinstance(self.targets, StoredTargets)
        if kind == "policy_gradient" and (self.rollout is None or self.rollout.trace_share or is_stored):
            text = f"{kind} learns from tokens that the student has just drawn: give a rollout, no traces, no store"
            yield ("loss.divergence", "rollout", "targets"), text
        if kind == "policy_gradient" and self.loss.stop != "tokens":
            text = f"{kind} knows the teacher's probability of one token, not of every end of a turn: set tokens"
            yield ("loss.stop", "loss.divergence"), text
        # A study evaluates models as they are, such as a quantised teacher.
        is_trained = self.trial is None or self.trial.control not in ("base", "teacher")
        if isinstance(self.student, Pretrained) and self.student.quantization is not None and is_trained:
            text = f"student.quantization is {self.student.quantization}: quantised weights cannot be trained; "
            text += "leave it out, or quantise the teacher"
            yield ("student.quantization",), text
        # Refused, not ignored: nobody would see that a store was captured for nothing.
        if is_stored and self.loss.kl_weight == 0:
            text = "loss.kl_weight is 0, so the store of targets is not read; set targets: {kind: live}"
            yield ("targets", "loss.kl_weight"), text
        if not is_stored and (self.teacher is None) != (self.loss.kl_weight == 0):
            text = f"loss.kl_weight is {self.loss.kl_weight:g} with {'no' if self.teacher is None else 'a'} teacher: "
            text += "give a teacher or targets: {kind: store, path: ...}, or set loss.kl_weight: 0 without a teacher"
            yield ("teacher", "targets", "loss.kl_weight"), text
        is_event = self.loss.stop == "event" or (is_stored and self.merges_stops)
        if is_event and (self.teacher is None or self.loss.kl_weight == 0):
            text = "loss.stop is event" + ("" if self.loss.stop else ", as it is with a rollout unless said otherwise,")
            text += " with no teacher to say which tokens end its turns: name the teacher "
            text += "(with a store, too), or set loss.stop: tokens"
            yield ("loss.stop", "teacher"), text
        if isinstance(self.teacher, Served) and not is_stored:
            yield from self._served_conflicts(self.teacher)
        selection = self.supervision.token_selection
        if self.teacher is None and not is_stored and isinstance(selection, ByTeacherEntropy | ByGap | ByDivergence):
            text = f"supervision.token_selection.kind is {selection.kind} with no teacher: give one or a store, "
            text += "or select by student_entropy or random"
            yield ("teacher", "targets", "supervision.token_selection"), text
        if self.tokenizer is None and not isinstance(self.student, Pretrained):
            text = "tokenizer is missing: a student built from a config has none of its own"
            yield ("tokenizer", "student"), text

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
        for name, loss in self.losses.items():
            try:
                check_loss(loss, selection, teacher.kept_targets, where)
            except TargetsError as error:
                yield ("teacher", name, "supervision.token_selection"), str(error)

    def _rollout_conflicts(self, rollout: RolloutSettings) -> Iterator[Rule]:
        """Rollouts have a live teacher, a loss that needs nothing else, and steps of a known number of examples."""
        if isinstance(self.targets, StoredTargets) and rollout.steps_per_draw > 1:
            text = "rollouts of a store are not drawn by the student that learns from them: set steps_per_draw: 1"
            yield ("rollout.steps_per_draw", "targets"), text
        if self.loss.kl_weight != 1:
            text = f"loss.kl_weight is {self.loss.kl_weight:g}, and the rest of the loss would teach the student the "
            text += "tokens that it drew itself, which says nothing about the teacher: set loss.kl_weight: 1"
            yield ("rollout", "loss.kl_weight"), text
        # Prompts are dealt to the steps before anything is drawn, so a step has a number of examples, not of tokens.
        batching = self.training.batching
        if not isinstance(batching, ByExamples):
            text = "training.batching.kind is tokens, and lengths of rollouts are not known before they are drawn: "
            text += "set kind: examples"
            yield ("rollout", "training.batching"), text
        elif batching.examples_per_step % rollout.samples_per_prompt:
            text = f"training.batching.examples_per_step {batching.examples_per_step} is not a multiple of "
            text += f"rollout.samples_per_prompt {rollout.samples_per_prompt}"
            yield ("rollout.samples_per_prompt", "training.batching.examples_per_step"), text
        supervision = self.supervision
        # A reused draw is weighed by the tokens drawn with it, some of which a partial loss would not count.
        is_partial = supervision.token_selection is not None or not (supervision.cot and supervision.answer)
        if rollout.steps_per_draw > 1 and is_partial:
            text = f"rollout.steps_per_draw is {rollout.steps_per_draw}, and positions are weighed by all tokens drawn "
            text += "before them: set supervision.cot and supervision.answer above 0 and no token_selection, or 1"
            yield ("rollout.steps_per_draw", "supervision"), text
        if isinstance(self.loss.divergence, PolicyGradient) and (rollout.temperature != 1 or supervision.prompt):
            text = "the mean of policy_gradient is the exact gradient where all weighted tokens are draws at "
            text += "temperature 1: set rollout.temperature: 1 and supervision.prompt: 0"
            yield ("loss.divergence", "rollout.temperature", "supervision.prompt"), text
        if rollout.cold_start is not None and isinstance(rollout.cold_start.divergence, PolicyGradient):
            text = "policy_gradient learns from tokens of the student, which traces are not: take another divergence"
            yield ("rollout.cold_start.divergence",), text
        # vLLM gets the weights under the names of a model directory, which adapters and GGUF lack.
        is_plain = isinstance(self.student, Pretrained) and self.student.gguf_file is None and not self.training.lora
        if rollout.engine.kind == "vllm" and not is_plain:
            text = "rollout.engine.kind is vllm, and its weights are updated from those of a student in a directory or "
            text += "on the Hub without adapters: leave training.lora and gguf_file out, or set engine: "
            text += "{kind: transformers}"
            yield ("rollout.engine", "student", "training.lora"), text
        if rollout.has_traces and isinstance(self.cut, Schedule):
            text = "cut.kind is schedule, and with rollouts the traces keep one cut: take the scheduled policy"
            yield ("rollout", "cut"), text

    @property
    def label(self) -> str:
        """Short name of the condition."""
        # Base and teacher are not cut, so their role says all.
        if self.role != "student":
            return self.role
        if self.rollout is None:
            return self.cut.label
        return f"{self.rollout.label}, {self.cut.label}" if self.rollout.has_traces else self.rollout.label

    @property
    def local_teacher(self) -> ModelSettings | None:
        """The teacher, unless a server runs it."""
        return None if isinstance(self.teacher, Served) else self.teacher

    @property
    def merges_stops(self) -> bool:
        """Whether the tokens that end a turn are one outcome in the divergence."""
        return self.loss.stop == "event" or (self.loss.stop is None and self.rollout is not None)

    @property
    def losses(self) -> dict[str, LossSettings]:
        """The losses that learn from the teacher, `stop` resolved, by their place in the recipe."""
        loss = self.loss.model_copy(update={"stop": "event" if self.merges_stops else "tokens"})
        if self.rollout is None or (cold := self.rollout.cold_start) is None or not cold.kl_weight:
            return {"loss": loss}
        return {"loss": loss, "rollout.cold_start": loss.model_copy(update={"divergence": cold.divergence})}

    def check_losses(self, kept_targets: KeptTargets | None, where: str) -> None:
        """As `losses.settings.check_loss`, of all losses, with their error."""
        for name, loss in self.losses.items():
            origin = where if name == "loss" else f"{where}, {name}"
            check_loss(loss, self.supervision.token_selection, kept_targets, origin)

    @property
    def has_traces(self) -> bool:
        """Whether the student learns from traces."""
        return self.rollout is None or self.rollout.has_traces

    @property
    def draws(self) -> str | None:
        """What whole rollouts of the untrained student depend on besides student and data; None without a rollout."""
        names = {"prompts", "samples_per_prompt", "max_new_tokens", "temperature"}
        return self.rollout and f"{self.rollout.model_dump_json(include=names)}, seed {self.seed}"

    @property
    def store_path(self) -> Path | None:
        """Directory of the store that the targets are read from; None where they are not stored."""
        return self.targets.path if isinstance(self.targets, StoredTargets) else None

    def sources(self, parts: Sequence[Part] = typing.get_args(Part)) -> Iterator[Source]:
        """Paths and Hub names that parts of the recipe read."""
        prompts = self.rollout.prompts if self.rollout is not None else None
        tasks = {f"evaluation.tasks.{number}.path": task for number, task in enumerate(self.evaluation.tasks)}
        # Of a task whose problems are generated, nothing is read.
        of_rollout = {"rollout.prompts.task.path": prompts.task} if isinstance(prompts, TaskPrompts) else {}
        held_out = self.data.validation.source if isinstance(self.data.validation, HeldOutSource) else None
        student, teacher = (
            model.path if isinstance(model, Pretrained) else None for model in (self.student, self.teacher)
        )
        # The tokenizer is one of the data: the student's own, where no other is named.
        own_tokenizer = self.tokenizer_path if student is not None and self.tokenizer is None else None
        named: list[tuple[Part, str, str | Path | None, Literal["model", "dataset", "path"]]] = [
            *(("data", key, task.path, "dataset") for key, task in of_rollout.items() if task.generated is None),
            ("data", "data.train.path", self.data.train.path, "dataset"),
            ("data", "data.validation.source.path", held_out and held_out.path, "dataset"),
            ("data", "data.rendering.chat_template", self.data.rendering.chat_template, "path"),
            ("data", "student.path" if own_tokenizer else "tokenizer", own_tokenizer or self.tokenizer, "model"),
            ("student", "student.path", None if own_tokenizer and "data" in parts else student, "model"),
            ("teacher", "teacher.path", teacher, "model"),
            *(("tasks", key, task.path, "dataset") for key, task in tasks.items() if task.generated is None),
            ("targets", "targets.path", self.store_path, "path"),
            ("calibration", "plan.calibration", self.plan.calibration, "path"),
        ]
        for part, key, name, kind in named:
            if part in parts and name is not None:
                yield Source(key, str(name), kind)

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
        """Path or Hub name of the tokenizer."""
        if self.tokenizer is not None:
            return self.tokenizer
        assert isinstance(self.student, Pretrained), "checked above"
        return self.student.tokenizer_path

    @property
    def tokenizer_revision(self) -> str | None:
        """Hub revision of the tokenizer: the student's, where the tokenizer is its own."""
        return self.student.revision if self.tokenizer is None and isinstance(self.student, Pretrained) else None


def check_capture(recipe: Recipe) -> None:
    """Refuse a recipe whose teacher cannot be captured.

    Raises:
        SettingsError: It has no teacher, or one that the engine does not run.
    """
    if recipe.teacher is None:
        raise SettingsError("teacher: missing; a capture runs the teacher, so the recipe must name it")
    engine, kind = recipe.capture.engine, recipe.teacher.kind
    if (engine == "server") != isinstance(recipe.teacher, Served):
        raise SettingsError(
            f"capture.engine is {engine} with teacher.kind {kind}: a served teacher, and no other, is captured with "
            "capture.engine: server"
        )


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), more_faults: MoreFaults[Recipe] | None = None
) -> Recipe:
    """Read a recipe, with `key.sub=value` overrides; `more_faults` finds further faults of it.

    Raises:
        SettingsError: The file cannot be read, or a setting breaks a rule; names every fault.
    """
    return load_settings(Recipe, Path(path), overrides, more_faults)
