"""Checks of a recipe that run what they check: each with a verdict, a figure and a remedy.

The models are run over a few training examples, uncut, through the same packing, forward pass and loss as training.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel

from leadspan.data.examples import Example, Examples
from leadspan.data.packing import on_device, pack
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full
from leadspan.errors import LeadspanError, ModelError
from leadspan.losses.config import LossSettings
from leadspan.losses.objective import LossOutput, batch_loss
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.models.heads import head_of
from leadspan.models.loading import check_vocabularies, load_model, load_tokenizer
from leadspan.pipeline import PreparedData, open_store, prepare_data
from leadspan.recipe import Recipe
from leadspan.teacher.config import StoredTargets
from leadspan.teacher.live import freeze, live_targets
from leadspan.training.process import process_device

Verdict = Literal["ok", "warning", "failed", "skipped"]
_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One check and what came of it.

    Attributes:
        name: What was checked.
        verdict: `warning`: training runs, and may not give what is hoped for.
        figure: What was found.
        remedy: What to do; empty when all is well.
    """

    name: str
    verdict: Verdict
    figure: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """What the checks look at.

    Attributes:
        recipe: The recipe.
        data: Its data.
        student: The student in float32.
        teacher: The teacher in float32, or None.
        sample: A few training examples, whole, all positions weighted.
        device: Where the models are.
    """

    recipe: Recipe
    data: PreparedData
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    sample: list[Example]
    device: torch.device


def examine(recipe: Recipe, num_examples: int, say: Callable[[str], None]) -> list[Check]:
    """Run every check of a recipe.

    Raises:
        LeadspanError: The data or a model cannot even be loaded.
    """
    say("preparing data")
    data = prepare_data(recipe)
    say("loading models")
    device = process_device()
    student = freeze(load_model(recipe.student, torch.float32), device)
    teacher = None if recipe.teacher is None else freeze(load_model(recipe.teacher, torch.float32), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    stop = data.renderer.stop_token_id
    whole = Examples(data.splits.train, Full(), everything, stop, recipe.seed, "training set")
    sample = [whole[i] for i in range(min(num_examples, len(whole)))]
    patient = Patient(recipe, data, student, teacher, sample, device)
    found: list[Check] = []
    for check in _CHECKS:
        say(f"checking: {check.__name__.removeprefix('_').replace('_', ' ')}")
        found += check(patient)
    return found


@torch.no_grad()
def _self_divergence(patient: Patient) -> Iterator[Check]:
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
def _likelihoods(patient: Patient) -> Iterator[Check]:
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


def _same_text(patient: Patient) -> Iterator[Check]:
    """Tokenizer, chat template and end of turn of each model against those that render the data."""
    renderer = patient.data.renderer
    for role, settings, model in _models(patient):
        if not isinstance(settings, Pretrained):
            yield Check(f"{role}: tokenizer and template", "skipped", "built from a config, it has none of its own")
            continue
        try:
            own = load_tokenizer(settings.path, settings.revision)
            check_vocabularies(renderer.tokenizer, {role: own}, {role: head_of(model).weight.shape[0]})
        except ModelError as error:
            yield Check(f"{role}: tokenizer", "failed", str(error), "take models of one tokenizer")
            continue
        yield Check(f"{role}: tokenizer", "ok", f"{len(own):,} tokens, those of the data equal")
        same = own.chat_template == renderer.template
        remedy = "traces are rendered otherwise than it was trained; set tokenizer or data.rendering.chat_template"
        yield Check(
            f"{role}: template", "ok" if same else "warning", "equal" if same else "differs", "" if same else remedy
        )
        stops = _stops(model, own.eos_token_id)
        stop = renderer.stop_token_id
        knows = stop in stops
        yield Check(
            f"{role}: stop token",
            "ok" if knows or role == "student" else "warning",
            f"data ends turns with {stop}, its generation config with {sorted(stops)}",
            ""
            if knows
            else "the student is given all of them when it is written"
            if role == "student"
            else "its traces may end otherwise than the data's",
        )


def _padding(patient: Patient) -> Iterator[Check]:
    """Rows of each head against the tokenizer's ids."""
    size = max(patient.data.renderer.tokenizer.get_vocab().values()) + 1
    rows = {role: head_of(model).weight.shape[0] for role, _, model in _models(patient)}
    shown = ", ".join(f"{role} {count:,}" for role, count in rows.items())
    if min(rows.values()) < size:
        remedy = "take the tokenizer that belongs to the models, or resize the embeddings"
        yield Check("vocabulary padding", "failed", f"heads have {shown} rows, the tokenizer {size:,} ids", remedy)
        return
    differ = len(set(rows.values())) > 1
    note = f"; compared on the first {size:,}" if differ else ""
    yield Check("vocabulary padding", "ok", f"heads have {shown} rows, the tokenizer {size:,} ids{note}")


@torch.no_grad()
def _labels(patient: Patient) -> Iterator[Check]:
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


def _end_of_turn(patient: Patient) -> Iterator[Check]:
    """How many examples teach the student to stop, after cut and supervision."""
    examples, stop = patient.data.examples, patient.data.renderer.stop_token_id
    usable = examples.usable[:1000]
    number = len(usable)
    taught = sum(bool((e.input_ids[e.weights > 0] == stop).any()) for e in (examples[i] for i in usable))
    remedy = "cut.stop: append_eos, or cut: {kind: mix, ...} with a share of whole traces, or it may never stop"
    yield Check(
        "end of turn is supervised",
        "ok" if taught else "warning",
        f"{taught / number:.1%} of {number:,} training examples",
        "" if taught else remedy,
    )


@torch.no_grad()
def _invariance(patient: Patient) -> Iterator[Check]:
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


def _store(patient: Patient) -> Iterator[Check]:
    """The store of a recipe: of this data and teacher, whole where it is read, serving every example."""
    name = "store matches the data"
    if not isinstance(patient.recipe.targets, StoredTargets):
        yield Check(name, "skipped", "targets are live")
        return
    try:
        store = open_store(patient.recipe, patient.data.renderer)
        served = 0
        for examples in (patient.data.examples, patient.data.validation):
            if examples is not None:
                store.check_serves(examples, examples.usable)
                store.collate([examples[examples.usable[0]]])
                served += len(examples)
    except LeadspanError as error:
        yield Check(name, "failed", str(error), "capture with this recipe")
        return
    yield Check(name, "ok", f"{served:,} examples served by {len(store):,} sequences of {store.manifest.codec.label}")


def _room(patient: Patient) -> Iterator[Check]:
    """Disk for checkpoints; memory for weights, gradients, moments and a live teacher, activations left out."""
    student = sum(p.numel() for p in patient.student.parameters())
    existing = next(p for p in (patient.recipe.output, *patient.recipe.output.absolute().parents) if p.exists())
    free, disk = shutil.disk_usage(existing).free, (_CHECKPOINTS * 12 + 4) * student
    remedy = "another output, or fewer other files there"
    yield _fits("disk", disk, free, f"{_CHECKPOINTS} checkpoints and the student", remedy)
    needed = 16 * student
    if patient.teacher is not None and not isinstance(patient.recipe.targets, StoredTargets):
        width = 2 if patient.device.type == "cuda" else 4
        needed += width * sum(p.numel() for p in patient.teacher.parameters())
    held = sum(4 * sum(p.numel() for p in model.parameters()) for _, _, model in _models(patient))
    if patient.device.type == "cuda":
        available = torch.cuda.mem_get_info(patient.device)[0] + held
    else:
        available = psutil.virtual_memory().available + held
    remedy = "training.lora, more ranks under FSDP, or targets: {kind: store, ...}, which needs no teacher in memory"
    yield _fits("memory", needed, available, "weights, gradients, moments, teacher", remedy)


_CHECKS = (
    _self_divergence,
    _likelihoods,
    _same_text,
    _padding,
    _labels,
    _end_of_turn,
    _invariance,
    _store,
    _room,
)


def _fits(name: str, needed: int, free: int, what: str, remedy: str) -> Check:
    """Enough is a tenth more than needed."""
    verdict: Verdict = "failed" if needed > free else "warning" if 1.1 * needed > free else "ok"
    figure = f"{needed / 1e9:.3g} GB for {what}; {free / 1e9:.3g} GB free"
    return Check(f"{name} is enough", verdict, figure, "" if verdict == "ok" else remedy)


def _models(patient: Patient) -> Iterator[tuple[str, ModelSettings, PreTrainedModel]]:
    yield "student", patient.recipe.student, patient.student
    if patient.teacher is not None and patient.recipe.teacher is not None:
        yield "teacher", patient.recipe.teacher, patient.teacher


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


def _stops(model: PreTrainedModel, eos_token_id: object) -> set[int]:
    config: GenerationConfig | None = model.generation_config
    found = config.eos_token_id if config is not None else None
    ids = found if isinstance(found, list) else [eos_token_id if found is None else found]
    return {i for i in ids if isinstance(i, int)}
