import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from leadspan.cli import main
from leadspan.costs.flops import ExampleSize, training_flops
from leadspan.costs.memory import BatchSize
from leadspan.costs.settings import PlanSettings
from leadspan.data.examples import Examples
from leadspan.data.supervision import layout_sizes
from leadspan.data.truncation import Full, Lead
from leadspan.data.truncation.policy import stop_warning
from leadspan.errors import CacheError, DataError, SettingsError
from leadspan.inputs import SAMPLE, first_answers_of, prepare_data, training_examples
from leadspan.models.loading import load_model
from leadspan.models.settings import Pretrained
from leadspan.pipeline.run import run
from leadspan.planning.fitting import what_would_fit
from leadspan.planning.plan import Plan, calibration_of, plan_recipe
from leadspan.planning.prediction import CostModel, cost_model_of, student_shape
from leadspan.planning.prediction import planned as step_plan
from leadspan.planning.tables import disk_of_study, plan_tables, sentences
from leadspan.planning.timing import Calibration
from leadspan.recipe import Recipe
from leadspan.results import load_run, predicted_and_measured
from leadspan.status import StatusHandler
from leadspan.tables import percent, quantity, rich_table
from recipes import toy_recipe, write_recipe
from stores import captured, stored
from toys import VOCAB, tiny

POLICIES = (Full(), Lead(p=0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


def planned(folder: Path, machine: dict[str, object], **more: object) -> Plan:
    recipe = toy_recipe(folder, plan=machine, **more)
    return plan_recipe(recipe, prepare_data(recipe), POLICIES)


def text_of(plan: Plan) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    for block in plan_tables(plan):
        console.print(rich_table(block))
    for sentence in sentences(plan):
        console.print(sentence, markup=False)
    return console.export_text()


@pytest.mark.slow
def test_the_recipes_own_policy_comes_first_and_shares_are_of_full(folder: Path) -> None:
    plan = planned(folder, {"device": "l4", "utilisation": 0.5, "price_per_hour": 3.6})
    assert [(row.label, row.is_recipes) for row in plan.rows] == [
        ("lead 0.7", True),
        ("full", False),
        ("lead 0.5", False),
        ("mix 0.75 lead 0.7", False),
        ("lead_answer 0.7", False),
    ]
    own, full, half, mixed, answered = (row.prediction for row in plan.rows)
    assert half.num_tokens < own.num_tokens < full.num_tokens and half.flops.total < own.flops.total
    assert full.seconds == pytest.approx(full.flops.total / (121e12 * 0.5))
    assert full.money == pytest.approx(full.seconds * 3.6 / 3600)
    assert plan.rows[0].fitting == plan.rows[0].cut.num_kept  # so small that all fit
    shown = text_of(plan)
    shown_ends = 1 - plan.rows[3].cut.lost_stop / plan.rows[3].cut.num_kept
    for text in (
        f"mix 0.75 lead 0.7 shows {percent(shown_ends)} of its examples' ends at "
        f"{mixed.flops.total / own.flops.total:.2f} x",
        f"lead_answer 0.7 shows {percent(1)} of its examples' ends at {answered.flops.total / own.flops.total:.2f} x",
    ):
        assert text in " ".join(shown.split())
    assert "lead 0.7 *" in shown and "Time: 50 % of the peak of 1 x NVIDIA L4" in shown
    for row in plan.rows:
        assert sum(row.flops_saving.shares.values()) == pytest.approx(
            1 - row.flops_saving.all_on / row.flops_saving.naive
        )


@pytest.mark.slow
def test_a_policy_that_leaves_nothing_is_left_out_and_said_unless_it_is_the_recipes_own(folder: Path) -> None:
    recipe = toy_recipe(folder)
    data = prepare_data(recipe)
    plan = plan_recipe(recipe, data, (Full(), Lead(p=0.01)))
    assert [row.label for row in plan.rows] == ["lead 0.7", "full", "mix 0.75 lead 0.7", "lead_answer 0.7"]
    assert stop_warning({"lead 0.7 *": plan.rows[0].cut}) in sentences(plan)  # and full is not among them
    assert any(text.startswith("Left out: training set: lead 0.01 leaves no weighted") for text in sentences(plan))
    with pytest.raises(DataError, match="leaves no weighted position"):
        plan_recipe(recipe.model_copy(update={"cut": Lead(p=0.01)}), data, (Full(), Lead(p=0.01)))


@pytest.mark.slow
def test_a_policy_whose_traces_exceed_the_budget_of_a_batch_is_left_out_too(folder: Path) -> None:
    longest = max(prepare_data(toy_recipe(folder)).examples.lengths)
    recipe = toy_recipe(folder, batching={"kind": "tokens", "tokens_per_batch": longest})
    data = prepare_data(recipe)
    plan = plan_recipe(recipe, data, POLICIES)
    assert [row.label for row in plan.rows] == ["lead 0.7", "lead 0.5"]
    said = next(line for line in sentences(plan) if line.startswith("Left out: full: "))
    assert f"training.batching.tokens_per_batch = {longest}: the longest example has" in said
    with pytest.raises(SettingsError, match="tokens_per_batch"):
        plan_recipe(recipe.model_copy(update={"cut": Full()}), data, POLICIES)
    calibration = calibration_of(recipe, data, POLICIES, True)
    assert calibration is not None and calibration.num_steps == 1 + 4  # of lead 0.5 alone


@pytest.mark.slow
@pytest.mark.parametrize("drops", [False, True])
def test_the_naive_run_of_a_cut_that_changes_has_the_same_rows_uncut(folder: Path, drops: bool) -> None:
    ends = {"start": 0.88, "end": 0.89} if drops else {"start": 0.6, "end": 1.0}
    weights = {"prompt": 0, "cot": 0 if drops else 1, "answer": 1}
    cut = {"kind": "schedule", "policy": {"kind": "lead"}, "num_stages": 3, **ends}
    one_by_one = {"kind": "examples", "examples_per_batch": 1, "examples_per_step": 2}
    recipe = toy_recipe(folder, cut=cut, supervision=weights, batching=one_by_one)
    data = prepare_data(recipe)
    row = plan_recipe(recipe, data, ()).rows[0]
    examples = data.examples
    assert (row.cut.num_kept < row.cut.num_examples) == drops  # in some stage
    assert (len(examples.rows) < len(data.splits.train)) == drops  # in all of them
    model = cost_model_of(recipe, data.renderer)
    rows = examples.rows.with_format(None)
    uncut = [len(rows[i % len(rows)]["input_ids"]) for batch in step_plan(model, examples)[0].plan for i in batch]
    naive = training_flops(model.student, model.teacher, [ExampleSize(length, length) for length in uncut], False)
    assert row.flops_saving.naive == naive.total
    assert row.flops_saving.all_on < row.prediction.flops.total < naive.total


@pytest.mark.slow
def test_cuts_of_one_label_are_warned_of_each(folder: Path) -> None:
    recipe = toy_recipe(folder, cut={"kind": "lead", "p": 0.5})
    shows_ends = Lead(p=0.5, stop="append_eos")
    plan = plan_recipe(recipe, prepare_data(recipe), (Full(), shows_ends))
    recipes = next(row for row in plan.rows if row.is_recipes)
    assert recipes.label == shows_ends.label
    assert stop_warning({"lead 0.5 *": recipes.cut}) in sentences(plan)


@pytest.mark.slow
def test_a_plan_says_which_cuts_drop_examples(folder: Path) -> None:
    recipe = toy_recipe(folder, cut={"kind": "full"}, supervision={"prompt": 0, "cot": 0, "answer": 1})
    plan = plan_recipe(recipe, prepare_data(recipe), (Full(), Lead(p=0.89)))
    cut = next(row.cut for row in plan.rows if row.label == "lead 0.89")
    assert 0 < cut.num_kept < 0.9 * cut.num_examples
    shown = " ".join(sentences(plan))
    assert f"lead 0.89 leaves {cut.num_kept} of {cut.num_examples} examples" in shown
    share = f"{100 * (1 - cut.tokens_after / cut.tokens_before):.0f} %"
    assert (
        f"lead 0.89 drops {cut.num_examples - cut.num_kept} of {cut.num_examples} examples whole and cuts the others, "
        f"which takes away {share} of the traces' tokens and saves" in shown
    )
    assert "full leaves" not in shown


@pytest.mark.slow
def test_ranks_divide_the_time_and_not_the_bill(folder: Path) -> None:
    machine = {"device": "l4", "utilisation": 0.5, "price_per_hour": 1}
    one, two = (planned(folder, machine | {"num_ranks": n}).rows[1].prediction for n in (1, 2))
    assert one.seconds == pytest.approx(2 * (two.seconds or 0)) and one.money == pytest.approx(two.money)
    assert one.flops == two.flops


@pytest.mark.slow
def test_ranks_are_planned_by_sharding_and_place_of_the_teacher(folder: Path) -> None:
    batching = {"kind": "examples", "examples_per_step": 8, "examples_per_batch": 1}
    machine = {"device": "l4", "utilisation": 0.5, "num_ranks": 2, "bandwidth_gb": 1e-3}
    plan = planned(folder, machine, batching=batching)
    own, *others = plan.rows
    assert not any(row.ranks for row in others)
    cost = {(rank.sharding, rank.placement): rank for rank in own.ranks}
    assert len(cost) == 6
    for sharding in ("ddp", "fsdp2"):
        beside, ranks, store = (cost[sharding, place] for place in ("beside", "ranks", "store"))
        assert beside.memory.total > store.memory.total and beside.compute_seconds > store.compute_seconds
        assert ranks.traffic.total > store.traffic.total and ranks.teacher_ranks >= 2
        assert ranks.network_seconds == pytest.approx(ranks.traffic.total / 1e6)
        assert store.network_bound_from == 2  # a megabyte a second is slower than any of these steps
    assert cost["ddp", "store"].memory.total > cost["fsdp2", "store"].memory.total
    # A store of hidden states leaves the teacher's head on every rank.
    hidden = planned(folder, machine, batching=batching, capture={"codec": {"kind": "hidden"}}).rows[0]
    stored = next(rank for rank in hidden.ranks if (rank.sharding, rank.placement) == ("ddp", "store"))
    head = 2 * 48 * VOCAB
    assert (cost["ddp", "store"].memory.teacher, stored.memory.teacher) == (0, head)
    assert stored.memory.total > cost["ddp", "store"].memory.total and hidden.ranks[1].memory.teacher == head
    json.dumps(plan.as_json())
    assert "A rank of 2 under lead 0.7" in text_of(plan)


def highest_alone(model: CostModel, examples: Examples, num_ranks: int) -> int:
    """Memory of the largest example by itself on one of several ranks under FSDP2."""
    memory = replace(model.memory, num_ranks=num_ranks, sharding="fsdp2" if num_ranks > 1 else "none")
    tokens, weighted, _ = map(max, zip(*layout_sizes(examples.layouts, None), strict=True))
    return memory.peak(BatchSize(tokens, weighted)).total


@pytest.mark.slow
def test_a_trace_that_does_not_fit_is_told_what_would_let_it(folder: Path) -> None:
    recipe = toy_recipe(folder, plan={"device": {"peak_tflops": 1, "memory_gb": 1}})
    data = prepare_data(recipe)
    model = cost_model_of(recipe, data.renderer)
    alone = model.memory.peak(BatchSize.of(sorted(layout_sizes(data.examples.layouts, None))[-1:])).total
    assert what_would_fit(recipe, model, data.examples, alone - 1) == "training.gradient_checkpointing: true fits"
    assert what_would_fit(recipe, model, data.examples, 1).endswith("set training.lora")
    deep = tiny(hidden=64, layers=12).model_dump()
    recomputing = toy_recipe(folder, student=deep, gradient_checkpointing=True)  # two batches in a step
    model = cost_model_of(recomputing, data.renderer)
    least = {n: highest_alone(model, data.examples, n) for n in (1, 2, 4)}
    assert least[1] > least[2] > least[4]
    said = [what_would_fit(recomputing, model, data.examples, least[n]) for n in (2, 4)]
    assert said[0] == "plan.num_ranks=2 plan.sharding=fsdp2 fits"
    assert said[1] == "plan.num_ranks=4 plan.sharding=fsdp2 with a multiple of 4 batches in a step fits"


@pytest.mark.slow
def test_a_price_of_zero_is_a_price(folder: Path) -> None:
    plan = planned(folder, {"device": "l4", "utilisation": 0.5, "price_per_hour": 0})
    assert {row.prediction.money for row in plan.rows} == {0.0}
    assert "$0.00" in text_of(plan)


def test_without_a_device_there_is_no_time_and_it_is_said(folder: Path) -> None:
    plan = planned(folder, {"price_per_hour": 2})
    assert plan.rows[0].prediction.seconds is None and plan.rows[0].prediction.money is None
    assert any(line.startswith("No time: run with --calibrate") for line in sentences(plan))


@pytest.mark.slow
def test_a_device_too_small_for_one_example_is_told_with_a_remedy(folder: Path) -> None:
    tiny_device = {"device": {"name": "a watch", "peak_tflops": 0.001, "memory_gb": 0.0001}}
    plan = planned(folder, tiny_device)
    assert {row.fitting for row in plan.rows} == {0}
    shown = text_of(plan)
    assert "none fits" in shown
    assert "full does not fit a watch" in shown and "weights, gradients and optimiser alone exceed it" in shown


@pytest.mark.slow
def test_a_device_too_small_for_the_batch_names_the_batch_that_fits(folder: Path) -> None:
    roomy = {"device": {"peak_tflops": 1, "memory_gb": 1}}
    needed = planned(folder, roomy).rows[1].prediction.memory.total
    plan = planned(folder, {"device": {"peak_tflops": 1, "memory_gb": 0.8 * needed / 1e9}})
    full = plan.rows[1]
    assert full.fitting is not None and 0 < full.fitting < 4
    divisor = {1: 1, 2: 2, 3: 2}[full.fitting]  # of a step of 8
    assert any(f"examples_per_batch: {divisor} fits" in line for line in sentences(plan))
    several = replace(plan, num_ranks=4, rows=(replace(full, fitting=3, is_recipes=True),))  # 2 examples for each rank
    assert any("examples_per_batch: 2 fits" in line for line in sentences(several))
    several = replace(several, num_ranks=8)
    assert any("examples_per_batch: 1 fits" in line for line in sentences(several))


@pytest.mark.slow
def test_what_a_calibration_adds_is_part_of_what_must_fit(folder: Path) -> None:
    recipe = toy_recipe(folder, plan={"device": {"peak_tflops": 1, "memory_gb": 1}})
    data = prepare_data(recipe)
    model = cost_model_of(recipe, data.renderer)
    uncut = training_examples(recipe, data.splits, data.renderer, Full())
    tokens, weighted, _ = (sorted(sizes)[-4:] for sizes in zip(*layout_sizes(uncut.layouts, None), strict=True))
    four = model.memory.peak(BatchSize(sum(tokens), sum(weighted), lengths=tuple(tokens))).total
    machine = {"device": {"peak_tflops": 1, "memory_gb": (four + 100) / 1e9}}
    rates = {"device": "here", "num_steps": 1, "rates": {"step": 1.0}, "largest_error": 0}
    calibration = Calibration(fingerprint=model.fingerprint, memory_offset=four // 3, **rates)
    tight = recipe.model_copy(update={"plan": PlanSettings.model_validate(machine)})
    tensors = plan_recipe(tight, data, POLICIES).rows[1]
    plan = plan_recipe(tight, data, POLICIES, calibration)
    assert plan.rows[1].prediction.memory.total == tensors.prediction.memory.total + four // 3
    assert tensors.fitting == 4 and plan.rows[1].fitting in (1, 2, 3)
    assert "full does not fit custom device" in text_of(plan) and "examples_per_batch: 4 fits" not in text_of(plan)


@pytest.mark.slow
def test_shares_are_of_the_first_row_where_the_uncut_run_is_not_compared(folder: Path) -> None:
    recipe = toy_recipe(folder)
    plan = plan_recipe(recipe, prepare_data(recipe), [Lead(p=0.5)])
    assert "shares are of lead 0.7." in text_of(plan) and "of full" not in text_of(plan)
    assert "shares are of full." in text_of(planned(folder, {}))


@pytest.mark.slow
def test_a_calibration_measures_what_can_be_trained(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = toy_recipe(folder)
    nothing = calibration_of(recipe, prepare_data(recipe), [Lead(p=0.01)], True)
    assert nothing is not None and nothing.num_steps == 1 + 4  # the recipe's own cut alone
    both = calibration_of(recipe, prepare_data(recipe), [Full()], True)
    assert both is not None and both.num_steps == 2 * (1 + 4)  # steps of one length show nothing that grows with it
    live, _ = captured(tmp_path, codec={"kind": "hidden"})
    reading = stored(live, tmp_path / "run")
    calibration = calibration_of(reading, prepare_data(reading), [Full(), Lead(p=0.5)], True)
    assert calibration is not None and calibration.num_steps == 1 + 4  # the store has no uncut traces
    assert "not measured: full" in caplog.text and "not measured: lead" not in caplog.text
    directory = recipe.model_copy(update={"plan": PlanSettings(calibration=tmp_path)})
    with pytest.raises(SettingsError, match=r"plan\.calibration = .* is a directory, and a file is to be written"):
        calibration_of(directory, prepare_data(directory), POLICIES, True)
    traces = recipe.model_copy(update={"plan": PlanSettings(calibration=Path(recipe.data.train.path))})
    with pytest.raises(SettingsError, match=r"plan\.calibration = .* is data, a recipe, .* which would be lost"):
        calibration_of(traces, prepare_data(traces), POLICIES, True)


@pytest.mark.slow
def test_a_recipe_of_token_budgets_is_told_the_budget_that_fits(folder: Path) -> None:
    def of(memory_gb: float, tokens: int) -> Plan:
        device = {"device": {"peak_tflops": 1, "memory_gb": memory_gb}}
        return planned(folder, device, batching={"kind": "tokens", "tokens_per_batch": tokens})

    memory_gb = 0.8 * of(1, 800).rows[1].prediction.memory.total / 1e9
    plan = of(memory_gb, 800)
    full, told = plan.rows[1], " ".join(sentences(plan))
    assert full.fitting_tokens is not None and full.longest <= full.fitting_tokens < 800
    assert f"tokens_per_batch: {full.fitting_tokens} fits" in told and "examples_per_batch" not in told
    shorter = replace(full, fitting_tokens=full.longest - 1)
    assert (
        f"tokens_per_batch: {full.longest - 1} fits, for which no example may be longer (data.max_tokens"
        in " ".join(sentences(replace(plan, rows=(replace(shorter, is_recipes=True),))))
    )
    again = of(memory_gb, full.fitting_tokens)
    assert again.rows[1].prediction.memory.total <= memory_gb * 1e9 and "full does not fit" not in text_of(again)


@pytest.mark.slow
def test_steps_and_token_budgets_leave_the_cut_of_a_trace_what_it_is(folder: Path) -> None:
    plan = planned(folder, {}, batching={"kind": "tokens", "tokens_per_batch": 800})
    full, half = plan.rows[1:3]
    assert half.prediction.num_tokens / full.prediction.num_tokens > 0.6  # the same budget in every step
    cut = 1 - half.cut.tokens_after / half.cut.tokens_before
    assert cut == pytest.approx(0.5, abs=0.01)
    assert f"lead 0.5 cuts {percent(cut)} of the traces' tokens" in " ".join(sentences(plan))


@pytest.mark.slow
def test_own_figures_plan_in_the_precision_of_a_preset_unless_they_say_otherwise(folder: Path) -> None:
    own = {"peak_tflops": 121, "memory_gb": 24}
    preset, same, other = (planned(folder, {"device": d}) for d in ("l4", own, own | {"bfloat16": False}))
    assert [row.prediction for row in preset.rows] == [row.prediction for row in same.rows]
    assert other.rows[0].prediction.memory != same.rows[0].prediction.memory
    assert all("toy on 1 x custom device, " + t in text_of(p) for p, t in ((same, "bfloat16"), (other, "float32")))
    forced = planned(folder, {"device": own}, precision="float32")
    assert forced.precision == "float32"


@pytest.mark.slow
def test_a_store_saves_the_teacher_and_its_capture_is_paid_once(folder: Path) -> None:
    large = tiny(hidden=256, seed=2).model_dump()
    plan = planned(folder, {}, steps=None, epochs=1, teacher=large)
    full = plan.rows[1]
    assert full.store is not None
    flops, trained = full.prediction.flops, full.store.capture_flops - full.store.validation_flops
    assert full.store.saved_flops == flops.teacher_body + flops.teacher_attention + flops.teacher_head
    assert trained == pytest.approx(full.store.saved_flops, rel=0.05)  # prompts have no loss, and are captured
    assert full.store.validation_flops > 0 and full.store.net_flops < 0
    told = " ".join(sentences(plan))
    assert "of the capture is validation); net -" in told
    assert "more than a store saves on its first run, less than on later ones" in told
    # each checkpoint has weights and two moments in float32, the student weights
    num_bytes = (3 * 12 + 4) * load_model(tiny(seed=1), torch.float32).num_parameters()
    assert plan.disk_bytes == num_bytes
    assert f"Disk: up to {quantity('peak_memory_bytes', num_bytes)} in the run directory" in told
    thrice = planned(folder, {}, steps=None, epochs=3, teacher=large).rows[1].store
    assert thrice is not None and thrice.saved_flops == 3 * full.store.saved_flops
    assert thrice.capture_flops == full.store.capture_flops and thrice.net_flops > 0
    states = {"codec": {"kind": "hidden"}}
    hidden = planned(folder, {}, steps=None, epochs=1, teacher=large, capture=states).rows[1]
    assert hidden.store is not None and hidden.store.saved_flops == flops.teacher_body + flops.teacher_attention
    assert hidden.flops_saving.all_on > full.flops_saving.all_on  # the head stays


@pytest.mark.slow
def test_a_recipe_that_reads_a_store_is_held_against_the_live_teacher_it_names(folder: Path) -> None:
    live = planned(folder, {}, capture={"codec": {"kind": "hidden"}})
    targets = {"kind": "store", "path": str(folder / "nowhere")}
    plan = planned(folder, {}, targets=targets, capture={"codec": {"kind": "hidden"}})
    for ours, theirs in zip(plan.rows, live.rows, strict=True):
        assert ours.flops_saving == theirs.flops_saving and ours.memory_saving == theirs.memory_saving
        assert ours.prediction.flops.total == ours.flops_saving.all_on < theirs.prediction.flops.total
        assert ours.flops_saving.shares["store"] > 0
    shown = text_of(plan)
    assert "a live teacher" in shown and "all four" in shown and "store of the teacher's targets" not in shown
    shown = text_of(planned(folder, {}, targets=targets, teacher=None))
    assert "live teacher" not in shown and "all three" in shown and "of the teacher's targets" not in shown
    assert "of the traces' tokens and saves" in shown


@pytest.mark.slow
def test_the_size_of_a_store_is_that_of_the_recipes_codec(folder: Path) -> None:
    def size(precision: str = "auto", **codec: object) -> tuple[int, str]:
        plan = planned(folder, {"device": "l4"}, precision=precision, capture={"codec": codec})
        assert plan.rows[1].store is not None
        return plan.rows[1].store.num_bytes, text_of(plan)

    (five, shown), (ten, _) = size(kind="top_k", k=5), size(kind="top_k", k=10)
    splits = prepare_data(toy_recipe(folder, cut={"kind": "full"})).splits
    lengths = [n for rows in (splits.train, splits.validation) for n in rows["num_tokens"]]
    positions, number = sum(lengths) - len(lengths), len(lengths)
    # A sequence has 40 bytes and 8 for each list: of top_k there are 7, of hidden states 3.
    assert five == positions * (19 + 4 * 5) + 96 * number and ten - five == 20 * positions
    assert "top_k" in shown
    head = 48 * VOCAB
    assert size(kind="hidden")[0] == positions * (5 + 2 * 48) + 64 * number + 2 * head
    assert size("float32", kind="hidden")[0] == positions * (5 + 4 * 48) + 64 * number + 4 * head
    assert size(kind="hidden", dtype="float32")[0] == positions * (5 + 4 * 48) + 64 * number + 2 * head
    assert "at most" in size(kind="sampled", num_samples=8)[1]


@pytest.mark.slow
def test_adapters_are_counted_without_weights(folder: Path) -> None:
    own = planned(folder, {}, lora={"r": 2}).rows[0].prediction
    full = planned(folder, {}).rows[0].prediction
    assert own.memory.optimizer < full.memory.optimizer / 4 and own.flops.student_body < full.flops.student_body


def with_traces(folder: Path, rows: list[dict[str, str]], **more: object) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "stated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"train": {"path": str(folder / "stated.jsonl")}, "validation": {"kind": "none"}}
    return toy_recipe(folder, data=source | {"cache_dir": str(folder / "cache")}, **more)


def stating(cot: str, number: int = 6) -> list[dict[str, str]]:
    return [{"prompt": f"add {i} and 1", "cot": cot, "answer": "it is 77.", "gold": "77"} for i in range(number)]


def searched(recipe: Recipe) -> Plan:
    data = prepare_data(recipe)
    return plan_recipe(recipe, data, POLICIES, searched=first_answers_of(recipe, data))


@pytest.mark.slow
def test_the_break_point_of_the_traces_is_shown_and_written(folder: Path, tmp_path: Path) -> None:
    recipe = toy_recipe(folder)
    assert "LSP*" not in text_of(plan_recipe(recipe, prepare_data(recipe), POLICIES))
    early, late = "so it is 77. " + "let me check. " * 20, "let me think. " * 20 + "so it is 77."
    found = {}
    for name, cot in (("early", early), ("late", late)):
        plan = found[name] = searched(with_traces(tmp_path / name, stating(cot, 40)))
        assert plan.searched is not None
        point = plan.searched.summary.lsp_star
        assert point is not None and {row.prediction.break_point for row in plan.rows} == {point}
        tokens = len("<|im_start|>user\nadd 0 and 1<|im_end|>\n<|im_start|>assistant\n") - 35 + cot.index("77") + 5
        assert point.value == pytest.approx(tokens / (plan.rows[1].cut.tokens_before / 40), abs=0.03)
    shares = {name: [row.without_derivation for row in plan.rows] for name, plan in found.items()}
    assert [share and share.value for share in shares["early"][:3]] == [0, 0, 0]
    assert [share and share.value for share in shares["late"][:3]] == [1, 0, 1]  # lead 0.7, full, lead 0.5
    told = " ".join(sentences(found["late"]))
    assert "cuts that take derivations away: lead 0.7, lead 0.5." in told
    assert "First answers of 40 of 40 training traces: found 40, not found 0, no gold 0" in told
    found_late = found["late"].searched
    assert found_late is not None and found_late.summary.lsp_star is not None
    wide = found_late.summary.lsp_star.model_copy(update={"low": 0.6})
    summary = found_late.summary.model_copy(update={"lsp_star": wide})
    told = " ".join(sentences(replace(found["late"], searched=replace(found_late, summary=summary))))
    assert "take derivations away: lead 0.5; cuts within its interval, which may: lead 0.7." in told
    shown = json.loads(json.dumps(found["late"].as_json()))
    assert shown["searched"]["outcomes"]["found"] == shown["searched"]["num_rows"] == 40
    assert shown["rows"][0]["without_derivation"]["value"] == 1
    assert shown["rows"][0]["prediction"]["break_point"]["value"] == shown["searched"]["lsp_star"]["value"]


@pytest.mark.slow
def test_no_gold_and_no_statement_are_said_plainly(tmp_path: Path) -> None:
    without = [{"prompt": f"who {i}", "cot": "let me think. " * 9, "answer": "nobody knows."} for i in range(4)]
    shown = " ".join(sentences(searched(with_traces(tmp_path / "without", without))))
    assert "No gold: none of 4 of 4 training traces has a right answer" in shown
    shown = " ".join(sentences(searched(with_traces(tmp_path / "never", stating("let me think. " * 9, 4)))))
    assert "none states its right answer in the chain of thought (found 0, not found 4, no gold 0)" in shown


@pytest.mark.slow
def test_a_run_keeps_the_break_point_of_its_traces(tmp_path: Path) -> None:
    recipe = with_traces(tmp_path, stating("so it is 77. " + "let me check. " * 9), steps=1)
    result = run(recipe)
    assert result.prediction is not None and result.prediction.break_point_traces == 6
    expected = first_answers_of(recipe, prepare_data(recipe)).summary.lsp_star
    assert result.prediction.break_point == expected is not None
    assert load_run(recipe.output).prediction == result.prediction


@pytest.mark.slow
def test_a_run_that_needs_no_first_answers_does_not_fail_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file where the cache keeps them is in the way of its directory."""
    recipe = with_traces(tmp_path, stating("so it is 77. " + "let me check. " * 9), steps=1)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "first_answers").write_text("in the way")
    said: list[str] = []
    with StatusHandler(said.append):
        prediction = run(recipe).prediction
    assert prediction is not None and prediction.break_point is prediction.break_point_traces is None
    assert "no break point is predicted" in caplog.text and "cannot be written" in caplog.text
    assert said.index("preparing data") < said.index("looking for first answers") < said.index("loading models")
    needs = {"cut": {"kind": "post_conclusion"}, "output": str(tmp_path / "other")}
    with pytest.raises(CacheError, match="cannot be written"):
        run(Recipe.model_validate(recipe.model_dump() | needs))


@pytest.mark.slow
def test_time_for_first_answers_is_a_setting_and_what_is_left_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = stating("so it is 77. " + "let me check. " * 9)
    recipe = with_traces(tmp_path / "short", rows, steps=1, plan={"break_point_seconds": 1e-9})
    plan = searched(recipe)
    assert "6 more undecided after plan.break_point_seconds" in " ".join(sentences(plan))
    prediction = run(recipe).prediction
    assert prediction is not None and prediction.break_point is None
    assert (prediction.break_point_traces, prediction.break_point_left) == (0, 6)
    assert "6 of 6 traces undecided" in caplog.text
    said: list[str] = []
    with StatusHandler(said.append):
        prediction = run(with_traces(tmp_path / "off", rows, steps=1, plan={"break_point_seconds": 0})).prediction
    assert prediction is not None and prediction.break_point_left is None
    assert "looking for first answers" not in said


@pytest.mark.slow
def test_a_large_source_is_sampled_and_the_sample_is_stated(tmp_path: Path) -> None:
    plan = searched(with_traces(tmp_path, stating("so it is 77. " + "let me check. " * 9, 450)))
    assert plan.searched is not None and len(plan.searched.traces) == SAMPLE == 400
    assert "First answers of 400 of 450 training traces" in text_of(plan)


def test_policies_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_recipe(toy_recipe(tmp_path), tmp_path / "recipe.yaml"))
    assert main(["plan", path, "--cut", "{kind: lead, p: 0.3}", "--json", "-"]) == 0
    assert "lead 0.3" in [row["label"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert main(["plan", path, "--cut", "{kind: lead, p: 3}"]) == 2
    assert "--cut {kind: lead, p: 3}" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrated_rates_are_kept_used_and_refused_for_other_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = tmp_path / "rates.json"
    recipe = toy_recipe(tmp_path, plan={"calibration": str(rates)})
    with pytest.raises(SettingsError, match="not found"):
        calibration_of(recipe, prepare_data(recipe), POLICIES, False)
    path = write_recipe(recipe, tmp_path / "recipe.yaml")
    arguments = ["plan", str(path), "--calibrate", "--cut", "{kind: full}", "--json", str(tmp_path / "plan.json")]
    assert main(arguments) == 0
    assert "Time: calibration of 10 steps on 1 x cpu" in capsys.readouterr().out
    stored = Calibration.model_validate_json(rates.read_text())
    assert stored.num_steps == 10 and stored.rates and stored.memory_factor + stored.memory_offset > 0
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert rows[0]["prediction"]["seconds"] > 0 and rows[0]["prediction"]["flops"]["total"] > 0
    assert main(["plan", str(path), "training.gradient_checkpointing=true"]) == 2
    assert "measured on 1 x cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_its_prediction_beside_what_it_measured(tmp_path: Path) -> None:
    result = run(toy_recipe(tmp_path, plan={"device": {"peak_tflops": 1, "memory_gb": 1}, "utilisation": 0.01}))
    assert result.prediction is not None and result.train is not None and result.train.step_seconds is not None
    assert result.prediction.flops == result.train.flops
    assert result.prediction.num_tokens == result.train.num_tokens
    costs = predicted_and_measured(result.prediction, result.train)
    assert all(costs[name][0] == costs[name][1] for name in ("tokens", "flops"))
    parts = result.train.step_seconds
    seconds = parts.model_dump()
    assert seconds.pop("rollout") == 0 and min(seconds.values()) > 0
    inside = parts.teacher + parts.student_forward + parts.backward + parts.optimizer
    assert inside == pytest.approx(result.train.seconds)
    work = result.train.flops.total - result.train.flops.recomputation
    assert result.train.mfu == pytest.approx(work / result.train.seconds / 1e12)
    assert result.train.energy_joules is None


def test_the_disk_of_a_study_is_its_students_and_the_checkpoints_of_trials_at_work(tmp_path: Path) -> None:
    recipe, missing = toy_recipe(tmp_path), toy_recipe(tmp_path)
    later = Pretrained(path=str(tmp_path / "later"))
    missing = missing.model_copy(update={"student": later})
    shape = student_shape(recipe)
    student, checkpoints = 4 * shape.num_params, 3 * 12 * shape.num_params
    shown = {num: quantity("peak_memory_bytes", num * checkpoints) for num in (1, 3)}
    text = disk_of_study([recipe, recipe, recipe, missing], 1, False)
    assert f"up to {quantity('peak_memory_bytes', 3 * student)} for the students of 3 trials" in text
    assert f"{shown[1]} for checkpoints, until" in text and "1 more begin from students that are not there" in text
    assert f"{shown[3]} for checkpoints, which stay" in disk_of_study([recipe] * 3, 1, True)
    assert "not known, since 1 trials" in disk_of_study([missing], 1, False) and disk_of_study([], 1, False) == ""


@pytest.mark.slow
def test_a_column_that_no_policy_has_a_figure_in_is_not_shown(folder: Path) -> None:
    costs = plan_tables(planned(folder, {}))[0]
    assert not {"time", "money", "largest\nbatch"} & set(costs.header) and "Largest batch" not in costs.note
    timed = plan_tables(planned(folder, {"device": "rtx-4090", "utilisation": 0.4}))[0]
    assert {"time", "largest\nbatch"} <= set(timed.header) and "money" not in timed.header
