"""A training step with stored sparse targets against the same step with cross-entropy only.

A Qwen3-architecture student (8 layers of width 512, vocabulary 32,000) on one packed row of two examples of random
tokens, three quarters of them weighted: forward through the chunked loss, backward, and an AdamW step, float32. The
stored side gets the 50 most likely tokens a position with their log-probabilities, as a store hands them out, and half
its weight on them; the other side has the same hard targets at full weight. Steps take turns; the ratio is the median
over rounds of the ratio within a round.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.sums import tiny_model
from benchmarks.timing import alternate, paired_ratio
from leadspan.data.examples import Example
from leadspan.data.packing import Batch, pack
from leadspan.data.supervision import COT, PROMPT
from leadspan.losses.objective import batch_loss
from leadspan.losses.settings import LossSettings
from leadspan.models.loading import load_model
from leadspan.teacher.targets import SparseTargets

VOCABULARY, WIDTH, LAYERS, TOKENS, SUPPORT = 32_000, 512, 8, 512, 50
ROUNDS = 9
TARGET = 1.10


def run() -> Outcome:
    generator = np.random.default_rng(0)
    batch = pack([_example(generator), _example(generator)])
    targets = _targets(len(batch["labels"]))
    sides = {
        "cross-entropy only": _step(batch, None, LossSettings(kl_weight=0)),
        "stored targets": _step(batch, targets, LossSettings(kl_weight=0.5)),
    }
    seconds = alternate(sides, ROUNDS, warm_up=2)
    ratio = paired_ratio(seconds["stored targets"], seconds["cross-entropy only"])
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={
            "vocabulary": VOCABULARY, "width": WIDTH, "layers": LAYERS, "tokens": 2 * TOKENS, "support": SUPPORT,
            "rounds": ROUNDS, "threads": torch.get_num_threads(),
        },
        sides={name: Spread.of(values) for name, values in seconds.items()},
        figures=[Figure("time stored targets / cross-entropy only", ratio, TARGET)],
    )  # fmt: skip


def _example(generator: np.random.Generator) -> Example:
    ids = generator.integers(0, VOCABULARY, TOKENS)
    is_reply = np.arange(TOKENS) >= TOKENS // 4
    sections = np.where(is_reply, COT, PROMPT).astype(np.int8)
    return Example(ids, is_reply.astype(np.float32), sections, np.zeros_like(sections), "")


def _targets(number: int) -> SparseTargets:
    logits = 3 * torch.randn(number, VOCABULARY, generator=torch.Generator().manual_seed(0))
    log_probs, ids = logits.log_softmax(-1).topk(SUPPORT, dim=-1)
    return SparseTargets(ids, log_probs, {1.0: logits.logsumexp(-1)})


def _step(batch: Batch, targets: SparseTargets | None, settings: LossSettings) -> Callable[[], None]:
    student = load_model(tiny_model(WIDTH, LAYERS, VOCABULARY, seed=0), torch.float32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)

    def step() -> None:
        output = batch_loss(student, batch, targets, settings)
        (output.loss_sum / output.weight_sum).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
