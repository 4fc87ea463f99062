import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leadspan.costs.flops import positions_seen, training_flops
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model, shape_of
from toys import VOCAB, tiny


@pytest.mark.parametrize(("length", "window", "seen"), [(1, None, 1), (5, None, 15), (5, 3, 12), (3, 9, 6)])
def test_positions_seen_by_hand(length: int, window: int | None, seen: int) -> None:
    assert positions_seen(length, window) == seen == sum(min(t, window or t) for t in range(1, length + 1))


def test_counts_against_the_flop_counter() -> None:
    settings = tiny(hidden=64, layers=3, seed=1)
    model = load_model(settings, torch.float32)
    length = 300
    ids, positions = torch.zeros(1, length, dtype=torch.long), torch.arange(length)[None]
    counter = FlopCounterMode(display=False)
    with counter:
        hidden = final_hidden_states(model, ids, positions, (0, length), torch.arange(length))
        (hidden @ head_of(model).weight.T).sum().backward()
    counted = training_flops(shape_of(model), None, [(length, length)], recompute=False)
    measured = counter.get_flop_counts()["Global"]
    attention = sum(n for op, n in measured.items() if "attention" in str(op))
    linear = sum(measured.values()) - attention
    assert counted.student_body + counted.student_head == pytest.approx(linear, rel=0.01)
    # the counter takes all T^2 pairs, forward 2 and backward 5 products; counted here: the causal half of 2 and 4
    assert counted.student_attention == 3 * 3 * 4 * 32 * positions_seen(length, None)
    assert attention == 0 or attention == pytest.approx(counted.student_attention * 2 * 7 / 6, rel=0.02)


def test_parts_by_hand() -> None:
    student, teacher = (shape_of(load_model(tiny(hidden=h), torch.float32)) for h in (32, 48))
    parts = training_flops(student, teacher, [(10, 4), (6, 6)], recompute=True)
    assert parts.student_head == 3 * 2 * 32 * VOCAB * 10
    assert parts.teacher_head == 2 * 48 * VOCAB * 10
    assert parts.teacher_body == 2 * teacher.linear_params * 16
    assert parts.recomputation == parts.student_body // 3 + parts.student_attention // 3
    assert parts.total == sum(parts.model_dump().values())
    frozen = training_flops(student, None, [(10, 4)], recompute=False, frozen_student=True)
    assert frozen.student_body == 2 * 2 * student.linear_params * 10
