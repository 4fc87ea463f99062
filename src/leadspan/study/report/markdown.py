"""The report as Markdown: its sentences, and tables ready for a paper."""

from collections.abc import Iterable, Sequence
from html import escape

from leadspan.audit.rows import blocks
from leadspan.results import Interval
from leadspan.settings import Settings
from leadspan.study.compare.cost_axes import CostName
from leadspan.study.compare.predicted import compared_runs, throughput
from leadspan.study.compare.rows import Beside
from leadspan.study.compare.sentences import controls_note
from leadspan.study.compare.words import MISSING, percent, percent_interval, points, quantity
from leadspan.study.record import CaptureRecord
from leadspan.study.report.charts import COST_TITLES, amount
from leadspan.study.report.curves import MEASURES, NUM_TENTHS, RunCurves
from leadspan.study.report.samples import OUTCOMES
from leadspan.study.report.schema import Report, RowFigures, TaskFigures


def render_markdown(report: Report) -> str:
    """The report as GitHub Markdown. Samples are counted, not quoted; recipes stand in the JSON."""
    parts = [f"# {report.title}", f"Measured on {report.measured.sentence}."]
    for task in report.tasks:
        parts += _task(task, is_alone=len(report.tasks) == 1)
    parts += [*_costs(report), *_curves(report.curves), *_cuts(report), *_audits(report), *_samples(report)]
    parts += [*_refused(report), *_missing(report), *_absent(report), *_settings(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], num_text: int = 1) -> str:
    """A table; the first `num_text` columns are text, the others numbers. Empty without rows."""
    lines = [list(map(_cell, row)) for row in rows]
    if not lines:
        return ""
    marks = [":--" if i < num_text else "--:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(map(_cell, header)), marks, *lines])


def _task(task: TaskFigures, is_alone: bool) -> list[str]:
    found = [
        f"## {'Answer' if is_alone else task.task}",
        *(_text(" ".join(filter(None, (one.sentence, one.needed, *one.against_controls)))) for one in task.answers),
        *(f"> {_text(warning)}" for warning in task.warnings),
        "\n".join(f"- {_text(finding)}" for finding in [*task.findings, *task.break_point_sentences]),
        f"### Quality and cost on {_text(task.task)}",
        _rows_table(task, task.rows),
        f"{_text(task.sample_size)}. {' '.join(map(_text, task.captions))}",
    ]
    if task.single_runs:
        found += [f"### Every run on {_text(task.task)}", _rows_table(task, task.single_runs)]
    beside = [[row.label, *_against(one)] for row in task.rows for one in row.beside]
    if beside:
        header = ["policy", "control", "its row", "accuracy, policy - control", "sign-flip p", "told apart"]
        found += [f"### Against the controls on {_text(task.task)}", markdown_table(header, beside, num_text=3)]
        found += [_text(controls_note(task.rows[0].accuracy.level))]
    return found


def _against(one: Beside) -> list[str]:
    p_value = MISSING if one.p_value is None else f"{one.p_value:.2g}"
    return [one.control.replace("_", " "), one.label, _points(one.difference), p_value, one.outcome]


def _rows_table(task: TaskFigures, rows: Sequence[RowFigures]) -> str:
    costs = task.cost_names
    header = ["policy", "seeds", "accuracy", "terminated", "of the uncut accuracy", "of the gain over base"]
    return markdown_table(
        [*header, *(COST_TITLES[name].lower().replace("flops", "FLOPs") for name in costs), "cap hit", "answer tokens"],
        [
            [
                row.label,
                str(len(row.seeds)),
                percent_interval(row.accuracy),
                percent_interval(row.termination),
                row.kept_text,
                percent_interval(row.gained.ratio) if row.gained and row.gained.ratio else MISSING,
                *(_cost(row, name, task.currency) for name in costs),
                percent(row.cap_hit_rate),
                f"{row.tokens_p50:,.0f}",
            ]
            for row in rows
        ],
    )


def _cost(row: RowFigures, name: CostName, currency: str) -> str:
    cost = (row.costs or {}).get(name)
    if cost is None:
        return MISSING
    text = amount(cost.value, name, currency)
    return text if cost.of_full is None else f"{percent(cost.of_full)} ({text})"


def _costs(report: Report) -> list[str]:
    named = list(report.runs.items())
    predicted, speeds = compared_runs(named), throughput(named)
    found: list[str] = []
    if predicted:
        titles = [COST_TITLES[cost.name].lower().replace("flops", "FLOPs") for cost in predicted[0][1]]
        header = ["run", *(f"{title}{word}" for title in titles for word in (", predicted", ", measured", ", error"))]
        rows = [
            [label, *(text for cost in costs for text in (cost.predicted_text, cost.measured_text, cost.error_text))]
            for label, costs in predicted
        ]
        found += ["## Predicted and measured", markdown_table(header, rows)]
    flops = [(split.label, _shares(split.flops)) for split in report.costs]
    found += ["## FLOPs by part", _shares_table(flops)] if flops else []
    if speeds:
        names = list(dict.fromkeys(name for _, cells in speeds for name in cells))
        rows = [[label, *(cells.get(name, MISSING) for name in names)] for label, cells in speeds]
        found += ["## Speed", markdown_table(["run", *names], rows)]
    return found


def _shares(parts: Settings) -> dict[str, float]:
    values = parts.model_dump()
    total = sum(values.values()) or 1
    return {name: value / total for name, value in values.items()}


def _shares_table(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    names = [name for name in rows[0][1] if any(shares[name] for _, shares in rows)]
    header = ["run", *(name.replace("_", " ") for name in names)]
    return markdown_table(header, [[label, *(percent(shares[name]) for name in names)] for label, shares in rows])


def _curves(curves: Sequence[RunCurves]) -> list[str]:
    header = ["run", "on", *(f"{10 * i}-{10 * i + 10} %" for i in range(NUM_TENTHS))]
    found: list[str] = []
    for measure in ("divergence", "agreement"):
        rows = [
            [curve.label, curve.measured_on, *(MISSING if value is None else f"{value:.3g}" for value in values)]
            for curve in curves
            if (values := curve.tenths.get(measure))
        ]
        title = f"## {MEASURES[measure]}, by place in the uncut conversation"
        found += [title, markdown_table(header, rows, num_text=2)] if rows else []
    return found


def _cuts(report: Report) -> list[str]:
    header = ["run", "tokens kept", "lost: question", "end of thinking", "answer", "end of turn", "examples", "dropped"]
    rows = [
        [
            row.label,
            percent(counts.tokens_after / counts.tokens_before) if counts.tokens_before else MISSING,
            *(f"{n:,}" for n in (counts.lost_question, counts.lost_think_end, counts.lost_answer, counts.lost_stop)),
            f"{counts.num_kept:,}",
            "; ".join(f"{reason}: {number:,}" for reason, number in counts.dropped.items()) or "0",
        ]
        for row in report.cuts
        for counts in [row.counts]
    ]
    return ["## What was cut", markdown_table(header, rows)] if rows else []


def _audits(report: Report) -> list[str]:
    found: list[str] = []
    for audit in report.audits:
        found += [f"## Audit of {_text(audit.source)}", f"Tokens of {_text(audit.tokenizer)}."]
        for block in blocks(audit):
            header = block.header or ("", "")
            found += [
                f"### {_text(block.title)}",
                markdown_table(header, block.rows, num_text=1 if block.header else 2),
            ]
            found += [_text(block.note)]
    return found


def _samples(report: Report) -> list[str]:
    rows = [
        [found.cut, found.task, found.uncut, *(f"{found.counts[outcome]:,}" for outcome in OUTCOMES)]
        for found in report.comparisons
    ]
    title = "## Pairs of samples by which student was right"
    return [title, markdown_table(["cut student", "task", "beside", *OUTCOMES], rows, num_text=3)] if rows else []


def _refused(report: Report) -> list[str]:
    rows = [
        [reason, ", ".join(group.labels), f"{number:,}"]
        for group in report.refused
        for reason, number in group.reasons.items()
    ]
    return ["## Records refused", markdown_table(["reason", "in runs", "records"], rows, num_text=2)] if rows else []


def _missing(report: Report) -> list[str]:
    found: list[str] = []
    for study in report.studies:
        rows = [[trial.trial, trial.state, trial.reason] for trial in study.missing]
        found += [f"## Trials of {_text(study.name)}", f"{study.num_complete} of {study.num_trials} are complete."]
        found += [markdown_table(["missing trial", "state", "reason"], rows, num_text=3)]
        found += [f"Not made: {_text(note)}" for note in study.notes]
        found += [_text(remark) for remark in study.remarks]
        if study.captures:
            found += [f"## Targets captured for {_text(study.name)}", _captures(study.captures)]
    return found


def _captures(captures: Sequence[CaptureRecord]) -> str:
    costs: tuple[CostName, ...] = ("seconds", "flops", "peak_memory_bytes")
    rows = [
        [_text(one.name), one.state, str(one.num_trials)]
        + [
            MISSING if value is None else quantity(cost, value)
            for cost, value in zip(costs, (one.seconds, one.flops, one.num_bytes), strict=True)
        ]
        for one in captures
    ]
    return markdown_table(["store", "state", "trials", "time", "FLOPs", "size"], rows, num_text=2)


def _absent(report: Report) -> list[str]:
    texts = [f"- {_text(text)}" for text in report.absent]
    return ["## Not found beside the runs", "\n".join(texts)] if texts else []


def _settings(report: Report) -> list[str]:
    differing = report.settings.differing
    rows = [[policy, *values] for policy, values in report.settings.by_policy(report.policy_of).items()]
    versions = [[name, ", ".join(values)] for name, values in report.measured.versions.items()]
    found = ["## Settings that differ", markdown_table(["policy", *differing], rows, num_text=99)] if rows else []
    return [*found, "## Versions", markdown_table(["package", "version"], versions, num_text=2)] if versions else found


def _points(interval: Interval | None) -> str:
    return points(interval) if interval else MISSING


def _text(text: str) -> str:
    return escape(text, quote=False)


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|").replace("\n", " ")
