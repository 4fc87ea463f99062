"""What the files of runs show: the curves of their training, and samples of the uncut and a cut student side by side.

Curves come from `metrics.jsonl`. Of the samples few pairs are shown, chosen by a rule that favours no outcome: in turn
one on which only the uncut student was right, one on which only the cut student was, one on which neither was, one on
which both were; of each kind first the pair whose answers differ most in length.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from leadspan.errors import RunError
from leadspan.evaluation.result import EvalResult
from leadspan.report.inputs import NamedRun
from leadspan.report.rows import Frontier
from leadspan.results import METRICS_FILE, check_written, written_fault
from leadspan.settings import Count, Settings

MEASURES = {
    "divergence": "Divergence (nat)",
    "cross_entropy": "Cross-entropy (nat)",
    "student_entropy": "Student's entropy (nat)",
    "teacher_entropy": "Teacher's entropy (nat)",
    "teacher_nll": "Teacher's NLL of the data (nat)",
    "agreement": "Agreement (share of positions)",
}
"""Column of `metrics.jsonl` to its name on the page: means over positions, defined in docs/losses.md."""
NUM_TENTHS = 10
MAX_POINTS = 100
"""Points that are drawn of a longer curve, evenly spaced, with the first and the last: they keep the page small."""

MeasuredOn = Literal["training batches", "validation set"]
_T = TypeVar("_T")
_LINE = TypeAdapter(dict[str, Any])
_STEP = TypeAdapter(Annotated[int, Field(strict=True, ge=0, lt=2**63)])
# No truth value, although JSON's true is an int of Python; what is not finite is shown as missing.
_FINITE = AfterValidator(lambda value: value if value is None or math.isfinite(value) else None)
_FIGURE = TypeAdapter(Annotated[float | None, Field(strict=True), _FINITE])
# Such as `divergence/cot`, `eval_divergence/tenth_3`; all other keys of a log line are of no section.
_KEY = re.compile(r"(?P<validation>eval_)?(?P<measure>[a-z_]+)/(?P<group>[a-z]+|tenth_\d)")


class RunCurves(Settings):
    """The metrics of one run by section and by tenth of the uncut conversation, on one kind of data.

    On training batches each value is a mean since the previous log line, over the tokens that the policy keeps; on the
    validation set it is a mean over full sequences.
    """

    label: str
    """Label of the run."""
    policy: str
    """The condition, without the seed."""
    measured_on: MeasuredOn
    """Training batches as cut, or uncut validation sequences."""
    divergence_kind: str
    """`loss.divergence.kind` of the recipe, in words: which divergence it is."""
    steps: list[int]
    """Optimiser steps of the log lines."""
    sections: dict[str, dict[str, list[float | None]]]
    """Metric to section to value at each step; null where no position of that section had a weight."""
    tenths: dict[str, list[float | None]]
    """Metric to its ten values at the last step, from the first tenth of the conversation to the last."""


def run_curves(named: Sequence[NamedRun]) -> tuple[list[RunCurves], list[str]]:
    """The curves of every run that was trained against a teacher, and a sentence for each damaged file."""
    curves: list[RunCurves] = []
    refused: list[str] = []
    for entry in named:
        path = entry.directory / METRICS_FILE
        if entry.run.train is None or not path.exists():
            continue
        try:
            lines = read_metrics(path)
        except RunError as error:
            refused.append(f"{entry.label}: no curves: {error}")
            continue
        # Runs without a teacher log no divergence, and have nothing to compare here.
        of_run = [_curves(entry, lines, kind) for kind in get_args(MeasuredOn)]
        curves += [curve for curve in of_run if "divergence" in curve.sections]
    return curves, refused


def read_metrics(path: Path) -> list[tuple[int, dict[str, float | None]]]:
    """The step and the values of every log line of a run; values that are not finite become null.

    Raises:
        RunError: The file is damaged or cannot be read, or a line is no log line.
    """
    check_written(path)  # a figure from a damaged file would look like any other
    remedy = "repair the file, or remove it to report without it"
    steps, number = list[tuple[int, dict[str, float | None]]](), 0
    try:
        if not path.is_file():
            raise RunError(f"{path}: is not a file; {remedy}")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  # the number of the line that fails
                values = _LINE.validate_json(line)
                figures = {key: _FIGURE.validate_python(value) for key, value in values.items() if _KEY.fullmatch(key)}
                steps.append((_STEP.validate_python(values["step"]), figures))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, OverflowError):
        raise RunError(f"{path}:{number}: no log line of a run; {remedy}") from None
    return steps


def thinned(lines: Sequence[_T]) -> list[_T]:
    """At most `MAX_POINTS` lines, evenly spaced, with the first and the last."""
    # Rounding the places of even steps keeps both ends exact.
    if len(lines) <= MAX_POINTS:
        return list(lines)
    return [lines[round(i * (len(lines) - 1) / (MAX_POINTS - 1))] for i in range(MAX_POINTS)]


def _curves(
    entry: NamedRun, lines: Iterable[tuple[int, Mapping[str, float | None]]], measured_on: MeasuredOn
) -> RunCurves:
    parsed: list[tuple[int, dict[tuple[str, str], float | None]]] = []
    for step, line in lines:
        matches = [match for match in map(_KEY.fullmatch, line) if match and match["measure"] in MEASURES]
        of_kind = [match for match in matches if bool(match["validation"]) == (measured_on == "validation set")]
        # Lines of the other kind of data have no figures here, and would thin out those that do.
        if of_kind:
            parsed.append((step, {(match["measure"], match["group"]): line[match.string] for match in of_kind}))
    shown = thinned(parsed)
    sections: dict[str, dict[str, list[float | None]]] = {}
    for measure, group in dict.fromkeys(pair for _, figures in shown for pair in figures):
        if not group.startswith("tenth_"):
            sections.setdefault(measure, {})[group] = [figures.get((measure, group)) for _, figures in shown]
    kind = entry.run.recipe.loss.divergence.kind if entry.run.recipe else ""
    # The tenths are compared at one moment of training; the last log line is the one that all runs have.
    last = shown[-1][1] if shown else {}
    return RunCurves(
        label=entry.label,
        policy=entry.policy,
        measured_on=measured_on,
        divergence_kind=kind.replace("_", " ").replace("kl", "KL"),
        steps=[step for step, _ in shown],
        sections=sections,
        tenths={name: [last.get((name, f"tenth_{i}")) for i in range(NUM_TENTHS)] for name in sections},
    )


Outcome = Literal["only the uncut right", "only the cut right", "both wrong", "both right"]
OUTCOMES: dict[tuple[bool, bool], Outcome] = {
    (True, False): "only the uncut right",
    (False, True): "only the cut right",
    (False, False): "both wrong",
    (True, True): "both right",
}
"""Whether the uncut and the cut student were right, to the outcome, in the order in which pairs are chosen."""
HEAD_CHARS, TAIL_CHARS = 3000, 2000
"""Characters shown of a longer text: the beginning, where two students diverge, and the end, where answers are."""


class Sample(Settings):
    """One answer of one student."""

    verdict: str
    """Strict outcome: right, wrong, no_answer, unparsed or timeout."""
    extracted: str | None
    """The graded answer, as written; null where none was recognised."""
    num_tokens: int
    """New tokens."""
    finish_reason: str
    """`stop` for an end-of-turn token, `length` for the cap."""
    text: str
    """The text, or the first `HEAD_CHARS` characters of a longer one."""
    end: str = ""
    """The last `TAIL_CHARS` characters of a longer text; else empty."""
    num_left_out: int = 0
    """Number of characters between the two."""
    num_shared: int = 0
    """Length of the common prefix of both students' texts, in characters."""


class Pair(Settings):
    """One problem, answered by both students; samples with the same number have the same seed."""

    problem_id: str
    """Identifier of the problem."""
    sample: int
    """Number of the sample."""
    prompt: str
    """The rendered prompt, or its last `HEAD_CHARS` characters."""
    gold: str
    """The right answer."""
    outcome: Outcome
    """Which of the two was right."""
    uncut: Sample
    """The answer of the student trained on whole traces."""
    cut: Sample
    """The answer of the student trained on cut traces."""


class Comparison(Settings):
    """An uncut and a cut student on one task."""

    task: str
    """Task name."""
    uncut: str
    """Label of the student trained on whole traces."""
    cut: str
    """Label of the cut student."""
    policy: str
    """Policy of the cut student, without the seed."""
    counts: dict[Outcome, int]
    """Number of pairs of samples by which of the two students was right."""
    pairs: list[Pair]
    """The pairs to show."""


def comparisons(
    named: Sequence[NamedRun], frontiers: Sequence[Frontier], per_policy: int
) -> tuple[list[Comparison], list[str]]:
    """One comparison for each cut policy and task, of the first run that can be compared; and the damaged files.

    A run is compared with the uncut run of its seed, else with the first uncut run; `per_policy` pairs are shown.
    """
    by_label = {entry.label: entry for entry in named}
    # Seeds of a policy would show much the same pairs, so the first that can be compared stands for all.
    compared: dict[tuple[str, str], Comparison] = {}
    refused: list[str] = []
    for task, row, full in ((f.task, row, f.row(row.reference)) for f in frontiers for row in f.students):
        key, of_full = (row.policy, task), list(full.single_runs if full else ())
        for run in row.single_runs if of_full else ():
            # Samples of one number have the same seed in runs of one seed, so that only the students differ.
            reference = next((uncut for uncut in of_full if uncut.seeds == run.seeds), of_full[0])
            cut, uncut = by_label[run.label], by_label[reference.label]
            (result,), (of_uncut,) = run.evaluations, reference.evaluations
            if key in compared or not (uncut.samples_of(of_uncut) and cut.samples_of(result)):
                continue
            try:
                compared[key] = _comparison(uncut, of_uncut, cut, result, per_policy)
            except RunError as error:
                refused.append(f"{error}; evaluate it again, or report with --samples 0")
    return list(compared.values()), list(dict.fromkeys(refused))  # that of an uncut student is met for every policy


class _Line(Settings):
    """The fields of a sample that the comparison reads."""

    model_config = ConfigDict(extra="ignore")  # samples have many more fields, which later versions may change

    problem_id: str
    sample: Count
    weights_hash: str
    prompt: str
    gold: str
    text: str
    num_tokens: Count
    finish_reason: str
    strict: str
    extracted: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a file of samples, whose text is read again where it is shown: files may be large."""

    is_right: bool
    num_tokens: int
    path: Path
    offset: int

    def line(self) -> _Line:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return _Line.model_validate_json(file.readline())


def _index(entry: NamedRun, result: EvalResult) -> dict[tuple[str, int], _Entry]:
    path, weights, entries, offset, number = entry.directory / str(result.samples_file), result.weights_hash, {}, 0, 0
    if wrong := written_fault(path):
        raise RunError(f"{path}: {wrong}")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  # named in the error below
                row = _Line.model_validate_json(line)
                if row.weights_hash != weights:
                    whose = f"the results of {entry.label} are of weights {weights}"
                    raise RunError(f"{path}: drawn from weights {row.weights_hash}, but {whose}")
                entries[row.problem_id, row.sample] = _Entry(row.strict == "right", row.num_tokens, path, offset)
                offset += len(line)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError:
        raise RunError(f"{path}: line {number} is no graded sample of this version") from None
    return entries


def _comparison(uncut: NamedRun, of_uncut: EvalResult, cut: NamedRun, of_cut: EvalResult, number: int) -> Comparison:
    # Both files are read in full here, so that damage anywhere in them is found before a pair is shown.
    first_index, second_index = _index(uncut, of_uncut), _index(cut, of_cut)
    pairs = {key: (first_index[key], second_index[key]) for key in first_index.keys() & second_index.keys()}
    longer = {key: abs(first.num_tokens - second.num_tokens) for key, (first, second) in pairs.items()}
    kinds: dict[Outcome, list[tuple[str, int]]] = {outcome: [] for outcome in OUTCOMES.values()}
    # By problem among equals: the same runs always show the same pairs.
    for key in sorted(pairs, key=lambda key: (-longer[key], key)):
        first, second = pairs[key]
        kinds[OUTCOMES[first.is_right, second.is_right]].append(key)
    chosen = [key for keys in zip_longest(*kinds.values()) for key in keys if key is not None]
    shown: list[Pair] = []
    for entries in (pairs[key] for key in chosen[:number]):
        first, second = (entry.line() for entry in entries)
        shared = len(os.path.commonprefix([first.text, second.text]))  # noqa: RUF071  # texts, not paths
        shown.append(
            Pair(
                problem_id=second.problem_id,
                sample=second.sample,
                prompt=second.prompt[-HEAD_CHARS:],  # the end, where the problem is: a system prompt comes before it
                gold=second.gold,
                outcome=OUTCOMES[entries[0].is_right, entries[1].is_right],
                uncut=_sample(first, shared),
                cut=_sample(second, shared),
            )
        )
    counts: dict[Outcome, int] = {outcome: len(keys) for outcome, keys in kinds.items()}
    return Comparison(task=of_cut.task, uncut=uncut.label, cut=cut.label, policy=cut.policy, counts=counts, pairs=shown)


def _sample(row: _Line, shared: int) -> Sample:
    # A text up to the length of both ends together is shown whole.
    num_left_out = max(0, len(row.text) - HEAD_CHARS - TAIL_CHARS)
    head = row.text[:HEAD_CHARS] if num_left_out else row.text
    return Sample(
        verdict=row.strict,
        extracted=row.extracted,
        num_tokens=row.num_tokens,
        finish_reason=row.finish_reason,
        text=head,
        end=row.text[-TAIL_CHARS:] if num_left_out else "",
        num_left_out=num_left_out,
        num_shared=min(shared, len(head)),
    )
