"""One run in a terminal: what was trained, what it cost, what came out."""

from rich.table import Table

from leadspan.results import CutCounts, EvalResult, Prediction, RunResult, TrainResult
from leadspan.study.compare.predicted import Compared, compared, shares
from leadspan.study.compare.tables import percent_interval, quantity


def run_summary(result: RunResult) -> Table:
    """A two-column table of one run's measured figures."""
    table = Table(title=f"{result.name}: {result.label}", title_justify="left", show_header=False, show_edge=False)
    table.add_column(style="dim")
    table.add_column()
    if result.cut is not None:
        _add_cut(table, result.cut, result.refused)
    if result.train is not None:
        _add_training(table, result.train, result.prediction)
    for evaluation in result.evaluations:
        _add_evaluation(table, evaluation)
    return table


def _add_cut(table: Table, cut: CutCounts, refused: dict[str, int]) -> None:
    share = cut.tokens_after / cut.tokens_before
    table.add_row(
        "tokens kept", f"{cut.tokens_after:,} of {cut.tokens_before:,} ({share:.1%}), {cut.num_kept} examples"
    )
    table.add_row("lost question / end of thinking", f"{cut.lost_question} / {cut.lost_think_end} examples")
    table.add_row("lost answer / stop token", f"{cut.lost_answer} / {cut.lost_stop} examples")
    for reason, number in {**cut.dropped, **refused}.items():
        table.add_row("left out", f"{number} x {reason}")


def _add_training(table: Table, train: TrainResult, prediction: Prediction | None) -> None:
    tokens, flops, seconds, memory = (_beside(cost) for cost in compared(prediction, train))
    table.add_row("trained", f"{train.num_steps} steps, {train.num_examples} examples")
    table.add_row("tokens", tokens)
    table.add_row("time", f"{seconds} ({train.tokens_per_second:,.0f} tokens/s on {train.device})")
    if train.step_seconds is not None:
        parts = shares(train.step_seconds).items()
        table.add_row("of it", ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in parts))
    table.add_row("peak memory", f"{memory} ({train.memory_source})")
    table.add_row("FLOPs", f"{flops}, {quantity('flops', train.flops_per_second)}/s")
    if train.mfu is not None:
        table.add_row("model FLOPs utilisation", f"{train.mfu:.1%}")
    if train.energy_joules is not None:
        table.add_row("energy", f"{train.energy_joules / 3.6e6:.3g} kWh")
    table.add_row("training loss", f"{train.first_loss:.4f} -> {train.final_loss:.4f}")
    for step, loss in train.validation_loss.items():
        kept = " (kept)" if int(step) == train.saved_step else ""
        table.add_row(f"validation loss, step {step}", f"{loss:.4f}{kept}")


def _beside(cost: Compared) -> str:
    if cost.predicted is None:
        return cost.measured_text
    return f"{cost.measured_text}, predicted {cost.predicted_text} ({cost.error_text})"


def _add_evaluation(table: Table, found: EvalResult) -> None:
    size = f"{found.num_problems} problems x {found.samples_per_problem}"
    table.add_row(f"{found.task}: accuracy (strict)", f"{percent_interval(found.accuracy_strict)} on {size}")
    table.add_row(f"{found.task}: accuracy (flexible)", percent_interval(found.accuracy_flexible))
    if found.accuracy_finished is not None:
        table.add_row(f"{found.task}: accuracy given finished", percent_interval(found.accuracy_finished))
    for name, values in (("pass", found.pass_at), ("maj", found.majority_at)):
        shown = [f"@{k} {percent_interval(value)}" for k, value in values.items() if k != "1"]
        if shown:
            table.add_row(f"{found.task}: {name}", ", ".join(shown))
    table.add_row(f"{found.task}: terminated", percent_interval(found.termination_rate))
    table.add_row(
        f"{found.task}: hit the cap / closed thinking",
        f"{found.cap_hit_rate:.1%} / {found.thinking_closed_rate:.1%}",
    )
    if found.loop_rate is not None and found.no_box_rate is not None:
        table.add_row(f"{found.task}: loops / no box", f"{found.loop_rate:.1%} / {found.no_box_rate:.1%}")
    tokens = f"{found.tokens_mean:.0f} mean, {found.tokens_p50:.0f} median, {found.tokens_p95:.0f} at 95 %"
    table.add_row(f"{found.task}: new tokens", tokens)
