"""The uncut student and a cut student on the same problems, from the samples that the runs stored.

Few pairs are shown, chosen by a rule that favours no outcome: in turn one on which only the uncut student was right,
one on which only the cut student was, one on which neither was, one on which both were; of each kind first the pair
whose answers differ most in length.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

from leadspan.errors import RunError
from leadspan.evaluation.result import EvalResult
from leadspan.report.inputs import NamedRun
from leadspan.report.rows import Frontier
from leadspan.results import written_fault
from leadspan.settings import Count, Settings

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
Key = tuple[str, int]
"""Problem id and number of the sample."""


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

    A run is compared with the uncut run of its seed, else with the first uncut run.

    Args:
        named: All runs.
        frontiers: The comparison of all runs, with the uncut run of each row.
        per_policy: Number of pairs to show of each policy.
    """
    by_label = {entry.label: entry for entry in named}
    references: dict[str, str] = {}
    for frontier in frontiers:
        for row in frontier.students:
            if full := frontier.row(row.reference):
                # Samples of one number have the same seed in runs of one seed, so that only the students differ.
                by_seed = {single.seeds[0]: single.label for single in full.single_runs}
                first = next(iter(by_seed.values()))
                references |= {single.label: by_seed.get(single.seeds[0], first) for single in row.single_runs}
    # Seeds of a policy would show much the same pairs, so the first that can be compared stands for all.
    compared: dict[tuple[str, str], Comparison] = {}
    refused: dict[Path, str] = {}
    for label, reference in references.items():
        cut, uncut = by_label[label], by_label[reference]
        uncut_results = {result.task: result for result in uncut.run.evaluations}
        for result in cut.run.evaluations:
            key, of_uncut = (cut.policy, result.task), uncut_results.get(result.task)
            if key in compared or of_uncut is None or lacks_samples(uncut, of_uncut) or lacks_samples(cut, result):
                continue
            sides = _Drawn(uncut, of_uncut), _Drawn(cut, result)
            # One damaged file of the uncut student would be named again for every policy.
            if any(side.path in refused for side in sides):
                continue
            try:
                compared[key] = _comparison(*sides, per_policy)
            except DamagedSamples as error:
                refused[error.path] = str(error)
    return list(compared.values()), list(refused.values())


def lacks_samples(entry: NamedRun, result: EvalResult) -> bool:
    """Whether the samples of a result are missing: they are large, and often not copied along with a run."""
    return result.samples_file is None or not os.path.isfile(entry.directory / result.samples_file)


class DamagedSamples(RunError):
    """A file of samples that cannot be read, or that belongs to other results."""

    def __init__(self, path: Path, reason: str):
        self.path = path
        super().__init__(f"{path}: {reason}; evaluate it again, or report with --samples 0")


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
    """One line of a file of samples."""

    is_right: bool
    num_tokens: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The samples of one run on one task; files may be large, so texts are read only where they are shown."""

    entry: NamedRun
    result: EvalResult

    @property
    def path(self) -> Path:
        return self.entry.directory / str(self.result.samples_file)

    def index(self) -> dict[Key, _Entry]:
        wrong = written_fault(self.path)
        if wrong:
            raise DamagedSamples(self.path, wrong)
        weights, entries, offset, number = self.result.weights_hash, {}, 0, 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):  # noqa: B007  # named in the error below
                    row = _Line.model_validate_json(line)
                    if row.weights_hash != weights:
                        whose = f"the results of {self.entry.label} are of weights {weights}"
                        raise DamagedSamples(self.path, f"drawn from weights {row.weights_hash}, but {whose}")
                    entries[row.problem_id, row.sample] = _Entry(row.strict == "right", row.num_tokens, offset)
                    offset += len(line)
        except OSError as error:
            raise DamagedSamples(self.path, f"cannot be read ({error.strerror})") from None
        except ValidationError:
            raise DamagedSamples(self.path, f"line {number} is no graded sample of this version") from None
        return entries

    def at(self, offset: int) -> _Line:
        # The first pass recorded the offset of each line, so that this pass reads only the chosen lines.
        with self.path.open("rb") as file:
            file.seek(offset)
            return _Line.model_validate_json(file.readline())


def _comparison(uncut: _Drawn, cut: _Drawn, number: int) -> Comparison:
    # Both files are read in full here, so that damage anywhere in them is found before a pair is shown.
    of_uncut, of_cut = uncut.index(), cut.index()
    pairs = {key: (of_uncut[key], of_cut[key]) for key in of_uncut.keys() & of_cut.keys()}
    kinds: dict[Outcome, list[Key]] = {outcome: [] for outcome in OUTCOMES.values()}
    for key, (first, second) in pairs.items():
        kinds[OUTCOMES[first.is_right, second.is_right]].append(key)
    difference = {key: abs(first.num_tokens - second.num_tokens) for key, (first, second) in pairs.items()}
    # By problem among equals: the same runs always show the same pairs.
    ordered: dict[Outcome, list[Key]] = {
        kind: sorted(keys, key=lambda key: (-difference[key], key)) for kind, keys in kinds.items()
    }
    turns = range(max(map(len, kinds.values())))
    chosen: list[tuple[Outcome, Key]] = [
        (kind, key) for turn in turns for kind, keys in ordered.items() for key in keys[turn : turn + 1]
    ]
    shown: list[Pair] = []
    for outcome, key in chosen[:number]:
        first, second = uncut.at(pairs[key][0].offset), cut.at(pairs[key][1].offset)
        shared = len(os.path.commonprefix([first.text, second.text]))  # noqa: RUF071  # texts, not paths
        shown.append(
            Pair(
                problem_id=second.problem_id,
                sample=second.sample,
                prompt=second.prompt[-HEAD_CHARS:],  # the end, where the problem is: a system prompt comes before it
                gold=second.gold,
                outcome=outcome,
                uncut=_sample(first, shared),
                cut=_sample(second, shared),
            )
        )
    return Comparison(
        task=cut.result.task,
        uncut=uncut.entry.label,
        cut=cut.entry.label,
        policy=cut.entry.policy,
        counts={outcome: len(keys) for outcome, keys in kinds.items()},
        pairs=shown,
    )


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
