import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import leadspan.losses.rows as losses_rows
from leadspan.errors import RunError
from leadspan.losses.chunked import RowLosses, chunked_loss
from leadspan.losses.divergences import DIVERGENCES, from_logits
from leadspan.losses.settings import AdaptiveKl, ForwardKl, JensenShannon, LossSettings, ReverseKl
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import DenseTargets

ALL = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jensen_shannon", "beta": 0.3},
    {"kind": "skew_forward_kl", "alpha": 0.1},
    {"kind": "skew_reverse_kl", "alpha": 0.2},
    {"kind": "total_variation"},
    {"kind": "alpha_beta", "alpha": 0.2, "beta": 0.7},
    {"kind": "adaptive_kl"},
]


def settings(**values: object) -> LossSettings:
    return LossSettings.model_validate({"compiled": False, **values})


class Parts:
    def __init__(
        self,
        n: int = 37,
        v: int = 101,
        dtype: torch.dtype = torch.float64,
        v_teacher: int | None = None,
        width: int = 16,
    ):
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(n, width, generator=g).to(dtype).requires_grad_()
        self.head = torch.randn(v, width, generator=g).to(dtype).requires_grad_()
        self.targets = DenseTargets(
            torch.randn(n, 24, generator=g).to(dtype), torch.randn(v_teacher or v, 24, generator=g).to(dtype)
        )
        self.labels = torch.randint(0, v, (n,), generator=g)
        self.hard, self.soft = torch.rand(n, generator=g).to(dtype), torch.rand(n, generator=g).to(dtype)

    def loss(self, options: LossSettings, **more) -> tuple[torch.Tensor, RowLosses]:
        return chunked_loss(self.hidden, self.head, self.targets, self.labels, self.hard, self.soft, options, **more)


def naive(
    parts: Parts, hidden: torch.Tensor, head: torch.Tensor, temperature: float = 1.0, vocab: int | None = None
) -> torch.Tensor:
    """Forward KL and cross-entropy from full logits, by autograd."""
    student = hidden @ head[:vocab].T
    teacher = (parts.targets.hidden @ parts.targets.head[:vocab].T).to(student.dtype)
    ce = F.cross_entropy(student, parts.labels, reduction="none")
    log_q, log_p = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    return (parts.hard * ce).sum() + temperature**2 * (parts.soft * kl).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [1, 8, 37, 64])
def test_value_and_gradients_against_naive_float64(temperature: float, size: int) -> None:
    parts = Parts()
    expected = naive(parts, parts.hidden, parts.head, temperature)
    oracle = torch.autograd.grad(expected, [parts.hidden, parts.head])
    value, rows = parts.loss(settings(temperature=temperature, chunk_tokens=size))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, [parts.hidden, parts.head]), oracle)
    total = (parts.hard * rows.cross_entropy + temperature**2 * parts.soft * rows.divergence).sum()
    torch.testing.assert_close(total, expected.detach())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("divergence", ALL, ids=lambda d: d["kind"])
def test_gradcheck(divergence: dict, temperature: float, share: float) -> None:
    parts = Parts(n=5, v=7, width=3)
    parts.hard, parts.soft = (1 - share) * parts.hard, share * parts.hard
    options = settings(divergence=divergence, temperature=temperature, chunk_tokens=3)

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden, head, parts.targets, parts.labels, parts.hard, parts.soft, options)[0]

    if divergence["kind"] != "adaptive_kl":
        assert torch.autograd.gradcheck(loss, (parts.hidden, parts.head))
        return
    # its gradient takes the share of the two KLs as given, so differences of its value are not the gradient
    gradients = torch.autograd.grad(loss(parts.hidden, parts.head), [parts.hidden, parts.head])
    expected = torch.autograd.grad(adaptive_with_given_share(parts, options), [parts.hidden, parts.head])
    torch.testing.assert_close(gradients, expected)


def adaptive_with_given_share(parts: Parts, options: LossSettings) -> torch.Tensor:
    assert isinstance(options.divergence, AdaptiveKl)
    t = options.temperature
    student, teacher = parts.hidden @ parts.head.T, parts.targets.hidden @ parts.targets.head.T
    log_q, log_p = (student / t).log_softmax(-1), (teacher / t).log_softmax(-1)
    forward, reverse = (log_p.exp() * (log_p - log_q)).sum(-1), (log_q.exp() * (log_q - log_p)).sum(-1)
    adaptive = from_logits(lambda q, p: DIVERGENCES["adaptive_kl"](q, p, mass=0.5), student, teacher, t)[0].detach()
    share = ((adaptive - reverse) / (forward - reverse)).detach()
    soft = share * forward + (1 - share) * reverse
    ce = F.cross_entropy(student, parts.labels, reduction="none")
    return (parts.hard * ce + t**2 * parts.soft * soft).sum()


@pytest.mark.parametrize(
    "transform", [LogitTransform(scale=0.3), LogitTransform(cap=5.0), LogitTransform(scale=2.0, cap=3.0)]
)
def test_scaled_and_capped_logits_of_student_and_teacher(transform: LogitTransform) -> None:
    parts = Parts(n=9, v=13)
    parts.targets = DenseTargets(parts.targets.hidden, parts.targets.head, LogitTransform(0.5, 4.0))

    def capped(z: torch.Tensor, scale: float, cap: float | None) -> torch.Tensor:
        return z * scale if cap is None else cap * torch.tanh(z * scale / cap)

    student = capped(parts.hidden @ parts.head.T, transform.scale, transform.cap)
    teacher = capped(parts.targets.hidden @ parts.targets.head.T, 0.5, 4.0)
    kl = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    expected = (parts.hard * F.cross_entropy(student, parts.labels, reduction="none") + parts.soft * kl).sum()
    oracle = torch.autograd.grad(expected, [parts.hidden, parts.head])
    value, _ = parts.loss(settings(chunk_tokens=4), transform=transform)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, [parts.hidden, parts.head]), oracle)


def test_metrics_of_the_rows_against_their_definitions() -> None:
    parts = Parts()
    _, rows = parts.loss(settings(temperature=2.0, divergence=ReverseKl(), chunk_tokens=8))
    student, teacher = parts.hidden @ parts.head.T, parts.targets.hidden @ parts.targets.head.T
    for entropy, logits in ((rows.student_entropy, student), (rows.teacher_entropy, teacher)):
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy().detach())
    torch.testing.assert_close(rows.teacher_nll, F.cross_entropy(teacher, parts.labels, reduction="none"))
    agreed = student.argmax(-1) == teacher.argmax(-1)
    assert rows.agreement.tolist() == agreed.double().tolist()


def test_without_a_teacher_it_is_cross_entropy_and_the_rest_is_not_known() -> None:
    parts = Parts()
    none = torch.zeros_like(parts.soft)
    value, rows = chunked_loss(parts.hidden, parts.head, None, parts.labels, parts.hard, none, settings(chunk_tokens=8))
    expected = (parts.hard * F.cross_entropy(parts.hidden @ parts.head.T, parts.labels, reduction="none")).sum()
    torch.testing.assert_close(value, expected)
    assert rows.divergence.isnan().all() and rows.teacher_nll.isnan().all() and not rows.student_entropy.isnan().any()


def test_a_given_normaliser_divides_value_and_gradients() -> None:
    parts = Parts()
    options = settings(chunk_tokens=8)
    plain = torch.autograd.grad(parts.loss(options)[0], [parts.hidden, parts.head])
    value, _ = parts.loss(options, normaliser=torch.tensor(7.0))
    torch.testing.assert_close(7 * value, parts.loss(options)[0])
    divided = torch.autograd.grad(value, [parts.hidden, parts.head])
    torch.testing.assert_close([7 * g for g in divided], list(plain))


def test_differently_padded_heads_are_compared_on_the_shared_vocabulary() -> None:
    parts = Parts(v=101, v_teacher=128)
    parts.labels %= 90
    expected = naive(parts, parts.hidden, parts.head, 1.0, 90)
    oracle = torch.autograd.grad(expected, [parts.hidden, parts.head])
    value, _ = parts.loss(settings(chunk_tokens=8), vocab_size=90)
    torch.testing.assert_close(value, expected)
    gradients = torch.autograd.grad(value, [parts.hidden, parts.head])
    torch.testing.assert_close(gradients, oracle)
    assert gradients[1][90:].abs().sum() == 0


def test_a_frozen_head_gets_no_gradient() -> None:
    parts = Parts()
    parts.head.requires_grad_(False)
    value, _ = parts.loss(settings())
    value.backward()
    assert parts.head.grad is None and parts.hidden.grad is not None


def test_a_kept_graph_gives_the_same_gradients_again() -> None:
    parts = Parts()
    value, _ = parts.loss(settings())
    first = torch.autograd.grad(2 * value, [parts.hidden, parts.head], retain_graph=True)
    second = torch.autograd.grad(2 * value, [parts.hidden, parts.head])
    torch.testing.assert_close(first, second)


def test_a_second_backward_pass_is_refused_rather_than_empty() -> None:
    parts = Parts()
    value, _ = parts.loss(settings())
    value.backward()
    with pytest.raises(RuntimeError, match="second backward"):
        value.backward()


def test_without_gradients_only_logits_are_computed() -> None:
    parts = Parts(dtype=torch.float32)
    with torch.no_grad(), Products() as seen:
        parts.loss(settings(chunk_tokens=8))
    assert seen.number == 2 * 5  # student's and teacher's logits of five chunks


class Products(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func._schema.name in ("aten::mm", "aten::addmm_", "aten::addmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", [0, 36])
def test_positions_of_weight_zero_have_no_influence(masked: int) -> None:
    parts = Parts()
    parts.hard[:masked], parts.soft[:masked] = 0.0, 0.0
    value, _ = parts.loss(settings(chunk_tokens=8))
    gradients = torch.autograd.grad(value, [parts.hidden, parts.head])
    oracle = torch.autograd.grad(naive(parts, parts.hidden, parts.head), [parts.hidden, parts.head])
    torch.testing.assert_close(gradients, oracle)
    assert gradients[0][:masked].abs().sum() == 0


@pytest.mark.parametrize("divergence", [ForwardKl(), ReverseKl(), JensenShannon()], ids=lambda d: d.kind)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_error_is_no_larger_than_that_of_the_naive_path(scale: float, divergence) -> None:
    exact, single = Parts(n=64, v=503), Parts(n=64, v=503, dtype=torch.float32)
    with torch.no_grad():
        exact.hidden *= scale
        single.hidden *= scale
    oracle = torch.autograd.grad(naive_of(exact, divergence), [exact.hidden, exact.head])
    plain = torch.autograd.grad(naive_of(single, divergence), [single.hidden, single.head])
    value, _ = single.loss(settings(divergence=divergence, chunk_tokens=16))
    ours = torch.autograd.grad(value, [single.hidden, single.head])
    for mine, naive_gradient, true in zip(ours, plain, oracle, strict=True):
        assert (mine - true).norm() <= 1.5 * (naive_gradient - true).norm()


def naive_of(parts: Parts, divergence) -> torch.Tensor:
    log_q = (parts.hidden @ parts.head.T).log_softmax(-1)
    log_p = (parts.targets.hidden @ parts.targets.head.T).log_softmax(-1)

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.kl_div(b, a, log_target=True, reduction="none").sum(-1)

    if divergence.kind == "forward_kl":
        soft = kl(log_p, log_q)
    elif divergence.kind == "reverse_kl":
        soft = kl(log_q, log_p)
    else:
        log_m = torch.logaddexp(log_p, log_q) - torch.tensor(2.0).log()
        soft = 0.5 * kl(log_p, log_m) + 0.5 * kl(log_q, log_m)
    ce = F.nll_loss(log_q, parts.labels, reduction="none")
    return (parts.hard * ce + parts.soft * soft).sum()


def test_bfloat16_hidden_states_get_float32_logits() -> None:
    parts = Parts(n=64, v=503, dtype=torch.bfloat16)
    wide = Parts(n=64, v=503, dtype=torch.bfloat16)
    hidden, head = (t.detach().float().requires_grad_() for t in (wide.hidden, wide.head))
    wide.targets = DenseTargets(wide.targets.hidden.float(), wide.targets.head.float())
    wide.hard, wide.soft = wide.hard.float(), wide.soft.float()
    expected = naive(wide, hidden, head)
    value, _ = parts.loss(settings(chunk_tokens=16))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-3)
    gradient = torch.autograd.grad(value, parts.head)[0].float()
    oracle = torch.autograd.grad(expected, head)[0]
    assert (gradient - oracle).norm() / oracle.norm() < 0.01


class LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_full_logits_never_exist() -> None:
    parts = Parts(n=256, v=503, dtype=torch.float32)
    with LargestTensor() as seen:
        value, _ = parts.loss(settings(chunk_tokens=8))
        value.backward()
    assert seen.largest <= max(8 * 503, parts.targets.head.numel())


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ALL, ids=lambda d: d["kind"])
def test_the_compiled_loss_is_the_plain_one(divergence: dict) -> None:
    for temperature in (1.0, 2.0):
        options = {"divergence": divergence, "temperature": temperature, "chunk_tokens": 16}
        results = []
        for compiled in (False, True):
            parts = Parts(n=37, v=503, dtype=torch.float32)
            value, rows = parts.loss(settings(**options, compiled=compiled))
            results.append((value, torch.autograd.grad(value, [parts.hidden, parts.head]), rows))
        (plain, plain_gradients, plain_rows), (value, gradients, rows) = results
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(gradients, plain_gradients, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rows.student_entropy, plain_rows.student_entropy)
        assert rows.agreement.tolist() == plain_rows.agreement.tolist()


@pytest.mark.parametrize(
    "kind, said, shown",
    [
        (
            "BackendCompilerFailed",
            "raised:\nCommand:\ng++ x.hpp\n\nOutput:\ng++: File size limit\nsee",
            "g++: File size",
        ),
        ("InductorError", "InvalidCxxCompiler: No working C++ compiler\n\nSet X=1", "InvalidCxxCompiler: No working C"),
    ],
)
def test_a_compiler_that_fails_is_one_error(kind: str, said: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise type(kind, (RuntimeError,), {})(said)

    monkeypatch.setattr(torch, "compile", lambda part, **_: failing)
    part = losses_rows.compiled.__wrapped__(lambda: None)
    with pytest.raises(RunError, match=re.escape(shown)) as caught:
        part(torch.zeros(1))
    assert "set loss.compiled: false" in str(caught.value) and "\n" not in str(caught.value)
