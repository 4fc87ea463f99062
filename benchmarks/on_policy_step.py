"""An on-policy step of leadspan against TRL's: same models, same prompts, reverse KL, rollouts of the same length.

Both sides get the same tiny Qwen3 student and teacher with random weights, and questions of made-up sums. In every step
the student answers four of them with 128 new tokens at temperature 1 (random weights over thousands of tokens seldom
end a turn), the teacher scores what was written, and the weights are updated by the exact reverse KL: leadspan by
`rollout`, TRL by DistillationTrainer with beta 1, whose loss is computed in chunks. Each runs in a fresh process
through its own trainer, in turn; a step lasts from the end of the one before to its own end, so that drawing and
collating count wherever they happen. The time ratio is the median over rounds of the ratio of the rounds' median steps.
Memory is the peak of the resident set while training runs less the resident set just before.
"""

import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from benchmarks.gkd_step import Runs, step_ratio
from benchmarks.memory import MIB, peak_resident, reset_peak_resident
from benchmarks.plans import TEMPLATE
from benchmarks.record import Figure, Outcome, Spread, side_in_process
from benchmarks.steps import step_options
from benchmarks.sums import questions_and_replies, tiny_model, tokenised_traces, train_tokenizer

SIDES = ("leadspan", "trl")
BATCH, NEW_TOKENS, WARM_UP = 4, 128, 2
SIZES = (
    # vocabulary, timed steps, rounds, time target, memory target
    (4_096, 10, 3, 0.6, 0.4),
    (131_072, 4, 2, 0.4, 0.1),
)


def run() -> Outcome:
    """Both sides at both vocabularies.

    Raises:
        RecordError: TRL is not installed, or a side failed.
    """
    sides: dict[str, Spread] = {}
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for vocab_size, num_steps, num_rounds, time_target, memory_target in SIZES:
        runs: Runs = {side: [] for side in SIDES}
        for _ in range(num_rounds):
            for side in SIDES:
                runs[side].append(side_in_process("benchmarks.on_policy_step", side, vocab_size, WARM_UP + num_steps))
        name = f"V={vocab_size}"
        for side, rounds in runs.items():
            sides[f"{name}: {side}, step"] = Spread.of([s for r in rounds for s in r["wall_seconds"]])
            sides[f"{name}: {side}, memory growth"] = Spread.of([r["memory_growth"] / MIB for r in rounds], "MiB")
        figures += [
            Figure(f"{name}: time leadspan / TRL", step_ratio(runs, "wall_seconds"), time_target),
            Figure(f"{name}: memory leadspan / TRL", step_ratio(runs, "memory_growth"), memory_target),
        ]
        details[f"{name}: losses of the first steps"] = {side: runs[side][0]["losses"][:3] for side in SIDES}
    settings = {
        "prompts a step": BATCH,
        "new tokens": NEW_TOKENS,
        "student": "64 x 2 layers",
        "teacher": "128 x 4 layers",
    }
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures, None, details)


class _Watch(TrainerCallback):
    """When steps end, from the begin of training on, and the resident set then."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.before = reset_peak_resident()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.growth = peak_resident() - self.before


def main() -> None:
    """One side in this process: `python -m benchmarks.on_policy_step leadspan|trl VOCAB STEPS` prints one JSON line."""
    side, vocab_size, num_steps = sys.argv[1], *map(int, sys.argv[2:])
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    watch = _Watch()
    train: Callable[[Path, int, int, _Watch], list[float]] = _leadspan if side == "leadspan" else _trl
    with tempfile.TemporaryDirectory() as directory:
        losses = train(Path(directory), vocab_size, num_steps, watch)
    steps = [end - begin for begin, end in itertools.pairwise(watch.ends)]
    print(json.dumps({"wall_seconds": steps[WARM_UP - 1 :], "memory_growth": watch.growth, "losses": losses}))


def _leadspan(directory: Path, vocab_size: int, num_steps: int, watch: _Watch) -> list[float]:
    from leadspan.inputs import prepare_data
    from leadspan.recipe import Recipe
    from leadspan.settings import validate
    from leadspan.stages import checked_teacher, training_inputs
    from leadspan.training.train import train

    tokenizer = train_tokenizer(vocab_size)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(str(directory / "tokenizer"))
    with (directory / "traces.jsonl").open("w", encoding="utf-8") as file:
        for question, reply in questions_and_replies(64, 42, 40):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            file.write(json.dumps({"messages": turns}) + "\n")
    student, teacher = (tiny_model(*shape, vocab_size, seed=i) for i, shape in enumerate(((64, 2), (128, 4))))
    recipe = validate(
        Recipe,
        {
            "name": "on-policy",
            "output": str(directory / "run"),
            "tokenizer": str(directory / "tokenizer"),
            "data": {"train": {"path": str(directory / "traces.jsonl")}, "validation": {"kind": "none"}},
            "student": student.model_dump(),
            "teacher": teacher.model_dump(),
            "loss": {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}},
            "rollout": {
                "max_new_tokens": NEW_TOKENS,
                "batch_size": BATCH,
                "horizon": {"kind": "fixed", "tokens": NEW_TOKENS},
            },
            "training": {
                "steps": num_steps,
                "batching": {"kind": "examples", "examples_per_step": BATCH, "examples_per_batch": BATCH},
                "learning_rate": 1e-3,
                "keep": "last",
                "log_every": 1,
                "checkpoint_every": num_steps,
                "report_to": [],
            },
        },
        "on_policy_step",
    )
    inputs = training_inputs(recipe, prepare_data(recipe), checked_teacher(recipe))
    train(inputs, recipe.training, recipe.loss, callbacks=[watch])
    lines = (directory / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def _trl(directory: Path, vocab_size: int, num_steps: int, watch: _Watch) -> list[float]:
    import torch
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    from leadspan.models.loading import load_model

    tokenizer = train_tokenizer(vocab_size)
    shapes = enumerate(((64, 2), (128, 4)))
    student, teacher = (
        load_model(tiny_model(*shape, vocab_size, seed=i), torch.float32, for_training=False) for i, shape in shapes
    )
    prompts = [{"prompt": prompt} for prompt, _, _ in tokenised_traces(tokenizer, 64, 42, 480)]
    arguments = DistillationConfig(
        beta=1.0,
        temperature=1.0,
        max_completion_length=NEW_TOKENS,
        per_device_train_batch_size=BATCH,
        gradient_checkpointing=False,
        **step_options(str(directory), num_steps),
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=arguments,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
    )
    trainer.add_callback(watch)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    main()
