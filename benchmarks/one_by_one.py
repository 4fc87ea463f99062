"""A row whose examples go through a model one by one, against the same row packed: forward and backward.

What a model costs that cannot read packed rows, shown on one that can: the architecture of Llama with random weights,
four examples of 1,000 tokens, every token learnt, full attention in both. Sides in turn in one process; the ratio is
the median over rounds.
"""

import functools

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.steps import device_and_gpu
from benchmarks.timing import alternate, paired_ratio
from leadspan.data.examples import Example
from leadspan.data.packing import Batch, on_device, pack
from leadspan.data.supervision import COT
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings
from leadspan.models.forward import LAYOUT
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit

EXAMPLES, LENGTH, ROUNDS, TARGET = 4, 1_000, 5, 0.85
SHAPE = {
    "model_type": "llama",
    "vocab_size": 4_096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1_024,
}


def run() -> Outcome:
    device, gpu = device_and_gpu()
    packed = load_model(RandomInit(config=SHAPE), torch.float32).to(device)
    alone = load_model(RandomInit(config=SHAPE, attention="own"), torch.float32).to(device)
    # Examples of one length would go through it side by side.
    setattr(alone, LAYOUT, "alone")
    batch = on_device(_batch(), device)
    sides = {name: functools.partial(_step, model, batch) for name, model in {"packed": packed, "alone": alone}.items()}
    apart = abs(sides["alone"]() / sides["packed"]() - 1)
    seconds = alternate(sides, ROUNDS)
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"examples": EXAMPLES, "tokens an example": LENGTH, "threads": torch.get_num_threads()},
        sides={
            name: Spread.of([EXAMPLES * LENGTH / second for second in values], "tokens/s")
            for name, values in seconds.items()
        },
        figures=[
            Figure("tokens/s one by one / packed", paired_ratio(seconds["packed"], seconds["alone"]), TARGET, "higher"),
            Figure("relative difference of the loss", apart, 1e-4),
        ],
        gpu=gpu,
    )


def _batch() -> Batch:
    drawn = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (EXAMPLES, LENGTH))
    weights = (np.arange(LENGTH) > 0).astype(np.float32)  # nothing predicts the first token
    sections = np.full(LENGTH, COT, dtype=np.int8)
    return pack([Example(row, weights, sections, np.zeros_like(sections), "") for row in drawn])


def _step(model: PreTrainedModel, batch: Batch) -> float:
    output = batch_loss(model, batch, None, LossSettings(kl_weight=0.0))
    loss = output.loss_sum / output.weight_sum
    loss.backward()
    model.zero_grad()
    return float(loss.detach())
