"""A training step of leadspan against a bare PyTorch loop over the same rows: cross-entropy, no teacher.

The model has the shape of SmolLM2-135M and random weights; a step is four rows of 286 tokens, the last 60 % of each
learnt. The bare loop is what a user would write: the four rows as one batch without padding, the logits of all
positions, cross-entropy in float32, clipping, fused AdamW. leadspan trains through its own trainer, rows packed. Both
in float32 and in bfloat16 autocast over float32 weights, each in a fresh process, in turn; a step lasts from the end of
the one before to its own end. Figures are medians over rounds of the ratio of the rounds' median steps. The losses of
the first step are compared. Needs bfloat16 in the processor for the second half, which is left out elsewhere.
"""

import itertools
import json
import sys
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import logging

from benchmarks.gkd_step import step_ratio
from benchmarks.record import Figure, Outcome, Spread, side_in_process
from benchmarks.steps import plan_arguments
from leadspan.data.examples import Example
from leadspan.data.supervision import COT, PROMPT
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.models.shapes import uses_bf16
from leadspan.ranks import freed_memory_reused
from leadspan.teacher.source import NoTeacher
from leadspan.training.trainer import DistillationTrainer, attach_objective

ROWS, LENGTH, NUM_PROMPT, WARM_UP, STEPS, ROUNDS = 4, 286, 114, 2, 6, 2
SHAPE = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}
TARGET, LOSS_TARGET = 0.95, 1e-2


def run() -> Outcome:
    sides: dict[str, Spread] = {}
    figures: list[Figure] = []
    for precision in ("float32", "bfloat16") if uses_bf16("auto", RandomInit(config=SHAPE)) else ("float32",):
        runs: dict[str, list[dict[str, Any]]] = {"bare": [], "leadspan": []}
        for _ in range(ROUNDS):
            for side, measured in runs.items():
                measured.append(side_in_process("benchmarks.bare_loop", side, precision))
        for side, measured in runs.items():
            rates = [ROWS * LENGTH / second for result in measured for second in result["seconds"]]
            sides[f"{precision}: {side}"] = Spread.of(rates, "tokens/s")
        first = {side: measured[0]["losses"][0] for side, measured in runs.items()}
        figures += [
            Figure(
                f"{precision}: tokens/s leadspan / bare",
                step_ratio(runs, "seconds", "bare", "leadspan"),
                TARGET,
                "higher",
            ),
            Figure(
                f"{precision}: relative difference of the first loss",
                abs(first["leadspan"] / first["bare"] - 1),
                LOSS_TARGET,
            ),
        ]
    settings = {
        "rows": ROWS,
        "tokens a row": LENGTH,
        "steps": STEPS,
        "rounds": ROUNDS,
        "threads": torch.get_num_threads(),
    }
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures)


class _Ends(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def main() -> None:
    """One side in this process: `python -m benchmarks.bare_loop bare|leadspan PRECISION` prints one JSON line."""
    side, precision = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    drawn = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (WARM_UP + STEPS, ROWS, LENGTH))
    model = load_model(RandomInit(config=SHAPE, seed=0), torch.float32, for_training=side == "leadspan")
    ends, losses = (_leadspan if side == "leadspan" else _bare)(model, drawn, precision == "bfloat16")
    seconds = [end - begin for begin, end in itertools.pairwise(ends)][WARM_UP - 1 :]
    print(json.dumps({"seconds": seconds, "losses": losses}))


def _bare(model: PreTrainedModel, drawn: np.ndarray, use_bf16: bool) -> tuple[list[float], list[float]]:
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ends, losses = [], []
    for rows in torch.from_numpy(drawn):
        labels = rows.clone()
        labels[:, :NUM_PROMPT] = -100
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_bf16):
            loss = model(input_ids=rows, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return ends, losses


@freed_memory_reused()
def _leadspan(model: PreTrainedModel, drawn: np.ndarray, use_bf16: bool) -> tuple[list[float], list[float]]:
    is_learnt = np.arange(LENGTH) >= NUM_PROMPT
    sections = np.where(is_learnt, COT, PROMPT).astype(np.int8)
    examples = [
        Example(row, is_learnt.astype(np.float32), sections, np.zeros_like(sections), "")
        for row in np.concatenate(drawn)
    ]
    attach_objective(model, LossSettings(kl_weight=0.0), None)
    plan = [list(range(ROWS * i, ROWS * (i + 1))) for i in range(len(drawn))]
    with tempfile.TemporaryDirectory() as output:
        arguments = plan_arguments(output, len(plan), learning_rate=1e-4, bf16=use_bf16)
        trainer = DistillationTrainer(model, NoTeacher(), examples, None, plan, [], arguments)
        ends = _Ends()
        trainer.add_callback(ends)
        trainer.train()
    return ends.times, [line["loss"] for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    main()
