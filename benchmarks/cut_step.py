"""A training step at `lead` 0.5 against `full`, on the same real traces.

Time: leadspan's own trainer runs optimiser steps whose batches alternate, the same traces whole and then cut; the time
ratio is the median over these pairs. Optimiser, clipping and everything else that no cut makes cheaper are part of it.
Activation memory of one forward pass: the bytes autograd saves for backward (each storage once, weights and the head's
gradient left out) plus the buffers of the chunked loss, measured as the peak of the allocator inside the loss above
what the loss leaves. The peak of a whole forward and backward pass, gradients of the weights included, is given beside
it. Setting `head`: the models of recipes/qwen3_r1_traces.yaml, whose vocabulary of 151,936 dominates. Setting `body`:
4 layers of 256 and a vocabulary of 4,096; token ids are folded into it, which changes no cost.
"""

import dataclasses
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.memory import MIB, SavedBytes, allocated
from benchmarks.record import ROOT, Figure, Outcome, Spread
from benchmarks.steps import device_and_gpu, plan_arguments, timed_training
from benchmarks.timing import paired_ratio
from benchmarks.traces import batches_of, examples, prepared, qwen3_renderer, trace_source
from leadspan.data.examples import Example
from leadspan.data.packing import Batch, on_device, pack
from leadspan.data.truncation import Full, Lead
from leadspan.losses.chunked import chunked_loss
from leadspan.losses.settings import LossSettings
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.recipe import Recipe
from leadspan.settings import load_settings
from leadspan.teacher.source import LiveTeacher
from leadspan.teacher.targets import freeze, live_targets
from leadspan.training.trainer import DistillationTrainer, attach_objective

TIME_TARGET, MEMORY_TARGET = 0.52, 0.55
MEMORY_BATCHES = 2
P = 0.5


@dataclass(frozen=True)
class Setting:
    """Models and batches of one part of the benchmark."""

    name: str
    student: RandomInit
    teacher: RandomInit
    loss: LossSettings
    examples_per_batch: int
    max_tokens: int
    num_batches: int
    vocab_size: int


def run() -> Outcome:
    device, gpu = device_and_gpu()
    settings: dict[str, Any] = {"traces": "deepseek_r1", "p": P}
    sides: dict[str, Spread] = {}
    figures: list[Figure] = []
    for setting in (_head(), _body()):
        whole, cut = _examples(setting)
        settings[setting.name] = _described(setting, whole)
        times = _step_times(setting, whole, cut)
        for side, values in zip(("full", "lead 0.5"), times, strict=True):
            sides[f"{setting.name}: {side}"] = Spread.of(values)
        figures.append(Figure(f"{setting.name}: time lead / full", paired_ratio(times[1], times[0]), TIME_TARGET))
        figures += _memory_figures(setting, whole, cut, device, sides)
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures, gpu)


def _head() -> Setting:
    recipe = load_settings(Recipe, ROOT / "recipes" / "qwen3_r1_traces.yaml")
    student, teacher = recipe.student, recipe.teacher
    assert isinstance(student, RandomInit) and isinstance(teacher, RandomInit)
    return Setting("head", student, teacher, recipe.loss, 4, 1024, 6, student.config["vocab_size"])


def _body() -> Setting:
    config = {
        "model_type": "qwen3",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    }
    student, teacher = RandomInit(config=config, seed=1), RandomInit(config=config, seed=2)
    return Setting("body", student, teacher, LossSettings(), 4, 2048, 12, config["vocab_size"])


def _examples(setting: Setting) -> tuple[list[Example], list[Example]]:
    """The same traces whole and cut, drawn by the seed, ids folded into the vocabulary."""
    renderer = qwen3_renderer()
    with tempfile.TemporaryDirectory() as cache:
        found = prepared(trace_source("deepseek_r1"), renderer, Path(cache))
        fitting = [i for i, n in enumerate(found.rows["num_tokens"][:]) if n <= setting.max_tokens]
        drawn = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(0)).tolist()
        keep = [fitting[i] for i in drawn[: setting.num_batches * setting.examples_per_batch]]
        sides = [examples(found, policy, renderer, keep) for policy in (Full(), Lead(p=P))]
        folded = [[dataclasses.replace(e, input_ids=e.input_ids % setting.vocab_size) for e in side] for side in sides]
    assert [e.example_id for e in folded[0]] == [e.example_id for e in folded[1]]
    return folded[0], folded[1]


def _described(setting: Setting, whole: list[Example]) -> dict[str, Any]:
    return {
        "student": setting.student.config,
        "teacher": setting.teacher.config,
        "examples_per_step": setting.examples_per_batch,
        "pairs_of_steps": setting.num_batches,
        "longest_trace": setting.max_tokens,
        "tokens_per_trace": statistics.mean(len(e.input_ids) for e in whole),
        "threads": torch.get_num_threads(),
    }


def _models(setting: Setting, device: torch.device) -> tuple[PreTrainedModel, PreTrainedModel]:
    student, teacher = (load_model(m, torch.float32).to(device) for m in (setting.student, setting.teacher))
    return student, freeze(teacher)


def _step_times(setting: Setting, whole: list[Example], cut: list[Example]) -> tuple[list[float], list[float]]:
    """Wall seconds per step of both sides; the first pair, a repeat of the second, is dropped."""
    student, teacher = _models(setting, torch.device("cpu"))
    attach_objective(student, setting.loss, None)
    pairs = batches_of(range(len(whole)), setting.examples_per_batch)
    plan = [batch for indices in pairs for batch in (list(indices), [i + len(whole) for i in indices])]
    plan = plan[:2] + plan
    with tempfile.TemporaryDirectory() as output:
        arguments = plan_arguments(output, len(plan))
        source = LiveTeacher(setting.teacher, teacher)
        trainer = DistillationTrainer(student, source, [*whole, *cut], None, plan, [], arguments)
        timer = timed_training(trainer)
    return timer.wall[2::2], timer.wall[3::2]


def _memory_figures(
    setting: Setting, whole: list[Example], cut: list[Example], device: torch.device, sides: dict[str, Spread]
) -> list[Figure]:
    student, teacher = _models(setting, device)
    parts: dict[str, list[list[float]]] = {"saved": [], "buffers": [], "peak": []}
    for side in (whole, cut):
        few = side[: MEMORY_BATCHES * setting.examples_per_batch]
        batches = [on_device(pack(batch), device) for batch in batches_of(few, setting.examples_per_batch)]
        measured = [_memory(student, teacher, batch, setting.loss) for batch in batches]
        for part, values in zip(parts.values(), zip(*measured, strict=True), strict=True):
            part.append([v / MIB for v in values])
    for part, values in parts.items():
        for side, mib in zip(("full", "lead 0.5"), values, strict=True):
            sides[f"{setting.name}: {side}, {part}"] = Spread.of(mib, "MiB")
    both = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(parts["saved"], parts["buffers"], strict=True)]
    name = setting.name
    return [
        Figure(f"{name}: activation memory lead / full", paired_ratio(both[1], both[0]), MEMORY_TARGET),
        Figure(f"{name}: saved for backward alone", paired_ratio(parts["saved"][1], parts["saved"][0])),
        Figure(f"{name}: peak of a whole pass, gradients included", paired_ratio(parts["peak"][1], parts["peak"][0])),
    ]


def _memory(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, loss: LossSettings
) -> tuple[int, int, int]:
    """Bytes saved for backward, buffers of the loss, and the peak of a whole pass."""
    device, head = batch["input_ids"].device, head_of(student).weight

    def hidden() -> torch.Tensor:
        return final_hidden_states(
            student, batch["input_ids"], batch["position_ids"], batch["borders"], batch["positions"]
        )

    def loss_of(states: torch.Tensor) -> torch.Tensor:
        soft = loss.kl_weight * batch["weights"]
        hard = batch["weights"] - soft
        targets = live_targets(teacher, batch)
        return chunked_loss(states, head, targets, batch["labels"], hard, soft, loss)[0]

    weights = [*student.parameters(), *teacher.parameters()]
    with SavedBytes(weights, [head.shape]).watching() as saved:
        total = loss_of(hidden())
    del total
    states = hidden()
    peak_of_loss, left = allocated(lambda: loss_of(states), device)
    del states
    peak, _ = allocated(lambda: loss_of(hidden()).backward(), device)
    student.zero_grad(set_to_none=True)
    return saved.activations, peak_of_loss - left, peak
