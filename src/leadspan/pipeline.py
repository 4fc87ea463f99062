"""One recipe, start to end. The only place where the stages are put together; every decision is in a stage."""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leadspan.audit.prepared import Searched
from leadspan.costs.timing import Calibration
from leadspan.environment import environment
from leadspan.errors import LeadspanError, ModelError, RunError
from leadspan.evaluation.evaluate import evaluate_model
from leadspan.evaluation.tasks import load_task
from leadspan.inputs import PreparedData, check_loss, cost_model_of, first_answers_of, prepare_data, training_inputs
from leadspan.models.config import Pretrained
from leadspan.recipe import Recipe
from leadspan.results import RUN_FILE, EvalResult, Prediction, RunResult, load_run, save_run
from leadspan.settings import dump_yaml, load_json
from leadspan.training.prediction import predict
from leadspan.training.process import process_state
from leadspan.training.train import STUDENT_DIR, train

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"


def run(recipe: Recipe, resume: bool = False, say: Callable[[str], None] = lambda text: None) -> RunResult:
    """Prepare, train, evaluate, and write `run.json`.

    Args:
        recipe: The run.
        resume: Go on from the last complete checkpoint; a finished run is returned as it is.
        say: Told in words what is being done, `stage: detail`.

    Raises:
        LeadspanError: Whatever is wrong with the recipe, the data, the models or the run directory.
    """
    directory = recipe.output
    if resume and (directory / RUN_FILE).exists():
        _check_same(recipe)
        say(f"{directory} is finished")
        return load_run(directory)
    _claim(recipe, resume)
    for task in recipe.evaluation.tasks:
        load_task(task)  # a broken task is told before hours of training, not after
    check_loss(recipe)
    say("preparing data")
    data = prepare_data(recipe)
    prediction = _predict(recipe, data, say)
    say("loading models")
    inputs = training_inputs(recipe, data, say)
    trained = train(inputs, recipe.training, recipe.loss, resume)
    result = RunResult(
        name=recipe.name,
        label=recipe.cut.label if recipe.role == "student" else recipe.role,
        role=recipe.role,
        recipe=recipe.model_dump(mode="json"),
        environment=environment(recipe.seed),
        cut=data.examples.counts,
        refused=data.splits.left_out,
        prediction=prediction,
        train=trained,
    )
    if process_state().is_main_process:
        evaluations = evaluate(recipe, Pretrained(path=str(directory / STUDENT_DIR)), directory, say)
        result = result.model_copy(update={"evaluations": evaluations})
        save_run(result, directory)
    return result


def run_untrained(recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> RunResult:
    """Evaluate the starting weights of a recipe as they are, and write `run.json`.

    Raises:
        LeadspanError: Whatever is wrong with the model, the tasks or the run directory.
    """
    _claim(recipe, resume=True)
    tokenizer = Pretrained(path=recipe.tokenizer_path, revision=recipe.tokenizer_revision)
    evaluations = evaluate_model(
        recipe.student, tokenizer, recipe.data.rendering, recipe.evaluation, recipe.output, say
    )
    result = RunResult(
        name=recipe.name,
        label=recipe.name,
        role=recipe.role,
        recipe=recipe.model_dump(mode="json"),
        environment=environment(recipe.seed),
        evaluations=evaluations,
    )
    save_run(result, recipe.output)
    return result


def evaluate(
    recipe: Recipe, model: Pretrained, directory: Path, say: Callable[[str], None] = lambda text: None
) -> list[EvalResult]:
    """Evaluate a model on the tasks of a recipe, with the model's own tokenizer and template."""
    if not recipe.evaluation.tasks:
        return []
    return evaluate_model(model, model, recipe.data.rendering, recipe.evaluation, directory, say)


def _predict(recipe: Recipe, data: PreparedData, say: Callable[[str], None]) -> Prediction | None:
    """The cost of a run that is about to begin; a model whose cost cannot be predicted can still be trained."""
    state = process_state()
    if not state.is_main_process:
        return None
    calibration = None if recipe.plan.calibration is None else load_json(Calibration, recipe.plan.calibration)
    try:
        model = cost_model_of(recipe, data.renderer, state.num_processes)
    except ModelError as error:
        logger.warning("no prediction: %s", error)
        return None
    prediction = predict(model, data.examples, calibration)
    if not recipe.plan.break_point_seconds:
        return prediction
    say("looking for first answers")
    try:
        found = first_answers_of(recipe, data)
    except (LeadspanError, OSError) as error:
        logger.warning("no break point is predicted: %s", error)
        return prediction
    return prediction.model_copy(update=break_point_fields(found))


def break_point_fields(found: Searched) -> dict[str, Any]:
    """What a prediction says of the break point."""
    return {
        "break_point": found.summary.lsp_star,
        "break_point_traces": found.summary.num_traces,
        "break_point_left": found.num_left,
    }


def _claim(recipe: Recipe, resume: bool) -> None:
    """Write the resolved recipe into the run directory, or check that it is the one that is there."""
    path = recipe.output / RECIPE_FILE
    text = dump_yaml(recipe)
    if (recipe.output / RUN_FILE).exists():
        raise RunError(f"{recipe.output}: it holds a finished run; give another output, or remove it")
    if resume:
        _check_same(recipe)
    if process_state().is_main_process:
        recipe.output.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if not resume:
            _set_aside(recipe.output / "samples")
    process_state().wait_for_everyone()


def _check_same(recipe: Recipe) -> None:
    """Refuse to go on with a run that was started with another recipe."""
    path = recipe.output / RECIPE_FILE
    if path.exists() and path.read_text() != dump_yaml(recipe):
        raise RunError(f"{path}: the run was started with another recipe; resume with that one, or give another output")


def _set_aside(samples: Path) -> None:
    """Samples of an earlier, unfinished run keep their own folder; they are another model's."""
    if samples.exists():
        number = next(n for n in itertools.count(1) if not samples.with_name(f"samples.old-{n}").exists())
        samples.rename(samples.with_name(f"samples.old-{number}"))
