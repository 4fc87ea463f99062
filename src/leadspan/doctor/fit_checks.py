"""What checks read and say; and the checks that parts of a recipe fit together: tokenizers, ends, store, memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from transformers import PreTrainedModel

from leadspan.costs.memory import NUM_CHECKPOINTS, disk_bytes
from leadspan.data.examples import Example
from leadspan.data.packing import pack
from leadspan.data.supervision import PROMPT
from leadspan.data.truncation.policy import FEW_ENDS, STOP_REMEDY
from leadspan.errors import LeadspanError, ModelError
from leadspan.files import free_bytes
from leadspan.inputs import PreparedData
from leadspan.models.heads import head_of
from leadspan.models.loading import end_ids_of, load_end_ids
from leadspan.models.reading import check_vocabulary, load_tokenizer
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.planning.prediction import cost_model_of, student_shape
from leadspan.planning.rollouts import predict_run
from leadspan.recipe import Recipe
from leadspan.stages import check_served, checked_teacher, merged_ends
from leadspan.tables import percent, quantity
from leadspan.teacher.settings import Served
from leadspan.teacher.targets import SparseTargets

Verdict = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was measured, and a remedy where the check did not pass.

    A `warning` means that training runs, but that its result may disappoint.
    """

    name: str
    verdict: Verdict
    figure: str
    remedy: str = ""

    @classmethod
    def of(cls, name: str, passes: bool, figure: str, remedy: str, fault: Verdict = "warning") -> "Check":
        """`ok`, or a fault with its remedy."""
        return cls(name, "ok", figure) if passes else cls(name, fault, figure, remedy)


@dataclass(frozen=True)
class CheckInputs:
    """Everything that the checks may read.

    Attributes:
        student: The student in float32.
        teacher: The teacher in float32; None where there is none, or a server runs it.
        sample: A few training examples, whole, all positions weighted.
        excerpts: The beginnings of these, for faults that show at any length: long losses take minutes on a CPU.
    """

    recipe: Recipe
    data: PreparedData
    student: PreTrainedModel
    teacher: PreTrainedModel | None
    sample: list[Example]
    excerpts: list[Example]
    device: torch.device


def models_of(inputs: CheckInputs) -> Iterator[tuple[str, ModelSettings, PreTrainedModel]]:
    """Role, settings and model of the student and, where there is one, the teacher."""
    yield "student", inputs.recipe.student, inputs.student
    if inputs.teacher is not None and inputs.recipe.local_teacher is not None:
        yield "teacher", inputs.recipe.local_teacher, inputs.teacher


# Share of a teacher's mass outside the support from which the doctor warns: its distribution there is not seen.
_MUCH_TAIL = 0.1


def tokenizers(inputs: CheckInputs) -> Iterator[Check]:
    """Tokenizer, chat template and ends of turns of each model against those that render the data."""
    recipe, renderer = inputs.recipe, inputs.data.renderer
    of_data = recipe.tokenizer_path, recipe.tokenizer_revision
    form, stop_text = renderer.rendering, renderer.tokenizer.convert_ids_to_tokens(renderer.stop_token_id)
    turn = f"chain of thought between {form.think_open!r} and {form.think_close!r}, end of turn {stop_text!r}"
    yield Check(f"data: assistant turn ({form.assistant_turn})", "ok", turn)
    for role, settings, model in models_of(inputs):
        if not isinstance(settings, Pretrained):
            yield Check(f"{role}: tokenizer and template", "skipped", "built from a config, so it has neither")
            continue
        try:
            is_same = (settings.tokenizer_path, settings.revision) == of_data  # then it has been read already
            tokenizer = renderer.tokenizer if is_same else load_tokenizer(settings.tokenizer_path, settings.revision)
            check_vocabulary(renderer.tokenizer, role, tokenizer, head_of(model).weight.shape[0])
        except ModelError as error:
            yield Check(f"{role}: tokenizer", "failed", str(error), "take models of one tokenizer")
            continue
        yield Check(f"{role}: tokenizer", "ok", f"{len(tokenizer):,} tokens, equal to the data's")
        same = tokenizer.chat_template == renderer.template
        remedy = "it was trained with another template; set tokenizer or data.rendering.chat_template"
        yield Check.of(f"{role}: template", same, "equal" if same else "differs", remedy)
        eos, stop = tokenizer.eos_token_id, renderer.stop_token_id
        stops = set(end_ids_of(model.generation_config)) or ({eos} if isinstance(eos, int) else set())
        # A student that lacks it gets it: training writes its generation config.
        name, figure = f"{role}: stop token", f"data ends turns with {stop}, its generation config with {sorted(stops)}"
        if stop not in stops and role == "student":
            yield Check(name, "ok", figure, "all of them are written into the student's generation config")
        else:
            yield Check.of(name, stop in stops, figure, "its traces may end with another token than the data's")
    ends = {"data": renderer.end_of_turn_ids(), **{role: load_end_ids(model) for role, model, _ in models_of(inputs)}}
    if isinstance(recipe.teacher, Served):
        ends["teacher"] = recipe.teacher.end_ids
    by_role = {role: frozenset(ids) for role, ids in ends.items() if ids or role == "data"}
    shown = "; ".join(
        f"{role} {', '.join(f'{renderer.tokenizer.convert_ids_to_tokens(i)} ({i})' for i in sorted(ids))}"
        for role, ids in by_role.items()
    )
    is_same, name = recipe.teacher is None or len(set(by_role.values())) == 1, "end-of-turn tokens"
    remedy = "a teacher with another end-of-turn token teaches the student not to end its turns: set loss.stop: event"
    if recipe.merges_stops:
        is_same, shown = True, f"{shown}; the divergence treats them as one outcome"
    yield Check.of(name, is_same, shown, remedy)


def padding(inputs: CheckInputs) -> Iterator[Check]:
    """Compare the rows of each head with the tokenizer's ids."""
    size = inputs.data.renderer.num_ids
    rows = {role: head_of(model).weight.shape[0] for role, _, model in models_of(inputs)}
    shown = ", ".join(f"{role} {count:,}" for role, count in rows.items())
    fits = min(rows.values()) >= size
    note = f"; compared on the first {size:,}" if fits and len(set(rows.values())) > 1 else ""
    figure = f"rows of the heads: {shown}; ids of the tokenizer: {size:,}{note}"
    remedy = "take the tokenizer that belongs to the models, or resize the embeddings"
    yield Check.of("vocabulary padding", fits, figure, remedy, "failed")


def end_of_turn(inputs: CheckInputs) -> Iterator[Check]:
    """How many examples teach the student to stop, after cut and supervision."""
    name, examples, stop = "end of turn is supervised", inputs.data.examples, inputs.data.renderer.stop_token_id
    if inputs.recipe.rollout is not None:
        yield Check(name, "skipped", "the student learns from its own rollouts where a turn ends")
        return
    usable = examples.usable[:1000]  # enough for a share; the arrays of each are built for it
    number, taught = len(usable), 0
    for example in (examples[i] for i in usable):
        # The turns of a supervised prompt end with the same token.
        is_learnt = (example.weights > 0) & (example.section_ids != PROMPT)
        taught += bool((example.input_ids[is_learnt] == stop).any())
    figure = f"{percent(taught / number, 1)} of {number:,} training examples"
    yield Check.of(name, taught >= FEW_ENDS * number, figure, f"it may never stop: {STOP_REMEDY}")


def stored_targets(inputs: CheckInputs) -> Iterator[Check]:
    """The store of a recipe: captured from this data and teacher, undamaged, and serving every example."""
    name = "store matches the data"
    try:
        teacher = checked_teacher(inputs.recipe)
        if teacher.kept_targets is None or inputs.recipe.store_path is None:
            yield Check(name, "skipped", "targets are live")
            return
        check_served(teacher, inputs.recipe, inputs.data)
        served = 0
        # Without traces among the rollouts none of them was captured, nor is one read.
        traces = inputs.data.examples if inputs.recipe.has_traces else None
        for examples in (traces, inputs.data.validation):
            if examples is not None:
                teacher.collator([examples[examples.usable[0]]])
                served += len(examples)
    except LeadspanError as error:
        yield Check(name, "failed", str(error), "capture with this recipe")
        return
    yield Check(name, "ok", f"{served:,} examples served by a store of {teacher.kept_targets.codec.label}")


def served_teacher(inputs: CheckInputs) -> Iterator[Check]:
    """A served teacher: it answers, with the data's tokens, and little mass lies outside its likeliest ones."""
    recipe, name = inputs.recipe, "served teacher answers"
    if not isinstance(recipe.teacher, Served) or recipe.store_path is not None:
        return
    try:
        source = checked_teacher(recipe)
        check_served(source, recipe, inputs.data)
        source.shared_tokens(head_of(inputs.student).weight.shape[0], inputs.data.renderer.num_ids)
        source.end_ids = merged_ends(recipe, inputs.data.renderer)
        started = time.perf_counter()
        targets = source.targets(pack(inputs.sample))
        seconds = time.perf_counter() - started
    except LeadspanError as error:
        yield Check(name, "failed", str(error), "start the server, or fix the fault that it reports")
        return
    assert isinstance(targets, SparseTargets) and targets.label_log_probs is not None, "as servers answer"
    tail, nll = float(targets.tail_mass[1.0].mean()), -float(targets.label_log_probs.mean())
    figure = (
        f"{len(targets.label_log_probs):,} positions in {seconds:.2g} s, {nll:.4g} nats per token on the traces; "
        f"{percent(tail, 2)} of the mass is beyond its {recipe.teacher.k} likeliest tokens"
    )
    yield Check.of(name, tail <= _MUCH_TAIL, figure, "raise teacher.k, as far as the server allows")
    if source.end_ids:
        # Where a stop is an outcome of its own (`losses.chunked.ends_apart`).
        is_end = torch.isin(targets.token_ids, torch.tensor(source.end_ids)) & (targets.log_probs > -torch.inf)
        number, all_ends = is_end.sum(1), len(source.end_ids)  # a token is in the support of a position once
        some, every = int((number > 0).sum()), int((number == all_ends).sum())
        figure = f"at {every:,} of the {some:,} positions where it names an end-of-turn token it names all {all_ends}"
        remedy = (
            "at the others a stop and the unlikely tokens are one outcome: raise teacher.k, or serve it with SGLang"
        )
        yield Check.of("served teacher names all ends of a turn", every == some, figure, remedy)


def disk_and_memory(inputs: CheckInputs) -> Iterator[Check]:
    """Disk for checkpoints; memory for the largest step of training, as `leadspan plan` predicts it."""
    free, disk = free_bytes(inputs.recipe.output), disk_bytes(student_shape(inputs.recipe))
    remedy = "another output, or fewer other files there"
    yield _fits("disk", disk, free, f"{NUM_CHECKPOINTS} checkpoints and the student", remedy)
    try:
        model = cost_model_of(inputs.recipe, inputs.data.renderer)
        needed = predict_run(inputs.recipe, inputs.data, model).memory.total
    except LeadspanError as error:  # of a store, or of a model that cannot be traced
        yield Check("memory is enough", "skipped", str(error))
        return
    # The doctor's own models, in float32, will be gone when training starts.
    loaded = sum(4 * sum(p.numel() for p in model.parameters()) for _, _, model in models_of(inputs))
    if inputs.device.type == "cuda":
        available = torch.cuda.mem_get_info(inputs.device)[0] + loaded
    else:
        available = psutil.virtual_memory().available + loaded
    remedy = (
        "smaller batches, training.gradient_checkpointing, training.lora, more ranks under FSDP, or targets: {kind: "
        "store, ...}, which needs no teacher in memory"
    )
    yield _fits("memory", needed, available, "the largest step of training", remedy)


def _fits(name: str, needed: int, free: int, what: str, remedy: str) -> Check:
    """Compare the needed bytes with the free ones; a warning where less than a tenth would be left over."""
    figure = f"{quantity('peak_memory_bytes', needed)} for {what}; {quantity('peak_memory_bytes', free)} free"
    fault: Verdict = "failed" if needed > free else "warning"
    return Check.of(f"{name} is enough", 1.1 * needed <= free, figure, remedy, fault)
