"""A study of four lead cuts from one store against the same with a live teacher: total time, and where it goes.

`lead` 1, 0.75, 0.5 and 0.25 on DeepSeek-R1's traces (tokenizer of about 4,096 entries), the teacher twice the student's
size in width, two epochs. Live: four runs with the teacher beside the student. Store: one capture (`top_k` 50) over
whole traces, then four runs. Total time is all of it: preparing (cached by a first run that is not counted), loading,
looking up, training, validation, writing. Time in training and FLOPs are counted apart.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.store_world import qwen3, recipe, write_tokenizer
from leadspan.pipeline import prepare_data
from leadspan.pipeline import run as run_recipe
from leadspan.recipe import Recipe
from leadspan.study.capture import run_capture
from leadspan.study.capture_job import prepare_capture

CUTS = (1.0, 0.75, 0.5, 0.25)
STUDENT, TEACHER, LAYERS, EPOCHS = 96, 192, 2, 2
TARGET = 0.6


def run() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Outcome:
    tokenizer, vocab = write_tokenizer(folder)
    made = {p: _recipe(folder, tokenizer, vocab, p) for p in CUTS}
    prepare_data(made[1.0])
    run_recipe(_recipe(folder, tokenizer, vocab, 0.25, name="warm-up", steps=2))
    start = time.perf_counter()
    run_capture(prepare_capture(made[1.0]), lambda text: None)
    capture = time.perf_counter() - start
    live = [_timed(made[p]) for p in CUTS]
    stored = [_timed(_from_store(made[p], folder)) for p in CUTS]
    total_live, total_stored = sum(t for t, _, _ in live), capture + sum(t for t, _, _ in stored)
    train_live, train_stored = (sum(s for _, s, _ in side) for side in (live, stored))
    flops_live, flops_stored = (sum(f for _, _, f in side) for side in (live, stored))
    figures = [
        Figure("total time, store / live", total_stored / total_live, TARGET),
        Figure("time in training steps, store / live", train_stored / train_live),
        Figure("time outside training steps, store / live", (total_stored - train_stored) / (total_live - train_live)),
        Figure("share of the capture in the store's total", capture / total_stored),
        Figure("FLOPs of training, store / live", flops_stored / flops_live),
    ]
    sides = {
        "live: a run": Spread.of([t for t, _, _ in live]),
        "live: steps of a run": Spread.of([s for _, s, _ in live]),
        "store: a run": Spread.of([t for t, _, _ in stored]),
        "store: steps of a run": Spread.of([s for _, s, _ in stored]),
        "store: the capture": Spread.of([capture]),
    }
    settings = {"student": f"{STUDENT} x {LAYERS}", "teacher": f"{TEACHER} x {LAYERS}", "vocab_size": vocab}
    settings |= {"epochs": EPOCHS, "cuts": CUTS}
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures)


def _recipe(folder: Path, tokenizer: Path, vocab: int, p: float, name: str = "", steps: int | None = None) -> Recipe:
    length: dict[str, Any] = {"epochs": EPOCHS} if steps is None else {"steps": steps}
    return recipe(
        folder,
        tokenizer,
        name or f"live {p:g}",
        student=qwen3(STUDENT, LAYERS, vocab, 1),
        teacher=qwen3(TEACHER, LAYERS, vocab, 2),
        capture={"path": str(folder / "store"), "codec": {"kind": "top_k", "k": 50}},
        cut={"kind": "lead", "p": p},
        supervision={"prompt": 0},
        training=length,
    )


def _from_store(made: Recipe, folder: Path) -> Recipe:
    changes = {
        "targets": {"kind": "store", "path": folder / "store"},
        "output": folder / made.name.replace("live", "store"),
    }
    return Recipe.model_validate(made.model_dump() | changes)


def _timed(made: Recipe) -> tuple[float, float, int]:
    """Wall seconds of a run, of its steps, and its FLOPs."""
    start = time.perf_counter()
    result = run_recipe(made)
    assert result.train is not None
    return time.perf_counter() - start, result.train.seconds, result.train.flops.total
