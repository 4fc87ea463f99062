import pytest
import torch
import torch.nn.functional as F

from leadspan.losses.divergences import cross_entropy, forward_kl, mixed_rows


def logits(rows: int = 7, vocab: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, vocab, (rows,), generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_forward_kl_and_its_gradient_against_autograd(temperature: float) -> None:
    student, teacher, _ = logits()
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    oracle = (p * (p / q).log()).sum(-1)
    (expected,) = torch.autograd.grad(oracle.sum(), student)
    value, gradient = forward_kl(student.detach(), teacher, temperature)
    torch.testing.assert_close(value, oracle.detach())
    torch.testing.assert_close(gradient, expected)


def test_cross_entropy_and_its_gradient_against_autograd() -> None:
    student, _, labels = logits()
    oracle = F.cross_entropy(student, labels, reduction="none")
    (expected,) = torch.autograd.grad(oracle.sum(), student)
    value, gradient = cross_entropy(student.detach(), labels)
    torch.testing.assert_close(value, oracle.detach())
    torch.testing.assert_close(gradient, expected)


def test_kl_by_hand() -> None:
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    value, gradient = forward_kl(student, teacher)
    assert value.item() == pytest.approx(0.25 * -0.693147 + 0.75 * 0.405465, abs=1e-6)
    assert gradient[0].tolist() == pytest.approx([0.25, -0.25])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_of_equal_distributions_is_exactly_zero(temperature: float) -> None:
    _, teacher, _ = logits()
    value, gradient = forward_kl(teacher.float() * 100, teacher.float() * 100, temperature)
    assert value.tolist() == [0.0] * 7
    assert gradient.abs().max() == 0


def test_extreme_logits() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1.0, float("-inf")]])
    teacher = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1.0, float("-inf")]])
    value, gradient = forward_kl(student, teacher)
    assert value.tolist() == [0.0, 0.0]
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_fused_rows_are_the_sum_of_their_parts(temperature: float, share: float) -> None:
    student, teacher, labels = logits()
    weights = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hard, soft = (1 - share) * weights, share * weights
    ce, ce_gradient = cross_entropy(student.detach(), labels)
    kl, kl_gradient = forward_kl(student.detach(), teacher, temperature)
    value, fused_kl, gradient = mixed_rows(student.detach(), teacher, labels, hard, soft, temperature)
    torch.testing.assert_close(value, ce)
    torch.testing.assert_close(fused_kl, kl)
    expected = hard[:, None] * ce_gradient + temperature**2 * soft[:, None] * kl_gradient
    torch.testing.assert_close(gradient, expected)
