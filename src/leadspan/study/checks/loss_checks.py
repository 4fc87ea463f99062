"""Checks that run the models through the packing, forward pass and loss of training."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import on_device, pack
from leadspan.losses.config import LossSettings
from leadspan.losses.objective import LossOutput, batch_loss
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model
from leadspan.study.checks.patient import Check, Patient
from leadspan.teacher.live import freeze, live_targets


@torch.no_grad()
def self_divergence(patient: Patient) -> Iterator[Check]:
    """KL of the teacher from itself, the teacher taken for the student, through packing, forward pass and loss."""
    name = "KL(teacher, teacher) is 0"
    if patient.teacher is None:
        yield Check(name, "skipped", "the recipe names no teacher")
        return
    kl = _totals(_loss(patient.teacher, patient, patient.sample, patient.teacher))[1]
    bad = not abs(kl) < 1e-5
    yield Check(
        name,
        "failed" if bad else "ok",
        f"{kl:.2g} nats a position",
        "the loss or the forward pass of this architecture is wrong; please report it" if bad else "",
    )


@torch.no_grad()
def likelihoods(patient: Patient) -> Iterator[Check]:
    """The traces should be likelier to the teacher than to the student, else there is nothing to learn from it."""
    name = "teacher's NLL on the traces below the student's"
    if patient.teacher is None:
        yield Check(name, "skipped", "the recipe names no teacher")
        return
    theirs, ours = (
        _totals(_loss(model, patient, patient.sample, None))[0] for model in (patient.teacher, patient.student)
    )
    worse = theirs >= ours
    yield Check(
        name,
        "warning" if worse else "ok",
        f"{theirs:.4g} and {ours:.4g} nats a token",
        "these traces are not this teacher's: use its own, or a teacher that knows them" if worse else "",
    )


@torch.no_grad()
def labels(patient: Patient) -> Iterator[Check]:
    """Cross-entropy of the loss against Transformers' own, which shifts labels itself, on one sequence."""
    example = min(patient.sample, key=lambda e: len(e.input_ids))
    ours = _totals(_loss(patient.student, patient, [example], None))[0]
    ids = torch.from_numpy(example.input_ids)[None].to(patient.device)
    plain = freeze(load_model(patient.recipe.student, torch.float32, for_training=False), patient.device)
    theirs = float(plain(input_ids=ids, labels=ids).loss)
    bad = not abs(ours - theirs) < 1e-3 * max(1.0, theirs)
    yield Check(
        "labels are shifted once",
        "failed" if bad else "ok",
        f"cross-entropy {ours:.6g}, Transformers' own {theirs:.6g}",
        "labels and positions do not belong together for this architecture; please report it" if bad else "",
    )


@torch.no_grad()
def invariance(patient: Patient) -> Iterator[Check]:
    """The loss of a pack against the sum of its examples' losses, each alone: what accumulation adds up."""
    together = _loss(patient.student, patient, patient.sample, patient.teacher)
    alone = [_loss(patient.student, patient, [example], patient.teacher) for example in patient.sample]
    packed = float(together.loss_sum / together.weight_sum)
    summed = float(sum(o.loss_sum for o in alone) / sum(o.weight_sum for o in alone))
    difference = abs(packed - summed) / max(abs(summed), 1e-9)
    bad = not difference < 1e-4
    yield Check(
        "loss is invariant to accumulation and packing",
        "failed" if bad else "ok",
        f"relative difference {difference:.1g} over {len(patient.sample)} examples",
        "this architecture lets examples of a pack see each other; set examples_per_batch: 1" if bad else "",
    )


def _loss(
    student: PreTrainedModel, patient: Patient, examples: list[Example], teacher: PreTrainedModel | None
) -> LossOutput:
    """The training loss of some examples in one pack, at half KL where there is a teacher."""
    batch = on_device(pack(examples), patient.device)
    targets = None if teacher is None else live_targets(teacher, batch)
    rows = {head_of(model).weight.shape[0] for model in (student, teacher) if model is not None}
    shared = len(patient.data.renderer.tokenizer) if len(rows) > 1 else None
    return batch_loss(student, batch, targets, LossSettings(kl_weight=0.5), shared)


def _totals(output: LossOutput) -> tuple[float, ...]:
    """Mean cross-entropy and KL."""
    sums, counts = output.totals.double().sum(0).tensor_split(2)
    means = sums / counts
    return tuple(float(means[ROW_COLUMNS.index(name)]) for name in ("cross_entropy", "divergence"))
