"""The parts of `gpu` that take training steps: a live teacher, stored targets, a hybrid; attention by itself."""

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from benchmarks.capture import fill
from benchmarks.gpu.setting import HEAD_DIM, Setting, built, mixed_lengths, qwen3, random_examples
from benchmarks.memory import MIB, allocated, peak_resident, reset_peak_resident
from benchmarks.record import Figure, Outcome, Spread
from benchmarks.steps import StepTimer, step_options, timed_training
from benchmarks.timing import alternate, paired_ratio
from leadspan.costs.flops import ExampleSize, ModelShape, training_flops
from leadspan.costs.memory import BatchSize, MemoryModel
from leadspan.data.examples import Example, Examples
from leadspan.data.packing import on_device, pack
from leadspan.data.supervision import layout_sizes
from leadspan.data.truncation import Full, Lead, Policy
from leadspan.losses.chunked import default_chunk
from leadspan.losses.settings import LossSettings
from leadspan.models.activations import activation_bytes
from leadspan.models.forward import ATTENTION, final_hidden_states
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.models.shapes import shape_of
from leadspan.planning.timing import Calibration, StepWork, fit_rates
from leadspan.ranks import peak_flops
from leadspan.teacher.capture_plan import longest_sequences
from leadspan.teacher.settings import Hidden, TopK
from leadspan.teacher.source import LiveTeacher, NoTeacher, StoredTeacher, TeacherSource
from leadspan.teacher.targets import freeze
from leadspan.training.callbacks import Clock
from leadspan.training.trainer import DistillationTrainer, attach_objective

CUTS: tuple[Policy, ...] = (Full(), Lead(p=0.5), Lead(p=0.25), Lead(p=0.1))
HELD_OUT = "lead 0.5"
WARM_UP = 2
MFU, STORED_MFU, STORED_STEP, MEMORY_ERROR, TIME_ERROR = 0.45, 0.5, 1.05, 0.1, 0.15


@dataclass(frozen=True)
class Side:
    """Training steps of one kind: the figures of a step, each a list over the timed steps."""

    size: ExampleSize
    shapes: tuple[ModelShape, ModelShape | None]
    seconds: list[float]
    peaks: list[int]

    @property
    def tokens_per_second(self) -> float:
        return self.size.tokens / statistics.median(self.seconds)

    @property
    def work(self) -> StepWork:
        return StepWork.of(training_flops(*self.shapes, [self.size], False), 1)

    def mfu(self, peak: float | None) -> float | None:
        flops = training_flops(*self.shapes, [self.size], False).total
        return None if peak is None else flops / statistics.median(self.seconds) / peak


class StepMemory(TrainerCallback):
    """Peak memory of every step: the allocator's on a GPU, the resident set's on a CPU."""

    def __init__(self, clock: Clock):
        self.peaks: list[int] = []
        self._clock = clock

    def on_step_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(args.device)
        else:
            reset_peak_resident()

    def on_step_end(self, args: TrainingArguments, state: Any, *_: Any, **__: Any) -> None:
        self.peaks.append(torch.cuda.max_memory_allocated() if args.device.type == "cuda" else peak_resident())
        if state.global_step == WARM_UP:
            self._clock.parts.clear()  # the first steps compile, and are no part of the split
            self._clock.seconds = 0.0


def training(setting: Setting) -> Outcome:
    """Steps of the student beside a live teacher under four cuts: tokens a second, MFU, memory, and what was predicted.

    Random weights, float32 with bfloat16 autocast, AdamW, one trace a step, half of the weight on the KL. `full` and
    `lead` 0.5, 0.25 and 0.1 take turns. The predicted time of `lead` 0.5 is from rates fitted on the steps of the other
    three, as `leadspan plan --calibrate` fits them; the predicted memory is the plan's, which needs no measurement.
    """
    sizes = setting.sizes
    settings = [qwen3(shape, sizes.vocabulary, seed) for seed, shape in enumerate((sizes.student, sizes.teacher))]
    student = built(settings[0], torch.float32, setting.device)
    teacher = LiveTeacher(settings[1], freeze(built(settings[1], setting.dtype, setting.device)))
    examples = {cut.label: _examples(setting, cut) for cut in CUTS}
    sides, split = _trained(setting, student, teacher, examples)
    memory = MemoryModel(
        student=shape_of(student),
        teacher=teacher.shape(),
        student_activations=activation_bytes(settings[0], not setting.is_tiny, False),
        teacher_activations=activation_bytes(settings[1], not setting.is_tiny, None),
        use_bf16=not setting.is_tiny,
        chunk_tokens=default_chunk(setting.device, sizes.vocabulary),
    )
    figures = [figure for name in ("full", HELD_OUT) for figure in _figures(setting, name, sides[name], MFU)]
    for name, side in sides.items():
        ratio = memory.peak(BatchSize.of([side.size])).total / statistics.median(side.peaks)
        figures.append(Figure(f"{name}: error of the predicted memory", abs(ratio - 1), setting.target(MEMORY_ERROR)))
    known = [(side.work, seconds) for name, side in sides.items() if name != HELD_OUT for seconds in side.seconds]
    rates, largest = fit_rates([work for work, _ in known], [seconds for _, seconds in known])
    calibration = Calibration(
        device=setting.gpu or "cpu", fingerprint="", num_steps=len(known), rates=rates, largest_error=largest
    )
    predicted = calibration.seconds([sides[HELD_OUT].work]) / statistics.median(sides[HELD_OUT].seconds)
    figures.append(Figure(f"{HELD_OUT}: error of the predicted time", abs(predicted - 1), setting.target(TIME_ERROR)))
    figures.append(Figure(f"{HELD_OUT}: time / full", paired_ratio(sides[HELD_OUT].seconds, sides["full"].seconds)))
    return _outcome(setting, training, figures, sides, {"split of all steps": split})


def stored(setting: Setting) -> Outcome:
    """Steps from a store of hidden states and from one of 50 tokens, beside steps of cross-entropy alone.

    The teacher is captured into both stores first, from the traces of the steps; the student trains from them without
    it, `full` and `lead` 0.5 in turn. *SFT* is the same trainer without a teacher.
    """
    sizes = setting.sizes
    settings = qwen3(sizes.teacher, sizes.vocabulary, 1)
    student = built(qwen3(sizes.student, sizes.vocabulary, 0), torch.float32, setting.device)
    examples = {cut.label: _examples(setting, cut) for cut in CUTS[:2]}
    sides: dict[str, Side] = {}
    splits: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        teacher = freeze(built(settings, setting.dtype, setting.device))
        codecs = {"hidden": Hidden(), "top-k": TopK()}
        for name, codec in codecs.items():
            (directory := Path(folder) / name).mkdir()
            fill(teacher, longest_sequences([examples["full"]]), codec, directory, keeps_head=True)
        del teacher
        sources: dict[str, TeacherSource] = {"SFT": NoTeacher()}
        for name in codecs:
            source = sources[name] = StoredTeacher(Path(folder) / name)
            source.load(setting.dtype, None)  # pyright: ignore[reportArgumentType]  # a store asks no tokenizer
        for name, source in sources.items():
            measured, splits[name] = _trained(setting, student, source, examples)
            sides |= {f"{name}, {cut}": side for cut, side in measured.items()}
    figures = []
    for name, side in sides.items():
        figures += _figures(setting, name, side, None if name.startswith("SFT") else STORED_MFU)
    for name in codecs:
        for cut in examples:
            ratio = statistics.median(sides[f"{name}, {cut}"].seconds) / statistics.median(sides[f"SFT, {cut}"].seconds)
            figures.append(Figure(f"{name}, {cut}: time / SFT", ratio, setting.target(STORED_STEP)))
    return _outcome(setting, stored, figures, sides, {"split of all steps": splits})


def hybrid(setting: Setting) -> Outcome:
    """A step of a hybrid, three layers of linear attention to one of attention (Qwen3.5), on cross-entropy alone.

    Its rows go in padded batches. Without the packages `fla` and `causal_conv1d`, Transformers computes the states in
    plain PyTorch, which is slow; the file says which were there.
    """
    sizes, tiny = setting.sizes, setting.is_tiny
    config = {
        "model_type": "qwen3_5_text",
        "vocab_size": sizes.vocabulary,
        "hidden_size": 32 if tiny else 2048,
        "intermediate_size": 64 if tiny else 6144,
        "num_hidden_layers": 4 if tiny else 8,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        "num_attention_heads": 2 if tiny else 16,
        "num_key_value_heads": 1 if tiny else 4,
        "head_dim": 16 if tiny else HEAD_DIM,
        "linear_num_key_heads": 2 if tiny else 16,
        "linear_num_value_heads": 2 if tiny else 32,
        "linear_key_head_dim": 8 if tiny else HEAD_DIM,
        "linear_value_head_dim": 8 if tiny else HEAD_DIM,
        "tie_word_embeddings": True,
    }
    config["layer_types"] = config["layer_types"] * (config["num_hidden_layers"] // 4)
    with torch.device(setting.device):
        student = load_model(RandomInit(config=config), torch.float32)
    packages = {name: importlib.util.find_spec(name) is not None for name in ("fla", "causal_conv1d")}
    sides, split = _trained(setting, student, NoTeacher(), {"full": _examples(setting, Full())})
    figures = _figures(setting, "full", sides["full"], None)
    return _outcome(setting, hybrid, figures, sides, {"split of all steps": split, "packages": packages})


def attention(setting: Setting) -> Outcome:
    """The body over one packed row of traces of many lengths, forward and backward: packed SDPA, flash attention.

    Four layers of the student, twice the tokens of a step in the row, of lengths from a whole trace to an eighth.
    """
    sizes = setting.sizes
    width, _, inner, heads = sizes.student
    model = built(qwen3((width, 4, inner, heads), sizes.vocabulary, 0), setting.dtype, setting.device)
    examples = random_examples(mixed_lengths(2 * sizes.tokens, sizes.tokens), sizes.vocabulary)
    batch = on_device(pack(list(examples)), setting.device)

    def passes(implementation: str) -> Callable[[], None]:
        def run() -> None:
            model.set_attn_implementation(implementation)
            row = batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
            final_hidden_states(model, *row).float().square().mean().backward()
            model.zero_grad(set_to_none=True)

        return run

    sides, skipped = {"packed SDPA": passes(ATTENTION)}, []
    for package, implementation in (("flash_attn", "flash_attention_2"), ("flash_attn_interface", "flash_attention_3")):
        if importlib.util.find_spec(package) is None or setting.is_tiny:
            skipped.append(f"{implementation}: {package} is not installed, or there is no GPU")
        else:
            sides[implementation] = passes(implementation)
    peaks = {name: allocated(run, setting.device)[0] / MIB for name, run in sides.items()}
    seconds = alternate({name: setting.finished(run) for name, run in sides.items()}, sizes.rounds)
    figures = [
        Figure(f"time packed SDPA / {name}", paired_ratio(seconds["packed SDPA"], seconds[name]))
        for name in sides
        if name != "packed SDPA"
    ]
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    spreads |= {f"{name}, peak": Spread.of([peak], "MiB") for name, peak in peaks.items()}
    described = setting.described() | {"examples": len(examples), "tokens": batch["input_ids"].numel()}
    method = " ".join((attention.__doc__ or "").split())
    return Outcome(method, described, spreads, figures, setting.gpu, {"skipped": skipped})


def _examples(setting: Setting, cut: Policy) -> Examples:
    sizes = setting.sizes
    return random_examples([sizes.tokens] * (WARM_UP + sizes.rounds), sizes.vocabulary, cut)


def _trained(
    setting: Setting, student: PreTrainedModel, teacher: TeacherSource, examples: dict[str, Examples]
) -> tuple[dict[str, Side], dict[str, float]]:
    """Steps of every cut in turn, by one trainer, and where their time went, in seconds."""
    attach_objective(student, LossSettings(kl_weight=0.0 if isinstance(teacher, NoTeacher) else 0.5), None)
    traces: list[Example] = [trace for turn in zip(*examples.values(), strict=True) for trace in turn]
    plan = [[i] for i in range(len(traces))]
    clock = Clock()
    memory = StepMemory(clock)
    with tempfile.TemporaryDirectory() as output:
        options = step_options(output, len(plan), 1e-5) | {"bf16": not setting.is_tiny, "use_cpu": setting.is_tiny}
        arguments = TrainingArguments(**options, remove_unused_columns=False)
        trainer = DistillationTrainer(student, teacher, traces, None, plan, [], arguments)  # pyright: ignore[reportArgumentType]  # a sequence of examples
        for callback in (clock, memory):
            trainer.add_callback(callback)
        timer: StepTimer = timed_training(trainer)
    student.zero_grad(set_to_none=True)
    shapes, first = (shape_of(student), teacher.shape()), WARM_UP * len(examples)
    sides = {
        name: Side(
            layout_sizes(side.layouts, None)[0],
            shapes,
            timer.wall[first + i :: len(examples)],
            memory.peaks[first + i :: len(examples)],
        )
        for i, (name, side) in enumerate(examples.items())
    }
    return sides, clock.by_part().model_dump()


def _figures(setting: Setting, name: str, side: Side, mfu: float | None) -> list[Figure]:
    target = None if mfu is None else setting.target(mfu)
    with tempfile.TemporaryDirectory() as output:
        options = step_options(output, 1) | {"use_cpu": setting.is_tiny}
        device = TrainingArguments(**options).device
        reached = side.mfu(peak_flops(device, 1, None))
    figures = [
        Figure(f"{name}: tokens a second", side.tokens_per_second, None, "higher"),
        Figure(f"{name}: peak memory", statistics.median(side.peaks) / MIB, unit="MiB"),
    ]
    return figures if reached is None else [*figures, Figure(f"{name}: MFU", reached, target, "higher")]


def _outcome(
    setting: Setting,
    part: Callable[[Setting], Outcome],
    figures: Sequence[Figure],
    sides: dict[str, Side],
    details: Any,
) -> Outcome:
    described = setting.described() | {"tokens of a trace": setting.sizes.tokens, "rounds": setting.sizes.rounds}
    spreads = {f"{name}, step": Spread.of(side.seconds) for name, side in sides.items()}
    method = " ".join((part.__doc__ or "").split())
    return Outcome(method, described, spreads, list(figures), setting.gpu, details)
