"""The data of a recipe, ready for training: tokenised, split, cut and weighed. Decides nothing itself."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from leadspan.audit.prepared import Searched, first_statements, search_first_answers
from leadspan.data.examples import Examples
from leadspan.data.prepare import Splits, split
from leadspan.data.sections import Renderer
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.models.reading import load_tokenizer
from leadspan.ranks import process_state
from leadspan.recipe import Recipe
from leadspan.sources import Source, source_faults

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
        # Validation losses of all runs are over the same tokens.
        of_all = recipe.supervision.model_copy(update={"token_selection": None})
        validation = Examples(splits.validation, Full(), of_all, stop, seed, "validation set")
    return PreparedData(renderer, splits, examples, validation)


def prepare_splits(recipe: Recipe) -> tuple[Renderer, Splits]:
    """Tokenise (or reuse) and split the data of a recipe."""
    renderer = load_renderer(recipe)
    # The first process writes the cache, which the others then read.
    with process_state().main_process_first():
        return renderer, split(recipe.data, renderer, recipe.seed)


def load_renderer(recipe: Recipe) -> Renderer:
    """Tokenizer and template of a recipe's data."""
    return Renderer(load_tokenizer(recipe.tokenizer_path, recipe.tokenizer_revision), recipe.data.rendering)


def check_renderings(recipes: Iterable[Recipe]) -> None:
    """Let the tokenizers of recipes that can be loaded render a conversation, as training does first.

    Raises:
        ModelError: A template does not give what a recipe trains on, or does not read one of its variables.
    """
    first = {(r.tokenizer_path, r.tokenizer_revision, r.data.rendering.model_dump_json()): r for r in recipes}
    for recipe in first.values():
        # A tokenizer that is not there has been reported by its path, or is made by a run that comes first.
        if not source_faults([Source("tokenizer", recipe.tokenizer_path, "model")]):
            load_renderer(recipe)


def training_examples(
    recipe: Recipe, splits: Splits, renderer: Renderer, policy: Policy, supervision: Supervision | None = None
) -> Examples:
    """The training rows of a recipe under a policy and a supervision, its own or others."""
    first_answers = None
    if policy.needs_first_answer:
        with process_state().main_process_first():
            first_answers = first_statements(splits.train, recipe.data, renderer)
    stop, weights = renderer.stop_token_id, supervision or recipe.supervision
    return Examples(splits.train, policy, weights, stop, recipe.seed, "training set", first_answers)


def first_answers_of(recipe: Recipe, data: PreparedData) -> Searched:
    """Where training traces first state the right answer, and the break point of a lead cut that this predicts.

    Takes at most `plan.break_point_seconds`; traces that are left then are counted and warned of.

    Raises:
        DataError: The source cannot be read.
        CacheError: It is not what the rows were made of, or the cache cannot be written.
    """
    seconds = recipe.plan.break_point_seconds
    search = search_first_answers(data.splits.train, recipe.data, data.renderer, recipe.seed, seconds)
    if search.num_left:
        logger.warning(
            "first answers: %d of %d traces undecided after plan.break_point_seconds = %g; the break point leaves "
            "them out",
            search.num_left,
            search.num_left + search.summary.num_traces,
            seconds,
        )
    return search
