"""One recipe, or one capture, from start to end. Only here are the stages put together; each decides for itself."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from leadspan.costs.memory import disk_bytes
from leadspan.data.examples import Examples
from leadspan.data.sections import Renderer
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.data.truncation.policy import cut_warnings
from leadspan.errors import DataError, LeadspanError, ModelError, RunError, SettingsError
from leadspan.evaluation.evaluate import check_evaluation, evaluate_model
from leadspan.evaluation.sampling import window_of
from leadspan.evaluation.settings import Vllm
from leadspan.evaluation.tasks import Problem, load_task, warn_of_golds
from leadspan.files import full_disk_reported, is_sealed
from leadspan.hub import check_push, push_student, write_card
from leadspan.inputs import first_answers_of, load_renderer, prepare_data, prepare_splits, training_examples
from leadspan.models.loading import load_config, load_model
from leadspan.models.settings import Pretrained
from leadspan.models.shapes import uses_bf16
from leadspan.pipeline.directory import begin, check_identity, check_nothing_is_lost, claimed, identity_of
from leadspan.pipeline.tracking import Trackers, outcome
from leadspan.planning.prediction import break_point_fields, cost_model_of, student_shape
from leadspan.planning.rollouts import predict_run
from leadspan.planning.timing import load_calibration
from leadspan.processes import environment
from leadspan.ranks import process_device, process_state
from leadspan.recipe import Recipe, check_capture
from leadspan.results import RUN_FILE, RunResult, damage, load_run, save_run
from leadspan.rollout.record import drawn_rollouts, rollout_rows, stored_rollouts
from leadspan.rollout.settings import RolloutSettings
from leadspan.stages import checked_teacher, rollout_inputs, training_inputs
from leadspan.status import report_status
from leadspan.teacher.capture import CaptureJob
from leadspan.teacher.capture_plan import longest_sequences, plan_capture
from leadspan.teacher.fill import Ranks, store_locked
from leadspan.teacher.manifest import DRAWN_FILE
from leadspan.teacher.settings import LiveTargets
from leadspan.teacher.store import TargetStore
from leadspan.training.checkpoints import step_directories, step_of
from leadspan.training.result import remove_checkpoints
from leadspan.training.settings import check_trackers
from leadspan.training.train import train

logger = logging.getLogger(__name__)

# A store serves every supervision: all positions of its sequences are captured.
_EVERYTHING = Supervision(prompt=1, cot=1, answer=1)


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
        check_nothing_is_lost(directory)
        if not (directory / RUN_FILE).exists():
            checkpoints = step_directories(directory)
            begun = [d for d in checkpoints if is_sealed(d) or (d / "trainer_state.json").exists()]
            if begun and not resume:
                raise RunError(
                    f"{directory}: it holds checkpoints of an earlier run up to step {step_of(begun[-1])}; "
                    "continue with --resume, or give another output"
                )
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
        if not recipe.training.keep_checkpoints and process_state().is_main_process:
            remove_checkpoints(directory)  # of a run that was killed after its result was written
    return result


def _run(recipe: Recipe, tasks: Mapping[str, Sequence[Problem]], resume: bool) -> RunResult:
    directory, state = recipe.output, process_state()
    teacher = checked_teacher(recipe)
    report_status("preparing data")
    data = prepare_data(recipe)
    if tasks:
        check_evaluation(recipe.evaluation, tasks, data.renderer, window_of(load_config(recipe.student)))
    warnings = cut_warnings({recipe.label: data.examples.counts}) if recipe.rollout is None else []
    for warning in warnings if state.is_main_process else ():
        logger.warning("%s", warning)
    prediction = None  # before training, so that it cannot have seen the run
    if state.is_main_process:  # it alone writes the result
        calibration = load_calibration(recipe.plan.calibration)
        try:
            model = cost_model_of(recipe, data.renderer, state.num_processes)
        except ModelError as error:  # the model can be trained all the same
            logger.warning("no prediction: %s", error)
        else:
            prediction = predict_run(recipe, data, model, calibration)
    # The break point of the traces says nothing of rollouts.
    if prediction is not None and recipe.rollout is None and recipe.plan.break_point_seconds:
        report_status("looking for first answers")
        try:
            prediction = prediction.model_copy(update=break_point_fields(first_answers_of(recipe, data)))
        except (LeadspanError, OSError) as error:
            logger.warning("no break point is predicted: %s", error)
    report_status("loading models")
    inputs = training_inputs(recipe, data, teacher)
    is_resumed = resume and bool(step_directories(directory))
    if is_resumed and state.is_main_process:
        check_identity(identity_of(recipe, data.renderer), directory)
    begin_run = partial(begin, recipe, data.renderer, is_resumed)
    with Trackers(recipe, prediction) as trackers:
        with full_disk_reported(directory, lambda: disk_bytes(student_shape(recipe))):
            trained = train(inputs, recipe.training, recipe.loss, begin_run, [trackers])
        counts, left_out = data.examples.counts if recipe.has_traces else None, data.splits.left_out
        result = _result(recipe, recipe.label, cut=counts, refused=left_out, prediction=prediction, train=trained)
        if state.is_main_process:
            # The weights on disk are evaluated, not those in memory: they are what the user gets.
            student, rendering = Pretrained(path=str(recipe.student_directory)), recipe.data.rendering
            # With the student's own tokenizer and template.
            evaluations = evaluate_model(student, student, rendering, recipe.evaluation, directory) if tasks else []
            result = result.model_copy(update={"evaluations": evaluations})
            write_card(result, directory)
            save_run(result, directory)
            if not recipe.training.keep_checkpoints:
                remove_checkpoints(directory)
            trackers.log(outcome(result), trained.num_steps)
            if recipe.push is not None:
                report_status(f"uploading the student to {recipe.push}")
                push_student(recipe.student_directory, recipe.push)
    return result


def _result(recipe: Recipe, label: str, **figures: Any) -> RunResult:  # Any: fields of a result
    control, seed = recipe.trial.control if recipe.trial else None, recipe.seed
    identity = {"name": recipe.name, "label": label, "role": recipe.role, "control": control, "seed": seed}
    return RunResult(**identity, recipe=recipe, environment=environment(seed), **figures)


def run_untrained(recipe: Recipe) -> RunResult:
    """Evaluate the starting weights of a recipe without training, and write `run.json`.

    Raises:
        LeadspanError: The model, the tasks or the run directory cannot be used.
    """
    check_trackers(recipe.training)
    with claimed(recipe.output):
        if (recipe.output / RUN_FILE).exists() and not damage(recipe.output):
            raise RunError(f"{recipe.output}: it holds a finished run; give another output, or remove it")
        check_nothing_is_lost(recipe.output)
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


def prepare_capture(
    recipe: Recipe,
    cuts: Sequence[Policy] = (),
    other_recipes: Sequence[Recipe] = (),
    stored: Sequence[TargetStore] = (),
    draws: bool = True,
) -> CaptureJob:
    """Find the sequences to capture, and plan them; the rollouts of a recipe that has some are drawn first.

    Args:
        recipe: The recipe; validation traces are captured uncut, since validation uses them so.
        cuts: Cuts that the store must serve; the recipe's `capture.cuts`, or its own cut, when empty.
        other_recipes: Further recipes to serve, each with its own data, seed and cut; of the same teacher and
            tokenizer, and with rollouts, the same draws.
        stored: Stores whose sequences are left out.
        draws: Whether to draw rollouts; else those that are not there yet are counted in the job.

    Raises:
        LeadspanError: The recipes or the data cannot be used, or a loss is not defined on what the store would keep.
    """
    check_capture(recipe)
    assert recipe.teacher is not None, "checked above"
    settings = recipe.capture
    if any(o.draws != recipe.draws or (recipe.rollout and o.student != recipe.student) for o in other_recipes):
        raise SettingsError(
            "rollout: recipes of one store draw the same rollouts: student, seed, and rollout.prompts, "
            "samples_per_prompt, temperature and max_new_tokens must be equal; capture one for each"
        )
    for served in (recipe, *other_recipes):
        served.check_losses(settings.kept_targets, f"capture.codec {settings.codec.label}")
    needs = [(recipe, policy) for policy in cuts or settings.cuts or [recipe.cut]]
    needs += [(other_recipe, other_recipe.cut) for other_recipe in other_recipes]
    directory = settings.path or recipe.store_path
    renderer, sources = _sources(needs)
    undrawn: list[int] = []
    # Recipes of equal data have the same rollouts.
    for served in {r.model_dump_json(include={"data"}): r for r in (*other_recipes[::-1], recipe)}.values():
        if served.rollout is not None:
            drawn, lacking = _rollouts(served, served.rollout, directory, draws)
            sources[:0] = drawn
            undrawn += lacking
    sequences, state = longest_sequences(sources), process_state()
    for store in stored:
        sequences = sequences.without(store)
    return CaptureJob(
        settings=settings,
        teacher=recipe.teacher,
        student=recipe.student,
        renderer=renderer,
        sequences=sequences,
        plan=plan_capture(sequences, settings, recipe.seed),
        dtype=torch.bfloat16 if uses_bf16(recipe.training.precision, recipe.student) else torch.float32,
        device=process_device(),
        ranks=Ranks(state.process_index, state.num_processes, state.wait_for_everyone),
        seed=recipe.seed,
        directory=directory,
        undrawn=undrawn,
    )


def _rollouts(
    recipe: Recipe, settings: RolloutSettings, directory: Path | None, draws: bool
) -> tuple[list[Examples], list[int]]:
    """Whole rollouts of the untrained student, drawn by the first rank and written into the store.

    Where nothing is to be drawn those that are there, and the most positions of each that is not.
    """
    if directory is None:
        raise SettingsError("capture.path: missing; rollouts are kept in the store when they are drawn")
    if isinstance(settings.engine, Vllm):
        raise SettingsError("rollout.engine: a capture draws with Transformers; leave vllm out")
    data = prepare_data(recipe)
    # As with a live teacher: the inputs of a stored run would look for the rollouts that are drawn here.
    inputs = rollout_inputs(recipe.model_copy(update={"targets": LiveTargets()}), data, settings)

    def load_student() -> PreTrainedModel:
        report_status("drawing rollouts")
        student = load_model(recipe.student, torch.float32, for_training=False).eval()
        return cast(PreTrainedModel, cast(torch.nn.Module, student).to(process_device()))

    path, use_bf16, lacking = directory / DRAWN_FILE, uses_bf16(recipe.training.precision, recipe.student), []
    with process_state().main_process_first():
        if not draws:
            new_ids, lacking = drawn_rollouts(inputs, path, None, use_bf16)
        elif process_state().is_main_process:
            with store_locked(directory):
                new_ids, _ = drawn_rollouts(inputs, path, load_student, use_bf16)
        else:
            new_ids = stored_rollouts(inputs, path)
    if not new_ids:  # in a dry run
        return [], lacking
    rows = rollout_rows(inputs, new_ids)
    return [Examples(rows, Full(), _EVERYTHING, data.renderer.stop_token_id, recipe.seed, "rollouts")], lacking


def _sources(needs: Sequence[tuple[Recipe, Policy]]) -> tuple[Renderer, list[Examples]]:
    """Training traces under each cut, all positions weighted, and validation traces whole; equal ones once.

    A trace that names two teachers is refused.
    """
    first = needs[0][0]
    by_data: dict[str, tuple[Recipe, dict[Policy, None]]] = {}
    for recipe, policy in needs:
        if recipe.teacher != first.teacher:
            raise SettingsError(f"{recipe.name}: its teacher is not that of {first.name}; capture a store of its own")
        key = f"{recipe.tokenizer_path} {recipe.tokenizer_revision} {recipe.model_dump_json(include={'data', 'seed'})}"
        # Recipes that differ in loss or training alone need the same sequences.
        policies = by_data.setdefault(key, (recipe, {}))[1]
        policies |= dict.fromkeys([policy] if recipe.has_traces else [])
    sources: list[Examples] = []
    renderers: list[Renderer] = []
    for recipe, policies in by_data.values():
        renderer, splits = prepare_splits(recipe)
        renderers.append(renderer)
        for name in ("tokenizer_hash", "template_hash"):
            if getattr(renderer, name) != getattr(renderers[0], name):
                raise SettingsError(
                    f"{recipe.name}: its {name} is not that of {first.name}; capture a store of its own"
                )
        for cut in policies:
            try:
                sources.append(training_examples(recipe, splits, renderer, cut, _EVERYTHING))
            except DataError:
                # One cut among several that leaves nothing is skipped: its own trial fails, and the others need theirs.
                if len(needs) == 1:
                    raise
        if splits.validation is not None:
            sources.append(
                Examples(splits.validation, Full(), _EVERYTHING, renderer.stop_token_id, recipe.seed, "validation set")
            )
    # A store distinguishes traces by their tokens alone.
    teachers: dict[str, str] = {}
    for example_id, name in ((i, name) for s in sources for i, name in zip(s.example_ids, s.teachers, strict=True)):
        if teachers.setdefault(example_id, name) != name:
            raise DataError(
                f"example {example_id}: its trace names the teachers {teachers[example_id]!r} and {name!r}, and a "
                "store keeps one answer to a text; leave one of the two out, or train with the teachers live"
            )
    return renderers[0], sources
