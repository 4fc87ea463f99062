"""What the stages get of a recipe: examples, the cost model, targets, training inputs; every decision is in a stage."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from datasets import Dataset

from leadspan.audit.prepared import Searched, search_first_answers, with_first_answers
from leadspan.costs.flops import ModelShape, head_only
from leadspan.data.examples import Examples
from leadspan.data.prepare import Splits, split
from leadspan.data.sections import Renderer
from leadspan.data.selection import RandomTokens, ScoredSelection
from leadspan.data.truncation import Full, Policy
from leadspan.errors import TargetsError
from leadspan.losses.defined import check_codec, check_selection
from leadspan.models.config import ModelSettings
from leadspan.models.identity import weights_id
from leadspan.models.loading import load_tokenizer
from leadspan.models.shapes import shape_from
from leadspan.recipe import Recipe
from leadspan.teacher.config import Hidden, StoredTargets
from leadspan.teacher.fit import check_same_origin, stored_head
from leadspan.teacher.manifest import Manifest, read_joined
from leadspan.teacher.store import TargetStore
from leadspan.training.prediction import CostModel, cost_model
from leadspan.training.process import process_state
from leadspan.training.train import TrainingInputs

logger = logging.getLogger(__name__)


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
