"""Checks of what must fit each other: tokenizers, templates, heads, the end of a turn, the store, disk and memory."""

import contextlib
import shutil
from collections.abc import Iterator

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel

from leadspan.errors import LeadspanError, ModelError
from leadspan.inputs import open_store
from leadspan.models.config import Pretrained
from leadspan.models.heads import head_of
from leadspan.models.loading import check_vocabularies, load_tokenizer
from leadspan.study.checks.patient import Check, Patient, Verdict, models_of
from leadspan.teacher.config import StoredTargets
from leadspan.teacher.fit import stored_head
from leadspan.teacher.manifest import read_joined

_CHECKPOINTS = 3


def same_text(patient: Patient) -> Iterator[Check]:
    """Tokenizer, chat template and end of turn of each model against those that render the data."""
    renderer = patient.data.renderer
    for role, settings, model in models_of(patient):
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


def padding(patient: Patient) -> Iterator[Check]:
    """Rows of each head against the tokenizer's ids."""
    size = max(patient.data.renderer.tokenizer.get_vocab().values()) + 1
    rows = {role: head_of(model).weight.shape[0] for role, _, model in models_of(patient)}
    shown = ", ".join(f"{role} {count:,}" for role, count in rows.items())
    if min(rows.values()) < size:
        remedy = "take the tokenizer that belongs to the models, or resize the embeddings"
        yield Check("vocabulary padding", "failed", f"heads have {shown} rows, the tokenizer {size:,} ids", remedy)
        return
    differ = len(set(rows.values())) > 1
    note = f"; compared on the first {size:,}" if differ else ""
    yield Check("vocabulary padding", "ok", f"heads have {shown} rows, the tokenizer {size:,} ids{note}")


def end_of_turn(patient: Patient) -> Iterator[Check]:
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


def store(patient: Patient) -> Iterator[Check]:
    """The store of a recipe: of this data and teacher, whole where it is read, serving every example."""
    name = "store matches the data"
    if not isinstance(patient.recipe.targets, StoredTargets):
        yield Check(name, "skipped", "targets are live")
        return
    try:
        opened = open_store(patient.recipe, patient.data.renderer)
        served = 0
        for examples in (patient.data.examples, patient.data.validation):
            if examples is not None:
                opened.check_serves(examples, examples.usable)
                opened.collate([examples[examples.usable[0]]])
                served += len(examples)
    except LeadspanError as error:
        yield Check(name, "failed", str(error), "capture with this recipe")
        return
    yield Check(name, "ok", f"{served:,} examples served by {len(opened):,} sequences of {opened.manifest.codec.label}")


def room(patient: Patient) -> Iterator[Check]:
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
    if isinstance(patient.recipe.targets, StoredTargets):
        with contextlib.suppress(LeadspanError):  # told by the check of the store
            head = stored_head(read_joined(patient.recipe.targets.path))
            needed += 0 if head is None else (2 if patient.device.type == "cuda" else 4) * head.num_params
    held = sum(4 * sum(p.numel() for p in model.parameters()) for _, _, model in models_of(patient))
    if patient.device.type == "cuda":
        available = torch.cuda.mem_get_info(patient.device)[0] + held
    else:
        available = psutil.virtual_memory().available + held
    remedy = "training.lora, more ranks under FSDP, or targets: {kind: store, ...}, which needs no teacher in memory"
    yield _fits("memory", needed, available, "weights, gradients, moments, teacher", remedy)


def _fits(name: str, needed: int, free: int, what: str, remedy: str) -> Check:
    """Enough is a tenth more than needed."""
    verdict: Verdict = "failed" if needed > free else "warning" if 1.1 * needed > free else "ok"
    figure = f"{needed / 1e9:.3g} GB for {what}; {free / 1e9:.3g} GB free"
    return Check(f"{name} is enough", verdict, figure, "" if verdict == "ok" else remedy)


def _stops(model: PreTrainedModel, eos_token_id: object) -> set[int]:
    config: GenerationConfig | None = model.generation_config
    found = config.eos_token_id if config is not None else None
    ids = found if isinstance(found, list) else [eos_token_id if found is None else found]
    return {i for i in ids if isinstance(i, int)}
