"""Break points of a study of the worlds beside what the derivations say they should be."""

from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
from derivations import problems_of
from numpy.typing import NDArray

from leadspan.data.truncation import Lead
from leadspan.models.reading import load_tokenizer
from leadspan.report.break_points import BreakPoint, break_points, crossing, measured_text
from leadspan.report.frontier import Frontier
from leadspan.report.rows import Row
from leadspan.statistics.resampling import USUAL, resample
from leadspan.tables import MISSING, percent


def break_point_section(accuracy: list[Frontier], derivation: list[Frontier], target: float) -> str:
    """A table of all families of leads, and whether the derivation's break points differ as predicted."""
    lines = [
        "## Does the break point follow (|P| + f |CoT|) / T?",
        "f: share of the chain of thought through the first statement of the answer, by the world itself; P, "
        "CoT, T: mean tokens of a trace; measured: the smallest p from which on a cut keeps "
        f"{percent(target)} of what the uncut student does. The intervals end at tested p.",
        "| traces | f | P | CoT | T | predicted | of the derivation | of accuracy |\n|:--|--:|--:|--:|--:|--:|:--|:--|",
    ]
    found: list[tuple[str, float | None, NDArray[np.float64]]] = []
    for frontier, derived in zip(accuracy, derivation, strict=True):
        for by_accuracy, by_derivation in zip(
            lead_families(frontier, target), lead_families(derived, target), strict=True
        ):
            row = frontier.row(by_accuracy.rows[0])
            assert row is not None, "a break point has rows"
            name = f"{frontier.task}, `{row.runs[0].name.replace(f' {row.p:g}', '', 1)}`"
            sizes, predicted = _predicted(row)
            place = MISSING if predicted is None else f"{predicted:.2f}"
            cells = [name, *sizes, place, measured_text(by_derivation), measured_text(by_accuracy)]
            lines[-1] += f"\n| {' | '.join(cells)} |"
            found.append((name, predicted, _drawn(by_derivation, derived, target)))
    return "\n\n".join([*lines, *_moves(found)])


def lead_families(frontier: Frontier, target: float) -> list[BreakPoint]:
    """Families of leads, and of mixes of leads, with at least two p."""
    found = [point for point in break_points(frontier, target) if len(point.tested) > 1]
    return [
        point
        for point, row in ((point, frontier.row(point.rows[0])) for point in found)
        if row and row.runs[0].policy is not None and isinstance(row.runs[0].policy.inner, Lead)
    ]


def _moves(found: list[tuple[str, float | None, NDArray[np.float64]]]) -> list[str]:
    """How far apart the break points of families with different predictions are, measured and predicted."""
    sentences = []
    for (one, first, drawn), (other, second, drawn_too) in pairwise(found):
        if first is None or second is None or abs(second - first) < 0.01:
            continue
        differences = drawn_too - drawn
        tails = (1 - USUAL.level) / 2, (1 + USUAL.level) / 2
        low, high = np.quantile(differences, tails, method="inverted_cdf")
        sentences.append(
            f"From {one} to {other} the derivation's break point moves by {np.median(differences):+.2f} "
            f"[{low:+.2f}, {high:+.2f}], predicted {second - first:+.2f} (on straight lines between tested p)."
        )
    return sentences


def _drawn(point: BreakPoint, frontier: Frontier, target: float) -> NDArray[np.float64]:
    """Where retention meets the target in every resample; the smallest tested p where every tested one keeps it."""
    rows = [frontier.row(label) for label in (*point.rows, point.reference)]
    scores = {row.label: [found.correct for found in row.evaluations] for row in rows if row is not None}
    draws = [np.maximum(model.draws, 0.0) for model in resample(scores, USUAL)]
    kept = np.stack([*(one / np.maximum(draws[-1], 1e-12) for one in draws[:-1]), np.ones_like(draws[-1])])
    places, _, _ = crossing(np.array([*point.tested, 1.0]), kept, target)
    return np.where(np.isnan(places), point.tested[0], places)


def _predicted(row: Row) -> tuple[list[str], float | None]:
    """F and mean tokens of the sections as they are shown, and LSP*."""
    cut, recipe = row.runs[0].cut, row.runs[0].recipe
    assert cut is not None and recipe is not None, "students have counts and recipes"
    prompt, cot = (cut.section_tokens_before[name] / cut.num_examples for name in ("prompt", "cot"))
    total = cut.tokens_before / cut.num_examples
    first = _first_answer(Path(recipe.data.train.path), recipe.tokenizer_path)
    share = MISSING if first is None else f"{first / cot:.2f}"
    shown = [share, f"{prompt:.0f}", f"{cot:.0f}", f"{total:.0f}"]
    return shown, None if first is None else (prompt + first) / total


def _first_answer(traces: Path, tokenizer: str) -> float | None:
    """Mean tokens of the chain of thought, its opening tag included, through the first statement of the answer."""
    problems = problems_of(traces.parent, traces.stem, "train")
    texts = [f"<think>\n{problem.derivation}" for problem in problems if problem.first_answer is not None]
    tokens = load_tokenizer(tokenizer)(texts)["input_ids"] if texts else []
    return fmean(map(len, tokens)) if texts else None
