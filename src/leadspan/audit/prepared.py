"""First answers of rows that are prepared for training: for the policy that cuts at them, and for the break point.

The text comes from the source again, since rows hold token ids: records are read, rendered and searched as in an audit,
and matched to rows by place and by the hash of their ids. What was found is kept in the cache of the data stage, by the
rows and by the code of the rules.
"""

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from leadspan.audit.break_point import summarise_first_answers, without_derivation
from leadspan.audit.findings import FirstAnswers
from leadspan.audit.first_answer import GoldSource
from leadspan.audit.locate import Answered, Located, Locator, examine_all, settle
from leadspan.data.config import DataSettings
from leadspan.data.prepare import cache_root, sections_of
from leadspan.data.records import Refusal, Trace
from leadspan.data.sections import Renderer
from leadspan.data.traces import read_traces
from leadspan.data.truncation import Policy
from leadspan.errors import CacheError
from leadspan.results import Interval

SAMPLE = 400
"""Rows that are searched for a break point; all of them where there are no more."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Rows that were searched.

    Attributes:
        traces: One for each row, in order.
        num_rows: Rows they were drawn from.
        summary: The audit's figures.
        seed: Seed of the bootstrap.
    """

    traces: Sequence[Answered]
    num_rows: int
    summary: FirstAnswers
    seed: int

    def without_derivation(self, policy: Policy) -> Interval | None:
        """Share of traces whose first statement of the answer a policy cuts, of those that have one."""
        return without_derivation(policy, self.traces, self.seed)


def with_first_answers(rows: Dataset, settings: DataSettings, renderer: Renderer) -> Dataset:
    """Rows with the column `first_answer`: last token of the first statement of the record's answer, or None.

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
    ends = [trace.sections.first_answer if trace.source == "record" else None for trace in traces]
    kept = rows.remove_columns("first_answer") if "first_answer" in rows.column_names else rows
    return kept.add_column("first_answer", ends)  # pyright: ignore[reportCallIssue]  # a decorator gives the last argument


def search_first_answers(rows: Dataset, settings: DataSettings, renderer: Renderer, seed: int) -> Searched:
    """The audit's part on first answers, of at most `SAMPLE` rows drawn by the seed.

    Raises:
        DataError: The source cannot be read.
        CacheError: It is not what the rows were made of.
    """
    number = len(rows)
    if number > SAMPLE:
        rows = rows.select(sorted(random.Random(seed).sample(range(number), SAMPLE)))
    traces, num_undecided = _answered(rows, settings, renderer)
    return Searched(traces, number, summarise_first_answers(traces, num_undecided, seed), seed)


def _answered(rows: Dataset, settings: DataSettings, renderer: Renderer) -> tuple[list[Answered], int]:
    """Every row with its first answer, from the cache or found now; and how many comparisons broke the limits."""
    path = cache_root(settings) / "first_answers" / f"{_key(rows, renderer)}.json"
    if not path.exists():
        answered, num_undecided = settle(_located(rows, settings, renderer), settings.num_workers)
        found = {one.example_id: (one.source, one.position, one.sections.first_answer) for one in answered}
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f"{path.name}.{os.getpid()}")
        staged.write_text(json.dumps({"found": found, "num_undecided": num_undecided}), encoding="utf-8")
        staged.replace(path)
    known = json.loads(path.read_text(encoding="utf-8"))
    plain = rows.remove_columns("input_ids").with_format(None)
    return [_of_row(row, known["found"]) for row in plain], known["num_undecided"]


def _of_row(row: Any, found: dict[str, tuple[GoldSource, int | None, int | None]]) -> Answered:  # Any: an Arrow row
    source, position, last = found[row["example_id"]]
    sections = replace(sections_of(row), first_answer=last)
    return Answered(row["place"], row["example_id"], row["question_id"], sections, source, position)


def _located(rows: Dataset, settings: DataSettings, renderer: Renderer) -> list[Located]:
    """The rows' traces, searched, one for each distinct row."""
    ids, places = set(rows["example_id"][:]), set(rows["place"][:])
    found = examine_all(_at(settings, places), Locator(renderer), settings.num_workers)
    by_id = {one.example_id: one for one in found if isinstance(one, Located) and one.example_id in ids}
    if len(by_id) < len(ids):
        raise CacheError(
            f"{settings.train.path}: {len(ids) - len(by_id)} of {len(ids)} prepared rows are not in it; "
            "it has changed meanwhile, so start again"
        )
    return list(by_id.values())


def _at(settings: DataSettings, places: set[str]) -> Iterator[Trace]:
    """The traces at some places of the training source."""
    for item in read_traces(settings.train):
        if not isinstance(item, Refusal) and item.place in places:
            yield item


def _key(rows: Dataset, renderer: Renderer) -> str:
    """Hash of rows, their right answers, the renderer and the rules' own code."""
    parts: Sequence[str] = (_rules(), renderer.fingerprint, *rows["example_id"][:], *map(str, rows["gold"][:]))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


@functools.cache
def _rules() -> str:
    """Hash of the code that finds first answers."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
