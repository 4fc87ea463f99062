"""The whole configuration of a run, composed of the stages' own sections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from leadspan.costs.config import PlanSettings
from leadspan.data.config import DataSettings
from leadspan.data.selection import ByDivergence, ByGap, ByTeacherEntropy
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import AnyPolicy, Lead
from leadspan.evaluation.config import EvaluationSettings
from leadspan.losses.config import LossSettings
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.settings import Settings, load_settings
from leadspan.teacher.config import CaptureSettings, LiveTargets, StoredTargets, TargetSource
from leadspan.training.config import TrainingSettings


class Recipe(Settings):
    """One run: data, cut, supervision, models, loss, training, evaluation."""

    name: str
    """Name of the run in results and reports."""
    role: Literal["student", "base", "teacher"] = "student"
    """What the trained model is to the others of a report: only students are compared by their cut."""
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
    teacher: ModelSettings | None = None
    """The teacher; needed unless `loss.kl_weight` is 0 or `targets` is a store. Beside a store it is not loaded, and
    the store must be of its weights."""
    targets: TargetSource = LiveTargets()
    """Where the teacher's targets come from."""
    capture: CaptureSettings = CaptureSettings()
    """What `leadspan capture` writes."""
    cut: AnyPolicy = Lead(p=0.5)
    """Truncation policy of the training traces; validation is never cut."""
    supervision: Supervision = Supervision()
    """Weight of the loss per section."""
    loss: LossSettings = LossSettings()
    """The objective."""
    training: TrainingSettings
    """Optimiser, batches, validation."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is evaluated after training."""
    plan: PlanSettings = PlanSettings()
    """What a prediction of the cost is made for; changes no training."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        is_stored = isinstance(self.targets, StoredTargets)
        if is_stored and self.loss.kl_weight == 0:
            raise ValueError("loss.kl_weight is 0, so the store of targets is not read; set targets: {kind: live}")
        if not is_stored and (self.teacher is None) != (self.loss.kl_weight == 0):
            raise ValueError(
                f"loss.kl_weight is {self.loss.kl_weight:g} with {'no' if self.teacher is None else 'a'} teacher: "
                "give a teacher or targets: {kind: store, path: ...}, or set loss.kl_weight: 0 without a teacher"
            )
        selection = self.supervision.token_selection
        if self.teacher is None and not is_stored and isinstance(selection, ByTeacherEntropy | ByGap | ByDivergence):
            raise ValueError(
                f"supervision.token_selection.kind is {selection.kind} with no teacher: give one or a store, "
                "or select by student_entropy or random"
            )
        if self.tokenizer is None and not isinstance(self.student, Pretrained):
            raise ValueError("tokenizer is missing: a student built from a config has none of its own")
        return self

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer comes from."""
        if self.tokenizer is not None:
            return self.tokenizer
        assert isinstance(self.student, Pretrained), "checked above"
        return self.student.path

    @property
    def tokenizer_revision(self) -> str | None:
        """Hub revision of the tokenizer: the student's, where the tokenizer is its own."""
        return self.student.revision if self.tokenizer is None and isinstance(self.student, Pretrained) else None


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with `key.sub=value` overrides.

    Raises:
        SettingsError: The file cannot be read, or a setting breaks a rule; names every fault.
    """
    return load_settings(Recipe, Path(path), overrides)
