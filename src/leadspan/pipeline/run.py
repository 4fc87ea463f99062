"""One recipe from start to end. Only here are the stages put together; every decision is made in a stage."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from leadspan.costs.memory import disk_bytes
from leadspan.data.truncation.policy import cut_warnings
from leadspan.environment import environment
from leadspan.errors import LeadspanError, ModelError, RunError
from leadspan.evaluation.evaluate import check_evaluation, evaluate_model
from leadspan.evaluation.sampling import window_of
from leadspan.evaluation.tasks import Problem, load_task, warn_of_golds
from leadspan.files import full_disk_reported
from leadspan.hub import check_push, push_student, write_card
from leadspan.inputs import PreparedData, first_answers_of, load_renderer, prepare_data
from leadspan.models.loading import load_config
from leadspan.models.settings import Pretrained
from leadspan.pipeline.directory import begin, check_identity, claimed, identity_of
from leadspan.pipeline.tracking import Trackers, outcome
from leadspan.planning.prediction import break_point_fields, cost_model_of, student_shape
from leadspan.planning.rollouts import predict_run
from leadspan.planning.timing import Calibration
from leadspan.ranks import process_state
from leadspan.recipe import Recipe
from leadspan.results import RUN_FILE, Prediction, RunResult, damage, load_run, save_run
from leadspan.settings import load_json
from leadspan.stages import checked_teacher, training_inputs
from leadspan.status import report_status
from leadspan.training.checkpoints import check_fresh, step_directories
from leadspan.training.result import remove_checkpoints
from leadspan.training.settings import check_trackers
from leadspan.training.train import train

logger = logging.getLogger(__name__)


def run(recipe: Recipe, resume: bool = False) -> RunResult:
    """Prepare, train, evaluate, and write `run.json`.

    Args:
        recipe: The run.
        resume: Continue from the last complete checkpoint; the result of a finished run is returned.

    Raises:
        LeadspanError: The recipe, the data, the models or the run directory cannot be used; an error before training
            leaves the directory as it was.
    """
    # What can fail for a name or a missing package is tried before hours of training, not after.
    check_trackers(recipe.training)
    if recipe.push is not None:
        check_push(recipe.push)
    tasks = {task.name: load_task(task) for task in recipe.evaluation.tasks}
    for task in recipe.evaluation.tasks:
        warn_of_golds(task, tasks[task.name])
    directory = recipe.output
    with claimed(directory):
        if not (directory / RUN_FILE).exists():
            if not resume:
                check_fresh(directory)
            return _run(recipe, tasks, resume)
        if not resume:
            raise RunError(f"{directory}: it holds a finished run; give another output, or remove it")
        if wrong := damage(directory):
            logger.warning("%s: %s; the run is repeated from the last complete checkpoint", directory, wrong)
            return _run(recipe, tasks, resume)
        result, renderer = load_run(directory), load_renderer(recipe)
        if process_state().is_main_process:
            check_identity(identity_of(recipe, renderer), directory)
        if result.recipe is None or result.recipe.evaluation != recipe.evaluation:
            raise RunError(
                f"{directory}: it holds a finished run that was evaluated with other settings; "
                f"`leadspan evaluate {directory} TASK ... --output DIRECTORY` evaluates its student again"
            )
        report_status(f"{directory} is finished")
        _remove_unkept(recipe)  # of a run that was killed after its result was written
    return result


def _run(recipe: Recipe, tasks: Mapping[str, Sequence[Problem]], resume: bool) -> RunResult:
    directory = recipe.output
    teacher = checked_teacher(recipe)
    report_status("preparing data")
    data = prepare_data(recipe)
    if tasks:
        check_evaluation(recipe.evaluation, tasks, data.renderer, window_of(load_config(recipe.student)))
    warnings = cut_warnings({recipe.label: data.examples.counts}) if recipe.rollout is None else []
    for warning in warnings if process_state().is_main_process else ():
        logger.warning("%s", warning)
    # Before training, so that the prediction cannot have seen the run.
    prediction = _predict(recipe, data)
    report_status("loading models")
    inputs = training_inputs(recipe, data, teacher)
    is_resumed = resume and bool(step_directories(directory))
    if is_resumed and process_state().is_main_process:
        check_identity(identity_of(recipe, data.renderer), directory)
    begin_run = partial(begin, recipe, data.renderer, is_resumed)
    with Trackers(recipe, prediction) as trackers:
        with full_disk_reported(directory, lambda: disk_bytes(student_shape(recipe))):
            trained = train(inputs, recipe.training, recipe.loss, begin_run, [trackers])
        counts, left_out = data.examples.counts if recipe.has_traces else None, data.splits.left_out
        result = _result(recipe, recipe.label, cut=counts, refused=left_out, prediction=prediction, train=trained)
        if process_state().is_main_process:
            # The weights on disk are evaluated, not those in memory: they are what the user gets.
            student, evaluations = Pretrained(path=str(recipe.student_directory)), []
            if tasks:  # with the student's own tokenizer and template
                evaluations = evaluate_model(student, student, recipe.data.rendering, recipe.evaluation, directory)
            result = result.model_copy(update={"evaluations": evaluations})
            write_card(result, directory)
            save_run(result, directory)
            _remove_unkept(recipe)
            trackers.log(outcome(result), trained.num_steps)
            if recipe.push is not None:
                report_status(f"uploading the student to {recipe.push}")
                push_student(recipe.student_directory, recipe.push)
    return result


def _result(recipe: Recipe, label: str, **figures: Any) -> RunResult:  # Any: fields of a result
    control, seed = recipe.trial.control if recipe.trial else None, recipe.seed
    identity = {"name": recipe.name, "label": label, "role": recipe.role, "control": control, "seed": seed}
    return RunResult(**identity, recipe=recipe, environment=environment(seed), **figures)


def _remove_unkept(recipe: Recipe) -> None:
    if not recipe.training.keep_checkpoints and process_state().is_main_process:
        remove_checkpoints(recipe.output)


def run_untrained(recipe: Recipe) -> RunResult:
    """Evaluate the starting weights of a recipe without training, and write `run.json`.

    Raises:
        LeadspanError: The model, the tasks or the run directory cannot be used.
    """
    check_trackers(recipe.training)
    with claimed(recipe.output):
        if (recipe.output / RUN_FILE).exists() and not damage(recipe.output):
            raise RunError(f"{recipe.output}: it holds a finished run; give another output, or remove it")
        begin(recipe, None, is_resumed=True)
        # Not the model's own: weights that are drawn at random come without a tokenizer.
        tokenizer = Pretrained(path=recipe.tokenizer_path, revision=recipe.tokenizer_revision)
        with Trackers(recipe) as trackers:
            trackers.start()
            evaluations = evaluate_model(
                recipe.student, tokenizer, recipe.data.rendering, recipe.evaluation, recipe.output
            )
            result = _result(recipe, recipe.name, evaluations=evaluations)
            save_run(result, recipe.output)
            trackers.log(outcome(result), 0)
    return result


def _predict(recipe: Recipe, data: PreparedData) -> Prediction | None:
    """Predict the cost of a run; None where that is impossible, since the model can be trained all the same."""
    state = process_state()
    if not state.is_main_process:  # it alone writes the result
        return None
    calibration = None if recipe.plan.calibration is None else load_json(Calibration, recipe.plan.calibration)
    try:
        model = cost_model_of(recipe, data.renderer, state.num_processes)
    except ModelError as error:
        logger.warning("no prediction: %s", error)
        return None
    prediction = predict_run(recipe, data, model, calibration)
    # The break point of the traces says nothing of rollouts.
    if recipe.rollout is not None or not recipe.plan.break_point_seconds:
        return prediction
    report_status("looking for first answers")
    try:
        search = first_answers_of(recipe, data)
    except (LeadspanError, OSError) as error:
        logger.warning("no break point is predicted: %s", error)
        return prediction
    return prediction.model_copy(update=break_point_fields(search))
