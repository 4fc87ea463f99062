"""Evaluate a model on tasks: accuracy, termination, token counts, every sample kept."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Model, tasks, and the settings of `evaluation` as options."""
    parser.add_argument("model", help="directory in Hugging Face form, Hub name, or a run directory")
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="local file of problems, or Hub dataset name")
    parser.add_argument("--output", type=Path, required=True, help="directory for run.json and samples")
    parser.add_argument("--label", help="how to call the model in tables")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="key=value",
        help="a setting: sampling.temperature=0, item_seconds=5, tasks.0.instruction='...', tasks.0.grader=exact",
    )


def run(options: argparse.Namespace) -> None:
    """Build the settings from the options, evaluate, write `run.json`, print the table."""
    from rich.console import Console

    from leadspan.data.config import Rendering
    from leadspan.errors import RunError
    from leadspan.evaluation.config import EvaluationSettings
    from leadspan.evaluation.evaluate import evaluate_model
    from leadspan.models.config import Pretrained
    from leadspan.pipeline import environment
    from leadspan.results import RUN_FILE, RunResult, save_run
    from leadspan.settings import apply_overrides, validate
    from leadspan.study.progress import Progress
    from leadspan.study.summary import run_summary
    from leadspan.training.train import STUDENT_DIR

    if (options.output / RUN_FILE).exists():
        raise RunError(f"--output {options.output}: it holds a finished run; give another directory")
    values = {"tasks": [{"name": Path(task).stem, "path": task} for task in options.tasks]}
    apply_overrides(values, options.overrides)
    settings = validate(EvaluationSettings, values, "evaluate")
    student = Path(options.model) / STUDENT_DIR
    model = Pretrained(path=str(student) if student.is_dir() else options.model)
    with Progress(Console(stderr=True)) as progress:
        results = evaluate_model(model, model.path, Rendering(), settings, options.output, progress)
    label = options.label or Path(options.model).name
    result = RunResult(
        name=label,
        label=label,
        role="base",
        recipe={"evaluation": settings.model_dump(mode="json"), "student": model.model_dump(mode="json")},
        environment=environment(settings.sampling.seed),
        evaluations=results,
    )
    save_run(result, options.output)
    Console().print(run_summary(result))
    print(f"samples: {options.output / 'samples'}")
