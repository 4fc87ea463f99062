"""All content of a report as one typed object, built from the frontier, the runs and their files.

The page, Markdown, figures and JSON are made from it. Nothing is estimated here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from leadspan.audit.findings import AuditResult
from leadspan.data.truncation.policy import STOP_REMEDY, drop_warning
from leadspan.errors import EvaluationError
from leadspan.evaluation.result import EvalResult
from leadspan.report.break_points import BreakPoint, break_point_sentence, break_points
from leadspan.report.captions import captions, cuts_explained, sample_size
from leadspan.report.frontier import build_frontiers
from leadspan.report.inputs import NamedRun, ReportInputs, named_runs
from leadspan.report.recommendation import Answer, ranking_cost, recommend
from leadspan.report.rows import Frontier, Row, currencies_of, relative_text
from leadspan.report.samples import Comparison, RunCurves, comparisons, run_curves
from leadspan.results import METRICS_FILE, RunResult
from leadspan.settings import Settings, flat_settings, without
from leadspan.statistics.intervals import Interval, retention
from leadspan.statistics.resampling import Scores
from leadspan.study.record import StudyRecord
from leadspan.tables import MISSING, CostName, percent, percent_interval, points


class Measured(Settings):
    """The devices, dates, seeds and versions behind all numbers of a report."""

    devices: list[str]
    """Devices that trained the students, with the number of ranks."""
    dates: list[str]
    """First and last day of the runs, or the only one."""
    seeds: list[int]
    """Seeds of the students."""
    versions: dict[str, list[str]]
    """Package, commit or platform to the versions in the order in which runs name them."""

    @property
    def sentence(self) -> str:
        """Devices, seeds, dates, and the versions of leadspan and its commit."""
        seeds = f"seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}" if self.seeds else ""
        versions = [f"{k} {', '.join(self.versions[k])}" for k in ("leadspan", "commit") if k in self.versions]
        return ", ".join(filter(None, [" and ".join(self.devices), seeds, " to ".join(self.dates), *versions]))


class SettingsOverview(Settings):
    """The settings and versions of the students."""

    differing: dict[str, dict[str, str]]
    """The settings in which students differ: dotted name, or name of a version in parentheses, to label to value."""
    common: dict[str, str]
    """The settings that all students share."""

    def by_policy(self, policy_of: Mapping[str, str]) -> dict[str, list[str]]:
        """The differing settings as a row for each policy: the values of its runs, each once."""
        labels: dict[str, list[str]] = {}
        for label in next(iter(self.differing.values()), {}):
            labels.setdefault(policy_of[label], []).append(label)
        return {
            policy: [", ".join(dict.fromkeys(map(values.__getitem__, runs))) for values in self.differing.values()]
            for policy, runs in labels.items()
        }


class TaskFigures(Settings):
    """One task: the answer, its evidence, and every row."""

    task: str
    """Task name."""
    answers: list[Answer]
    """The answers: one for each uncut run with which policies are compared, such as those of two students."""
    cuts_explained: list[str]
    """One sentence on each kind of cut that explains its name."""
    warnings: list[str]
    """Sentences on what makes the findings doubtful, such as students that do not end their answers."""
    findings: list[str]
    """One sentence for each student."""
    break_points: list[BreakPoint]
    """The p from which on each family of policies keeps the target, as measured and as predicted before training."""
    break_point_sentences: list[str]
    """The break points as sentences."""
    sample_size: str
    """Problems, samples and seeds behind the rows."""
    captions: list[str]
    """How the intervals were made, why retentions were refused, and notes on comparing the rows."""
    clock: str | None
    """Why the times of the runs cannot be compared, so that FLOPs rank them; null where they can."""
    cost_names: list[CostName]
    """Costs that every trained row has, beginning with the one that ranks the rows: the axes of the frontier."""
    currency: str
    """Currency of the costs in money; empty where no cost is in money."""
    rows: list[Row]
    """One row for each condition, over all its seeds."""
    single_runs: list[Row]
    """One row for each run of a condition with several seeds."""


class Report(Settings):
    """All content of a report."""

    schema_version: Literal[2] = 2
    """Version of this schema."""
    title: str
    """Heading."""
    target: float
    """Retention that the recommended policy is shown to reach."""
    measured: Measured
    """Devices, dates, seeds and versions behind all figures."""
    tasks: list[TaskFigures]
    """Answer, frontier and rows of each task."""
    studies: list[StudyRecord]
    """The records of the studies: the state of each trial, why it failed, controls that could not be made."""
    curves: list[RunCurves]
    """Divergence and the other metrics of training, by section and by tenth of the conversation."""
    audits: list[AuditResult]
    """Audits of the traces."""
    comparisons: list[Comparison]
    """Samples of the uncut and the cut students side by side."""
    damaged: list[str] = []
    """Damaged files, each with the reason; their content is in no figure."""
    absent: list[str]
    """Missing files of runs, and what is not shown because of them."""
    settings: SettingsOverview
    """The settings in which the students differ, and those that they share."""
    policies: dict[str, str]
    """The condition of every row and run, by its label."""
    runs: dict[str, RunResult]
    """The `run.json` of every run by its label: costs by part, counts of the cut and of refused records, losses, all
    settings."""


MIN_TERMINATION_RATE = 0.9
"""An uncut run that ends a smaller share of its answers gets a warning: it cannot show that a cut ends fewer."""
MUCH_LESS = 0.1
"""A student has not learnt to end its answers if it ends a share of them that is this much below its uncut run's."""
MAX_EXAMPLES = 2
"""Number of mixes that are named as examples of students that end their answers."""
_CHECK_END = "check that the end of the answer is supervised (supervision.answer)"
TITLE = "What the cut kept, and what it cost"


def build_report(
    inputs: ReportInputs,
    title: str = TITLE,
    target: float = 0.9,
    cost: CostName = "seconds",
    samples_per_policy: int = 4,
) -> Report:
    """All content of a report on a set of runs.

    Args:
        inputs: Runs, studies, audits.
        title: Heading.
        target: Retention that the recommended policy is shown to reach.
        cost: The cost that ranks the policies; the figures show it first.
        samples_per_policy: Pairs of samples to show for each cut policy and task; 0 for none.

    Raises:
        RunError: There is no run, or none was evaluated.
        SettingsError: A trained run lacks the cost.
    """
    frontiers = build_frontiers(inputs.runs)
    named = named_runs(inputs)
    curves, no_curves = run_curves(named)
    logless = [entry for entry in named if entry.run.train and not (entry.directory / METRICS_FILE).exists()]
    absent = [f"{entry.label}: no {METRICS_FILE}, so no curves" for entry in logless]
    pairs, no_pairs = comparisons(named, frontiers, samples_per_policy) if samples_per_policy else ([], [])
    if samples_per_policy:
        answered = [(entry, result) for entry in named for result in entry.run.evaluations]
        sampleless = [(entry, result) for entry, result in answered if entry.samples_of(result) is None]
        absent += [f"{entry.label}: its samples on {result.task} are missing" for entry, result in sampleless]
    policies = {row.label: row.policy for frontier in frontiers for row in frontier.rows}
    return Report(
        title=title,
        target=target,
        measured=measured(inputs.runs),
        # Tasks with students come first: the others say nothing about cuts.
        tasks=[_task(frontier, target, cost) for frontier in sorted(frontiers, key=lambda task: not task.students)],
        studies=list(inputs.studies),
        curves=curves,
        audits=list(inputs.audits),
        comparisons=pairs,
        damaged=[*inputs.refused, *no_curves, *no_pairs],
        absent=absent,
        settings=settings_overview(named),
        policies=policies | {entry.label: entry.policy for entry in named},
        runs={entry.label: entry.run for entry in named},
    )


def _task(frontier: Frontier, target: float, cost: CostName) -> TaskFigures:
    points = break_points(frontier, target)
    ranks_by = ranking_cost(frontier, cost)
    currencies = currencies_of(run for row in frontier.rows for run in row.runs)
    firsts = {row.label: row.runs[0] for row in frontier.rows}
    # Where a student also draws what it learns from, its traces are not all of its examples.
    on_traces = {label: run for label, run in firsts.items() if run.recipe is None or run.recipe.rollout is None}
    counts = {label: run.cut for label, run in on_traces.items() if run.cut is not None}
    return TaskFigures(
        task=frontier.task,
        answers=recommend(frontier, target, cost),
        cuts_explained=cuts_explained(frontier.rows),
        warnings=[*warnings_on(frontier), *filter(None, [drop_warning(counts)])],
        findings=findings(frontier),
        break_points=points,
        break_point_sentences=[break_point_sentence(point) for point in points],
        sample_size=sample_size(frontier),
        captions=captions(frontier),
        clock=frontier.clock,
        cost_names=sorted(frontier.cost_names, key=lambda name: name != ranks_by),
        currency=currencies[0] if "money" in frontier.cost_names else "",
        rows=list(frontier.rows),
        single_runs=[single for row in frontier.rows if len(row.seeds) > 1 for single in row.single_runs],
    )


def measured(runs: Sequence[RunResult]) -> Measured:
    """Devices, dates, seeds and versions as the runs recorded them."""
    dates = sorted({run.environment["date"][:10] for run in runs if "date" in run.environment})
    # The date and the seed are shown in their own right.
    keys = dict.fromkeys(key for run in runs for key in run.environment if key not in ("date", "seed"))
    trained = [run for run in runs if run.train]
    # Bases and teachers that a study trained first may come from another machine, which none of the costs is of.
    trained = [run for run in trained if run.role == "student"] or trained
    return Measured(
        devices=list(dict.fromkeys(run.train.device for run in trained if run.train)),
        dates=dates[:: len(dates) - 1 or 1],  # the first and the last
        seeds=sorted({run.seed for run in runs if run.role == "student"}),
        versions={
            key: list(dict.fromkeys(run.environment[key] for run in runs if key in run.environment)) for key in keys
        },
    )


def settings_overview(named: Sequence[NamedRun]) -> SettingsOverview:
    """The settings and versions of the students, without the names of runs."""
    identity = ("name", "output", "seed", "trial", "push")  # which run it is and where it goes: no number depends on it
    flat: dict[str, dict[str, str]] = {}
    for label, run in ((entry.label, entry.run) for entry in named if entry.run.role == "student"):
        settings = without(flat_settings(run.recipe), identity) if run.recipe else {}
        shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
        # In parentheses, so that a package cannot be mistaken for a setting.
        versions = {f"({key})": value for key, value in run.environment.items() if key not in ("date", "seed")}
        flat[label] = shown | versions
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    # A key that a run lacks, such as that of another kind of cut, counts as a difference.
    table = {key: {label: values.get(key, MISSING) for label, values in flat.items()} for key in keys}
    differing = {key: values for key, values in table.items() if len(set(values.values())) > 1}
    common = {key: next(iter(values.values())) for key, values in table.items() if key not in differing}
    return SettingsOverview(differing=differing, common=common)


def findings(frontier: Frontier) -> list[str]:
    """One sentence for each student compared with an uncut run; without an uncut run, for each student."""
    students = {row.label: row for row in frontier.students}
    compared = [row for row in students.values() if row.retention] or list(students.values())
    # Times that cannot be compared are replaced by the operations, which can.
    costs: dict[CostName, str] = {"tokens": "tokens", **({"flops": "FLOPs"} if frontier.clock else {"seconds": "time"})}
    sentences: list[str] = []
    for row in compared:
        full = students.get(row.reference or "")
        ended = f"it ended {percent(row.termination.value)} of its answers"
        outcome = f"reached an accuracy of {percent_interval(row.accuracy)}"
        if row.retention is None or full is None:
            sentences.append(f"{row.label} {outcome}; {ended}.")
            continue
        if row.retention.ratio:
            outcome = f"kept {percent_interval(row.retention.ratio)} of {full.policy}'s accuracy"
        elif row.retention.difference:
            outcome = f"scored {points(row.retention.difference)} against {full.policy} (retention refused)"
        else:
            outcome += f" (not comparable with {full.policy})"
        shares = [
            f"{relative_text(row.costs[name])} of the {word}"
            for name, word in costs.items()
            if row.costs and row.costs[name].of_full is not None
        ]
        at_costs = f" at {' and '.join(shares)}" if shares else ""
        sentences.append(
            f"{row.label} {outcome}{at_costs}; {ended} ({full.policy}: {percent(full.termination.value)})."
        )
    return sentences


def warnings_on(frontier: Frontier) -> list[str]:
    """What makes the findings doubtful.

    That is a teacher that is shown to be worse than an uncut student, uncut runs that end few of their answers, and
    students that end far fewer.
    """
    students = frontier.students
    warnings, by_remedies = list[str](), dict[str, list[str]]()
    for teacher in (row for row in frontier.rows if row.role == "teacher"):
        for full in (row for row in students if row.is_reference):
            gap = _difference(teacher, full, lambda result: result.correct)
            if gap is not None and gap.high < 0:
                warnings.append(
                    f"The teacher solves fewer problems of {frontier.task} than its student: {teacher.label} "
                    f"{percent_interval(teacher.accuracy)}, {full.label} {percent_interval(full.accuracy)} "
                    f"({points(gap)}). Check the teacher's weights, chat template and max_new_tokens before comparing "
                    "cuts."
                )
                break
    alone = [row for row in students if row.reference is None]
    for row in (row for row in alone if row.termination.value < MIN_TERMINATION_RATE):
        ended, capped = percent(row.termination.value), percent(row.cap_hit_rate)
        if warning := row.runs[0].end_warning(row.label):
            warnings.append(f"{row.label} ended {ended} of its answers. {warning}")
        else:
            remedy = "raise max_new_tokens if answers are cut short; until then cuts cannot be judged by how many end"
            what = f"{row.label} ended only {ended} of its answers, and {capped} ran into the cap on new tokens"
            by_remedies.setdefault(remedy, []).append(what)
    for full in alone:
        compared = [row for row in students if row.reference == full.label]
        fewer = [row for row in compared if row.termination.value <= full.termination.value - MUCH_LESS]
        # Only what is no chance; results without single answers have no interval, and their rates have to do.
        gaps = [_difference(row, full, lambda result: result.terminated) for row in fewer]
        behind = [row for row, gap in zip(fewer, gaps, strict=True) if gap is None or gap.high < 0]
        if behind:
            rates = ", ".join(f"{row.label} ({percent(row.termination.value)})" for row in behind)
            full_rate = f"{full.label} ({percent(full.termination.value)})"
            # A mix of this study that does end is better advice than a rule.
            mixes = [row for row in compared if row.cut_kind == "mix" and row.control is None and row not in behind]
            best = sorted(mixes, key=lambda row: -row.termination.value)[:MAX_EXAMPLES]
            examples = [f"{row.label} ended {percent(row.termination.value)} of its answers" for row in best]
            kinds = {"drawn" if row.rollout else row.cut_kind for row in behind}
            advice = {
                ", ".join(examples) or STOP_REMEDY: bool(kinds - {"mix", "full", "drawn"}),
                "give the mixes more whole traces (cut.whole_share) or more steps": "mix" in kinds,
                f"for students of uncut traces, {_CHECK_END}": "full" in kinds,
                "leave more rollouts whole (rollout.whole_share) or add traces (rollout.trace_share)": "drawn" in kinds,
            }
            remedies = "; ".join(text for text, helps in advice.items() if helps)
            by_remedies.setdefault(remedies, []).append(f"{rates} ended far fewer answers than {full_rate}")
    return warnings + [f"{'; '.join(several)}; {remedies}." for remedies, several in by_remedies.items()]


def _difference(first: Row, second: Row, scores: Callable[[EvalResult], Scores]) -> Interval | None:
    """Mean score of one row minus another's, paired by problem; None where single answers are not known of both."""
    of_first, of_second = ([scores(result) for result in row.evaluations] for row in (first, second))
    if not all([*of_first, *of_second]):
        return None
    try:
        return retention(of_first, of_second).difference
    except EvaluationError:  # other problems
        return None
