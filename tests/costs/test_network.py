from dataclasses import replace

from leadspan.costs.flops import ModelShape
from leadspan.costs.memory import ActivationBytes, BatchSize, MemoryModel, traffic

# A head of 10 * 8 weights, 400 in all; the teacher's has 10 * 16 of 900.
STUDENT = ModelShape(200, (8,), (None,), hidden_size=8, vocab_size=10, num_params=400)
TEACHER = ModelShape(500, (16,), (None,), hidden_size=16, vocab_size=10, num_params=900)
MODEL = MemoryModel(STUDENT, TEACHER, ActivationBytes(1, 1), ActivationBytes(1, 1), True, 16, num_ranks=4)
TWO_BATCHES = [BatchSize(100, 60), BatchSize(50, 40)]


def test_data_parallel_ranks_send_their_gradients_twice_round_the_ring() -> None:
    sent = traffic(replace(MODEL, sharding="ddp"), TEACHER, "beside", TWO_BATCHES)
    assert (sent.gradients, sent.weights, sent.teacher) == (2 * 4 * 400 * 3 // 4, 0, 0)


def test_sharded_ranks_gather_weights_twice_a_micro_batch_and_the_teacher_once_with_its_head_again() -> None:
    sent = traffic(replace(MODEL, sharding="fsdp2"), TEACHER, "beside", TWO_BATCHES)
    assert sent.gradients == 2 * 400 * 3 // 4
    assert sent.weights == 2 * 2 * (2 * 400 * 3 // 4)
    assert sent.teacher == 2 * (2 * (900 + 160) * 3 // 4)
    assert sent.total == sent.gradients + sent.weights + sent.teacher


def test_a_teacher_on_its_own_ranks_sends_hidden_states_and_a_store_nothing() -> None:
    wide = replace(MODEL, sharding="ddp", use_bf16=False)
    assert traffic(wide, TEACHER, "ranks", TWO_BATCHES).teacher == 8 * 150 + 4 * 16 * 100
    assert traffic(wide, TEACHER, "store", TWO_BATCHES).teacher == 0


def test_one_rank_sends_nothing() -> None:
    assert traffic(replace(MODEL, num_ranks=1), TEACHER, "beside", TWO_BATCHES).total == 0


def test_adapters_alone_are_reduced_but_all_weights_are_gathered() -> None:
    adapted = replace(MODEL, student=replace(STUDENT, adapter_params=40), sharding="fsdp2")
    sent = traffic(adapted, None, "store", TWO_BATCHES[:1])
    assert (sent.gradients, sent.weights) == (2 * 40 * 3 // 4, 2 * (2 * 440 * 3 // 4))
