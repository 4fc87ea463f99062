"""Inputs and results of the doctor's checks."""

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
    """The result of one check.

    Attributes:
        name: What was checked.
        verdict: `warning`: training runs, but its result may disappoint.
        figure: The measured value.
        remedy: What to do; empty where the check passed.
    """

    name: str
    verdict: Verdict
    figure: str
    remedy: str = ""

    @classmethod
    def of(cls, name: str, passes: bool, figure: str, remedy: str, fault: Verdict = "warning") -> "Check":
        """`ok`, or a fault with its remedy."""
        return cls(name, "ok", figure) if passes else cls(name, fault, figure, remedy)


@dataclass(frozen=True)
class CheckInputs:
    """Everything that the checks may read.

    Attributes:
        recipe: The recipe.
        data: Its data.
        student: The student in float32.
        teacher: The teacher in float32; None where there is none, or a server runs it.
        sample: A few training examples, whole, all positions weighted.
        excerpts: The beginnings of these, for faults that show at any length: long losses take minutes on a CPU.
        device: Device of the models.
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
