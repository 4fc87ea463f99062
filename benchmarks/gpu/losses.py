"""The parts of `gpu` on the loss alone: its time and memory against others', and the error of its gradients."""

import importlib.util
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # the field's name

from benchmarks.gpu.setting import Setting
from benchmarks.memory import MIB, allocated
from benchmarks.record import Figure, Outcome, Spread
from benchmarks.timing import alternate, paired_ratio
from leadspan.losses.chunked import chunked_loss, default_chunk
from leadspan.losses.settings import AnyDivergence, ForwardKl, JensenShannon, LossSettings, ReverseKl
from leadspan.teacher.targets import DenseTargets

DIVERGENCES: dict[str, AnyDivergence] = {"forward": ForwardKl(), "reverse": ReverseKl(), "js": JensenShannon()}
# Liger's generalised divergence by its beta, and orda-kernel's by its name; its Jensen-Shannon has one half of each.
LIGER, ORDA = {"forward": 0.0, "reverse": 1.0, "js": 0.5}, {"forward": "forward", "reverse": "reverse", "js": "skew_js"}
KL_WEIGHT = 0.5
TARGETS = {"products": 1.25, "Liger": 0.6, "orda-kernel": 0.8}
KL, GRADIENT_TARGET = 0.012, 0.003
REFERENCE_ROWS = 64
"""Rows of the float64 reference that are computed at once."""


@dataclass(frozen=True)
class Inputs:
    """Hidden states and heads of both models, and labels; the student's are leaves."""

    hidden: torch.Tensor
    head: torch.Tensor
    teacher_hidden: torch.Tensor
    teacher_head: torch.Tensor
    labels: torch.Tensor

    def gradients(self, loss: torch.Tensor) -> float:
        self.hidden.grad = self.head.grad = None
        loss.backward()
        return float(loss.detach())


def loss(setting: Setting, width: str) -> Outcome:
    """The loss of one student width: forward KL, reverse KL and Jensen-Shannon against products, naive, Liger, orda.

    Half of the weight on cross-entropy, the same random hidden states and heads for all; each side gives the gradients
    of hidden states and head. *Products* are the four matrix products in the narrow type and nothing else, at the
    loss's chunk. Sides take turns; a ratio is the median over rounds. Peaks are of the allocator, beyond the inputs.
    """
    sizes = setting.sizes
    inputs = _inputs(setting, sizes.student[0] if setting.is_tiny else int(width))
    sides, absent = _sides(setting, inputs)
    losses: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name, run in list(sides.items()):
        try:
            losses[name] = run()
            peaks[name] = allocated(run, setting.device)[0] / MIB
        except torch.OutOfMemoryError:
            absent.append(f"{name}: out of memory")
            del sides[name]
    seconds = alternate({name: setting.finished(run) for name, run in sides.items()}, sizes.rounds)
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    spreads |= {f"{name}, peak": Spread.of([peak], "MiB") for name, peak in peaks.items()}
    return Outcome(
        " ".join((loss.__doc__ or "").split()),
        setting.described() | {"student width": inputs.hidden.shape[1], "rows": sizes.rows, "rounds": sizes.rounds},
        spreads,
        _figures(setting, seconds, losses, peaks),
        setting.gpu,
        {"losses": losses, "skipped": absent},
    )


def _figures(
    setting: Setting, seconds: Mapping[str, list[float]], losses: Mapping[str, float], peaks: Mapping[str, float]
) -> list[Figure]:
    figures = []
    for divergence in DIVERGENCES:
        ours = f"leadspan, {divergence}"
        for other in ("products", "naive", "Liger", "orda-kernel"):
            theirs = other if other == "products" else f"{other}, {divergence}"
            if not {ours, theirs} <= seconds.keys():
                continue
            target = setting.target(TARGETS[other]) if other in TARGETS else None
            figures.append(
                Figure(f"{divergence}: time / {other}", paired_ratio(seconds[ours], seconds[theirs]), target)
            )
            if other != "products":
                figures.append(Figure(f"{divergence}: memory / {other}", peaks[ours] / max(peaks[theirs], 1e-9)))
                apart = abs(losses[ours] / losses[theirs] - 1)
                figures.append(Figure(f"{divergence}: difference of the loss, {other}", apart, setting.target(0.01)))
    return figures


def _inputs(setting: Setting, width: int) -> Inputs:
    sizes = setting.sizes
    draw = torch.Generator(setting.device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=draw, device=setting.device)).to(setting.dtype)

    return Inputs(
        normal(sizes.rows, width).requires_grad_(),
        normal(sizes.vocabulary, width, scale=2 / math.sqrt(width)).requires_grad_(),
        normal(sizes.rows, sizes.teacher_width),
        normal(sizes.vocabulary, sizes.teacher_width, scale=2 / math.sqrt(sizes.teacher_width)),
        torch.randint(0, sizes.vocabulary, (sizes.rows,), generator=draw, device=setting.device),
    )


def _sides(setting: Setting, inputs: Inputs) -> tuple[dict[str, Callable[[], float]], list[str]]:
    """Every side that is installed, and the names of those that are not."""
    sides: dict[str, Callable[[], float]] = {"products": lambda: _products(inputs)}
    others = {"Liger": (_liger, "liger_kernel"), "orda-kernel": (_orda, "orda_kernel")}
    absent = [f"{other}: not installed" for other, (_, name) in others.items() if not importlib.util.find_spec(name)]
    for name in DIVERGENCES:
        sides[f"leadspan, {name}"] = lambda name=name: inputs.gradients(_ours(inputs, DIVERGENCES[name], KL_WEIGHT))
        sides[f"naive, {name}"] = lambda name=name: inputs.gradients(_naive(inputs, name, KL_WEIGHT).mean())
        for other, (run, package) in others.items():
            if importlib.util.find_spec(package):
                sides[f"{other}, {name}"] = lambda run=run, name=name: inputs.gradients(run(inputs, name))
    return sides, absent


def _products(inputs: Inputs) -> float:
    hidden, head = inputs.hidden.detach(), inputs.head.detach()
    chunk = min(default_chunk(hidden.device, len(head)), len(hidden))
    z_s, z_t = (hidden.new_empty(chunk, len(head)) for _ in range(2))
    d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
    for start in range(0, len(hidden), chunk):
        part = slice(start, min(start + chunk, len(hidden)))
        rows = slice(0, part.stop - start)
        torch.mm(hidden[part], head.T, out=z_s[rows])
        torch.mm(inputs.teacher_hidden[part], inputs.teacher_head.T, out=z_t[rows])
        torch.mm(z_s[rows], head, out=d_hidden[part])
        d_head.addmm_(z_s[rows].T, hidden[part])
    return 0.0


def _ours(inputs: Inputs, divergence: AnyDivergence, kl_weight: float) -> torch.Tensor:
    targets = DenseTargets(inputs.teacher_hidden, inputs.teacher_head)
    weights = torch.ones(len(inputs.labels), device=inputs.labels.device)
    settings = LossSettings(kl_weight=kl_weight, divergence=divergence)
    shares = (1 - kl_weight) * weights, kl_weight * weights
    return chunked_loss(
        inputs.hidden, inputs.head, targets, inputs.labels, *shares, settings, normaliser=float(len(weights))
    )[0]


def _naive(inputs: Inputs, divergence: str, kl_weight: float) -> torch.Tensor:
    """Loss of each row by autograd on full logits, [N]."""
    logits = inputs.hidden @ inputs.head.to(inputs.hidden.dtype).T
    log_q = logits.log_softmax(-1)
    with torch.no_grad():
        log_p = (inputs.teacher_hidden @ inputs.teacher_head.T).log_softmax(-1)

    def kl(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        return F.kl_div(to, of, reduction="none", log_target=True).sum(-1)

    if divergence == "js":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        value = (kl(log_p, log_m) + kl(log_q, log_m)) / 2
    else:
        value = kl(log_p, log_q) if divergence == "forward" else kl(log_q, log_p)
    if kl_weight == 1:
        return value
    return (1 - kl_weight) * F.nll_loss(log_q, inputs.labels, reduction="none") + kl_weight * value


def _liger(inputs: Inputs, divergence: str) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    made = LigerFusedLinearJSDLoss(1 - KL_WEIGHT, KL_WEIGHT, LIGER[divergence], compiled=inputs.hidden.is_cuda)
    return made(inputs.hidden, inputs.head, inputs.teacher_hidden, inputs.teacher_head, inputs.labels)


def _orda(inputs: Inputs, divergence: str) -> torch.Tensor:
    from orda_kernel import SeparateTeacher, distillation_loss

    options = {"kl_alpha": 0.5} if divergence == "js" else {}
    return distillation_loss(
        inputs.hidden,
        inputs.head,
        inputs.labels,
        SeparateTeacher(inputs.teacher_hidden, inputs.teacher_head),
        student_ce_weight=1 - KL_WEIGHT,
        teacher_ce_weight=0.0,
        kl_weight=KL_WEIGHT,
        kl_divergence=ORDA[divergence],  # pyright: ignore[reportArgumentType]  # one of its names
        **options,
    ).loss


def gradients(setting: Setting) -> Outcome:
    """Relative error of the gradients of hidden states and head against float64, at a KL of about 0.012 nat.

    The teacher's logits are the student's with noise: its hidden states and head are the student's and some more, so
    that both are exact in the narrow type. The loss is the divergence alone, hidden states narrow, the head a float32
    weight as in training. An error is the norm of the difference over the norm of the float64 gradient, of the same
    rounded inputs. Naive: autograd on full logits in the narrow type.
    """
    inputs = _near(setting)
    exact = {name: _reference(inputs, name) for name in DIVERGENCES}
    figures, details = [], {"kl": {}}
    for name, divergence in DIVERGENCES.items():
        for side in ("leadspan", "naive"):
            value = _ours(inputs, divergence, 1.0) if side == "leadspan" else _naive(inputs, name, 1.0).mean()
            inputs.gradients(value)
            leaves = {"hidden states": inputs.hidden, "head": inputs.head}
            for (what, leaf), reference in zip(leaves.items(), exact[name][1:], strict=True):
                error = float((leaf.grad.double() - reference).norm() / reference.norm())
                target = setting.target(GRADIENT_TARGET) if side == "leadspan" else None
                figures.append(Figure(f"{name}: error of the gradient of the {what}, {side}", error, target))
        details["kl"][name] = float(exact[name][0])
    described = setting.described() | {"rows": len(inputs.labels), "student width": inputs.hidden.shape[1]}
    return Outcome(" ".join((gradients.__doc__ or "").split()), described, {}, figures, setting.gpu, details)


def _near(setting: Setting) -> Inputs:
    """Inputs whose teacher is the student with noise on its logits: their variance is twice the KL."""
    sizes, width = setting.sizes, setting.sizes.student[0]
    rows, more = min(sizes.rows, 512), 64
    draw = torch.Generator(setting.device).manual_seed(1)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=draw, device=setting.device)).to(setting.dtype)

    hidden, head = normal(rows, width), normal(sizes.vocabulary, width, scale=2 / math.sqrt(width))
    noise = normal(sizes.vocabulary, more, scale=math.sqrt(2 * KL / more))
    labels = torch.randint(0, sizes.vocabulary, (rows,), generator=draw, device=setting.device)
    return Inputs(
        hidden.clone().requires_grad_(),
        head.float().requires_grad_(),
        torch.cat([hidden, normal(rows, more)], dim=1),
        torch.cat([head, noise], dim=1),
        labels,
    )


def _reference(inputs: Inputs, divergence: str) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The divergence in nats and both gradients, in float64, a few rows at a time."""
    head = inputs.head.detach().double().requires_grad_()
    teacher_head = inputs.teacher_head.double()
    d_hidden, values = [], []
    for start in range(0, len(inputs.labels), REFERENCE_ROWS):
        part = slice(start, start + REFERENCE_ROWS)
        hidden = inputs.hidden[part].detach().double().requires_grad_()
        few = Inputs(hidden, head, inputs.teacher_hidden[part].double(), teacher_head, inputs.labels[part])
        rows = _naive(few, divergence, 1.0)
        (rows.sum() / len(inputs.labels)).backward()
        values += rows.detach().tolist()
        d_hidden.append(hidden.grad)
    return statistics.mean(values), torch.cat(d_hidden), head.grad
