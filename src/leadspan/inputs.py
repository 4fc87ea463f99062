"""The data of a recipe, ready for training: tokenised, split, cut and weighed; and where its traces first answer.

First answers are for the policy that cuts at them, and for the break point. Their text comes from the source again,
since rows hold token ids: records are read, rendered and searched as in an audit, and matched to rows by place and by
the hash of their ids. What was found is kept in the cache of the data stage, by the rows and by the code of the rules.
"""

import hashlib
import itertools
import logging
import math
import random
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from datasets import Dataset

from leadspan.answers import first_answer
from leadspan.answers.first_answer import GoldSource
from leadspan.audit.findings import FirstAnswers
from leadspan.audit.first_answers import BATCH, Answered, Located, Locator, settle, summarise
from leadspan.data.examples import Examples
from leadspan.data.prepare import Splits, cache_root, sections_of, split
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.errors import CacheError
from leadspan.files import checked_line, with_checksum, write_atomically
from leadspan.models.reading import load_tokenizer
from leadspan.processes import in_batches
from leadspan.ranks import process_state
from leadspan.recipe import Recipe
from leadspan.settings import Settings
from leadspan.sources import Source, source_faults
from leadspan.traces.read import read_traces
from leadspan.traces.records import Refusal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """Data of a recipe, ready for training."""

    renderer: Renderer  # tokenizer and template
    splits: Splits  # tokenised rows
    examples: Examples  # for training, after cut and supervision
    validation: Examples | None  # full sequences


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


# The mean of 400 values between 0 and 1 has a standard error of 0.025 at most.
SAMPLE = 400
"""Rows that are searched for a break point; all of them where there are no more."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Rows that were searched."""

    traces: Sequence[Answered]  # one for each row that was searched, in order
    num_rows: int  # from which they were drawn
    num_left: int  # rows that were drawn too and are not among the traces, since the time was spent
    summary: FirstAnswers  # the audit's figures
    seed: int  # of the bootstrap


_Found = tuple[GoldSource, int | None, int | None]


class _Known(Settings):
    """A file of the cache: first answers of some rows."""

    found: list[_Found | None]
    """Of each row: where its right answer is from, first token of the statement, and its last one where the answer is
    the record's; null where the time was spent before."""
    num_undecided: int
    """Comparisons that broke the limits."""


def first_statements(rows: Dataset, settings: DataSettings, renderer: Renderer) -> list[int | None]:
    """Of each row the last token of the first statement of the record's answer, or None.

    An answer that only the trace itself gives is not taken for right here. Settings and renderer are those that the
    rows were made with.

    Raises:
        DataError: The source cannot be read.
        CacheError: It is not what the rows were made of.
    """
    traces, _ = _answered(rows, settings, renderer)
    return [trace.sections.first_answer for trace in traces]


def search_first_answers(
    rows: Dataset, settings: DataSettings, renderer: Renderer, seed: int, seconds: float = math.inf
) -> Searched:
    """The audit's part on first answers, of at most `SAMPLE` rows drawn by the seed; otherwise as `first_statements`.

    Rows that are not decided when the seconds are spent are left out, and what was found is not kept.
    """
    number = len(rows)
    if number > SAMPLE:
        # Sorted, so that rows are read in their order on disk.
        rows = rows.select(sorted(random.Random(seed).sample(range(number), SAMPLE)))
    traces, num_undecided = _answered(rows, settings, renderer, time.monotonic() + seconds)
    return Searched(traces, number, len(rows) - len(traces), summarise(traces, num_undecided, seed), seed)


def _answered(
    rows: Dataset, settings: DataSettings, renderer: Renderer, deadline: float = math.inf
) -> tuple[list[Answered], int]:
    """The rows with their first answers, from the cache or found now; and how many comparisons broke the limits."""
    # The name of the file is the hash of rows, right answers, renderer and the rules' own code: a rule that changed may
    # find another answer.
    here, answers = Path(__file__), Path(first_answer.__file__)
    files = [here, *here.with_name("audit").glob("*.py"), *answers.parent.glob("*.py")]
    rules = hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(files))).hexdigest()
    contents: Sequence[str] = (rules, renderer.fingerprint, *rows["example_id"][:], *map(str, rows["gold"][:]))
    key = hashlib.sha256("\0".join(contents).encode()).hexdigest()[:32]
    path = cache_root(settings) / "first_answers" / f"{key}.json"
    cached: _Known | None = None
    try:
        cached = _Known.model_validate(checked_line(path.read_bytes())) if path.exists() else None
    except (OSError, ValueError) as error:
        logger.warning("%s: damaged (%s), so it is computed again", path, type(error).__name__)
    if cached is None:
        # By location too: of two rows with the same tokens one may have another right answer.
        keys = list(zip(rows["place"][:], rows["example_id"][:], strict=True))
        located = _located(set(keys), settings, renderer, deadline)
        answered, num_undecided = settle(located, settings.num_workers, deadline=deadline)
        by_key: dict[tuple[str, str], _Found] = {
            (a.place, a.example_id): (a.source, a.position, a.sections.first_answer) for a in answered
        }
        cached = _Known(found=[by_key.get(key) for key in keys], num_undecided=num_undecided)
        try:
            if None not in cached.found:  # a search that the deadline ended is not worth reading again
                write_atomically(path, with_checksum(cached.model_dump(mode="json")))
        except OSError as error:
            raise CacheError(f"{path}: cannot be written ({error}); make room there, or set data.cache_dir") from None
    traces: list[Answered] = []
    plain_rows = cast(Iterable[Any], rows.remove_columns("input_ids").with_format(None))  # Any: Arrow rows
    for row, found in zip(plain_rows, cached.found, strict=True):
        if found is not None:
            source, position, last = found
            sections = replace(sections_of(row), first_answer=last)
            traces.append(Answered(row["place"], row["example_id"], row["question_id"], sections, source, position))
    return traces, cached.num_undecided


def _located(keys: Set[tuple[str, str]], settings: DataSettings, renderer: Renderer, deadline: float) -> list[Located]:
    """The traces with these locations and hashes of their tokens, searched; fewer where the deadline comes first."""
    locations = {location for location, _ in keys}
    by_key: dict[tuple[str, str], Located] = {}
    items = itertools.takewhile(lambda _: time.monotonic() < deadline, read_traces(settings.train))
    # No others are rendered and searched, which is what takes the time.
    traces = (item for item in items if not isinstance(item, Refusal) and item.place in locations)
    batches = in_batches(Locator(renderer).examine, traces, BATCH, settings.num_workers)
    for located in itertools.chain.from_iterable(batches):
        if isinstance(located, Located) and (key := (located.trace.place, located.trace.example_id)) in keys:
            by_key[key] = located
        if time.monotonic() >= deadline:
            break
    # Without a deadline every row must come up again.
    if len(by_key) < len(keys) and time.monotonic() < deadline:
        raise CacheError(
            f"{settings.train.path}: {len(keys) - len(by_key)} of {len(keys)} prepared rows are not in it; "
            "the file has changed meanwhile, so start again"
        )
    return list(by_key.values())


def first_answers_of(recipe: Recipe, data: PreparedData) -> Searched:
    """Where training traces first state the right answer, and the break point of a lead cut that this predicts.

    Takes at most `plan.break_point_seconds`; traces that are left then are counted and warned of. Errors are those of
    `search_first_answers`.
    """
    seconds = recipe.plan.break_point_seconds
    search = search_first_answers(data.splits.train, recipe.data, data.renderer, recipe.seed, seconds)
    if search.num_left:
        text = "first answers: %d of %d traces undecided after plan.break_point_seconds = %g; the break point leaves "
        logger.warning(f"{text}them out", search.num_left, search.num_left + search.summary.num_traces, seconds)
    return search
