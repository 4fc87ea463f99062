from dataclasses import replace

from leadspan.costs.memory import ActivationBytes, BatchSize
from toy_shapes import MODEL, SHAPE, TEACHER


def test_the_moment_of_the_loss_by_hand() -> None:
    found = MODEL.by_phase(BatchSize(tokens=20, weighted=10))["loss"]
    assert found.weights == 4 * 120 and found.optimizer == 8 * 120 and found.teacher == 0
    assert found.gradients == 4 * 40  # of the head alone
    assert found.activations == 100 * 20 + 2 * 10 * 4 * 4  # hidden states at weighted positions, and their gradient
    assert found.logits == 6 * 10 * 4 * 11 // 10  # one chunk, and a tenth
    assert found.total == sum(found.model_dump().values())


def test_a_live_teacher_adds_weights_hidden_states_and_a_chunk() -> None:
    live = replace(MODEL, teacher=TEACHER, teacher_activations=ActivationBytes(retained=16, peak=5000))
    batch = BatchSize(tokens=20, weighted=10)
    found = live.by_phase(batch)
    assert found["loss"].teacher == 4 * 1000
    assert found["loss"].logits == 2 * 6 * 12 * 4 * 11 // 10
    assert found["loss"].activations - MODEL.by_phase(batch)["loss"].activations == 10 * 4 * 4
    assert live.peak(batch) == found["teacher"]  # this one's forward pass is the highest moment
    assert found["teacher"].activations == 5000 * 20


def test_scored_positions_are_held_beside_copies_of_the_selected() -> None:
    live = replace(MODEL, teacher=TEACHER, teacher_activations=ActivationBytes(retained=16, peak=50))
    plain, scored = (live.by_phase(BatchSize(20, 3, scored))["loss"] for scored in (0, 10))
    assert scored.activations - plain.activations == 10 * 4 * 4 + 10 * 4 * 4  # states of both models
    assert (plain.logits, scored.logits) == (2 * 3 * 12 * 4 * 11 // 10, 2 * 6 * 12 * 4 * 11 // 10)


def test_masks_by_hand() -> None:
    layers = ActivationBytes(retained=100, peak=130, window=4, retained_pair=2, peak_pair=2, masked=90, masked_pair=5)
    short, mixed = BatchSize(8, 8, 0, (4, 4)), BatchSize(13, 13, 0, (3, 10))
    assert layers.of_batch(short) == (800, 1040)
    assert layers.of_batch(mixed) == (1300 + 2 * 100, max(130 * 13 + 2 * 100, 90 * 13 + 5 * 100))
    two = BatchSize(30, 30, 0, (10, 20))  # the masks of both are held, that of the longer is being made
    assert layers.of_batch(two)[1] == max(130 * 30 + 2 * 500, 90 * 30 + 2 * 500 + 3 * 400)
    assert layers.of_batch(BatchSize(13, 13))[0] == 1300 + 2 * 169  # lengths not given: one example


def test_gradients_that_are_kept_stand_beside_everything() -> None:
    kept = replace(MODEL, accumulates=True)
    batch = BatchSize(tokens=20, weighted=10)
    assert kept.by_phase(batch)["loss"].gradients == 4 * 120 + 4 * 40


def test_the_end_of_backward_has_all_gradients_and_a_tied_head_twice() -> None:
    small = BatchSize(tokens=1, weighted=1)
    found = MODEL.by_phase(small)["backward"]
    assert found.gradients == 4 * 120 + 4 * 40 and found.activations == 30
    untied = replace(MODEL, student=replace(SHAPE, is_tied=False))
    assert untied.by_phase(small)["backward"].gradients == 4 * 120


def test_adapters_alone_have_gradients_and_moments() -> None:
    lora = replace(MODEL, student=replace(SHAPE, adapter_params=7))
    found = lora.by_phase(BatchSize(20, 10))["loss"]
    assert found.weights == 4 * (120 + 7) and found.optimizer == 8 * 7 and found.gradients == 0
    assert lora.by_phase(BatchSize(20, 10))["optimizer"].gradients == 4 * 7


def test_bfloat16_holds_a_copy_of_the_linear_weights() -> None:
    narrow = replace(MODEL, use_bf16=True).by_phase(BatchSize(20, 10))
    assert narrow["loss"].weights == 4 * 120 + 2 * (80 + 40)
    assert narrow["optimizer"].weights == 4 * 120


def test_ranks_share() -> None:
    batch = BatchSize(20, 10)
    ddp = replace(MODEL, num_ranks=4, sharding="ddp").by_phase(batch)["optimizer"]
    assert ddp.weights == 4 * 120 and ddp.gradients == 2 * 4 * 120  # and the buckets
    fsdp = replace(MODEL, num_ranks=4, sharding="fsdp2").by_phase(batch)["optimizer"]
    assert fsdp.optimizer == 8 * 30 and fsdp.gradients == 4 * 30
    assert fsdp.weights == 4 * 30 + 4 * (40 + 3 * 40)  # the root group, two layers, one layer's gradients


def test_highest_is_the_largest_micro_batch() -> None:
    small, large = BatchSize(5, 5), BatchSize(50, 50)
    assert MODEL.peak(small, large, small) == MODEL.peak(large)
