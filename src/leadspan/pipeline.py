"""One recipe, start to end. The only place where the stages are put together; every decision is in a stage."""

import importlib.metadata
import itertools
import logging
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets import Dataset

from leadspan.audit.prepared import Searched, search_first_answers, with_first_answers
from leadspan.costs.flops import ModelShape, head_only
from leadspan.costs.timing import Calibration
from leadspan.data.examples import Examples
from leadspan.data.prepare import Splits, split
from leadspan.data.sections import Renderer
from leadspan.data.selection import RandomTokens, ScoredSelection
from leadspan.data.truncation import Full, Policy
from leadspan.errors import LeadspanError, ModelError, RunError, TargetsError
from leadspan.evaluation.evaluate import evaluate_model
from leadspan.evaluation.tasks import load_task
from leadspan.losses.defined import check_codec, check_selection
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.models.identity import weights_id
from leadspan.models.loading import load_tokenizer
from leadspan.models.shapes import shape_from
from leadspan.recipe import Recipe
from leadspan.results import RUN_FILE, EvalResult, Prediction, RunResult, load_run, save_run
from leadspan.settings import dump_yaml, load_json
from leadspan.teacher.config import Hidden, StoredTargets
from leadspan.teacher.fit import check_same_origin, stored_head
from leadspan.teacher.manifest import Manifest, read_joined
from leadspan.teacher.store import TargetStore
from leadspan.training.prediction import CostModel, cost_model, predict
from leadspan.training.process import process_state
from leadspan.training.train import STUDENT_DIR, TrainingInputs, train

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True)
class PreparedData:
    """Data of a recipe, ready for training.

    Attributes:
        renderer: Tokenizer and template.
        splits: Tokenised rows.
        examples: Training examples after cut and supervision.
        validation: Validation examples, full sequences, or None.
    """

    renderer: Renderer
    splits: Splits
    examples: Examples
    validation: Examples | None


def prepare_data(recipe: Recipe) -> PreparedData:
    """Tokenise (or reuse), split, cut and weigh the data of a recipe."""
    renderer, splits = prepare_splits(recipe)
    stop, seed = renderer.stop_token_id, recipe.seed
    examples = training_examples(recipe, splits, renderer, recipe.cut)
    validation = None
    if splits.validation is not None:
        of_all = recipe.supervision.model_copy(update={"token_selection": None})
        validation = Examples(splits.validation, Full(), of_all, stop, seed, "validation set")
    return PreparedData(renderer, splits, examples, validation)


def prepare_splits(recipe: Recipe) -> tuple[Renderer, Splits]:
    """Tokenise (or reuse) and split the data of a recipe."""
    renderer = Renderer(load_tokenizer(recipe.tokenizer_path, recipe.tokenizer_revision), recipe.data.rendering)
    with process_state().main_process_first():
        return renderer, split(recipe.data, renderer, recipe.seed)


def training_examples(recipe: Recipe, splits: Splits, renderer: Renderer, policy: Policy) -> Examples:
    """The training rows of a recipe under a policy, its own or another."""
    rows = training_rows(recipe, splits, renderer, policy)
    return Examples(rows, policy, recipe.supervision, renderer.stop_token_id, recipe.seed, "training set")


def training_rows(recipe: Recipe, splits: Splits, renderer: Renderer, policy: Policy) -> Dataset:
    """The training rows, with their first answers where a policy cuts at them."""
    if not policy.needs_first_answer:
        return splits.train
    with process_state().main_process_first():
        return with_first_answers(splits.train, recipe.data, renderer)


def first_answers_of(recipe: Recipe, data: PreparedData) -> Searched:
    """Where training traces first state the right answer, and the break point of a lead cut that this predicts.

    Takes at most `plan.break_point_seconds`; traces that are left then are counted and warned of.

    Raises:
        DataError: The source cannot be read.
        CacheError: It is not what the rows were made of, or the cache cannot be written.
    """
    seconds = recipe.plan.break_point_seconds
    found = search_first_answers(data.splits.train, recipe.data, data.renderer, recipe.seed, seconds)
    if found.num_left:
        logger.warning(
            "first answers: %d of %d traces undecided after plan.break_point_seconds = %g; the break point leaves "
            "them out",
            found.num_left,
            found.num_left + found.summary.num_traces,
            seconds,
        )
    return found


def cost_model_of(recipe: Recipe, renderer: Renderer, num_ranks: int | None = None) -> CostModel:
    """What the cost of a recipe depends on besides its examples; of `plan.num_ranks` ranks unless told otherwise."""
    machine = recipe.plan if num_ranks is None else recipe.plan.model_copy(update={"num_ranks": num_ranks})
    entries = len(renderer.tokenizer)
    teacher = _head_of_store(recipe) if isinstance(recipe.targets, StoredTargets) else recipe.teacher
    return cost_model(
        recipe.student, teacher, recipe.training, recipe.loss, machine, entries, recipe.seed, _scored(recipe)
    )


def _head_of_store(recipe: Recipe) -> ModelShape | None:
    """The teacher's head that a recipe's store has; of one that is not there yet, as `capture` would write it."""
    assert isinstance(recipe.targets, StoredTargets), "asked for by recipes that have one"
    try:
        return stored_head(read_joined(recipe.targets.path))
    except TargetsError:
        if recipe.teacher is None or not isinstance(recipe.capture.codec, Hidden):
            return None
    shape = shape_from(recipe.teacher)
    return head_only(shape.hidden_size, shape.vocab_size)


def training_inputs(recipe: Recipe, data: PreparedData, say: Callable[[str], None]) -> TrainingInputs:
    """What the training stage gets of a recipe."""
    return TrainingInputs(
        student=recipe.student,
        teacher=_teacher_side(recipe, data, say),
        renderer=data.renderer,
        examples=data.examples,
        validation=data.validation,
        directory=recipe.output,
        say=say,
        seed=recipe.seed,
        device=recipe.plan.found_device,
        selection=_scored(recipe),
    )


def _scored(recipe: Recipe) -> ScoredSelection | None:
    """A token selection that needs the models' outputs."""
    selection = recipe.supervision.token_selection
    return None if isinstance(selection, RandomTokens) else selection


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
    evaluations = evaluate_model(
        recipe.student, recipe.tokenizer_path, recipe.data.rendering, recipe.evaluation, recipe.output, say
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


def _teacher_side(recipe: Recipe, data: PreparedData, say: Callable[[str], None]) -> ModelSettings | TargetStore | None:
    """The teacher to load, or a store that has been found to serve every example."""
    if not isinstance(recipe.targets, StoredTargets):
        return recipe.teacher
    say("looking up targets")
    store = open_store(recipe, data.renderer)
    state = process_state()
    for examples in (data.examples, data.validation):
        if examples is not None:
            store.check_serves(examples, examples.usable[state.process_index :: state.num_processes])
    lost = store.manifest.kl_lost
    if lost is not None:
        codec, path = store.manifest.codec.label, store.directory
        logger.info(
            "%s of %s loses %.3g nats of KL a position, against the student it was captured for", codec, path, lost
        )
    return store


def open_store(recipe: Recipe, renderer: Renderer) -> TargetStore:
    """The store of a recipe, checked to be of its tokenizer, template, temperature and, where it names one, teacher.

    Raises:
        TargetsError: There is none, it is of something else, or it does not define the loss.
        CacheError: It is damaged.
    """
    assert isinstance(recipe.targets, StoredTargets), "asked for by recipes that have one"
    check_loss(recipe)
    store = TargetStore(recipe.targets.path)
    identity = {"tokenizer_hash": renderer.tokenizer_hash, "template_hash": renderer.template_hash}
    if recipe.teacher is not None:
        identity["weights_hash"] = weights_id(recipe.teacher)
    check_same_origin(store, identity)
    return store


def check_loss(recipe: Recipe) -> Manifest | None:
    """Check that the store of a recipe defines its loss and token selection; reads the manifest alone.

    Returns:
        The manifest; None where targets are live.

    Raises:
        TargetsError: There is no store, or it does not keep what these need.
        CacheError: The manifest is damaged.
    """
    if not isinstance(recipe.targets, StoredTargets):
        return None
    manifest = read_joined(recipe.targets.path)
    temperatures, tails = manifest.temperatures, manifest.tail_temperatures
    check_codec(recipe.loss, manifest.codec, temperatures, tails, str(recipe.targets.path))
    check_selection(recipe.supervision.token_selection, manifest.engine, str(recipe.targets.path))
    return manifest


def _claim(recipe: Recipe, resume: bool) -> None:
    """Write the resolved recipe into the run directory, or check that it is the one that is there."""
    path = recipe.output / RECIPE_FILE
    text = dump_yaml(recipe)
    if (recipe.output / RUN_FILE).exists():
        raise RunError(f"{recipe.output}: it holds a finished run; give another output, or remove it")
    if resume and path.exists() and path.read_text() != text:
        raise RunError(f"{path}: the run was started with another recipe; resume with that one, or give another output")
    if process_state().is_main_process:
        recipe.output.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if not resume:
            _set_aside(recipe.output / "samples")
    process_state().wait_for_everyone()


def _set_aside(samples: Path) -> None:
    """Samples of an earlier, unfinished run keep their own folder; they are another model's."""
    if samples.exists():
        number = next(n for n in itertools.count(1) if not samples.with_name(f"samples.old-{n}").exists())
        samples.rename(samples.with_name(f"samples.old-{number}"))


def evaluate(
    recipe: Recipe, model: Pretrained, directory: Path, say: Callable[[str], None] = lambda text: None
) -> list[EvalResult]:
    """Evaluate a model on the tasks of a recipe, with the model's own tokenizer and template."""
    if not recipe.evaluation.tasks:
        return []
    return evaluate_model(model, model.path, recipe.data.rendering, recipe.evaluation, directory, say)


def environment(seed: int) -> dict[str, str]:
    """Versions, platform, commit and date of a run."""
    packages = (
        "leadspan",
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "tokenizers",
        "peft",
        "math-verify",
    )
    found = {name: importlib.metadata.version(name) for name in packages}
    commit = _commit()
    if commit:
        found["commit"] = commit
    return {
        **found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": str(seed),
    }


def _commit() -> str | None:
    """Commit of the source tree leadspan runs from, `+` when it has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        subprocess.run(["git", "ls-files", "--error-unmatch", __file__], cwd=here, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()[:12] + ("+" if changes.stdout.strip() else "")
