"""Examples: a row under a policy and a supervision, as arrays ready for a batch."""

import itertools
import logging
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from leadspan.data.prepare import sections_of
from leadspan.data.questions import column_blocks
from leadspan.data.supervision import (
    APPENDED,
    SECTION_NAMES,
    Layout,
    Layouts,
    RandomTokens,
    Supervision,
    draw_tokens,
    lay_out,
)
from leadspan.data.truncation import Cut, Policy, Sections, cut_example
from leadspan.data.truncation.policy import CutCounts, of_stages
from leadspan.errors import DataError

logger = logging.getLogger(__name__)

_MISSING_STEPS = "set data.rendering.step_delimiter to what stands between the steps of a chain of thought"
NO_WEIGHT = "no weighted position is left"
NO_COUNTS = CutCounts(num_examples=0, num_kept=0, tokens_before=0, tokens_after=0, weighted_tokens=0)
ROWS_AT_ONCE = 1_000
"""Rows whose borders are in memory at once."""


class BorderBlock(NamedTuple):
    """Some rows of a split: the number of the first, and of each the section borders, the hash, and the teacher."""

    start: int
    borders: list[Sections]
    ids: list[str]
    teachers: list[str]


def border_blocks(rows: Dataset, first_answers: Sequence[int | None] | None = None) -> Iterator[BorderBlock]:
    """All rows, some at a time: all borders take more memory than all layouts.

    `first_answers` are `Sections.first_answer` of each row.
    """
    columns = ["prompt_end", "think_end", "cot_end", "num_tokens", "stop", "steps", "example_id", "teacher"]
    selected = rows.select_columns(columns)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        table = selected[start : start + ROWS_AT_ONCE]
        ids, teachers = table.pop("example_id"), table.pop("teacher")
        if first_answers is not None:
            table["first_answer"] = first_answers[start : start + ROWS_AT_ONCE]
        borders = [sections_of(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)]
        yield BorderBlock(start, borders, ids, teachers)


@dataclass(frozen=True, slots=True)
class Example:
    """One training example of `n` tokens after cut and supervision."""

    input_ids: np.ndarray  # int64, [n]
    weights: np.ndarray  # of predicting each token from those before it, float32, [n]; `weights[0]` is 0
    section_ids: np.ndarray  # int8, [n]
    tenths: np.ndarray  # tenth of the uncut conversation each token stands in, 0 to 9, int8, [n]
    example_id: str  # hash of the uncut token ids
    teacher: str = ""  # which of several teachers it is learnt from; "" where the traces name none


class Examples(Sequence[Example]):
    """The rows of a split under one policy and one supervision; arrays are made when an example is asked for.

    Under a policy that changes over training every row has a cut for each of `num_stages` stages: row `i` in stage `k`
    is example `k * len(rows) + i`, of length 0 where that stage leaves it no weighted position. `row_numbers` are
    those of the given rows that are left in `rows`.
    """

    def __init__(
        self,
        rows: Dataset,
        policy: Policy,
        supervision: Supervision,
        stop_token_id: int,
        seed: int,
        name: str,
        first_answers: Sequence[int | None] | None = None,
    ):
        """Cut and weigh every row, as `prepare` writes them, by its section borders alone.

        A policy may append `stop_token_id`, and one that needs `first_answers` finds there `Sections.first_answer` of
        each row. `name` is what the rows are, in messages: `training set`.

        Raises:
            DataError: A stage leaves no example a weighted position.
        """
        assert first_answers is not None or not policy.needs_first_answer, "it would take every answer for absent"
        self.stop_token_id, self.seed = stop_token_id, seed
        selection = supervision.token_selection
        self.drawn = selection if isinstance(selection, RandomTokens) else None
        self.num_stages = len(policy.stages)
        stages = [Layouts() for _ in policy.stages]
        counts = [NO_COUNTS for _ in policy.stages]
        # Row numbers in 4 bytes each; a list of int objects would take eight times as much.
        self.row_numbers = array("i")
        self.teachers: list[str] = []
        for block in border_blocks(rows, first_answers):
            laid_out: list[list[Layout]] = []
            for number, stage in enumerate(policy.stages):
                cuts = [cut_example(stage, *row, seed) for row in zip(block.borders, block.ids, strict=True)]
                laid_out.append([lay_out(*row, supervision) for row in zip(block.borders, cuts, strict=True)])
                counts[number] = counts[number].plus(count_cuts(block.borders, cuts, laid_out[-1]))
            for i, of_row in enumerate(zip(*laid_out, strict=True)):
                # A row stays if any stage trains on it, so that row `i` has the same index in every stage.
                if any(layout.segments for layout in of_row):
                    self.row_numbers.append(block.start + i)
                    # Interned: millions of rows name a few teachers.
                    self.teachers.append(sys.intern(block.teachers[i]))
                    for layouts, layout in zip(stages, of_row, strict=True):
                        layouts.append(layout)
        self.counts = of_stages(counts)
        _check_counts(name, policy, supervision, counts, self.counts)
        self.rows = rows.select(self.row_numbers).with_format("numpy", columns=["input_ids", "example_id"])
        # Stage after stage, which is the order that `plan_staged` counts on.
        self.layouts = stages[0]
        for layout in itertools.chain.from_iterable(stages[1:]):
            self.layouts.append(layout)
        self.teachers *= self.num_stages
        self.lengths = self.layouts.lengths

    @property
    def example_ids(self) -> Iterator[str]:
        """Hash of the uncut token ids of every example."""
        for _ in range(self.num_stages):
            for block in column_blocks(self.rows, "example_id"):
                yield from block

    def __len__(self) -> int:
        return len(self.layouts)

    @property
    def usable(self) -> list[int]:
        """Indices of the examples with tokens: a cut that changes over training may leave a trace empty in a stage."""
        return [i for i, length in enumerate(self.lengths) if length]

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        row, layout = self.rows[index % len(self.rows)], self.layouts[index]
        example_id = str(row["example_id"])
        runs = layout.segments
        ids = [row["input_ids"][s.start : s.end] for s in runs]
        weights = np.concatenate([np.full(s.end - s.start, s.weight, dtype=np.float32) for s in runs])
        weights[0] = 0.0  # nothing predicts the first token
        section_ids = [np.full(s.end - s.start, s.section, dtype=np.int8) for s in runs]
        positions = [np.arange(s.start, s.end) for s in runs]
        if self.drawn is not None:
            weights = draw_tokens(weights, self.drawn, example_id, self.seed)
        if layout.append_stop:
            ids.append(np.array([self.stop_token_id]))
            # Always learnt, whatever is drawn of the trace's own tokens.
            weights = np.append(weights, np.float32(1.0))
            section_ids.append(np.array([APPENDED], dtype=np.int8))
            # The appended token has no position of its own: it counts to the tenth of the token that it follows.
            positions.append(positions[-1][-1:])
        tenths = (10 * np.concatenate(positions) // len(row["input_ids"])).astype(np.int8)
        all_ids = np.concatenate(ids).astype(np.int64)
        return Example(all_ids, weights, np.concatenate(section_ids), tenths, example_id, self.teachers[index])


def _check_counts(
    name: str, policy: Policy, supervision: Supervision, by_stage: Sequence[CutCounts], counts: CutCounts
) -> None:
    """Refuse a stage that trains on nothing; warn where half of the examples have no step border to cut at."""
    for stage, of_stage in zip(policy.stages, by_stage, strict=True):
        if not of_stage.num_kept:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in of_stage.dropped.items())
            weights = f"prompt {supervision.prompt:g}, cot {supervision.cot:g}, answer {supervision.answer:g}"
            raise DataError(
                f"{name}: {stage.label} leaves no weighted position in any of {of_stage.num_examples} examples "
                f"(weights {weights}; {reasons}); keep more tokens or give a section that survives the cut a weight"
                + (f"; {_MISSING_STEPS}" if stage.needs_steps and of_stage.without_steps else "")
            )
    if policy.needs_steps and 2 * counts.without_steps >= counts.num_examples > 0:
        logger.warning(
            "%s: %s cuts between steps, but the chains of thought of %d of %d examples are one step each; %s",
            *(name, policy.label, counts.without_steps, counts.num_examples, _MISSING_STEPS),
        )


def count_cuts(borders: Sequence[Sections], cuts: Sequence[Cut], layouts: Sequence[Layout]) -> CutCounts:
    """Count what was kept, dropped and lost, from the borders of uncut sequences, their cuts and their layouts."""
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for sections, layout in zip(borders, layouts, strict=True):
        before["prompt"] += sections.prompt_end
        before["cot"] += sections.cot_end - sections.prompt_end
        before["answer"] += sections.num_tokens - sections.cot_end
        for s in layout.segments:
            after[SECTION_NAMES[s.section]] += s.end - s.start
        after["appended"] += layout.append_stop
        parts = {
            "question": (0, sections.prompt_end),
            "think_end": (sections.think_end, sections.cot_end),
            "answer": (sections.cot_end, sections.stop),
            "stop": (sections.stop, sections.stop if layout.append_stop else sections.stop + 1),
        }
        # Lost where a cut removes at least a part; an appended end of turn stands for the trace's own.
        for part, (start, end) in parts.items() if layout.segments else ():
            num_present = sum(max(0, min(end, s.end) - max(start, s.start)) for s in layout.segments)
            lost[part] += num_present != end - start
    reasons = [cut.dropped or NO_WEIGHT for cut, layout in zip(cuts, layouts, strict=True) if not layout.segments]
    return CutCounts(
        num_examples=len(layouts),
        num_kept=len(layouts) - len(reasons),
        dropped=dict(Counter(reasons)),
        tokens_before=before.total(),
        tokens_after=after.total(),
        weighted_tokens=sum(layout.num_weighted for layout in layouts),
        section_tokens_before=dict(before),
        section_tokens_after={name: count for name, count in after.items() if count},
        lost_question=lost["question"],
        lost_think_end=lost["think_end"],
        lost_answer=lost["answer"],
        lost_stop=lost["stop"],
        without_steps=sum(not sections.steps for sections in borders),
    )
