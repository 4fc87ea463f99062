"""Checks that run the models through the packing, forward pass and loss of training."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import on_device, pack
from leadspan.doctor.check_inputs import Check, CheckInputs
from leadspan.losses.objective import LossOutput, batch_loss
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.losses.settings import LossSettings
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model
from leadspan.teacher.targets import freeze, live_targets

EXCERPT_TOKENS = 256
NUM_PACKED = 3
"""Examples that are packed and compared with each one alone: enough to show leaks, few enough for seconds on a CPU."""
STRIDE = 4
"""Every how many positions a loss is computed: heads over a large vocabulary take most of the time."""


@torch.no_grad()
def self_divergence(inputs: CheckInputs) -> Iterator[Check]:
    """KL of the teacher from itself, with the teacher as student, through packing, forward pass and loss."""
    name = "KL(teacher, teacher) is 0"
    if inputs.teacher is None:
        yield Check(name, "skipped", "no teacher runs here")
        return
    kl = _totals(_loss(inputs.teacher, inputs, _shortest(inputs), inputs.teacher))[1]
    remedy = "the loss or the forward pass of this architecture is wrong; please report it"
    # Far above the rounding of float32, far below what a wrong mask or position gives. NaN is below nothing: it fails.
    yield Check.of(name, abs(kl) < 1e-5, f"{kl:.2g} nats per position", remedy, "failed")


@torch.no_grad()
def likelihoods(inputs: CheckInputs) -> Iterator[Check]:
    """The traces should be likelier under the teacher than under the student, else it has nothing to teach."""
    name = "teacher's NLL on the traces below the student's"
    if inputs.teacher is None:
        yield Check(name, "skipped", "no teacher runs here")
        return
    ours, _, theirs = _totals(_loss(inputs.student, inputs, inputs.excerpts, inputs.teacher))
    figure = f"{theirs:.4g} and {ours:.4g} nats per token of the first {EXCERPT_TOKENS}"
    remedy = "these traces are not this teacher's: use its own, or a teacher that knows them"
    yield Check.of(name, not theirs >= ours, figure, remedy)


@torch.no_grad()
def labels(inputs: CheckInputs) -> Iterator[Check]:
    """Compare the cross-entropy with Transformers' own, which shifts labels itself, on one sequence."""
    [example] = _shortest(inputs, 1)
    ours = _totals(_loss(inputs.student, inputs, [example], None, stride=1))[0]
    ids = torch.from_numpy(example.input_ids)[None].to(inputs.device)
    plain = freeze(load_model(inputs.recipe.student, torch.float32, for_training=False), inputs.device)
    theirs = float(plain(input_ids=ids, labels=ids).loss)
    figure = f"cross-entropy {ours:.6g}, Transformers' own {theirs:.6g}"
    remedy = "labels and positions do not belong together for this architecture; please report it"
    # Labels that are shifted twice or not at all change it by far more than a thousandth.
    is_equal = abs(ours - theirs) < 1e-3 * max(1.0, theirs)
    yield Check.of("labels are shifted once", is_equal, figure, remedy, "failed")


@torch.no_grad()
def invariance(inputs: CheckInputs) -> Iterator[Check]:
    """Compare the loss of a pack with the sum of its examples' losses, each computed alone."""
    sample = _shortest(inputs)
    together = _loss(inputs.student, inputs, sample, inputs.teacher)
    alone = [_loss(inputs.student, inputs, [example], inputs.teacher) for example in sample]
    # Sums over sums: means of unequal examples would differ without a fault.
    packed = float(together.loss_sum / together.weight_sum)
    summed = float(sum(o.loss_sum for o in alone) / sum(o.weight_sum for o in alone))
    difference = abs(packed - summed) / max(abs(summed), 1e-9)
    name, figure = "loss is invariant to accumulation and packing", f"relative difference {difference:.1g}"
    remedy = "this architecture lets examples of a pack see each other; set examples_per_batch: 1"
    yield Check.of(name, difference < 1e-4, f"{figure} over {len(sample)} examples", remedy, "failed")


def _shortest(inputs: CheckInputs, number: int = NUM_PACKED) -> list[Example]:
    return sorted(inputs.excerpts, key=lambda example: len(example.input_ids))[:number]


def _loss(
    student: PreTrainedModel,
    inputs: CheckInputs,
    examples: list[Example],
    teacher: PreTrainedModel | None,
    stride: int = STRIDE,
) -> LossOutput:
    """The loss of some examples in one pack, at every `stride`-th position; half KL where there is a teacher."""
    thinned: list[Example] = []
    for example in examples:
        # The other weights become 0, so that all tokens stay as context.
        weights = np.zeros_like(example.weights)
        chosen = np.flatnonzero(example.weights)[::stride]
        weights[chosen] = example.weights[chosen]
        thinned.append(replace(example, weights=weights))
    batch = on_device(pack(thinned), inputs.device)
    targets = None if teacher is None else live_targets(teacher, batch)
    rows = {head_of(model).weight.shape[0] for model in (student, teacher) if model is not None}
    shared = len(inputs.data.renderer.tokenizer) if len(rows) > 1 else None
    # On a CPU compiling would take longer than the losses; on a GPU the kernel of training is what is checked.
    settings = LossSettings(kl_weight=0.5, compiled=None if inputs.device.type == "cuda" else False)
    return batch_loss(student, batch, targets, settings, shared)


def _totals(output: LossOutput) -> tuple[float, ...]:
    """Mean cross-entropy, KL and the teacher's cross-entropy; NaN without a teacher."""
    # The columns' sums come first, then how many values each of them has.
    sums, counts = output.totals.double().sum(0).tensor_split(2)
    means = sums / counts
    return tuple(float(means[ROW_COLUMNS.index(name)]) for name in ("cross_entropy", "divergence", "teacher_nll"))
