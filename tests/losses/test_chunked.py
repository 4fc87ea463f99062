import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from leadspan.losses.chunked import chunked_loss
from leadspan.teacher.targets import DenseTargets


class Parts:
    def __init__(self, n: int = 37, v: int = 101, dtype: torch.dtype = torch.float64, v_teacher: int | None = None):
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(n, 16, generator=g).to(dtype).requires_grad_()
        self.head = torch.randn(v, 16, generator=g).to(dtype).requires_grad_()
        self.targets = DenseTargets(
            torch.randn(n, 24, generator=g).to(dtype), torch.randn(v_teacher or v, 24, generator=g).to(dtype)
        )
        self.labels = torch.randint(0, v, (n,), generator=g)
        self.hard, self.soft = torch.rand(n, generator=g).to(dtype), torch.rand(n, generator=g).to(dtype)


def naive(
    parts: Parts, hidden: torch.Tensor, head: torch.Tensor, temperature: float, vocab: int | None
) -> torch.Tensor:
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
    expected = naive(parts, parts.hidden, parts.head, temperature, None)
    oracle = torch.autograd.grad(expected, [parts.hidden, parts.head])
    value, rows = chunked_loss(
        parts.hidden, parts.head, parts.targets, parts.labels, parts.hard, parts.soft, temperature, size
    )
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, [parts.hidden, parts.head]), oracle)
    torch.testing.assert_close(
        (parts.hard * rows.cross_entropy + temperature**2 * parts.soft * rows.kl).sum(), expected.detach()
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(temperature: float) -> None:
    parts = Parts(n=9, v=13)

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden, head, parts.targets, parts.labels, parts.hard, parts.soft, temperature, 4)[0]

    assert torch.autograd.gradcheck(loss, (parts.hidden, parts.head))


def test_without_a_teacher_it_is_cross_entropy() -> None:
    parts = Parts()
    value, rows = chunked_loss(
        parts.hidden, parts.head, None, parts.labels, parts.hard, torch.zeros_like(parts.soft), chunk_tokens=8
    )
    expected = (parts.hard * F.cross_entropy(parts.hidden @ parts.head.T, parts.labels, reduction="none")).sum()
    torch.testing.assert_close(value, expected)
    assert rows.kl.abs().sum() == 0


def test_differently_padded_heads_are_compared_on_the_shared_vocabulary() -> None:
    parts = Parts(v=101, v_teacher=128)
    parts.labels %= 90
    expected = naive(parts, parts.hidden, parts.head, 1.0, 90)
    oracle = torch.autograd.grad(expected, [parts.hidden, parts.head])
    value, _ = chunked_loss(
        parts.hidden, parts.head, parts.targets, parts.labels, parts.hard, parts.soft, 1.0, 8, vocab_size=90
    )
    torch.testing.assert_close(value, expected)
    gradients = torch.autograd.grad(value, [parts.hidden, parts.head])
    torch.testing.assert_close(gradients, oracle)
    assert gradients[1][90:].abs().sum() == 0


def test_a_frozen_head_gets_no_gradient() -> None:
    parts = Parts()
    parts.head.requires_grad_(False)
    value, _ = chunked_loss(parts.hidden, parts.head, parts.targets, parts.labels, parts.hard, parts.soft)
    value.backward()
    assert parts.head.grad is None and parts.hidden.grad is not None


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_error_is_no_larger_than_that_of_the_naive_path(scale: float) -> None:
    exact, single = Parts(n=64, v=503), Parts(n=64, v=503, dtype=torch.float32)
    with torch.no_grad():
        exact.hidden *= scale
        single.hidden *= scale
    oracle = torch.autograd.grad(naive(exact, exact.hidden, exact.head, 1.0, None), [exact.hidden, exact.head])
    plain = torch.autograd.grad(naive(single, single.hidden, single.head, 1.0, None), [single.hidden, single.head])
    value, _ = chunked_loss(
        single.hidden, single.head, single.targets, single.labels, single.hard, single.soft, 1.0, 16
    )
    ours = torch.autograd.grad(value, [single.hidden, single.head])
    for mine, naive_gradient, true in zip(ours, plain, oracle, strict=True):
        assert (mine - true).norm() <= 1.5 * (naive_gradient - true).norm()


def test_bfloat16_hidden_states_get_float32_logits() -> None:
    parts = Parts(n=64, v=503, dtype=torch.bfloat16)
    wide = Parts(n=64, v=503, dtype=torch.bfloat16)
    hidden, head = (t.detach().float().requires_grad_() for t in (wide.hidden, wide.head))
    wide.targets = DenseTargets(wide.targets.hidden.float(), wide.targets.head.float())
    wide.hard, wide.soft = wide.hard.float(), wide.soft.float()
    expected = naive(wide, hidden, head, 1.0, None)
    value, _ = chunked_loss(parts.hidden, parts.head, parts.targets, parts.labels, parts.hard, parts.soft, 1.0, 16)
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
        value, _ = chunked_loss(parts.hidden, parts.head, parts.targets, parts.labels, parts.hard, parts.soft, 1.0, 8)
        value.backward()
    assert seen.largest <= max(8 * 503, parts.targets.head.numel())
