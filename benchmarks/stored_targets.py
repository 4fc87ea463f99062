"""Stored targets: bytes a position, the KL that students reach from them, and the share of a step that reading takes.

A teacher is trained on DeepSeek-R1's traces (tokenizer of about 4,096 entries) and captured as `hidden`, `top_k` 50 and
`sampled`. From each store one student is trained by the KL alone, from the same weights over the same batches; what it
reached is its full KL from the live teacher on held-out traces. `KL lost` is, as a dry run measures it, the KL between
the teacher and the student trained from `hidden`, less what a codec's targets give for it, in mean over positions of
the captured traces: what a support leaves out at every step. The sampled store compared with `top_k` 50 is the smallest
that loses no more, and whose student reaches no more KL either. Reading is the time to look up, check, decode and
collate the targets of a batch, over that and the optimiser step.
"""

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.steps import plan_arguments, timed_training
from benchmarks.store_world import qwen3, recipe, write_tokenizer
from leadspan.data.packing import pack
from leadspan.inputs import prepare_data
from leadspan.losses.objective import batch_loss
from leadspan.losses.rows import ROW_COLUMNS
from leadspan.losses.settings import LossSettings
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model
from leadspan.models.settings import Pretrained
from leadspan.pipeline.run import prepare_capture
from leadspan.pipeline.run import run as run_recipe
from leadspan.recipe import Recipe
from leadspan.settings import validate
from leadspan.teacher.capture import run_capture
from leadspan.teacher.capture_plan import estimate
from leadspan.teacher.engine import TransformersEngine
from leadspan.teacher.settings import CaptureSettings
from leadspan.teacher.source import StoredTeacher
from leadspan.teacher.targets import freeze, live_targets
from leadspan.training.steps import plan_steps
from leadspan.training.trainer import DistillationTrainer, attach_objective

BYTES_TARGET, HALF, READ_TARGET = 220, 0.5, 0.02
CODECS: dict[str, dict[str, Any]] = {
    "hidden": {"kind": "hidden"},
    "top_k 50": {"kind": "top_k", "k": 50},
    "sampled 16": {"kind": "sampled", "num_samples": 16},
}
EPOCHS = {"teacher": 3, "student": 2}
SAMPLE = 8192


def run() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Outcome:
    tokenizer, vocab = write_tokenizer(folder)
    teacher = {
        "student": qwen3(192, 2, vocab, 0),
        "loss": {"kl_weight": 0},
        "cut": {"kind": "full"},
        "supervision": {"prompt": 1},
        "role": "teacher",
        "training": {"epochs": EPOCHS["teacher"], "learning_rate": 3e-3},
    }
    run_recipe(recipe(folder, tokenizer, "teacher", **teacher))
    kl: dict[str, float] = {}
    size: dict[str, float] = {}
    entropy: dict[str, float] = {}
    reads: list[float] = []
    steps: list[float] = []
    for name, codec in CODECS.items():
        made = _student(folder, tokenizer, vocab, name, codec)
        manifest = run_capture(prepare_capture(made))
        size[name] = sum(shard.num_bytes for shard in manifest.shards) / manifest.num_positions
        run_recipe(made)
        kl[name], entropy[name] = _reached(made)
        if name == "top_k 50":
            reads, steps = _reading(made, folder)
    reading = statistics.median(reads) / (statistics.median(reads) + statistics.median(steps))
    lost = _lost(_student(folder, tokenizer, vocab, "hidden", CODECS["hidden"]))
    drawn = [n for n in CODECS if n.startswith("sampled") and _is_as_good(n, lost, kl)]
    best = min(drawn, key=lambda name: size[name], default="")
    figures = [
        Figure("top_k 50: bytes a position", size["top_k 50"], BYTES_TARGET, unit="bytes"),
        Figure("share of reading in a step, top_k 50", reading, READ_TARGET),
        Figure(f"bytes {best or 'of no sampled store'} / top_k 50", size.get(best, math.inf) / size["top_k 50"], HALF),
        Figure("entropy of the teacher", entropy["hidden"], unit="nats"),
        *[Figure(f"{name}: KL lost", value, unit="nats") for name, (value, _) in lost.items()],
        *[Figure(f"{name}: KL lost, standard error", value, unit="nats") for name, (_, value) in lost.items()],
        *[Figure(f"{name}: KL reached", value, unit="nats") for name, value in kl.items()],
        *[Figure(f"{n}: bytes a position", size[n], unit="bytes") for n in CODECS if n != "top_k 50"],
    ]
    sides = {"reading a batch": Spread.of(reads), "a step without it": Spread.of(steps)}
    settings = {"vocab_size": vocab, "epochs": EPOCHS, "teacher": "192 x 2", "student": "96 x 2", "codecs": CODECS}
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures)


def _student(folder: Path, tokenizer: Path, vocab: int, name: str, codec: dict[str, Any]) -> Recipe:
    store = str(folder / f"store {name}")
    changes = {
        "student": qwen3(96, 2, vocab, 1),
        "teacher": {"kind": "pretrained", "path": str(folder / "teacher" / "student")},
        "targets": {"kind": "store", "path": store},
        "capture": {"path": store, "codec": codec},
        "cut": {"kind": "full"},
        "supervision": {"prompt": 1},
        "loss": {"kl_weight": 1},
        "training": {"epochs": EPOCHS["student"], "learning_rate": 3e-3},
    }
    return recipe(folder, tokenizer, name, **changes)


@torch.no_grad()
def _reached(made: Recipe) -> tuple[float, float]:
    """Full KL of the trained student from the live teacher on the validation traces, and the teacher's entropy."""
    assert made.teacher is not None
    student = freeze(load_model(Pretrained(path=str(made.output / "student")), torch.float32))
    teacher = freeze(load_model(made.teacher, torch.float32))
    validation = prepare_data(made).validation
    assert validation is not None
    batch = pack([validation[i] for i in range(len(validation))])
    totals = batch_loss(student, batch, live_targets(teacher, batch), LossSettings(kl_weight=1)).totals.sum(0)
    sums, counts = totals.double().tensor_split(2)
    means = dict(zip(ROW_COLUMNS, (sums / counts).tolist(), strict=True))
    return means["divergence"], means["teacher_entropy"]


def _lost(made: Recipe) -> dict[str, tuple[float, float]]:
    """What each sparse codec loses of the KL between the teacher and the student trained from exact targets."""
    assert made.teacher is not None
    job = prepare_capture(made)
    student = freeze(load_model(Pretrained(path=str(made.output / "student")), torch.float32))
    teacher = freeze(load_model(made.teacher, torch.float32))
    rows = head_of(teacher).weight.shape[0]
    codecs = [validate(CaptureSettings, {"codec": codec}, name).codec for name, codec in CODECS.items()]
    engine = TransformersEngine(teacher, made.capture, rows)
    found = estimate(engine, student, job.sequences, codecs, SAMPLE, made.seed)
    return {row.codec.label: (row.kl_lost, row.standard_error) for row in found.codecs}


def _is_as_good(name: str, lost: dict[str, tuple[float, float]], kl: dict[str, float]) -> bool:
    """Loses no more than top_k 50 at twice its standard error, and its student lies no farther from the teacher."""
    value, error = lost[name]
    return abs(value) + 2 * error <= lost["top_k 50"][0] and kl[name] <= kl["top_k 50"]


def _reading(made: Recipe, folder: Path) -> tuple[list[float], list[float]]:
    """Seconds to read the targets of each batch, and seconds of each step."""
    data = prepare_data(made)
    assert made.capture.path is not None
    teacher = StoredTeacher(made.capture.path)
    teacher.load(torch.float32, data.renderer.tokenizer)
    student = load_model(made.student, torch.float32)
    attach_objective(student, made.loss, None)
    plan = plan_steps(made.training, data.examples.lengths, 1, 0).plan[: 2 * len(data.examples) // 4]
    arguments = plan_arguments(str(folder / "reading"), len(plan))
    trainer = DistillationTrainer(student, teacher, data.examples, None, plan, [], arguments)
    steps = timed_training(trainer).wall[2:]
    reads = []
    for batch in plan:
        examples = [data.examples[i] for i in batch]
        start = time.perf_counter()
        teacher.store.collate(examples)
        reads.append(time.perf_counter() - start)
    return reads, steps
