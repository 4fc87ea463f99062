"""The demo: a reasoning student distilled on cut traces, from nothing, on a CPU, in minutes.

Everything is trained on the spot in a generated world: a teacher on long problems; a small base on short ones, so
that it knows how to finish; then students distilled from the teacher on long traces, one per policy, all from the
same base with the same settings. All are evaluated on the same held-out long problems. What is printed is what was
measured.
"""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from leadspan.errors import LeadspanError, RunError
from leadspan.recipe import Recipe
from leadspan.results import RunResult
from leadspan.settings import validate
from leadspan.study.compare.frontier import build_frontiers
from leadspan.study.compare.tables import percent_interval, print_frontiers, quantity
from leadspan.study.progress import Progress
from leadspan.study.report.content import build_report
from leadspan.study.report.gathered import gather
from leadspan.study.report.write import write_report
from leadspan.study.sweep import run_trial
from leadspan.training.train import STUDENT_DIR
from leadspan.worlds.config import ProblemSet, WorldFiles
from leadspan.worlds.derive_and_verify import DeriveAndVerify
from leadspan.worlds.files import write_world
from leadspan.worlds.tokenizer import build_tokenizer

POLICIES: tuple[dict[str, Any], ...] = (
    {"kind": "full"},
    {"kind": "lead", "p": 0.75},
    {"kind": "lead", "p": 0.5},
    {"kind": "lead", "p": 0.25},
    {"kind": "mix", "policy": {"kind": "lead", "p": 0.5}, "whole_share": 0.1},
    {"kind": "tail", "p": 0.5, "keep_prompt": True},
)
NUM_TRAINING, NUM_TEST = 8000, 240
LONG, SHORT = (4, 5), (2, 3)
TASK = "long problems"


def run_demo(directory: Path, seed: int) -> list[RunResult]:
    """Run the demo and write its report.

    Args:
        directory: New directory for the world, the runs and `report.html`.
        seed: Seed of the world, the weights and the order.

    Raises:
        RunError: The directory is not empty, or the teacher or the base could not be trained.
    """
    console = Console()
    if directory.exists() and any(directory.iterdir()):
        raise RunError(f"--output {directory}: it is not empty; give a new directory, or remove it")
    start = time.monotonic()
    console.print(
        "A world of small derivations: a prompt of assignments, a chain of thought that derives and verifies line by "
        "line, an answer. Everything is trained here, from nothing.\n"
    )
    recipes = demo_recipes(directory, seed)
    runs: list[RunResult] = []
    failed: list[str] = []
    for number, recipe in enumerate(recipes, 1):
        title = f"{number}/{len(recipes)} {_describe(recipe)}"
        try:
            runs.append(_run_one(recipe, title, console))
        except LeadspanError as error:
            if recipe.role != "student":
                raise
            failed.append(f"{recipe.cut.label}: {error}")
            console.print(f"[red]failed[/] {error}", highlight=False)
    console.print()
    print_frontiers(build_frontiers(runs))
    gathered = gather([Path(run.recipe["output"]) for run in runs])
    report = build_report(gathered, "leadspan demo: what each cut kept, and what it cost")
    (path,) = write_report(report, directory / "report.html")
    for text in failed:
        console.print(f"[red]missing:[/] {text}")
    minutes = (time.monotonic() - start) / 60
    console.print(
        f"\n{minutes:.1f} minutes. Report: [bold]{path}[/] (one file, opens in any browser).", highlight=False
    )
    return runs


def demo_recipes(directory: Path, seed: int) -> list[Recipe]:
    """Write the world and compose the recipes of teacher, base and students."""
    world = directory / "world"
    write_world(WorldFiles(output=world, seed=seed, sets={"long": _set(LONG, NUM_TEST), "short": _set(SHORT, 0)}))
    teacher = _from_scratch("teacher", world / "long.jsonl", directory, seed, TEACHER, TEACHER_TRAINING)
    base = _from_scratch("base", world / "short.jsonl", directory, seed + 1, STUDENT, BASE_TRAINING)
    students = [_student(policy, world, directory, seed) for policy in POLICIES]
    return [teacher, base, *students]


def _set(num_variables: tuple[int, int], num_problems: int) -> ProblemSet:
    world = DeriveAndVerify(min_variables=num_variables[0], max_variables=num_variables[1])
    return ProblemSet(world=world, num_traces=NUM_TRAINING, num_problems=num_problems)


def _run_one(recipe: Recipe, title: str, console: Console) -> RunResult:
    with Progress(console, title) as progress:
        run = run_trial(recipe, progress)
    found = run.evaluations[0]
    accuracy, stopped = percent_interval(found.accuracy_strict), percent_interval(found.termination_rate)
    seconds = quantity("seconds", run.train.seconds if run.train else 0.0)
    head = title if console.is_terminal else " "
    console.print(f"{head} right {accuracy}, terminated {stopped}, {seconds} of training", highlight=False)
    return run


def _describe(recipe: Recipe) -> str:
    match recipe.role:
        case "teacher":
            return "teacher, from scratch on long problems"
        case "base":
            return "base student, from scratch on short problems"
        case "student":
            return f"student, distilled with {recipe.cut.label}"


def _common(name: str, directory: Path, seed: int) -> dict[str, Any]:
    world = directory / "world"
    task = {"name": TASK, "path": str(world / "long_test.jsonl"), "grader": "exact"}
    return {
        "name": f"demo {name}",
        "seed": seed,
        "output": str(directory / name.replace(" ", "-")),
        "evaluation": {
            "tasks": [task],
            "sampling": {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "batch_size": NUM_TEST},
        },
    }


def _from_scratch(
    role: str, traces: Path, directory: Path, seed: int, model: dict[str, Any], training: dict[str, Any]
) -> Recipe:
    return validate(
        Recipe,
        {
            **_common(role, directory, seed),
            "role": role,
            "data": _data(traces, directory),
            "tokenizer": str(directory / "world" / "tokenizer"),
            "student": {"kind": "random_init", "config": model, "seed": seed},
            "loss": {"kl_weight": 0.0},
            "cut": {"kind": "full"},
            "training": training,
        },
        f"demo {role}",
    )


def _student(policy: dict[str, Any], world: Path, directory: Path, seed: int) -> Recipe:
    name = "-".join(str(part) for part in (policy["kind"], policy.get("p", "")) if part)
    return validate(
        Recipe,
        {
            **_common(name, directory, seed),
            "data": _data(world / "long.jsonl", directory),
            "student": {"kind": "pretrained", "path": str(directory / "base" / STUDENT_DIR)},
            "teacher": {"kind": "pretrained", "path": str(directory / "teacher" / STUDENT_DIR)},
            "cut": policy,
            "training": STUDENT_TRAINING,
        },
        f"demo {name}",
    )


def _data(traces: Path, directory: Path) -> dict[str, Any]:
    return {
        "train": {"path": str(traces), "format": "columns"},
        "validation": {"kind": "none"},
        "rendering": {"step_delimiter": "\n"},
        "cache_dir": str(directory / "world" / "cache"),
    }


def _model(hidden: int, layers: int, heads: int, feed_forward: int) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": len(build_tokenizer()),
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
    }


def _training(steps: int, learning_rate: float) -> dict[str, Any]:
    return {
        "steps": steps,
        "batching": {"kind": "examples", "examples_per_step": 16, "examples_per_batch": 16},
        "learning_rate": learning_rate,
        "weight_decay": 0.1,
        "betas": [0.9, 0.98],
        "warmup_share": 0.04,
        "keep": "last",
        "log_every": 25,
        "report_to": [],
    }


TEACHER, STUDENT = _model(128, 3, 4, 256), _model(96, 2, 3, 192)
TEACHER_TRAINING, BASE_TRAINING = _training(1000, 1.5e-3), _training(1000, 3e-3)
STUDENT_TRAINING = _training(300, 3e-3)
MAX_NEW_TOKENS = 200
