"""Stop as one event: the tokens that end a turn are one outcome in the divergence."""

import pytest
import torch
from test_chunked import ALL, Parts, settings

from leadspan.errors import TargetsError
from leadspan.losses.chunked import chunked_loss
from leadspan.losses.divergences import DIVERGENCES, Distribution
from leadspan.losses.settings import LossSettings
from leadspan.teacher.targets import DenseTargets, SparseTargets

ENDS = (9, 2, 5)
SMOOTH = [d for d in ALL if d["kind"] not in ("adaptive_kl", "total_variation")]


def loss(parts: Parts, options: LossSettings, ends: tuple[int, ...] = ENDS) -> tuple[torch.Tensor, torch.Tensor]:
    value, rows = parts.loss(options, end_ids=ends)
    return value, rows.divergence


def coarse(logits: torch.Tensor, temperature: float) -> Distribution:
    """One column less for every token but the first of `ENDS`, by sums of probabilities."""
    probs = (logits / temperature).softmax(-1)
    stop = sum(probs[:, i] for i in ENDS)
    others = [probs[:, i] for i in range(probs.shape[1]) if i not in ENDS]
    prob = torch.stack([stop, *others], dim=1)
    return Distribution(prob, prob.log())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("divergence", ALL, ids=lambda d: d["kind"])
def test_value_and_gradient_are_those_of_summed_probabilities(divergence: dict, temperature: float) -> None:
    parts = Parts(n=11, v=13)
    options = settings(divergence=divergence, temperature=temperature, chunk_tokens=4)
    value, rows = loss(parts, options)
    gradients = torch.autograd.grad(value, [parts.hidden, parts.head])

    student, teacher = parts.hidden @ parts.head.T, parts.targets.hidden @ parts.targets.head.T
    more = {key: x for key, x in options.divergence.model_dump().items() if key != "kind"}
    q, p = coarse(student, temperature), coarse(teacher, temperature)
    expected = DIVERGENCES[divergence["kind"]](q, p, **more)[0]
    torch.testing.assert_close(rows, expected.detach())
    if divergence["kind"] == "adaptive_kl":  # its gradient takes the share of the two KLs as given
        forward, reverse = (p.prob * (p.log - q.log)).sum(-1), (q.prob * (q.log - p.log)).sum(-1)
        share = ((expected - reverse) / (forward - reverse)).detach()
        expected = share * forward + (1 - share) * reverse
    ce = torch.nn.functional.cross_entropy(student, parts.labels, reduction="none")
    oracle = (parts.hard * ce).sum() + temperature**2 * (parts.soft * expected).sum()
    torch.testing.assert_close(value, oracle)
    torch.testing.assert_close(gradients, torch.autograd.grad(oracle, [parts.hidden, parts.head]))


@pytest.mark.parametrize("divergence", SMOOTH, ids=lambda d: d["kind"])
def test_gradcheck(divergence: dict) -> None:
    parts = Parts(n=5, v=11, width=3)
    options = settings(divergence=divergence, temperature=1.5, chunk_tokens=3)

    def value(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden, head, parts.targets, parts.labels, parts.hard, parts.soft, options, end_ids=ENDS)[0]

    assert torch.autograd.gradcheck(value, (parts.hidden, parts.head))


@pytest.mark.parametrize(
    "divergence", [d for d in ALL if d["kind"] not in ("alpha_beta", "adaptive_kl")], ids=lambda d: d["kind"]
)
def test_the_merged_divergence_never_exceeds_the_plain_one(divergence: dict) -> None:
    parts = Parts(n=400, v=13)
    options = settings(divergence=divergence)
    plain, merged = loss(parts, options, ())[1], loss(parts, options)[1]
    assert (merged <= plain + 1e-12).all()
    assert (merged < 0.9 * plain).any()


def test_a_teacher_that_ends_with_another_token_agrees_on_the_stop() -> None:
    teacher = torch.full((1, 13), -12.0, dtype=torch.float64)
    student = teacher.clone()
    student[0, 2], teacher[0, 5] = 8.0, 8.0
    parts = Parts(n=1, v=13)
    parts.hidden, parts.head = student.requires_grad_(), torch.eye(13, dtype=torch.float64)
    parts.targets = DenseTargets(teacher, torch.eye(13, dtype=torch.float64))
    parts.hard, parts.soft = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    options = settings(divergence={"kind": "reverse_kl"})
    plain, merged = (loss(parts, options, ends)[0] for ends in ((), ENDS))
    assert plain.item() > 19 and abs(merged.item()) < 1e-8
    assert torch.autograd.grad(merged, parts.hidden)[0].abs().max() < 1e-8


@pytest.mark.parametrize("ends", [(), (5,)])
def test_fewer_than_two_tokens_change_no_bit(ends: tuple[int, ...]) -> None:
    parts = Parts(dtype=torch.float32)
    results = [parts.loss(settings(), end_ids=given)[0] for given in ((), ends)]
    gradients = [torch.autograd.grad(value, [parts.hidden, parts.head]) for value in results]
    assert torch.equal(*results)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_support_does_not_say_how_likely_a_stop_is() -> None:
    parts = Parts(n=3, v=13)
    ids, log_probs = torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.4, dtype=torch.float64).log()
    parts.targets = SparseTargets(ids, log_probs, {1.0: torch.zeros(3)}, None, 13)
    with pytest.raises(TargetsError, match=r"loss\.stop is event.*live teacher, capture hidden targets, or set loss"):
        loss(parts, settings())


@pytest.mark.slow
def test_the_compiled_loss_is_the_plain_one() -> None:
    results = []
    for compiled in (False, True):
        parts = Parts(n=37, v=503, dtype=torch.float32)
        options = settings(divergence={"kind": "reverse_kl"}, chunk_tokens=16, compiled=compiled)
        value, _ = loss(parts, options)
        results.append((value, *torch.autograd.grad(value, [parts.hidden, parts.head])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
