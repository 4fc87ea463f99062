"""A plan as text: tables for the terminal, and sentences on what the figures mean, all computed from the rows."""

from collections.abc import Iterator, Sequence

from leadspan.costs.flops import ByPart, ModelShape
from leadspan.costs.memory import NUM_CHECKPOINTS, disk_bytes
from leadspan.data.truncation import Full, Lead, with_ends
from leadspan.data.truncation.policy import cut_warnings, shows_few_ends
from leadspan.errors import ModelError
from leadspan.inputs import Searched
from leadspan.planning.fitting import MEASURES, Measure, Saving
from leadspan.planning.plan import Plan, PlanRow
from leadspan.planning.prediction import student_shape
from leadspan.planning.rollouts import RolloutCost
from leadspan.recipe import Recipe
from leadspan.tables import MISSING, Block, percent, quantity


def plan_tables(plan: Plan) -> list[Block]:
    """The tables to print, in order; the `sentences` go below them."""
    labels = [row.label for row in plan.rows]
    of_ranks: list[Block] = []
    for row in (row for row in plan.rows if row.ranks):
        cells: list[tuple[str, ...]] = []
        for cost in row.ranks:
            more = f"{cost.teacher_ranks} more ranks"
            teacher = {"beside": "beside it", "ranks": more, "store": "store", None: MISSING}[cost.placement]
            memory, sent = (quantity("peak_memory_bytes", amount.total) for amount in (cost.memory, cost.traffic))
            longest = MISSING if cost.longest is None else f"{cost.longest:,}" if cost.longest else "none"
            times = cost.compute_seconds, cost.network_seconds
            shown = [MISSING if seconds is None else quantity("seconds", seconds) for seconds in times]
            no_limit = MISSING if None in times else "no"
            limit = f"{cost.network_bound_from} ranks" if cost.network_bound_from else no_limit
            cells.append((cost.sharding, teacher, memory, longest, sent, *shown, limit))
        block = Block(
            title=f"A rank of {plan.num_ranks} under {row.label}, by sharding and place of the teacher",
            header=("student", "teacher", "memory", "longest\ntrace", "sent a step", "computing", "sending", "limit"),
            rows=tuple(cells),
            note="Longest trace: the longest that fits the device by itself. Limit: the number of ranks from which "
            "sending takes longer than computing, where all share a step; no: sending never takes longer. A teacher "
            "on ranks of its own is calculated only, with as many ranks as keep up.",
            num_text=2,
        )
        of_ranks.append(block)
    return [
        _costs(plan),
        _by_part("FLOPs by part", labels, [row.prediction.flops for row in plan.rows]),
        _by_part("Peak memory by part", labels, [row.prediction.memory for row in plan.rows]),
        *of_ranks,
        _savings(plan, "FLOPs", labels, [row.flops_saving for row in plan.rows]),
        _savings(plan, "Peak memory", labels, [row.memory_saving for row in plan.rows]),
    ]


def sentences(plan: Plan) -> list[str]:
    """What the figures mean for these models and traces."""
    full = next((row for row in plan.rows if isinstance(row.policy, Full)), None)
    lines = [] if full is None else _bills(plan, full)
    if plan.rollouts is not None:
        lines += filter(None, (_rollouts(plan.rollouts), plan.rollouts.warning))
    if plan.served is not None:
        lines.append(f"The teacher is {plan.served}: no figure here has its memory, its operations or its time.")
    # Each source once, in the order of the rows.
    times = dict.fromkeys(row.prediction.seconds_source for row in plan.rows)
    lines += [f"Time: {source}; without loading, validation and evaluation." for source in times if source]
    if None in times:
        missing = "plan.device and plan.utilisation" if plan.device is None else "plan.utilisation, such as 0.4"
        lines.append(
            f"No time: run with --calibrate on this machine, or set {missing}. "
            "Money needs a time and plan.price_per_hour."
        )
    lines.append(disk_of_run(plan.disk_bytes))
    lines += _too_large(plan)
    lines += [f"Left out: {reason}." for reason in plan.left_out]
    if plan.rollouts is None:
        # A star is the recipe's own, since another policy may have the same label.
        lines += cut_warnings({row.label + " *" * row.is_recipes: row.cut for row in plan.rows})
        recipes, prices = next(row for row in plan.rows if row.is_recipes), []
        # What it costs to show a student of the recipe's own cut how answers end.
        for policy in with_ends(recipes.policy):
            row = next((row for row in plan.rows if row.policy == policy), None)
            if row is not None and shows_few_ends(recipes.cut):
                ends = percent(1 - row.cut.lost_stop / row.cut.num_kept)
                more = row.prediction.flops.total / recipes.prediction.flops.total
                prices.append(f"{row.label} shows {ends} of its examples' ends at {more:.2f} x the FLOPs")
        budget = "a thinking budget costs nothing in training, and its tokens whenever the student is asked"
        lines += [f"Against {recipes.label}: {'; '.join(prices)}; {budget}."] if prices else []
    if plan.searched is not None:
        lines += _break_point(plan.searched, plan.rows)
    return lines


def disk_of_run(num_bytes: int) -> str:
    """What a run leaves at most."""
    size = quantity("peak_memory_bytes", num_bytes)
    return (
        f"Disk: up to {size} in the run directory, for {NUM_CHECKPOINTS} checkpoints and the student; with "
        "training.keep_checkpoints=false the checkpoints are deleted when the run is finished."
    )


def disk_of_study(recipes: Sequence[Recipe], num_at_once: int, keeps_checkpoints: bool) -> str:
    """What the trials that train and are not complete leave at most; "" where there is none."""
    shape_of: dict[str, ModelShape] = {}  # by student and adapters: seeds and cuts do not change a size
    shapes: list[ModelShape] = []
    for recipe in recipes:
        key = f"{recipe.student.model_dump_json(exclude={'seed'})} {recipe.training.lora}"
        try:
            shapes.append(shape_of.get(key) or shape_of.setdefault(key, student_shape(recipe)))
        except ModelError:  # a student that a run of the study writes first, or one behind a network
            continue
    missing = len(recipes) - len(shapes)
    if not shapes:
        return f"Disk: not known, since {missing} trials begin from students that are not there yet." if missing else ""
    students = sum(disk_bytes(shape, num_checkpoints=0) for shape in shapes)
    # The largest first: any of them may run at the same time.
    sizes = sorted((disk_bytes(shape) - disk_bytes(shape, num_checkpoints=0) for shape in shapes), reverse=True)
    checkpoints = quantity("peak_memory_bytes", sum(sizes if keeps_checkpoints else sizes[:num_at_once]))
    when = "which stay (keep_checkpoints)" if keeps_checkpoints else "until a trial is complete"
    return (
        f"Disk: up to {quantity('peak_memory_bytes', students)} for the students of {len(shapes)} trials to come, and "
        f"{checkpoints} for checkpoints, {when}"
        f"{f'; {missing} more begin from students that are not there yet' if missing else ''}."
    )


def _rollouts(cost: RolloutCost) -> str:
    """The cost of rollouts by part, and its share of the same run with all rollouts at full length."""
    total = cost.prediction.flops.total
    columns = {
        "prompts in drawing": cost.prefill_flops,
        "new tokens in drawing": cost.decode_flops,
        "teacher": cost.teacher_flops,
        "training": cost.training_flops,
    }
    shown = ", ".join(f"{name} {percent(flops / total)}" for name, flops in columns.items())
    seconds, times = cost.prediction.seconds, ""
    most = "at most " if cost.prediction.is_bound else "about "
    if seconds is not None and cost.drawing_seconds is not None:
        times = (
            f" {most.capitalize()}{quantity('seconds', seconds)}: {quantity('seconds', cost.drawing_seconds)} "
            f"of drawing, {quantity('seconds', seconds - cost.drawing_seconds)} of training with the teacher."
        )
    return (
        f"Rollouts: the recipe's own run draws {cost.num_rollouts:,}, {most}{cost.new_tokens:,} new tokens together, "
        f"in {cost.prediction.num_steps:,} steps, {most}{quantity('flops', total)} ({shown}), "
        f"{percent(total / cost.whole_flops)} of those with every rollout at full length; a step waits for its longest "
        f"one, {cost.mean_longest:,.0f} tokens on average.{times} The rows above are of its traces alone."
    )


def _costs(plan: Plan) -> Block:
    where = f"{plan.num_ranks} x {plan.device.name}" if plan.device else "a device without figures"
    # The supports of `top_p` and `sampled` are the data's, so the sizes of their stores are limits.
    store = "store\n" + plan.codec.label.replace(" ", "\n") + "\nat most" * (plan.codec.kind in ("top_p", "sampled"))
    # Headers of two lines keep the table as narrow as a terminal.
    header = ["policy", "tokens", "", "FLOPs", "", "peak\nmemory", "time", "money", "largest\nbatch", store]
    header += ["deriv-\nation\ncut"] if plan.searched else []
    first = next((row for row in plan.rows if isinstance(row.policy, Full)), plan.rows[0])
    reference = first.prediction
    rows: list[tuple[str, ...]] = []
    for row in plan.rows:
        prediction = row.prediction
        cells = (
            row.label + " *" * row.is_recipes,
            quantity("tokens", prediction.num_tokens),
            percent(prediction.num_tokens / reference.num_tokens),
            quantity("flops", prediction.flops.total),
            percent(prediction.flops.total / reference.flops.total),
            quantity("peak_memory_bytes", prediction.memory.total),
            MISSING if prediction.seconds is None else quantity("seconds", prediction.seconds),
            MISSING if prediction.money is None else f"{plan.currency}{prediction.money:,.2f}",
            MISSING if row.fitting is None else f"{row.fitting:,}" if row.fitting else "none fits",
            MISSING if row.store is None else quantity("peak_memory_bytes", row.store.num_bytes),
        )
        cut_share = MISSING if row.without_derivation is None else percent(row.without_derivation.value)
        rows.append((*cells, cut_share) if plan.searched else cells)
    shown = [column for column in range(len(header)) if any(row[column] != MISSING for row in rows)]
    note = f"* the recipe's own; shares are of {first.label}."
    if header.index("largest\nbatch") in shown:
        note += " Largest batch: examples per micro-batch that fit the device, even the longest."
    rows = [tuple(row[column] for column in shown) for row in rows]
    title = f"{plan.name} on {where}, {plan.precision}"
    return Block(title, tuple(header[column] for column in shown), tuple(rows), note)


def _by_part(title: str, labels: Sequence[str], amounts: Sequence[ByPart]) -> Block:
    """Shares of a total by part; parts that are zero everywhere are not shown."""
    names = [name for name in type(amounts[0]).model_fields if any(getattr(amount, name) for amount in amounts)]
    rows: list[tuple[str, ...]] = []
    for label, amount in zip(labels, amounts, strict=True):
        rows.append((label, *(percent(getattr(amount, name) / (amount.total or 1)) for name in names)))
    return Block(title, ("policy", *(name.replace("_", "\n") for name in names)), tuple(rows))


def _savings(plan: Plan, cost: str, labels: Sequence[str], savings: Sequence[Saving]) -> Block:
    """Shares of a naive run's cost that each measure saves."""
    shown: list[Measure] = [measure for measure in MEASURES if measure != "store" or plan.knows_teacher]
    rows: list[tuple[str, ...]] = []
    for label, saving in zip(labels, savings, strict=True):
        cells = (f"{percent(saving.shares[measure])} ({percent(saving.alone[measure])})" for measure in shown)
        rows.append((label, *cells, percent(sum(saving.shares.values()))))
    names = (measure.replace("_", " ") for measure in shown)
    return Block(
        title=f"{cost} saved against a naive run, by technique (alone, in brackets)",
        header=("policy", *names, "all four" if plan.knows_teacher else "all three"),
        rows=tuple(rows),
        note="Naive: whole sequences padded to the longest of their batch, logits of all positions at once"
        + (", a live teacher" if plan.knows_teacher else "")
        + ". Shares are means over all orders of switching these on (Shapley values).",
    )


def _bills(plan: Plan, full: PlanRow) -> list[str]:
    """The bill of the uncut run, and what a store and each cut save of it."""
    flops, total = full.prediction.flops, full.prediction.flops.total
    attention = flops.student_attention + flops.teacher_attention
    teacher = flops.teacher_body + flops.teacher_attention + flops.teacher_head
    mean = full.cut.tokens_after / max(1, full.cut.num_kept)
    bill = f"Uncut, at {mean:,.0f} tokens a trace, attention is {percent(attention / total)} of the FLOPs"
    bills = [bill + (f" and the teacher {percent(teacher / total)}." if teacher else ".")]
    store = None if plan.reads_store or not plan.knows_teacher else full.store
    if store is not None:
        bills.append(
            f"A store of the teacher's targets ({plan.codec.label}) saves {percent(store.saved_flops / total)} of the "
            f"uncut run's FLOPs after a capture that costs {percent(store.capture_flops / total)} of them once "
            f"({percent(store.validation_flops / store.capture_flops)} of the capture is validation); "
            f"net {percent(store.net_flops / total)} where this run alone uses it."
        )
    for row in plan.rows:
        if row is full:
            continue
        saved, than, kept = total - row.prediction.flops.total, ".", row.cut.tokens_after / row.cut.tokens_before
        if store is not None:
            once, shared = (
                "more than" if saved > by_store else "less than" if saved < by_store else "as much as"
                for by_store in (store.net_flops, store.saved_flops)
            )
            later = "and on later ones" if shared == once else f"{shared} on later ones"
            than = f": {once} a store saves on its first run, {later}."
        dropped, gone = row.cut.num_examples - row.cut.num_kept, percent(1 - kept)
        # Of a schedule every trace is an example of each stage.
        whole = f"drops {dropped:,} of {row.cut.num_examples:,} examples whole and cuts the others, which takes away"
        cut = f"{row.label} {whole if dropped else 'cuts'} {gone} of the traces' tokens"
        bills.append(f"{cut} and saves {percent(saved / total)} of the FLOPs{than}")
    return bills


def _too_large(plan: Plan) -> Iterator[str]:
    """Policies whose micro-batches do not fit the device."""
    for row in plan.rows:
        needed = row.prediction.memory.total
        if plan.device is None or needed <= plan.device.memory_bytes:
            continue
        size, room = (quantity("peak_memory_bytes", n) for n in (needed, plan.device.memory_bytes))
        # No batch is small enough where even this does not fit.
        fixed = needed - row.prediction.memory.activations - row.prediction.memory.logits
        if row.fitting and plan.examples_per_step is None:
            remedy = f"tokens_per_batch: {row.fitting_tokens} fits"
            if row.fitting_tokens is not None and row.fitting_tokens < row.longest:  # training refuses longer examples
                remedy += ", for which no example may be longer (data.max_tokens, or cut more)"
        elif row.fitting and plan.examples_per_step is not None:
            # A step is a whole number of batches on every rank.
            number, share = row.fitting, plan.examples_per_step // plan.num_ranks
            remedy = f"examples_per_batch: {next(n for n in range(min(number, share), 0, -1) if share % n == 0)} fits"
        elif fixed > plan.device.memory_bytes:
            remedy = f"weights, gradients and optimiser alone exceed it: {row.remedy}, or set training.lora"
        else:
            remedy = f"not one example fits: {row.remedy}, or cut more"
        text = f"{row.label} does not fit {plan.device.name}: its largest micro-batch needs {size} of {room}"
        yield f"{text}; {remedy}."


def _break_point(searched: Searched, rows: Sequence[PlanRow]) -> list[str]:
    """LSP* and the traces it is estimated from, or why there is none."""
    summary = searched.summary
    where = f"{summary.num_traces:,} of {searched.num_rows:,} training traces"
    counts = ", ".join(f"{name} {count:,}" for name, count in summary.outcomes.items())
    sources = ", ".join(f"{source} {count:,}" for source, count in summary.gold_sources.items() if source != "none")
    point = summary.lsp_star
    if searched.num_left:
        where += f" ({searched.num_left:,} more undecided after plan.break_point_seconds)"
    if not summary.num_traces:
        return [f"No break point LSP*: {where} were searched."]
    if not sources:
        return [f"No gold: none of {where} has a right answer to look for, so no break point LSP* can be predicted."]
    if point is None:
        return [f"No break point LSP*: of {where} none states its right answer in the chain of thought ({counts})."]
    shares = {row.label: row.cut.tokens_after / row.cut.tokens_before for row in rows if isinstance(row.policy, Lead)}
    below = [label for label, share in shares.items() if share < point.low]
    within = [label for label, share in shares.items() if point.low <= share < point.high]
    verdict = f"cuts that take derivations away: {', '.join(below)}" if below else "no lead cut here is below it"
    verdict += f"; cuts within its interval, which may: {', '.join(within)}" if within else ""
    return [
        f"Predicted break point LSP*: {point.value:.2f} [{point.low:.2f}, {point.high:.2f}]; {verdict}.",
        f"First answers of {where}: {counts}; right answers from: {sources}. "
        "Derivation cut: share of those found whose first statement of the answer is cut.",
    ]
