"""The uncut student and a cut one on the same problems, from the samples that the runs kept.

Shown are few pairs, chosen by a rule that looks for no outcome: in turn one on which only the uncut student was
right, one on which only the cut one was, one with neither, one with both; of each kind first the pair whose answers
differ most in length.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from leadspan.errors import RunError
from leadspan.results import EvalResult
from leadspan.settings import Settings
from leadspan.study.report.gathered import NamedRun

Outcome = Literal["only the uncut right", "only the cut right", "both wrong", "both right"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""In the order in which pairs are chosen."""
HEAD_CHARS, TAIL_CHARS = 3000, 2000
"""What is kept of a longer text: where two students part, and where an answer would stand."""
Key = tuple[str, int]


class Sample(Settings):
    """What one student wrote."""

    verdict: str
    """Strict outcome: right, wrong, no_answer, unparsed or timeout."""
    extracted: str | None
    """The answer behind the verdict, as written."""
    num_tokens: int
    """New tokens."""
    finish_reason: str
    """`stop` for an end-of-turn token, `length` for the cap."""
    text: str
    """The text, or its first `HEAD_CHARS` characters."""
    end: str = ""
    """The last `TAIL_CHARS` characters of a longer text."""
    num_left_out: int = 0
    """Characters between the two."""
    num_shared: int = 0
    """Characters of `text` that both students wrote alike from the beginning."""


class Pair(Settings):
    """One problem, answered by both students; samples of the same number have the same seed."""

    problem_id: str
    """The problem."""
    sample: int
    """Number of the sample."""
    prompt: str
    """Prompt as rendered, or its last `HEAD_CHARS` characters."""
    gold: str
    """The right answer."""
    outcome: Outcome
    """Which of the two was right."""
    uncut: Sample
    """The student trained on whole traces."""
    cut: Sample
    """The other."""


class Comparison(Settings):
    """An uncut and a cut student on one task."""

    task: str
    """Task name."""
    uncut: str
    """Label of the student trained on whole traces."""
    cut: str
    """Label of the cut student."""
    policy: str
    """Its policy, without the seed."""
    counts: dict[Outcome, int]
    """Pairs of samples by which of the two was right."""
    pairs: list[Pair]
    """Those chosen to be shown."""


def comparisons(named: Sequence[NamedRun], references: Mapping[str, str], per_policy: int) -> list[Comparison]:
    """One comparison for each cut policy and task, of its first run that can be compared.

    Args:
        named: All runs.
        references: Label of a cut student to the label of the uncut one it is compared with.
        per_policy: Pairs to show of each.

    Raises:
        RunError: Samples cannot be read, or were drawn from other weights than the results.
    """
    by_label = {entry.label: entry for entry in named}
    found: dict[tuple[str, str], Comparison] = {}
    for label, reference in references.items():
        cut, uncut = by_label[label], by_label[reference]
        uncut_results = {result.task: result for result in uncut.run.evaluations}
        for result in cut.run.evaluations:
            key, beside = (cut.policy, result.task), uncut_results.get(result.task)
            if key not in found and beside and not _lacks_samples(uncut, beside) and not _lacks_samples(cut, result):
                found[key] = _comparison(_Drawn(uncut, beside), _Drawn(cut, result), per_policy)
    return list(found.values())


def absent_samples(named: Sequence[NamedRun]) -> list[str]:
    """One sentence for each run whose samples are not beside its results."""
    return [
        f"{entry.label}: no samples on {result.task} beside its results"
        for entry in named
        for result in entry.run.evaluations
        if _lacks_samples(entry, result)
    ]


def _lacks_samples(entry: NamedRun, result: EvalResult) -> bool:
    return result.samples_file is None or not (entry.directory / result.samples_file).exists()


@dataclass(frozen=True, slots=True)
class _Entry:
    is_right: bool
    num_tokens: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The samples of one run on one task. Files may be large: they are read twice, and only what is shown is kept."""

    entry: NamedRun
    result: EvalResult

    @property
    def path(self) -> Path:
        return self.entry.directory / str(self.result.samples_file)

    def index(self) -> dict[Key, _Entry]:
        return dict(self._entries())

    def at(self, offset: int) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def _entries(self) -> Iterator[tuple[Key, _Entry]]:
        try:
            with self.path.open("rb") as file:
                offset = 0
                for line in file:
                    row = json.loads(line)
                    if row["weights_hash"] != self.result.weights_hash:
                        raise RunError(f"{self.path}: drawn from weights {row['weights_hash']}, but {self._remedy()}")
                    entry = _Entry(row["strict"] == "right", int(row["num_tokens"]), offset)
                    yield (str(row["problem_id"]), int(row["sample"])), entry
                    offset += len(line)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror}); {self._remedy()}") from None
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.path}: holds no graded samples of this version; {self._remedy()}") from None

    def _remedy(self) -> str:
        results = f"the results of {self.entry.label} are of weights {self.result.weights_hash}"
        return f"{results}; evaluate it again, or report with --samples 0"


def _comparison(uncut: _Drawn, cut: _Drawn, number: int) -> Comparison:
    left, right = uncut.index(), cut.index()
    kinds: dict[Outcome, list[Key]] = {outcome: [] for outcome in OUTCOMES}
    for key in left.keys() & right.keys():
        kinds[_outcome(left[key], right[key])].append(key)
    chosen = _chosen(kinds, {key: abs(left[key].num_tokens - right[key].num_tokens) for key in left.keys() & right})
    return Comparison(
        task=cut.result.task,
        uncut=uncut.entry.label,
        cut=cut.entry.label,
        policy=cut.entry.policy,
        counts={outcome: len(keys) for outcome, keys in kinds.items()},
        pairs=[
            _pair(outcome, uncut.at(left[key].offset), cut.at(right[key].offset)) for outcome, key in chosen[:number]
        ],
    )


def _outcome(uncut: _Entry, cut: _Entry) -> Outcome:
    match uncut.is_right, cut.is_right:
        case True, False:
            return "only the uncut right"
        case False, True:
            return "only the cut right"
        case False, False:
            return "both wrong"
        case _:
            return "both right"


def _chosen(kinds: Mapping[Outcome, list[Key]], difference: Mapping[Key, int]) -> list[tuple[Outcome, Key]]:
    """Kinds in turn; in each the greatest difference in length first, then the first by problem and number."""
    ordered = {kind: sorted(keys, key=lambda key: (-difference[key], key)) for kind, keys in kinds.items()}
    chosen: list[tuple[Outcome, Key]] = []
    for turn in range(max(map(len, ordered.values()))):
        for kind in OUTCOMES:
            chosen.extend((kind, key) for key in ordered[kind][turn : turn + 1])
    return chosen


def _pair(outcome: Outcome, uncut: Mapping[str, Any], cut: Mapping[str, Any]) -> Pair:
    shared = _common_length(uncut["text"], cut["text"])
    return Pair(
        problem_id=cut["problem_id"],
        sample=cut["sample"],
        prompt=cut["prompt"][-HEAD_CHARS:],
        gold=cut["gold"],
        outcome=outcome,
        uncut=_sample(uncut, shared),
        cut=_sample(cut, shared),
    )


def _sample(row: Mapping[str, Any], shared: int) -> Sample:
    text = row["text"]
    left_out = max(0, len(text) - HEAD_CHARS - TAIL_CHARS)
    kept = text[:HEAD_CHARS] if left_out else text
    return Sample(
        verdict=row["strict"],
        extracted=row["extracted"],
        num_tokens=row["num_tokens"],
        finish_reason=row["finish_reason"],
        text=kept,
        end=text[-TAIL_CHARS:] if left_out else "",
        num_left_out=left_out,
        num_shared=min(shared, len(kept)),
    )


def _common_length(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
