from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from leadspan.costs.flops import FlopsByPart
from leadspan.data.truncation.policy import CutCounts
from leadspan.evaluation.result import EvalResult
from leadspan.recipe import Recipe
from leadspan.results import RunResult
from leadspan.settings import validate
from leadspan.statistics.intervals import Interval
from leadspan.study.settings import Study
from leadspan.training.result import TrainResult

MakeRun = Callable[..., RunResult]

FULL = {"kind": "full"}
LEAD = {"kind": "lead", "p": 0.5}


def interval(value: float, margin: float = 0.06) -> Interval:
    return Interval(value=value, low=max(0.0, value - margin), high=min(1.0, value + margin))


def evaluation(task: str, num_right: int, num_problems: int, ended: float) -> EvalResult:
    """One sample a problem; the first `num_right` problems are right."""
    return EvalResult(
        task=task,
        model="student",
        weights_hash="abc",
        num_problems=num_problems,
        samples_per_problem=1,
        sampling={"temperature": 0.6},
        accuracy_strict=interval(num_right / num_problems),
        accuracy_flexible=interval(num_right / num_problems),
        termination_rate=interval(ended, 0.05),
        cap_hit_rate=1 - ended,
        thinking_closed_rate=ended,
        tokens_mean=150,
        tokens_p50=148,
        tokens_p95=300,
        outcomes={"right": num_right, "wrong": num_problems - num_right},
        correct={f"p{i}": [int(i < num_right)] for i in range(num_problems)},
    )


def training(cost: float, device: str = "cpu, 1 rank") -> TrainResult:
    """A run of 1,000 tokens, 10 s, 200 bytes and 400 operations, times `cost`."""
    return TrainResult(
        num_steps=5,
        num_examples=40,
        num_tokens=int(1000 * cost),
        num_weighted_tokens=int(800 * cost),
        seconds=10 * cost,
        peak_memory_bytes=int(200 * cost),
        memory_source="process resident set",
        flops=FlopsByPart(student_body=int(300 * cost), teacher_body=int(100 * cost)),
        first_loss=3.0,
        final_loss=0.5,
        validation_loss={"0": 2.0, "10": 1.5, "5": 1.75},
        saved_step=10,
        device=device,
    )


def cut_counts(cost: float) -> CutCounts:
    return CutCounts(
        num_examples=41,
        num_kept=40,
        dropped={"no weighted position": 1},
        tokens_before=1000,
        tokens_after=int(1000 * cost),
        weighted_tokens=int(800 * cost),
        section_tokens_before={"prompt": 100, "cot": 800, "answer": 100},
        section_tokens_after={"prompt": 100, "cot": int(1000 * cost) - 100, "answer": 0},
        lost_think_end=40 * (cost < 1),
        lost_answer=40 * (cost < 1),
        lost_stop=40 * (cost < 1),
    )


def pretrained(path: str) -> dict[str, str]:
    return {"kind": "pretrained", "path": path}


UNTAUGHT: dict[str, Any] = {"teacher": None, "loss": {"kl_weight": 0}}
"""Changes to a recipe: no teacher."""


def made_recipe(changes: Mapping[str, Any], **more: Any) -> Recipe:
    """A recipe with changes to some of its sections; a base or a teacher is made without a teacher."""
    values: dict[str, Any] = {
        "output": f"runs/{more['name']}",
        "student": pretrained("start"),
        "teacher": pretrained("taught"),
        **(UNTAUGHT if more["role"] != "student" else {}),
        **more,
        **changes,
        "data": {"train": {"path": "traces"}, **changes.get("data", {})},
        "training": {"learning_rate": 1e-3, "steps": 5, **changes.get("training", {})},
    }
    return validate(Recipe, values, "made")


def made_study(**changes: Any) -> Study:
    return validate(Study, {"name": "toy", "output": "study", "recipe": "recipe.yaml", **changes}, "made")


@pytest.fixture
def make_run() -> MakeRun:
    def make(
        label: str,
        num_right: int,
        cut: Mapping[str, Any] | None = None,
        role: Literal["student", "base", "teacher"] = "student",
        cost: float = 1.0,
        ended: float = 1.0,
        num_problems: int = 40,
        tasks: Sequence[str] = ("toy",),
        **changes: Any,
    ) -> RunResult:
        is_student = role == "student"
        name, seed = changes.pop("name", label), changes.pop("seed", 0)
        settings = dict(changes.pop("settings", {}))
        if name.startswith(f"{label}, "):  # a trial of a study, which is named by its label and its axes
            axes = name.removeprefix(f"{label}, ").split(", ")
            settings = {"trial": {"study": "made", "axes": axes, "control": changes.get("control")}, **settings}
        recipe = made_recipe(settings, name=name, role=role, seed=seed, cut=dict(cut or LEAD))
        return RunResult(
            name=name,
            label=label,
            role=role,
            seed=seed,
            recipe=recipe,
            environment={"date": "2026-03-02T10:00:00+00:00", "leadspan": "0.1.0", "commit": "3f2a9c1"},
            cut=cut_counts(cost) if is_student else None,
            train=training(cost, changes.pop("device", "cpu, 1 rank")) if is_student else None,
            evaluations=[evaluation(task, num_right, num_problems, ended) for task in tasks],
            **changes,
        )

    return make


@pytest.fixture
def study(make_run: MakeRun) -> list[RunResult]:
    """A teacher, a base, the uncut student with 30 of 40 right, and a lead cut with half of that."""
    return [
        make_run("teacher", 40, role="teacher"),
        make_run("base", 6, role="base"),
        make_run("full", 30, FULL, ended=0.99),
        make_run("lead 0.5", 15, LEAD, cost=0.5, ended=0.53),
    ]
