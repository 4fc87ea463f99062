"""A plan as text: tables for the terminal, and the sentences a user decides by. All are computed from the rows."""

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from leadspan.audit.prepared import Searched
from leadspan.costs.savings import MEASURES, Measure, Saving
from leadspan.results import FlopsByPart, Interval, MemoryByPart
from leadspan.study.compare.tables import MISSING, percent, quantity
from leadspan.study.planning.plan import Plan, PlanRow
from leadspan.study.planning.stores import StoreCost

_SAVED_BY: dict[Measure, str] = {"cut": "cut", "chunked_loss": "chunked loss", "store": "store", "packing": "packing"}


def plan_tables(plan: Plan) -> Iterator[Table | Text]:
    """Everything to print, in order."""
    yield _costs(plan)
    yield _parts(plan, "FLOPs by part", FlopsByPart, lambda row: row.prediction.flops)
    yield _parts(plan, "Peak memory by part", MemoryByPart, lambda row: row.prediction.memory)
    yield _savings(plan, "FLOPs", lambda row: row.flops_saving)
    yield _savings(plan, "peak memory", lambda row: row.memory_saving)
    for sentence in sentences(plan):
        yield Text(sentence)


def sentences(plan: Plan) -> list[str]:
    """What the figures mean for these models and traces."""
    full = next((row for row in plan.rows if row.label == "full"), None)
    found = [] if full is None else _bills(plan, full)
    times = dict.fromkeys(row.prediction.seconds_source for row in plan.rows)
    found += [f"Time: {source}; without loading, validation and evaluation." for source in times if source]
    if None in times:
        found.append(
            "No time: run with --calibrate on this machine, or state plan.device and plan.utilisation. "
            "No money without a time and plan.price_per_hour."
        )
    found += _too_large(plan)
    found += [f"Left out: {reason}." for reason in plan.left_out]
    if plan.searched is not None:
        found += _break_point(plan.searched, plan.rows)
    return found


def money(plan: Plan, value: float | None) -> str:
    """A price with its sign."""
    return MISSING if value is None else f"{plan.currency}{value:,.2f}"


def _costs(plan: Plan) -> Table:
    where = f"{plan.num_ranks} x {plan.device.name}" if plan.device else f"{plan.num_ranks} x a device without figures"
    table = _table(f"{plan.name} on {where}, {plan.precision}")
    headers = (
        "policy",
        "tokens",
        "",
        "FLOPs",
        "",
        "peak\nmemory",
        "time",
        "money",
        "largest\nbatch",
        _store_header(plan),
    )
    headers += ("deriv-\nation\ncut",) if plan.searched else ()
    for header in headers:
        table.add_column(header, justify="left" if header == "policy" else "right", no_wrap=True)
    reference = next((row for row in plan.rows if row.label == "full"), plan.rows[0]).prediction
    for row in plan.rows:
        found = row.prediction
        table.add_row(
            row.label + (" *" if row.is_recipes else ""),
            quantity("tokens", found.num_tokens),
            percent(found.num_tokens / reference.num_tokens),
            quantity("flops", found.flops.total),
            percent(found.flops.total / reference.flops.total),
            quantity("peak_memory_bytes", found.memory.total),
            MISSING if found.seconds is None else quantity("seconds", found.seconds),
            money(plan, found.money),
            _fitting(row),
            MISSING if row.store is None else quantity("peak_memory_bytes", row.store.num_bytes),
            *([_share(row.without_derivation)] if plan.searched else []),
        )
    table.caption = (
        "* the recipe's own; shares are of full. Largest batch: examples of a micro-batch that fit the device, "
        "whichever they are."
    )
    return table


def _store_header(plan: Plan) -> str:
    """What is stored; the supports of `top_p` and `sampled` are the data's, so their sizes are limits."""
    label = plan.codec.label.replace(" ", "\n")
    return f"store\n{label}" + ("\nat most" if plan.codec.kind in ("top_p", "sampled") else "")


def _share(found: Interval | None) -> str:
    return MISSING if found is None else percent(found.value)


def _fitting(row: PlanRow) -> str:
    if row.fitting is None:
        return MISSING
    return "none fits" if row.fitting == 0 else f"{row.fitting:,}"


def _parts(
    plan: Plan,
    title: str,
    kind: type[FlopsByPart] | type[MemoryByPart],
    found: Callable[[PlanRow], FlopsByPart | MemoryByPart],
) -> Table:
    """Shares of a total by part; parts that are zero everywhere stay out."""
    names = [name for name in kind.model_fields if any(getattr(found(row), name) for row in plan.rows)]
    table = _table(title)
    table.add_column("policy", no_wrap=True)
    for name in names:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for row in plan.rows:
        total = found(row).total or 1
        table.add_row(row.label, *(percent(getattr(found(row), name) / total) for name in names))
    return table


def _savings(plan: Plan, cost: str, found: Callable[[PlanRow], Saving]) -> Table:
    """Shares of a naive run's cost that each measure saves."""
    table = _table(f"Saved of the {cost} of a naive run, by what saves it (by itself in brackets)")
    table.add_column("policy", no_wrap=True)
    shown: list[Measure] = [measure for measure in MEASURES if measure != "store" or plan.knows_teacher]
    for measure in shown:
        table.add_column(_SAVED_BY[measure], justify="right", no_wrap=True)
    table.add_column("all four" if plan.knows_teacher else "all three", justify="right", no_wrap=True)
    for row in plan.rows:
        saving = found(row)
        cells = [f"{percent(saving.shares[m])} ({percent(saving.alone[m])})" for m in shown]
        table.add_row(row.label, *cells, percent(sum(saving.shares.values())))
    table.caption = (
        "Naive: whole sequences padded to the longest of their batch, logits of all positions at once"
        + (", a live teacher" if plan.knows_teacher else "")
        + ". Shares are means over all orders of switching these on (Shapley values)."
    )
    return table


def _table(title: str) -> Table:
    return Table(
        title=Text(title),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def _bill(full: PlanRow) -> str:
    flops = full.prediction.flops
    attention = flops.student_attention + flops.teacher_attention
    teacher = flops.teacher_body + flops.teacher_attention + flops.teacher_head
    mean = full.cut.tokens_after / max(1, full.cut.num_kept)
    text = f"Uncut, at {mean:,.0f} tokens a trace, attention is {percent(attention / flops.total)} of the FLOPs"
    return text + (f" and the teacher {percent(teacher / flops.total)}." if teacher else ".")


def _bills(plan: Plan, full: PlanRow) -> list[str]:
    """The bill of the uncut run, and what a store and each cut save of it."""
    store = None if plan.reads_store or not plan.knows_teacher else full.store
    found = [_bill(full)]
    if store is not None:
        total = full.prediction.flops.total
        found.append(
            f"A store of the teacher's targets ({plan.codec.label}) saves {percent(store.saved_flops / total)} of the "
            f"uncut run's FLOPs after a capture that costs {percent(store.capture_flops / total)} of them once "
            f"({percent(store.validation_flops / store.capture_flops)} of the capture is validation); "
            f"net {percent(store.net_flops / total)} where this run alone uses it."
        )
    return found + [_by_cut(full, row, store) for row in plan.rows if row is not full]


def _by_cut(full: PlanRow, row: PlanRow, store: StoreCost | None) -> str:
    """What the cut takes of the traces and saves of the bill, beside what a store would."""
    total = full.prediction.flops.total
    saved = total - row.prediction.flops.total
    cut = f"{row.label} cuts {percent(1 - _kept(row))} of the traces' tokens"
    text = f"{cut} and saves {percent(saved / total)} of the FLOPs"
    if store is None:
        return text + "."
    once, shared = _beside(saved, store.net_flops), _beside(saved, store.saved_flops)
    return f"{text}: {once} a store net of its capture, {shared} one that is captured already."


def _beside(saved: int, other: int) -> str:
    return "more than" if saved > other else "less than" if saved < other else "as much as"


def _too_large(plan: Plan) -> Sequence[str]:
    """Policies whose micro-batches do not fit the device."""
    if plan.device is None:
        return []
    room = quantity("peak_memory_bytes", plan.device.memory_bytes)
    found = []
    for row in plan.rows:
        needed = row.prediction.memory.total
        if needed <= plan.device.memory_bytes:
            continue
        size = quantity("peak_memory_bytes", needed)
        text = f"{row.label} does not fit {plan.device.name}: its largest micro-batch needs {size} of {room}"
        fixed = needed - row.prediction.memory.activations - row.prediction.memory.logits
        if row.fitting:
            remedy = (
                f"tokens_per_batch: {row.fitting_tokens} fits"
                if plan.examples_per_batch is None
                else f"examples_per_batch: {row.fitting} fits"
            )
        elif fixed > plan.device.memory_bytes:
            remedy = (
                "weights, gradients and optimiser alone exceed it: shard (plan.sharding: fsdp2), or set training.lora"
            )
        elif not plan.recomputes:
            remedy = "not one example fits: set training.gradient_checkpointing, or cut more"
        else:
            remedy = "not one example fits: cut more, or shard (plan.sharding: fsdp2)"
        found.append(f"{text}; {remedy}.")
    return found


def _break_point(searched: Searched, rows: Sequence[PlanRow]) -> list[str]:
    """LSP* and what it is taken from, or why there is none."""
    found = searched.summary
    where = f"{found.num_traces:,} of {searched.num_rows:,} training traces"
    counts = ", ".join(f"{name} {count:,}" for name, count in found.outcomes.items())
    sources = ", ".join(f"{source} {count:,}" for source, count in found.gold_sources.items() if source != "none")
    point = found.lsp_star
    if searched.num_left:
        where += f" ({searched.num_left:,} more undecided after plan.break_point_seconds)"
    if not found.num_traces:
        return [f"No break point LSP*: {where} were searched."]
    if not sources:
        return [f"No gold: none of {where} has a right answer to look for, so no break point LSP* can be predicted."]
    if point is None:
        return [f"No break point LSP*: of {where} none states its right answer in the chain of thought ({counts})."]
    below = [row.label for row in rows if row.label.startswith("lead ") and _kept(row) < point.low]
    verdict = f"expected to hurt: {', '.join(below)}" if below else "no lead cut here lies below it"
    return [
        f"Predicted break point LSP*: {point.value:.2f} [{point.low:.2f}, {point.high:.2f}]; {verdict}.",
        f"First answers of {where}: {counts}; right answers from: {sources}. "
        "Derivation cut: share of those found whose first statement of the answer is cut.",
    ]


def _kept(row: PlanRow) -> float:
    return row.cut.tokens_after / row.cut.tokens_before
