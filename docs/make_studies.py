"""Write the figures of a study's page from its runs: `python docs/make_studies.py STUDY_DIRECTORY PAGE.md`.

Run it where the study was run. What stands between the page's two markers is replaced; the rest is written by hand.
Every verdict is computed from paired intervals over problems and seeds and expects no outcome. Each is given twice: for
accuracy, and for the derivation alone (`docs/derivations.py`), which needs no ending and no stop.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from derivations import with_derivations
from study_break_points import break_point_section, lead_families
from study_questions import QUESTIONS, Claim, Question

from leadspan.data.supervision import Supervision
from leadspan.errors import LeadspanError, RunError
from leadspan.evaluation.subject import SUFFIX
from leadspan.report.captions import retention_text
from leadspan.report.frontier import build_frontiers
from leadspan.report.inputs import read_inputs
from leadspan.report.rows import Cost, Frontier, Row
from leadspan.results import RunResult
from leadspan.statistics.intervals import NEAR_ZERO, Interval, retention, runs_mean
from leadspan.statistics.resampling import USUAL, Scores, resample
from leadspan.study.record import StudyRecord, load_study
from leadspan.tables import MISSING, CostName, percent, percent_interval, points, quantity

BEGIN, END = "<!-- begin: made by docs/make_studies.py -->", "<!-- end -->"
TARGET = 0.9
"""Share of the uncut student's score that a cut must keep."""
MARGIN = 0.1
"""Two scores are alike when the interval of their difference lies within so much of each other."""


@dataclass(frozen=True, slots=True)
class Study:
    """A study's rows by task, for accuracy and for the derivation alone, and by the condition's name.

    `made_to_answer` has the same samples with their thinking closed; it is empty where no thinking budget was set.
    `further` has the tasks on which every trial was evaluated besides its first.
    """

    record: StudyRecord
    accuracy: list[Frontier]
    derivation: list[Frontier]
    made_to_answer: list[Frontier]
    further: list[Frontier]

    def rows(self, frontiers: Sequence[Frontier]) -> dict[str, Row]:
        """Rows by the name of their condition."""
        return {row.runs[0].name: row for frontier in frontiers for row in frontier.rows}

    @property
    def students(self) -> list[Row]:
        """The students' rows, for accuracy."""
        return [row for frontier in self.accuracy for row in frontier.students]


def load(directory: Path) -> Study:
    """Read a study; tasks that only runs before it were evaluated on are left out.

    Raises:
        LeadspanError: The study, its runs, its samples or its world cannot be read.
    """
    inputs = read_inputs([directory])
    if inputs.refused:
        raise RunError("\n".join(inputs.refused))
    runs = [run for run in inputs.runs if run.control != "before"]
    firsts = {run.evaluations[0].task for run in runs if run.evaluations}
    frontiers = {frontier.task: frontier for frontier in build_frontiers(runs)}
    made = {task for task in frontiers if task.endswith(SUFFIX)}
    return Study(
        record=load_study(directory),
        accuracy=[frontiers[task] for task in frontiers if task in firsts],
        derivation=[frontier for frontier in build_frontiers(with_derivations(runs)) if frontier.task in firsts],
        made_to_answer=[frontiers[task] for task in frontiers if task.removesuffix(SUFFIX) in firsts and task in made],
        further=[frontiers[task] for task in frontiers if task not in firsts | made],
    )


def figures(study: Study) -> str:
    """All questions of a study, answered from its complete trials."""
    parts = [_provenance(study)]
    if any(lead_families(frontier, TARGET) for frontier in study.accuracy):
        parts += [*_saturation(study), break_point_section(study.accuracy, study.derivation, TARGET)]
    answers = [_answer(question, study) for question in QUESTIONS[study.accuracy[0].task]]
    parts += [answer for answer in answers if answer]
    parts += [*_kept(study), *_further(study)]
    everything = _table(list(study.rows(study.accuracy)), study)
    return "\n\n".join([*parts, _termination(study), "## All conditions", everything, _costs(study)])


def _provenance(study: Study) -> str:
    runs: list[RunResult] = [run for row in study.students for run in row.runs]
    days = sorted({run.environment["date"][:10] for run in runs})
    devices = ", ".join(dict.fromkeys(run.train.device for run in runs if run.train))
    versions = ", ".join(f"{key} {runs[0].environment[key]}" for key in ("leadspan", "torch", "transformers"))
    # Of the runs: the record has the time of a trial only in the sitting that ran it.
    trained = sum(run.train.seconds for run in runs if run.train)
    evaluated = sum(result.seconds or 0 for run in runs for result in run.evaluations)
    states = ", ".join(f"{len(study.record.of_state(state))} {state}" for state in ("done", "failed", "waiting"))
    return (
        f"Trials: {states}. Seeds {', '.join(map(str, study.record.study.seeds))}, of the order of examples and of "
        "random cuts; world, teacher and base are the same for all. "
        f"{study.students[0].num_problems} held-out problems a task, greedy. {devices}; {versions}; "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}. Training took {quantity('seconds', trained)} "
        f"together, sampling for evaluation {quantity('seconds', evaluated)}. Intervals of 95 % over problems and "
        f"seeds; two scores are called alike when that of their difference lies within {percent(MARGIN)}."
    )


def _saturation(study: Study) -> list[str]:
    parts = ["## Does accuracy saturate in p?"]
    derived = study.rows(study.derivation)
    for frontier in study.accuracy:
        for found in lead_families(frontier, TARGET):
            own = [row for row in frontier.rows if row.label in found.rows]
            names = [row.runs[0].name for row in own]
            full = frontier.row(own[0].reference)
            assert full is not None, "a family has a reference"
            verdict = f"Accuracy: {_from_where(own)} Derivation: {_from_where([derived[name] for name in names])}"
            ordered = sorted(own, key=lambda row: row.p or 0.0)
            table = _table([*(row.runs[0].name for row in ordered), full.runs[0].name], study)
            parts += [f"{frontier.task}, beside `{full.runs[0].name}`. {verdict}", table]
    return parts


def _from_where(rows: Sequence[Row]) -> str:
    """The smallest tested p that is shown to keep the target."""
    kept = [
        row.p for row in rows if row.retention and row.retention.ratio and row.retention.ratio.low >= TARGET and row.p
    ]
    if not kept:
        return f"**no tested p below 1 is shown to keep {percent(TARGET)}.**"
    return f"**p = {min(kept):g} is shown to keep {percent(TARGET)} or more.**"


def _answer(question: Question, study: Study) -> str:
    """Verdicts and figures; nothing where the study has none of the conditions."""
    kinds = {"accuracy": study.rows(study.accuracy), "derivation": study.rows(study.derivation)}
    if study.made_to_answer:
        kinds["made to answer"] = study.rows(study.made_to_answer)
    known = kinds["accuracy"]
    claims = [claim for claim in question.claims if {claim.left, claim.right} <= known.keys()]
    if not claims:
        return ""
    found = {kind: [_judge(claim, rows) for claim in claims] for kind, rows in kinds.items()}
    verdict = "; ".join(f"{kind}: {_overall([holds for holds, _ in judged])}" for kind, judged in found.items())
    lines = [f"**By {verdict}.**"]
    not_run = [claim for claim in question.claims if claim not in claims]
    for number, claim in enumerate(claims):
        told = "; ".join(f"{kind} {judged[number][1]}" for kind, judged in found.items())
        lines.append(f"- `{claim.left}` {claim.kind} `{claim.right}`? {told}")
    lines += [f"- `{claim.left}` {claim.kind} `{claim.right}`? not run" for claim in not_run]
    shown = [name for name in question.conditions if name in known]
    return "\n\n".join([f"## {question.text}", lines[0], "\n".join(lines[1:]), _table(shown, study)])


def _judge(claim: Claim, rows: dict[str, Row]) -> tuple[bool | None, str]:
    """Whether a claim holds (None: unclear), and the difference in words."""
    left, right = rows[claim.left], rows[claim.right]
    if claim.kind == "keeps more than":
        difference = _difference_of_kept(left, right, {row.label: row for row in rows.values()})
        if difference is None:
            return None, "unclear, as an uncut run may score near 0"
    else:
        difference = retention(_scores(left), _scores(right)).difference
    holds = _is_alike(difference) if claim.kind == "like" else _is_better(difference)
    return holds, f"{ {True: 'yes', False: 'no', None: 'unclear'}[holds] }, {points(difference)}"


def _difference_of_kept(left: Row, right: Row, by_label: dict[str, Row]) -> Interval | None:
    """Left / its uncut run - right / its uncut run, all four on the same resampled problems.

    None where an uncut run's accuracy may be near 0, as retention is refused. A resample without any right answer of an
    uncut run could say anything, and counts for both ends.
    """
    rows = [left, by_label[left.reference or ""], right, by_label[right.reference or ""]]
    if any(runs_mean(_scores(uncut)).low <= NEAR_ZERO for uncut in rows[1::2]):
        return None
    models = resample({str(place): _scores(row) for place, row in enumerate(rows)}, USUAL)
    draws = [np.maximum(model.draws, 0.0) for model in models]
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = draws[0] / draws[1] - draws[2] / draws[3]
    value = models[0].mean / models[1].mean - models[2].mean / models[3].mean
    shares = ((1 - USUAL.level) / 2, -np.inf), ((1 + USUAL.level) / 2, np.inf)
    low, high = (
        float(np.quantile(np.where(np.isfinite(drawn), drawn, unknown), share, method="inverted_cdf"))
        for share, unknown in shares
    )
    return Interval(value=value, low=low, high=high, level=USUAL.level, method="paired bootstrap")


def _scores(row: Row) -> list[Scores]:
    return [found.correct for found in row.evaluations]


def _is_better(difference: Interval) -> bool | None:
    return True if difference.low > 0 else False if difference.high < 0 else None


def _is_alike(difference: Interval) -> bool | None:
    if difference.low >= -MARGIN and difference.high <= MARGIN:
        return True
    return False if difference.low > MARGIN or difference.high < -MARGIN else None


def _overall(outcomes: Sequence[bool | None]) -> str:
    if all(outcomes):
        return "yes"
    if any(outcomes):
        return "in part"
    return "no" if all(outcome is False for outcome in outcomes) else "not shown"


def _supervision(row: Row) -> Supervision | None:
    recipe = row.runs[0].recipe
    return recipe.supervision if recipe else None


def _termination(study: Study) -> str:
    usual = next(_supervision(row) for row in study.students if row.cut_kind == "full")
    cuts = [row for row in study.students if row.control is None and _supervision(row) == usual]
    cuts.sort(key=lambda row: -row.termination.value)
    names = {
        "or more": [f"`{row.runs[0].name}`" for row in cuts if row.termination.low >= TARGET],
        "or fewer": [f"`{row.runs[0].name}`" for row in cuts if row.termination.high < TARGET],
    }
    told = [
        f"Shown to end {percent(TARGET)} of the answers {end}: {', '.join(of) or 'none'}." for end, of in names.items()
    ]
    table = _table([row.runs[0].name for row in cuts], study)
    return "\n\n".join(["## Which policy terminates?", " ".join(told), table])


def _kept(study: Study) -> list[str]:
    """What each cut keeps of the uncut student, by every measure; nothing where no thinking was closed."""
    if not study.made_to_answer:
        return []
    kinds = {
        "accuracy": study.accuracy,
        "made to answer": study.made_to_answer,
        "derivation": study.derivation,
    }
    rows = {kind: study.rows(frontiers) for kind, frontiers in kinds.items()}
    lines = [f"| condition | seeds | {' | '.join(kinds)} |", f"|:--|--:|{'--:|' * len(kinds)}"]
    for row in study.students:
        if row.retention is not None:
            name = row.runs[0].name
            cells = [f"`{name}`", str(len(row.seeds)), *(retention_text(by_name[name]) for by_name in rows.values())]
            lines.append(f"| {' | '.join(cells)} |")
    text = (
        "Shares of what the student of uncut traces reaches by the same measure. Made to answer: thinking that has not "
        "ended after the budget, or that loops, is closed, and the answer is generated after it."
    )
    return ["## What is kept, by which measure?", text, "\n".join(lines)]


def _further(study: Study) -> list[str]:
    """Accuracy and termination on further tasks of the same trials."""
    parts: list[str] = []
    for frontier in study.further:
        lines = ["| condition | seeds | accuracy | terminated |", "|:--|--:|--:|--:|"]
        for row in frontier.rows:
            scores = " | ".join(map(percent_interval, (row.accuracy, row.termination)))
            lines.append(f"| `{row.runs[0].name}` | {len(row.seeds)} | {scores} |")
        text = f"{frontier.rows[0].num_problems} problems, longer than any that was trained on."
        parts += [f"## Task `{frontier.task}`", text, "\n".join(lines)]
    return parts


def _costs(study: Study) -> str:
    """What training cost: means over seeds, each with its share of the uncut student's."""
    names: tuple[CostName, ...] = ("tokens", "flops", "seconds", "peak_memory_bytes")
    lines = ["| condition | tokens | FLOPs | training time | peak memory |", "|:--|--:|--:|--:|--:|"]
    for row in study.students:
        costs = row.costs or {}
        cells = [_cost(name, costs[name]) if name in costs else MISSING for name in names]
        lines.append(f"| `{row.runs[0].name}` | {' | '.join(cells)} |")
    clocks = dict.fromkeys(frontier.clock for frontier in study.accuracy if frontier.clock)
    return "\n\n".join(["## What it cost", "\n".join(lines), *clocks])


def _cost(name: CostName, cost: Cost) -> str:
    share = "" if cost.of_full is None else f" ({percent(cost.of_full)})"
    return f"{quantity(name, cost.value)}{share}"


def _table(names: Sequence[str], study: Study) -> str:
    accuracy, derivation = study.rows(study.accuracy), study.rows(study.derivation)
    made = study.rows(study.made_to_answer)
    references = {row.reference for row in accuracy.values()}
    scores = ["accuracy", *(["made to answer"] if made else []), "derivation right", "terminated"]
    lines = [
        f"| condition | seeds | {' | '.join(scores)} | of full's accuracy | tokens |",
        f"|:--|--:|{'--:|' * len(scores)}--:|--:|",
    ]
    for name in dict.fromkeys(names):
        row, costs = accuracy[name], accuracy[name].costs or {}
        tokens = quantity("tokens", costs["tokens"].value) if "tokens" in costs else MISSING
        by_answer = [made[name].accuracy] if made else []
        figures = (row.accuracy, *by_answer, derivation[name].accuracy, row.termination)
        kept = retention_text(row) if row.retention or row.label in references else MISSING
        cells = [f"`{name}`", str(len(row.seeds)), *map(percent_interval, figures), kept, tokens]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Replace what stands between the markers of the page."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: python docs/make_studies.py STUDY_DIRECTORY PAGE.md\n")
        return 2
    directory, page = Path(sys.argv[1]), Path(sys.argv[2])
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.stderr.write(f"{page}: it lacks the lines {BEGIN} and {END}; add them\n")
        return 2
    try:
        made = figures(load(directory))
    except LeadspanError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    page.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{tail}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
