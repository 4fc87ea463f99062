"""First answers of rows that are prepared for training: for the policy that cuts at them, and for the break point.

The text comes from the source again, since rows hold token ids: records are read, rendered and searched as in an audit,
and matched to rows by place and by the hash of their ids. What was found is kept in the cache of the data stage, by the
rows and by the code of the rules.
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
from leadspan.audit.first_answers import BATCH, Answered, Located, Locator, settle, summarise, without_derivation
from leadspan.data.prepare import cache_root, sections_of
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings
from leadspan.data.truncation import Policy
from leadspan.errors import CacheError
from leadspan.files import checked_line, with_checksum, write_atomically
from leadspan.processes import in_batches
from leadspan.settings import Settings
from leadspan.statistics.intervals import Interval
from leadspan.traces.read import read_traces
from leadspan.traces.records import Refusal

logger = logging.getLogger(__name__)

# The mean of 400 values between 0 and 1 has a standard error of 0.025 at most.
SAMPLE = 400
"""Rows that are searched for a break point; all of them where there are no more."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Rows that were searched.

    Attributes:
        traces: One for each row that was searched, in order.
        num_rows: Rows they were drawn from.
        num_left: Rows that were drawn too and are not among the traces, since the time was spent.
        summary: The audit's figures.
        seed: Seed of the bootstrap.
    """

    traces: Sequence[Answered]
    num_rows: int
    num_left: int
    summary: FirstAnswers
    seed: int

    def without_derivation(self, policy: Policy) -> Interval | None:
        """Share of traces whose first statement of the answer a policy cuts, of those that have one."""
        return without_derivation(policy, self.traces, self.seed)


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

    An answer that only the trace itself gives is not taken for right here.

    Args:
        rows: Training rows.
        settings: Their source, cache and number of processes.
        renderer: What tokenised them.

    Raises:
        DataError: The source cannot be read.
        CacheError: It is not what the rows were made of.
    """
    traces, _ = _answered(rows, settings, renderer)
    return [trace.sections.first_answer for trace in traces]


def search_first_answers(
    rows: Dataset, settings: DataSettings, renderer: Renderer, seed: int, seconds: float = math.inf
) -> Searched:
    """The audit's part on first answers, of at most `SAMPLE` rows drawn by the seed.

    Args:
        rows: Training rows.
        settings: Their source, cache and number of processes.
        renderer: What tokenised them.
        seed: Of the draw and of the bootstrap.
        seconds: Time for all of it; rows that are not decided by then are left out, and what was found is not kept.

    Raises:
        DataError: The source cannot be read.
        CacheError: It is not what the rows were made of.
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
    files = [*Path(__file__).parent.glob("*.py"), *Path(first_answer.__file__).parent.glob("*.py")]
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
