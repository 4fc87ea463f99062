"""The sections of a report, and those below its answers: costs, curves, cuts, traces, samples, trials, settings."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from leadspan.audit.findings import blocks
from leadspan.report.content import Report
from leadspan.report.document import (
    Bullets,
    Choice,
    Element,
    Fold,
    PageOnly,
    Plot,
    Prose,
    Section,
    answer_section,
    task_section,
)
from leadspan.report.figures import AXIS_TITLES
from leadspan.report.rows import COST_TITLES, error_text, shares
from leadspan.report.samples import MEASURES, NUM_TENTHS, OUTCOMES
from leadspan.results import predicted_and_measured
from leadspan.study.settings import RayExecutor
from leadspan.tables import MISSING, Block, Cell, CostName, listed, percent, quantity

_NO_RESULT = {"running": "still running, or interrupted", "waiting": "not run yet"}
MAX_LINES = 8
"""Number of policies that figures with a line for each run draw at first; the legend adds the others."""
SECTION_WORDS = {"cot": "Chain of thought", "answer": "Answer", "prompt": "Prompt", "appended": "Appended stop"}
_SPLITS = [
    ("flops", "FLOPs", "Operations by part, counted from the models' shapes and the length of every example."),
    ("seconds", "Time", "Wall time of all steps by part on the first rank, including the time to fetch data."),
    ("memory", "Memory", "Peak memory of training; only the prediction knows its parts."),
]


def sections(report: Report, charts: Mapping[str, Any]) -> list[Section]:
    """The sections of a report from top to bottom; evidence without content is left out.

    Args:
        report: Its content.
        charts: The data of its figures, see `chart_data`.
    """
    trained_on = f"Trained on {report.measured.sentence}."
    sizes = "; ".join(f"{task.task}: {task.sample_size}" for task in report.tasks)
    samples = Block(
        title="Pairs of samples by which student was right",
        header=("Cut student", "Task", "Uncut student", *OUTCOMES.values()),
        rows=tuple(
            (pair.cut, pair.task, pair.uncut, *(Cell(f"{pair.counts[o]:,}", pair.counts[o]) for o in OUTCOMES.values()))
            for pair in report.comparisons
        ),
        note="A pair is two samples with the same number on the same problem, by strict score: one of the first run of "
        f"the policy, one of the uncut run of its seed. {sizes}.",
        num_text=3,
        policies=tuple(pair.policy for pair in report.comparisons),
    )
    losses: tuple[Element, ...] = ()
    if charts["validation"]:
        policies = tuple(curve["policy"] for curve in charts["validation"])
        label = "Lines of validation loss over training steps for each policy; a table of the numbers follows"
        text = f"Loss on full, uncut validation sequences at the optimiser steps with a validation. {trained_on}"
        entries = tuple(dict.fromkeys(policies))
        plot = Plot("validation", 0, label, text, group="validation", policies=entries, num_shown=MAX_LINES)
        rows = tuple((curve["label"], _series(curve["steps"], curve["losses"])) for curve in charts["validation"])
        block = Block(AXIS_TITLES["validation"], ("Run", "Step: loss"), rows, num_text=2, policies=policies)
        losses = plot, Fold("All numbers", (block,))
    evidence = {
        ("costs", "Where the cost went"): _cost_elements(report, charts, trained_on),
        ("divergence", "Divergence"): _curve_elements(report, trained_on) if report.curves else (),
        ("validation", "Validation loss"): losses,
        ("cut", "What was cut"): _cut_elements(report),
        ("audit", "The traces"): chain.from_iterable(
            (Prose(f"{audit.source}, in tokens of {audit.tokenizer}", "note"), *blocks(audit))
            for audit in report.audits
        ),
        ("samples", "Samples side by side"): (samples, PageOnly("pairs")) if report.comparisons else (),
        ("missing", "Trials"): _trial_elements(report),
        ("settings", "Settings and versions"): _settings_elements(report),
    }
    tasks = [task_section(report, task, index, charts["tasks"][index]) for index, task in enumerate(report.tasks)]
    below = [Section(anchor, title, title, tuple(elements)) for (anchor, title), elements in evidence.items()]
    return [answer_section(report), *tasks, *(section for section in below if section.elements)]


def _cost_elements(report: Report, charts: Mapping[str, Any], trained_on: str) -> Iterator[Element]:
    trained = [report.policies[label] for label, run in report.runs.items() if run.train]
    has_seeds = len(trained) > len(set(trained))
    means = " Means over the seeds of a policy; every run is in the tables." if has_seeds else ""
    for name, title, caption in _SPLITS:
        chart = charts["splits"].get(name)
        if not chart:
            continue
        yield Prose(title, "heading")
        predicted = "Nothing was predicted."
        if any(bar["kind"] == "predicted" for bar in chart["bars"]):
            predicted = "The fainter bar below each was predicted before the run."
        label = f"Stacked bars: {title} by part for each policy; a table of the numbers follows"
        yield Plot("split", name, label, f"{caption} {predicted}{means} {trained_on}", bar_parts=chart["parts"])
        rows: list[tuple[str, ...]] = []
        for bar in chart["bars"]:
            # Predicted parts have the same order as measured ones, so one header serves both.
            of_bar, is_total = shares(bar["parts"]), bool(bar["parts"].get("total"))
            cells = [
                MISSING  # a bar has a total or parts
                if "total" in bar["parts"] and (part == "total") != is_total
                else Cell(f"{value:.3g} ({percent(of_bar[part])})", value)
                for part, value in bar["parts"].items()
            ]
            rows.append((bar["label"], bar["kind"], *cells))
        header = ("Policy", "Kind", *chart["parts"].values())
        policies = tuple(bar["policy"] for bar in chart["bars"])
        yield Block(f"{chart['title']} by part", header, tuple(rows), num_text=2, policies=policies)
    yield from _run_costs(report, trained_on)
    for study in report.studies:
        rows = []
        for store in study.captures:
            time, operations = _amount("seconds", store.seconds), _amount("flops", store.flops)
            size = _amount("peak_memory_bytes", store.num_bytes)
            rows.append((store.name, store.state, str(store.num_trials), time, operations, size))
        if rows:
            note = "Captured once, before the trials that read them; the cost of no trial includes it."
            header = ("Store", "State", "Trials", "Time", "FLOPs", "Size")
            yield Block(f"Targets captured for {study.name}", header, tuple(rows), note, num_text=2)


def _amount(name: CostName, value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(quantity(name, value), value)


def _run_costs(report: Report, trained_on: str) -> Iterator[Element]:
    """Every run: predicted and measured costs, and speed."""
    titles: list[str] = []
    compared: list[tuple[str, ...]] = []
    speeds: dict[str, dict[str, str]] = {}
    for label, run in report.runs.items():
        train = run.train
        if train is None:
            continue
        if run.prediction:
            costs = predicted_and_measured(run.prediction, train)
            titles = [f"{COST_TITLES[name]}, {word}" for name in costs for word in ("predicted", "measured", "error")]
            triples = [
                (_amount(name, predicted), _amount(name, actual), error_text(predicted, actual))
                for name, (predicted, actual) in costs.items()
            ]
            compared.append((label, *chain.from_iterable(triples)))
        if train.step_seconds is not None:
            speeds[label] = {
                "tokens/s": f"{train.tokens_per_second:,.0f}",
                "FLOP/s": f"{quantity('flops', train.flops_per_second)}/s",
                "MFU": MISSING if train.mfu is None else f"{100 * train.mfu:.1f} %",
                # 3.6e6 J are 1 kWh.
                "energy": MISSING if train.energy_joules is None else f"{train.energy_joules / 3.6e6:.3g} kWh",
            }
            # Shown apart, because it also compiles and allocates.
            if train.first_step_seconds is not None:
                speeds[label]["first step"] = quantity("seconds", train.first_step_seconds)
            of_parts = shares(train.step_seconds).items()
            speeds[label] |= {name.replace("_", " "): percent(share) for name, share in of_parts}
    if compared:
        yield Block(
            title="Predicted and measured",
            header=("Run", *titles),
            rows=tuple(compared),
            note="The error is predicted / measured - 1. Costs were predicted before the run, from the models' configs "
            "and the length of every example; time also needs a calibration, or a device and its utilisation, in the "
            "recipe. Neither time includes validation. Both count the first step, which compiles and warms up, as long "
            f"as an average step. {trained_on}",
            policies=tuple(report.policies[label] for label, *_ in compared),
        )
    if speeds:
        names = tuple(dict.fromkeys(name for figures in speeds.values() for name in figures))
        yield Block(
            title="Speed",
            header=("Run", *names),
            rows=tuple((label, *(figures.get(name, MISSING) for name in names)) for label, figures in speeds.items()),
            note="Parts are shares of the wall time of all steps on the first rank. The student's forward pass "
            "includes the gradients of the head, and its backward pass includes recomputation. The first step compiles "
            f"and warms up. MFU is missing where the peak of the device is unknown. {trained_on}",
            policies=tuple(report.policies[label] for label in speeds),
        )


def _curve_elements(report: Report, trained_on: str) -> Iterator[Element]:
    curves = report.curves
    policies = tuple(dict.fromkeys(curve.policy for curve in curves))
    measures = list(dict.fromkeys(name for curve in curves for name in curve.sections))
    sections = list(dict.fromkeys(name for curve in curves for figures in curve.sections.values() for name in figures))
    kinds = " or ".join(dict.fromkeys(curve.divergence_kind for curve in curves if curve.divergence_kind))
    words = (
        f"Divergence is {kinds}. On the validation set all policies are measured on the same uncut sequences; on "
        "training batches each policy is measured on the tokens that it kept, so a tenth that it cut has no value."
    )
    # Validation comes first where there is any, because it measures all policies on the same text.
    measured_on = list(dict.fromkeys(curve.measured_on for curve in curves))[::-1]
    dashes = " Seeds of a policy have different dashes." if len(policies) < len(curves) else ""
    both, titles = "tenths-0 sections-0", {name: MEASURES[name].split(" (")[0] for name in MEASURES if name in measures}
    choices = (
        Choice("measure", "Metric", titles, both),
        Choice("measured_on", "Measured on", {kind: kind.capitalize() for kind in measured_on}, both),
    )
    yield Prose("By tenth of the conversation", "heading")
    yield Plot(
        kind="tenths",
        index=0,
        label="Lines of divergence over ten parts of the conversation for each policy; a table of them follows",
        caption="Mean over the positions of each tenth of the uncut conversation, at the last log line. "
        f"{words}{dashes} {trained_on}",
        choices=choices,
        group="curves",
        policies=policies,
        num_shown=MAX_LINES,
    )
    tenths = ("Run", "On", *(f"{10 * i}-{10 * i + 10} %" for i in range(NUM_TENTHS)))
    for measure in measures:
        shown = [curve for curve in curves if any(value is not None for value in curve.tenths.get(measure, []))]
        of_curves = [(curve.label, curve.measured_on, *map(_figure, curve.tenths[measure])) for curve in shown]
        title = f"{MEASURES[measure]} by tenth of the conversation"
        if shown:
            by_tenth = Block(
                title, tenths, tuple(of_curves), num_text=2, policies=tuple(curve.policy for curve in shown)
            )
            # Most readers look for these two, so they are open; the others repeat them in other units.
            yield by_tenth if measure in ("divergence", "agreement") else Fold(title, (by_tenth,))
    yield Prose("By section, over training", "heading")
    named = {name: word for name, word in SECTION_WORDS.items() if name in sections}
    yield Plot(
        kind="sections",
        index=0,
        label="Lines of divergence over training steps for each policy; a table of the numbers follows",
        caption=f"Mean over the positions of the section since the previous log line. {words} {trained_on}",
        choices=(Choice("section", "Section", named, "sections-0"),),
    )
    header = ("Run", "On", "Metric", "Section", "Step: value")
    rows: list[tuple[str, ...]] = []
    for curve in curves:
        for measure in measures:
            for section, values in curve.sections.get(measure, {}).items():
                words = MEASURES[measure], SECTION_WORDS.get(section, section)
                rows.append((curve.label, curve.measured_on, *words, _series(curve.steps, values)))
    # Folded: it repeats a figure, and is the longest table of a page.
    yield Fold("All numbers by section", (Block("Metrics by section", header, tuple(rows), num_text=5),))


def _figure(value: float | None) -> str:
    return MISSING if value is None else Cell(f"{value:.3g}", value)


def _series(steps: Sequence[int], values: Sequence[float | None]) -> str:
    return ", ".join(f"{step}: {_figure(value)}" for step, value in zip(steps, values, strict=True))


def _cut_elements(report: Report) -> Iterator[Element]:
    counts = {label: run.cut for label, run in report.runs.items() if run.cut}
    if not counts:
        return
    # Not every template has every section, such as a system prompt.
    names = list(dict.fromkeys(name for cut in counts.values() for name in cut.section_tokens_before))
    rows: list[tuple[str, ...]] = []
    for label, cut in counts.items():
        # In the order of a trace, as in `ends`.
        lost = (cut.lost_question, cut.lost_think_end, cut.lost_answer, cut.lost_stop)
        reasons = "; ".join(f"{reason}: {number:,}" for reason, number in cut.dropped.items())
        rows.append(
            (
                label,
                _kept_share(cut.tokens_after, cut.tokens_before, with_amount=True),
                *(_kept_share(cut.section_tokens_after.get(n, 0), cut.section_tokens_before.get(n, 0)) for n in names),
                *(Cell(f"{number:,}", number) for number in lost),
                Cell(f"{cut.num_kept:,} of {cut.num_examples:,}", cut.num_kept),
                Cell(reasons or "0", sum(cut.dropped.values())),
            )
        )
    ends = ("Lost: question", "Lost: end of thinking", "Lost: answer", "Lost: end of turn", "Examples", "Dropped")
    yield Block(
        title="Tokens kept, and examples that lost a part",
        header=("Policy", "Tokens kept", *(f"Of {name} tokens" for name in names), *ends),
        rows=tuple(rows),
        note="Counted once for every example of the training set, before training. An example has lost a part where "
        "any token of it was cut.",
        policies=tuple(report.policies[label] for label in counts),
    )
    # Runs of one trace file refuse the same records, so they share a line.
    runs_of: dict[tuple[str, int], list[str]] = {}
    for label, run in report.runs.items():
        for reason, number in run.refused.items():
            runs_of.setdefault((reason, number), []).append(label)
    refused = [(reason, listed(labels), Cell(f"{number:,}", number)) for (reason, number), labels in runs_of.items()]
    if refused:
        note = "Records of the trace sources that could not be used, by reason."
        yield Block("Records refused", ("Reason", "In runs", "Records"), tuple(refused), note, num_text=2)
    else:
        yield Prose("Every record of the trace sources could be used.", "note")


def _kept_share(after: int, before: int, with_amount: bool = False) -> str:
    # A section that no trace has, such as the answer of a data set without answers.
    if not before:
        return MISSING
    text = f" ({quantity('tokens', after)} of {quantity('tokens', before)})" if with_amount else ""
    return Cell(percent(after / before) + text, after / before)


def _trial_elements(report: Report) -> Iterator[Element]:
    """For each study the trials without a result, those that ran at the same time, and the notes on conditions."""
    for study in report.studies:
        missing = [trial for trial in study.trials if trial.state != "done"]
        if missing:
            reasons = [(trial, trial.message or _NO_RESULT.get(trial.state, "")) for trial in missing]
            rows = tuple((trial.title, trial.state, reason) for trial, reason in reasons)
            yield Block(f"Trials of {study.name} without a result", ("Trial", "State", "Reason"), rows, num_text=3)
        num_complete, nothing = len(study.of_state("done")), "" if missing else "; nothing is missing"
        notes = [f"{study.name}: {num_complete} of {len(study.trials)} trials are complete{nothing}."]
        notes += [f"Not made: {note}" for note in study.notes]
        is_ray = isinstance(study.study.executor, RayExecutor)
        at_once = getattr(study.study.executor, "trials_at_once", 1)
        if is_ray or at_once > 1:
            where = "on a Ray cluster, where several may share a node" if is_ray else f"{at_once} at a time"
            notes.append(f"Trials ran {where}: where they shared processors or a disk, their times are too long.")
        by_name: dict[str, dict[str, None]] = {}
        for trial in study.trials:
            by_name.setdefault(trial.name, {}).update({trial.note: None} if trial.note else {})
        notes += [f"{name}: {'; '.join(several)}." for name, several in by_name.items() if several]
        yield from (Prose(note, "note") for note in notes)


def _settings_elements(report: Report) -> Iterator[Element]:
    if report.absent:
        yield Fold(f"Files that are missing ({len(report.absent)})", (Bullets(tuple(report.absent)),))
    differing, common = report.settings.differing, report.settings.common
    summary = f"What differs between the students ({len(differing)})"
    if differing:
        by_policy = report.settings.by_policy(report.policies)
        rows = tuple((policy, *values) for policy, values in by_policy.items())
        note = "Names in parentheses are versions. Names of runs and output directories are left out."
        header = ("Policy", *differing)
        block = Block("Settings that differ", header, rows, note, num_text=len(header), policies=tuple(by_policy))
        yield Fold(summary, (block,), is_open=True)
    else:
        yield Prose("All students had the same settings and versions.", "note")
    if common:
        block = Block("Settings of all students", ("Setting", "Value"), tuple(common.items()), num_text=2)
        yield Fold(f"What all students have in common ({len(common)})", (block,))
    yield PageOnly("runs")
    versions = tuple((name, ", ".join(values)) for name, values in report.measured.versions.items())
    if versions:
        yield Block("Versions", ("Package", "Version"), versions, num_text=2)
