"""The chunked loss, forward and backward, against bare matrix products, naive autograd, TRL and Liger.

Student and teacher are hidden states and heads of random numbers, the same for every side: 2,048 positions, widths 256
and 512, a vocabulary of 32,000, float32. Each side gives the gradients of hidden states and head; sides take turns, and
a ratio is the median over rounds of the ratio within a round, after one round that compiles. *Bare products* are the
four products the loss needs (student and teacher logits, gradient of the hidden states, gradient of the head) and
nothing else: at the loss's own chunk for the target, and undivided beside it. *Naive* is cross-entropy and forward KL
on full logits by autograd. *TRL chunked* is the kernel of its distillation trainer, *TRL GKD* the loss of its GKD
trainer on full logits, both forward KL alone. *Liger* is its fused linear Jensen-Shannon loss with half its weight on
cross-entropy, compiled, against the same here; in the masked run 40 % of the positions have no label. Losses are
compared.
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # the field's name

from benchmarks.record import Figure, Outcome, RecordError, Spread
from benchmarks.timing import alternate, paired_ratio
from leadspan.losses.chunked import chunked_loss, default_chunk
from leadspan.losses.settings import AnyDivergence, ForwardKl, JensenShannon, LossSettings
from leadspan.teacher.targets import DenseTargets

N, D_STUDENT, D_TEACHER, VOCABULARY = 2048, 256, 512, 32_000
MASKED_SHARE = 0.4
ROUNDS = 7
TARGETS = {
    ("leadspan", "bare products, chunked"): 1.40,
    ("leadspan", "naive"): 0.55,
    ("leadspan, KL alone", "TRL chunked"): 0.35,
    ("leadspan, KL alone", "TRL GKD"): 0.7,
    ("leadspan, Jensen-Shannon", "Liger"): 0.8,
    ("leadspan, Jensen-Shannon, masked", "Liger, masked"): 0.5,
}
IGNORED = -100


@dataclass(frozen=True)
class Inputs:
    """Leaves, teacher and labels that all sides share."""

    hidden: torch.Tensor
    head: torch.Tensor
    teacher_hidden: torch.Tensor
    teacher_head: torch.Tensor
    labels: torch.Tensor
    masked_labels: torch.Tensor

    def backward(self, loss: torch.Tensor) -> float:
        self.hidden.grad = self.head.grad = None
        loss.backward()
        return loss.item()


def run() -> Outcome:
    for package in ("trl", "liger_kernel"):
        if importlib.util.find_spec(package) is None:
            raise RecordError(f"{package}: not installed; pip install -c constraints.txt -e '.[bench]'")
    sides = _sides(_inputs())
    losses = {name: run() for name, run in sides.items()}
    seconds = alternate(sides, ROUNDS)
    flops = 2 * N * VOCABULARY * (3 * D_STUDENT + D_TEACHER)
    figures = [
        Figure(f"time {ours} / {theirs}", paired_ratio(seconds[ours], seconds[theirs]), target)
        for (ours, theirs), target in TARGETS.items()
    ]
    undivided = paired_ratio(seconds["leadspan"], seconds["bare products"])
    figures.append(Figure("time leadspan / bare products, undivided", undivided))
    for ours, theirs in list(TARGETS)[1:]:
        apart = abs(losses[ours] / losses[theirs] - 1)
        figures.append(Figure(f"relative difference of the loss, {ours} and {theirs}", apart, 1e-4))
    shape = {"positions": N, "student width": D_STUDENT, "teacher width": D_TEACHER, "vocabulary": VOCABULARY}
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={**shape, "rounds": ROUNDS, "chunk": _chunk(), "threads": torch.get_num_threads()},
        sides={name: Spread.of(values) for name, values in seconds.items()},
        figures=figures,
        details={"losses": losses, "flops_of_the_products": flops},
    )


def _inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    labels = torch.randint(0, VOCABULARY, (N,), generator=generator)
    is_masked = torch.rand(N, generator=generator) < MASKED_SHARE
    return Inputs(
        drawn(N, D_STUDENT).requires_grad_(),
        drawn(VOCABULARY, D_STUDENT, scale=2 / math.sqrt(D_STUDENT)).requires_grad_(),
        drawn(N, D_TEACHER),
        drawn(VOCABULARY, D_TEACHER, scale=2 / math.sqrt(D_TEACHER)),
        labels,
        torch.where(is_masked, IGNORED, labels),
    )


def _sides(inputs: Inputs) -> dict[str, Callable[[], float]]:
    half, kl = ForwardKl(), 1.0
    return {
        "bare products": lambda: _bare(inputs, N),
        "bare products, chunked": lambda: _bare(inputs, _chunk()),
        "leadspan": lambda: inputs.backward(_ours(inputs, half, 0.5, inputs.labels)),
        "naive": lambda: inputs.backward(_naive(inputs)),
        "leadspan, KL alone": lambda: inputs.backward(_ours(inputs, half, kl, inputs.labels)),
        "TRL chunked": lambda: inputs.backward(_trl_chunked(inputs)),
        "TRL GKD": lambda: inputs.backward(_trl_gkd(inputs)),
        "leadspan, Jensen-Shannon": lambda: inputs.backward(_ours(inputs, JensenShannon(), 0.5, inputs.labels)),
        "Liger": lambda: inputs.backward(_liger(inputs, inputs.labels)),
        "leadspan, Jensen-Shannon, masked": lambda: inputs.backward(
            _ours(inputs, JensenShannon(), 0.5, inputs.masked_labels)
        ),
        "Liger, masked": lambda: inputs.backward(_liger(inputs, inputs.masked_labels)),
    }


def _chunk() -> int:
    return default_chunk(torch.device("cpu"), VOCABULARY)


def _bare(inputs: Inputs, chunk: int) -> float:
    hidden, head = inputs.hidden.detach(), inputs.head.detach()
    z_s, z_t = torch.empty(chunk, VOCABULARY), torch.empty(chunk, VOCABULARY)
    d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
    for start in range(0, N, chunk):
        part = slice(start, min(start + chunk, N))
        rows = slice(0, part.stop - start)
        torch.mm(hidden[part], head.T, out=z_s[rows])
        torch.mm(inputs.teacher_hidden[part], inputs.teacher_head.T, out=z_t[rows])
        torch.mm(z_s[rows], head, out=d_hidden[part])
        d_head.addmm_(z_t[rows].T, hidden[part])
    return 0.0


def _ours(inputs: Inputs, divergence: AnyDivergence, kl_weight: float, labels: torch.Tensor) -> torch.Tensor:
    """The mean over labelled positions; only those are projected."""
    kept = (labels != IGNORED).nonzero().squeeze(1)
    hidden = inputs.hidden if len(kept) == N else inputs.hidden.index_select(0, kept)
    targets = DenseTargets(inputs.teacher_hidden.index_select(0, kept), inputs.teacher_head)
    weights = torch.ones(len(kept))
    settings = LossSettings(kl_weight=kl_weight, divergence=divergence)
    hard, soft = (1 - kl_weight) * weights, kl_weight * weights
    return chunked_loss(hidden, inputs.head, targets, labels[kept], hard, soft, settings, normaliser=float(len(kept)))[
        0
    ]


def _naive(inputs: Inputs) -> torch.Tensor:
    student = inputs.hidden @ inputs.head.T
    with torch.no_grad():
        teacher = inputs.teacher_hidden @ inputs.teacher_head.T
    kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    return 0.5 * F.cross_entropy(student, inputs.labels) + 0.5 * kl


def _trl_chunked(inputs: Inputs) -> torch.Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    return ChunkedDivergenceFunction.apply(
        inputs.hidden, inputs.head, None, inputs.teacher_hidden, inputs.teacher_head, None, 0.0, 1.0
    )[0].mean()


def _trl_gkd(inputs: Inputs) -> torch.Tensor:
    from trl.experimental.gkd import GKDTrainer

    with torch.no_grad():
        teacher = inputs.teacher_hidden @ inputs.teacher_head.T
    student = inputs.hidden @ inputs.head.T
    return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], inputs.labels[None], beta=0.0)


def _liger(inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.5, compiled=True)
    return loss(inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, labels)
