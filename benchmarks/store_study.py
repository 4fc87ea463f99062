"""A study of four lead cuts from one store against the same with a live teacher: total time, and where it goes.

`lead` 1, 0.75, 0.5 and 0.25 on DeepSeek-R1's traces (tokenizer of about 2,048 entries), the teacher twice the student's
width and as deep, which is about 3.5 times its operations a token; three epochs. With `r` that factor, the store side
cannot need less than `3 / (3 + r)` of the operations, however often its capture serves: with a teacher of twice the
parameters never less than 0.6. Live: four runs with the teacher beside the student. Store: one capture (`top_k` 50)
over whole traces, then four runs. Each live run is followed by its stored one. Total time is all of it: loading,
looking up, training, validation, writing; not the preparation of the data and the compilation of the loss, which a
first run of two steps on each side does. The parts of the store's total are shares of the live total: they add up to
the ratio.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.store_world import qwen3, recipe, write_tokenizer
from leadspan.pipeline.run import prepare_capture
from leadspan.pipeline.run import run as run_recipe
from leadspan.recipe import Recipe
from leadspan.teacher.capture import run_capture

CUTS = (1.0, 0.75, 0.5, 0.25)
STUDENT, TEACHER, LAYERS, EPOCHS, TRACES, VOCAB = 384, 768, 2, 3, 48, 2048
TARGET = 0.6


@dataclass(frozen=True)
class Timed:
    """One run: wall seconds, seconds by part, operations."""

    seconds: float
    parts: dict[str, float]
    flops: int


def run() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> Outcome:
    tokenizer, vocab = write_tokenizer(folder, VOCAB)
    made = {p: _recipe(folder, tokenizer, vocab, p) for p in CUTS}
    warm = _recipe(folder, tokenizer, vocab, 0.25, name="live warm-up", steps=2)
    run_recipe(warm)
    captured = warm.capture.model_copy(update={"path": folder / "store warm-up"})
    run_capture(prepare_capture(warm.model_copy(update={"capture": captured})))
    start = time.perf_counter()
    manifest = run_capture(prepare_capture(made[1.0]))
    capture = time.perf_counter() - start
    run_recipe(_from_store(warm, folder))
    live, stored = [], []
    for p in CUTS:
        live.append(_timed(made[p]))
        stored.append(_timed(_from_store(made[p], folder)))
    total = sum(run.seconds for run in live)
    parts = {"the capture": capture} | _summed(stored)
    figures = [
        Figure("total time, store / live", sum(parts.values()) / total, TARGET),
        *[Figure(f"of it {name}", seconds / total) for name, seconds in parts.items()],
        *[Figure(f"live total, of it {name}", seconds / total) for name, seconds in _summed(live).items()],
        Figure("operations, store with its capture / live", _operations(stored, manifest.flops) / _operations(live)),
    ]
    sides = {
        "live: a run": Spread.of([run.seconds for run in live]),
        "store: a run": Spread.of([run.seconds for run in stored]),
        "store: the capture": Spread.of([capture]),
    }
    settings = {"student": f"{STUDENT} x {LAYERS}", "teacher": f"{TEACHER} x {LAYERS}", "vocab_size": vocab}
    settings |= {"epochs": EPOCHS, "cuts": CUTS, "traces": TRACES, "positions": manifest.num_positions}
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures)


def _recipe(folder: Path, tokenizer: Path, vocab: int, p: float, name: str = "", steps: int | None = None) -> Recipe:
    length: dict[str, Any] = {"epochs": EPOCHS} if steps is None else {"steps": steps}
    return recipe(
        folder,
        tokenizer,
        name or f"live {p:g}",
        num_train=TRACES,
        num_validation=2,
        student=qwen3(STUDENT, LAYERS, vocab, 1),
        teacher=qwen3(TEACHER, LAYERS, vocab, 2),
        capture={"path": str(folder / "store"), "codec": {"kind": "top_k", "k": 50}},
        cut={"kind": "lead", "p": p},
        supervision={"prompt": 0},
        loss={"compiled": None},
        training=length,
    )


def _from_store(made: Recipe, folder: Path) -> Recipe:
    changes = {
        "targets": {"kind": "store", "path": folder / "store"},
        "output": folder / made.name.replace("live", "store"),
    }
    return Recipe.model_validate(made.model_dump() | changes)


def _timed(made: Recipe) -> Timed:
    start = time.perf_counter()
    train = run_recipe(made).train
    seconds = time.perf_counter() - start
    assert train is not None and train.step_seconds is not None
    steps = train.step_seconds.model_dump()
    return Timed(seconds, steps | {"outside the steps": seconds - sum(steps.values())}, train.flops.total)


def _summed(runs: Sequence[Timed]) -> dict[str, float]:
    found: Counter[str] = Counter()
    for run in runs:
        found.update(run.parts)  # pyright: ignore[reportArgumentType]  # seconds add up as counts do
    return dict(found)


def _operations(runs: Sequence[Timed], capture: int | None = 0) -> int:
    return sum(run.flops for run in runs) + (capture or 0)
