"""Time and memory that `leadspan plan --calibrate` predicts, against runs of `lead` p from 0.1 to 1.0.

One calibration of the recipe's own models and traces (`full` and `lead` 0.5, 0.25 and 0.1, six steps each), then one
run for each p in a process of its own through the same pipeline as `leadspan distill`, which writes its prediction
beside what it measured. Three of the five p were not calibrated. An error is `|predicted / measured - 1|`, of the time
with a first step as long as the others: it compiles, which no prediction is of.
"""

import tempfile
from pathlib import Path

from benchmarks.plans import model, ran, recipe, write_tokenizer
from benchmarks.record import Figure, Outcome, Spread
from leadspan.data.truncation import Full, Lead
from leadspan.inputs import prepare_data
from leadspan.planning.plan import calibration_of

SHARES = (0.1, 0.2, 0.35, 0.6, 1.0)
TARGET = 0.15
STEPS = 8
SETTINGS = {
    "student": model(128, 4),
    "teacher": model(192, 4),
    "data": {"max_tokens": 1024, "num_train": 60},
    "training": {
        "steps": STEPS,
        "batching": {"kind": "examples", "examples_per_step": 4, "examples_per_batch": 2},
        "learning_rate": 1e-3,
        "keep": "last",
        "report_to": [],
    },
}


def run() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        tokenizer, rates = write_tokenizer(directory), directory / "calibration.json"
        plan = {"calibration": str(rates)}
        first = recipe(directory, tokenizer, "calibrated", cut={"kind": "full"}, plan=plan, **SETTINGS)
        sides = [Full(), *(Lead(p=p) for p in (0.5, 0.25, 0.1))]
        calibration = calibration_of(first, prepare_data(first), sides, True)
        assert calibration is not None, "it was asked for"
        runs = {
            p: ran(recipe(directory, tokenizer, f"lead {p}", cut={"kind": "lead", "p": p}, plan=plan, **SETTINGS))
            for p in SHARES
        }
    times = {p: (found.seconds or 0.0) / train.steady_seconds - 1 for p, (found, train) in runs.items()}
    whole = {p: (found.seconds or 0.0) / train.seconds - 1 for p, (found, train) in runs.items()}
    memory = {p: found.memory.total / train.peak_memory_bytes - 1 for p, (found, train) in runs.items()}
    tensors = {
        p: (found.memory.total - found.memory.process) / train.peak_memory_bytes - 1
        for p, (found, train) in runs.items()
    }
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"shares": SHARES, "steps": STEPS, "student": SETTINGS["student"], "teacher": SETTINGS["teacher"]},
        sides={f"lead {p}: measured step": Spread.of([train.steady_seconds / STEPS]) for p, (_, train) in runs.items()},
        figures=[
            Figure("largest error of the time", max(map(abs, times.values())), TARGET),
            Figure("largest error of the time, first step as it was", max(map(abs, whole.values()))),
            Figure("largest error of the peak memory of the process", max(map(abs, memory.values())), TARGET),
            Figure("largest error of the memory without a calibration, tensors alone", max(map(abs, tensors.values()))),
            Figure("largest error of the rates on the calibration's own steps", calibration.largest_error),
        ],
        details={
            "errors of the time": times,
            "errors of the time, first step as it was": whole,
            "errors of the memory": memory,
            "errors of the tensors alone": tensors,
            "calibration": calibration.model_dump(),
        },
    )
