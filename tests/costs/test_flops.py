from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leadspan.costs.flops import ExampleSize, FlopsByPart, ModelShape, positions_seen, training_flops
from leadspan.data.packing import Batch, pack
from leadspan.data.supervision import ByGap, ScoredSelection, Supervision, layout_sizes
from leadspan.data.truncation import Full, Lead, LeadAnswer, Policy, Tail
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.models.shapes import shape_from, shape_of
from leadspan.teacher.targets import freeze, live_targets
from leadspan.training.settings import Lora
from leadspan.training.train import with_adapters
from toys import VOCAB, tiny, toy_examples

ARCHITECTURES = {
    "qwen3": {},
    "llama": {"model_type": "llama", "head_dim": None},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 16, "query_pre_attn_scalar": 8},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}


def addmm_flop(total: tuple[int, ...], left: tuple[int, ...], right: tuple[int, ...], **_: object) -> int:
    return 2 * left[0] * left[1] * right[1]


IN_PLACE = {torch.ops.aten.addmm_: addmm_flop}  # the head's gradient, which the counter does not know by itself
POLICIES = [Full(), Lead(p=0.3), LeadAnswer(p=0.4), Tail(p=0.5)]


@pytest.mark.parametrize(("length", "window", "seen"), [(1, None, 1), (5, None, 15), (5, 3, 12), (3, 9, 6)])
def test_positions_seen_by_hand(length: int, window: int | None, seen: int) -> None:
    assert positions_seen(length, window) == seen == sum(min(t, window or t) for t in range(1, length + 1))


def architecture(name: str, seed: int) -> RandomInit:
    return tiny(hidden=64, layers=3, seed=seed, **ARCHITECTURES[name])


def counted_step(
    student: RandomInit, checkpointing: bool, batch: Batch, selection: ScoredSelection | None = None
) -> dict[str, int]:
    """What PyTorch counts of one step: attention apart, whose kernels book all T^2 pairs."""
    model = load_model(student, torch.float32).train()
    model.set_experts_implementation("eager")  # the counter knows no grouped product
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    teacher = freeze(load_model(tiny(hidden=48, seed=9), torch.float32))
    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with counter:
        loss = batch_loss(model, batch, live_targets(teacher, batch), LossSettings(), selection=selection)
        loss.loss_sum.backward()
    by_operator = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in by_operator.items() if "attention" in str(op))
    return {"attention": attention, "linear": sum(by_operator.values()) - attention}


def linear_part(flops: FlopsByPart, shape: ModelShape, sizes: list[ExampleSize], recompute: bool) -> int:
    again = recompute * sum(2 * (shape.linear_params - shape.last_params) * size.tokens for size in sizes)
    return flops.student_body + flops.student_head + flops.teacher_body + flops.teacher_head + again


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
def test_linear_operations_against_the_flop_counter(
    name: str, policy: Policy, checkpointing: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    examples, _ = toy_examples(tmp_path_factory.mktemp("data"), policy)
    few = range(3)
    sizes = [ExampleSize(examples.layouts[i].num_tokens, examples.layouts[i].num_weighted) for i in few]
    student = architecture(name, seed=1)
    shapes = shape_from(student), shape_from(tiny(hidden=48, seed=9))
    flops = training_flops(*shapes, sizes, recompute=checkpointing)
    measured = counted_step(student, checkpointing, pack([examples[i] for i in few]))
    assert linear_part(flops, shapes[0], sizes, checkpointing) == pytest.approx(measured["linear"], rel=0.01)


def test_the_scoring_pass_against_the_flop_counter(tmp_path_factory: pytest.TempPathFactory) -> None:
    selection = ByGap(share=0.25)
    supervision = Supervision(token_selection=selection)
    examples, _ = toy_examples(tmp_path_factory.mktemp("data"), Lead(p=0.7), supervision)
    sizes = layout_sizes(examples.layouts, selection)[:3]
    assert all(0 < size.weighted < size.scored / 3 for size in sizes)
    student = tiny(hidden=64, seed=1)
    shapes = shape_from(student), shape_from(tiny(hidden=48, seed=9))
    measured = counted_step(student, False, pack([examples[i] for i in range(3)]), selection)
    flops = training_flops(*shapes, sizes, recompute=False)
    assert linear_part(flops, shapes[0], sizes, False) == pytest.approx(measured["linear"], rel=0.01)


@pytest.mark.parametrize("length", [5, 40])
def test_attention_against_products_that_the_counter_sees(length: int) -> None:
    """Without a fused kernel the counter books two products of all T^2 pairs forward and four backward."""
    model = load_model(architecture("gemma3", seed=1), torch.float32, for_training=False)
    model.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter:
        model.get_decoder()(input_ids=torch.zeros(1, length, dtype=torch.long)).last_hidden_state.sum().backward()
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op))
    shape = shape_of(model)
    causal = training_flops(shape, None, [ExampleSize(length, 0)], recompute=False).student_attention
    pairs = sum(positions_seen(length, window) for window in shape.windows)
    rotary = 3 * 2 * (length * 8 // 2) * 2  # angles: a product of positions and 4 frequencies, for two kinds of layers
    assert causal == 3 * 4 * 32 * pairs
    assert causal * length**2 * len(shape.windows) / pairs == pytest.approx(products, rel=0.01, abs=rotary)


def test_parts_by_hand() -> None:
    student, teacher = (shape_of(load_model(tiny(hidden=h), torch.float32)) for h in (32, 48))
    parts = training_flops(student, teacher, [ExampleSize(10, 4), ExampleSize(6, 6)], recompute=True)
    assert parts.student_head == 3 * 2 * 32 * VOCAB * 10
    assert parts.teacher_head == 2 * 48 * VOCAB * 10
    assert parts.teacher_body == 2 * teacher.linear_params * 16
    assert student.last_params == 2 * 64 * 32
    assert parts.recomputation == parts.student_body // 3 + parts.student_attention // 3 - 2 * 2 * 64 * 32 * 16
    assert parts.total == sum(parts.model_dump().values())
    scored = training_flops(student, teacher, [ExampleSize(10, 4, 9), ExampleSize(6, 6)], recompute=True)
    assert scored.student_head - parts.student_head == 2 * 32 * VOCAB * 9
    assert scored.teacher_head - parts.teacher_head == 2 * 48 * VOCAB * 9
    frozen = training_flops(replace(student, adapter_params=100), None, [ExampleSize(10, 4)], recompute=False)
    assert frozen.student_body == 2 * 2 * student.linear_params * 10 + 6 * 100 * 10


def test_adapters_against_the_flop_counter(tmp_path_factory: pytest.TempPathFactory) -> None:
    examples, _ = toy_examples(tmp_path_factory.mktemp("data"))
    batch, (length, weighted) = pack([examples[0]]), (examples.layouts[0].num_tokens, examples.layouts[0].num_weighted)
    model = load_model(tiny(hidden=64, layers=3), torch.float32)
    shape = shape_of(model)
    adapters = with_adapters(model, Lora(r=4)).get_nb_trainable_parameters()[0]
    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    with counter:
        batch_loss(model, batch, None, LossSettings(kl_weight=0)).loss_sum.backward()
    by_operator = counter.get_flop_counts()["Global"]
    measured = sum(n for op, n in by_operator.items() if "attention" not in str(op))
    flops = training_flops(
        replace(shape, adapter_params=adapters), None, [ExampleSize(length, weighted)], recompute=False
    )
    unneeded = 2 * length * (64 * 32 + 2 * 64 * 16)  # the first layer's inputs are frozen: nothing flows into them
    unneeded += 2 * length * 3 * 64 * 4
    assert flops.student_body + flops.student_head - unneeded == pytest.approx(measured, rel=0.01)
