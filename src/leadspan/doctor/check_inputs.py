"""What the doctor looks at, and what it finds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.inputs import PreparedData
from leadspan.models.settings import ModelSettings
from leadspan.recipe import Recipe

Verdict = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check and what came of it.

    Attributes:
        name: What was checked.
        verdict: `warning`: training runs, and may not give what is hoped for.
        figure: What was found.
        remedy: What to do; empty when all is well.
    """

    name: str
    verdict: Verdict
    figure: str
    remedy: str = ""


@dataclass(frozen=True)
class CheckInputs:
    """What the checks look at.

    Attributes:
        recipe: The recipe.
        data: Its data.
        student: The student in float32.
        teacher: The teacher in float32; None where there is none, or a server runs it.
        sample: A few training examples, whole, all positions weighted.
        excerpts: The beginnings of these, for what shows at any length: losses over long ones take minutes on a CPU.
        device: Where the models are.
    """

    recipe: Recipe
    data: PreparedData
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    sample: list[Example]
    excerpts: list[Example]
    device: torch.device


def models_of(inputs: CheckInputs) -> Iterator[tuple[str, ModelSettings, PreTrainedModel]]:
    """Role, settings and model of the student and, where there is one, the teacher."""
    yield "student", inputs.recipe.student, inputs.student
    if inputs.teacher is not None and inputs.recipe.local_teacher is not None:
        yield "teacher", inputs.recipe.local_teacher, inputs.teacher
