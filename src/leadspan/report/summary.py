"""The summary of one run in a terminal: its cut, its training and its evaluations."""

from collections.abc import Iterator

from leadspan.evaluation.result import EvalResult
from leadspan.report.costs import error_text, shares
from leadspan.results import Prediction, RunResult, predicted_and_measured
from leadspan.tables import Block, CostName, percent_interval, quantity
from leadspan.training.result import TrainResult


def run_summary(result: RunResult) -> Block:
    """The measured figures of one run, a name and a value in each row."""
    rows: list[tuple[str, str]] = []
    cut = result.cut
    if cut is not None:
        share = f" ({cut.tokens_after / cut.tokens_before:.1%})" if cut.tokens_before else ""
        rows += [
            ("tokens kept", f"{cut.tokens_after:,} of {cut.tokens_before:,}{share}, {cut.num_kept} examples"),
            ("lost question / end of thinking", f"{cut.lost_question} / {cut.lost_think_end} examples"),
            ("lost answer / stop token", f"{cut.lost_answer} / {cut.lost_stop} examples"),
            *(("left out", f"{number} x {reason}") for reason, number in {**cut.dropped, **result.refused}.items()),
        ]
    # Before the figures that it puts in doubt.
    if warning := result.end_warning(result.label):
        rows.append(("warning", warning))
    if result.train is not None:
        rows += _training(result.train, result.prediction)
    for evaluation in result.evaluations:
        rows += _evaluation(evaluation)
    return Block(f"{result.name}: {result.label}", (), tuple(rows or [("nothing", "neither trained nor evaluated")]))


def _training(train: TrainResult, prediction: Prediction | None) -> Iterator[tuple[str, str]]:
    texts: dict[CostName, str] = {}
    for name, (predicted, measured) in predicted_and_measured(prediction, train).items():
        texts[name] = quantity(name, measured)
        if predicted is not None:
            kind = "predicted at most" if prediction is not None and prediction.is_bound else "predicted"
            texts[name] += f", {kind} {quantity(name, predicted)} ({error_text(predicted, measured)})"
    yield "trained", f"{train.num_steps} steps, {train.num_examples} examples"
    yield "tokens", texts["tokens"]
    yield "time", f"{texts['seconds']} ({train.tokens_per_second:,.0f} tokens/s on {train.device})"
    if train.step_seconds is not None:
        by_part = shares(train.step_seconds).items()
        yield "time by part", ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in by_part if share)
    yield "peak memory", f"{texts['peak_memory_bytes']} ({train.memory_source})"
    yield "FLOPs", f"{texts['flops']}, {quantity('flops', train.flops_per_second)}/s"
    if train.mfu is not None:
        yield "model FLOPs utilisation", f"{train.mfu:.1%}"
    if train.energy_joules is not None:
        yield "energy", f"{train.energy_joules / 3.6e6:.3g} kWh"
    yield "training loss", f"{train.first_loss:.4f} -> {train.final_loss:.4f}"
    for step, loss in train.validation_loss.items():
        saved = " (saved)" if int(step) == train.saved_step else ""
        yield f"validation loss, step {step}", f"{loss:.4f}{saved}"


def _evaluation(result: EvalResult) -> Iterator[tuple[str, str]]:
    task, size = result.task, f"{result.num_problems} problems x {result.samples_per_problem}"
    yield f"{task}: accuracy (strict)", f"{percent_interval(result.accuracy_strict)} on {size}"
    yield f"{task}: accuracy (flexible)", percent_interval(result.accuracy_flexible)
    if result.accuracy_finished is not None:
        yield f"{task}: accuracy given finished", percent_interval(result.accuracy_finished)
    for name, values in (("pass", result.pass_at), ("maj", result.majority_at)):
        # pass@1 and maj@1 are the accuracy above.
        shown = [f"@{k} {percent_interval(value)}" for k, value in values.items() if k != "1"]
        if shown:
            yield f"{task}: {name}", ", ".join(shown)
    yield f"{task}: terminated", percent_interval(result.termination_rate)
    yield f"{task}: hit the cap / closed thinking", f"{result.cap_hit_rate:.1%} / {result.thinking_closed_rate:.1%}"
    if result.loop_rate is not None and result.no_box_rate is not None:
        yield f"{task}: loops / no box", f"{result.loop_rate:.1%} / {result.no_box_rate:.1%}"
    tokens = f"mean {result.tokens_mean:.0f}, median {result.tokens_p50:.0f}, 95th percentile {result.tokens_p95:.0f}"
    yield f"{task}: new tokens", tokens
