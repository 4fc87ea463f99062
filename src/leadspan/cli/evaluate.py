"""Evaluate a model on tasks: accuracy, termination, token counts, every sample kept."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadspan.data.config import Rendering
    from leadspan.models.config import Pretrained
    from leadspan.results import RunResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, tasks, and the settings of `evaluation` as options."""
    parser.add_argument("model", help="directory in Hugging Face form, Hub name, or a run directory")
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="known benchmark (aime24, math500, gpqa, ...), BENCHMARK=FILE, file of problems, or Hub dataset name",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="directory for run.json and samples; interrupted, the same command goes on",
    )
    parser.add_argument("--label", help="how to call the model in tables")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="key=value",
        help="a setting: sampling.temperature=0, tasks.0.instruction='...', rendering.assistant_turn=append",
    )


def run(options: argparse.Namespace) -> None:
    """Build the settings from the options, evaluate, write `run.json`, print the table."""
    from rich.console import Console

    from leadspan.environment import environment
    from leadspan.errors import RunError
    from leadspan.evaluation.config import EvaluationSettings
    from leadspan.evaluation.evaluate import evaluate_model
    from leadspan.models.config import Pretrained
    from leadspan.results import RUN_FILE, RunResult, load_run, save_run
    from leadspan.settings import apply_overrides, validate
    from leadspan.study.compare.summary import run_summary
    from leadspan.study.progress import Progress

    if (options.output / RUN_FILE).exists():
        raise RunError(f"--output {options.output}: it holds a finished run; give another directory")
    values: dict[str, Any] = {"tasks": [_task(task) for task in options.tasks]}
    run_directory = Path(options.model)
    trained = load_run(run_directory) if (run_directory / RUN_FILE).exists() else None
    values |= {"system": _stored(trained, "evaluation").get("system", "")}
    apply_overrides(values, options.overrides)
    rendering = _rendering(values.pop("rendering", None), trained)
    settings = validate(EvaluationSettings, values, "evaluate")
    model = Pretrained(path=options.model) if trained is None else _student_of(trained, run_directory)
    own = trained is not None and trained.train is None and trained.recipe.get("tokenizer")
    tokenizer = Pretrained(path=own) if own else model
    with Progress(Console(stderr=True)) as progress:
        results = evaluate_model(model, tokenizer, rendering, settings, options.output, progress)
    found = {"environment": environment(settings.sampling.seed), "evaluations": results}
    if trained is not None:
        result = trained.model_copy(update=found | ({"label": options.label} if options.label else {}))
    else:
        label = options.label or run_directory.name
        recipe = {"evaluation": settings.model_dump(mode="json"), "student": model.model_dump(mode="json")}
        result = RunResult.model_validate({"name": label, "label": label, "role": "base", "recipe": recipe, **found})
    save_run(result, options.output)
    Console().print(run_summary(result))
    print(f"samples: {options.output / 'samples'}")


def _student_of(run: "RunResult", directory: Path) -> "Pretrained":
    """What a run trained; what it evaluated as it was, for a run without training."""
    from leadspan.models.config import Pretrained
    from leadspan.training.train import STUDENT_DIR

    student = run.recipe.get("student", {})
    if run.train is None and student.get("kind") == "pretrained" and not (directory / STUDENT_DIR).exists():
        return Pretrained.model_validate(student)
    return Pretrained(path=str(directory / STUDENT_DIR))


def _task(text: str) -> dict[str, str]:
    """A known benchmark, one with a path of its own, or a file or Hub name to read as it is."""
    from leadspan.evaluation.benchmarks import BENCHMARKS

    name, equals, path = text.partition("=")
    if name in BENCHMARKS:
        return {"benchmark": name, **({"path": path} if equals else {})}
    return {"name": Path(text).stem, "path": text}


def _rendering(given: object, trained: "RunResult | None") -> "Rendering":
    """How prompts are rendered: as given, else as the run that trained the model rendered them."""
    from leadspan.data.config import Rendering
    from leadspan.settings import validate

    stored = _stored(trained, "data").get("rendering", {})
    return validate(Rendering, {**stored, **(given if isinstance(given, dict) else {})}, "evaluate: rendering")


def _stored(trained: "RunResult | None", section: str) -> dict[str, Any]:
    """A section of the recipe that trained the model, empty where there is none."""
    return trained.recipe.get(section, {}) if trained is not None else {}
