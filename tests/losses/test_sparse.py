from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from leadspan.errors import TargetsError
from leadspan.losses.chunked import RowLosses, chunked_loss
from leadspan.losses.settings import LossSettings
from leadspan.teacher.targets import DenseTargets, SparseTargets

N, V, K = 11, 29, 6
TEMPERATURES = (0.5, 1.0, 2.0)
OVER_A_TAIL = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl"},
    {"kind": "jensen_shannon", "beta": 0.3},
    {"kind": "skew_forward_kl"},
    {"kind": "skew_reverse_kl"},
    {"kind": "total_variation"},
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Parts:
    def __init__(self, n: int = N, v: int = V, dtype: torch.dtype = torch.float64, seed: int = 0, width: int = 8):
        g = generator(seed)
        self.hidden = torch.randn(n, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        self.head = torch.randn(v, width, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        self.teacher = 2 * torch.randn(n, v, generator=g, dtype=torch.float64).to(dtype)
        self.labels = torch.randint(0, v, (n,), generator=g)
        self.hard, self.soft = (torch.rand(n, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))

    def loss(self, targets: SparseTargets | DenseTargets, **options: object) -> tuple[torch.Tensor, RowLosses]:
        settings = LossSettings.model_validate({"compiled": False, "chunk_tokens": 4, **options})
        return chunked_loss(self.hidden, self.head, targets, self.labels, self.hard, self.soft, settings)

    def gradients(self, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(value, [self.hidden, self.head])


def normalisers(logits: torch.Tensor) -> dict[float, torch.Tensor]:
    return {t: torch.logsumexp(logits / t, -1) for t in TEMPERATURES}


def top_k(logits: torch.Tensor, k: int, unused: int = 0) -> SparseTargets:
    log_p, ids = logits.log_softmax(-1).topk(k, dim=-1)
    if unused:
        log_p[:, -unused:] = -torch.inf
    used = ids[:, : k - unused]
    masses = {t: (logits / t).softmax(-1).scatter(1, used, 0.0).sum(-1) for t in TEMPERATURES}
    return SparseTargets(ids, log_p, normalisers(logits), None, masses)


def dense(logits: torch.Tensor) -> DenseTargets:
    return DenseTargets(logits, torch.eye(logits.shape[-1], dtype=logits.dtype))


def coarse_loss(parts: Parts, targets: SparseTargets, divergence: dict, t: float) -> torch.Tensor:
    """Over k + 1 outcomes by autograd, from full logits."""
    student = parts.hidden @ parts.head.T
    q = (student / t).softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(q)):
        used = [j for j in range(targets.token_ids.shape[1]) if targets.log_probs[i, j] > -torch.inf]
        ids = targets.token_ids[i, used]
        p_full = (parts.teacher[i] / t).softmax(-1)
        rest = [j for j in range(q.shape[1]) if j not in set(ids.tolist())]
        p_i = torch.cat([p_full[ids], p_full[rest].sum()[None]])
        q_i = torch.cat([q[i, ids], q[i, rest].sum()[None]])
        total = total + parts.soft[i] * t**2 * divergence_of(p_i, q_i, divergence)
    return total + (parts.hard * F.cross_entropy(student, parts.labels, reduction="none")).sum()


def divergence_of(p: torch.Tensor, q: torch.Tensor, divergence: dict) -> torch.Tensor:
    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum()

    match divergence["kind"]:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "jensen_shannon":
            return 0.3 * kl(p, 0.3 * p + 0.7 * q) + 0.7 * kl(q, 0.3 * p + 0.7 * q)
        case "skew_forward_kl":
            return kl(p, 0.1 * p + 0.9 * q)
        case "skew_reverse_kl":
            return kl(q, 0.1 * q + 0.9 * p)
        case _:
            return 0.5 * (p - q).abs().sum()


@pytest.mark.parametrize("unused", [0, 2])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", OVER_A_TAIL, ids=lambda d: d["kind"])
def test_a_tail_is_one_outcome(divergence: dict, temperature: float, unused: int) -> None:
    parts = Parts()
    targets = top_k(parts.teacher, K, unused)
    expected = coarse_loss(parts, targets, divergence, temperature)
    oracle = parts.gradients(expected)
    value, _ = parts.loss(targets, divergence=divergence, temperature=temperature)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(parts.gradients(value), oracle)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", OVER_A_TAIL, ids=lambda d: d["kind"])
def test_gradcheck(divergence: dict, temperature: float, share: float) -> None:
    parts = Parts(n=4, v=9, width=3)
    targets = top_k(parts.teacher, 3)
    hard, soft = (1 - share) * parts.hard, share * parts.hard
    options = LossSettings.model_validate(
        {"divergence": divergence, "temperature": temperature, "chunk_tokens": 3, "compiled": False}
    )

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden, head, targets, parts.labels, hard, soft, options)[0]

    assert torch.autograd.gradcheck(loss, (parts.hidden, parts.head))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", OVER_A_TAIL, ids=lambda d: d["kind"])
def test_a_support_of_the_whole_vocabulary_is_the_dense_loss(divergence: dict, temperature: float) -> None:
    parts = Parts()
    options = {"divergence": divergence, "temperature": temperature}
    expected, dense_rows = parts.loss(dense(parts.teacher), **options)
    value, rows = parts.loss(top_k(parts.teacher, V), **options)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(parts.gradients(value), parts.gradients(expected), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(rows.student_entropy, dense_rows.student_entropy)
    assert rows.agreement.tolist() == dense_rows.agreement.tolist()


@pytest.mark.slow
@given(k=st.integers(1, V - 1), seed=st.integers(0, 1000))
@hypothesis_settings(max_examples=8, deadline=None)
def test_with_a_tail_every_divergence_is_a_lower_bound_that_grows_with_the_support(k: int, seed: int) -> None:
    parts = Parts(seed=seed)
    for divergence in OVER_A_TAIL:
        small = parts.loss(top_k(parts.teacher, k), divergence=divergence)[1].divergence
        larger = parts.loss(top_k(parts.teacher, k + 1), divergence=divergence)[1].divergence
        full = parts.loss(dense(parts.teacher), divergence=divergence)[1].divergence
        assert (small >= -1e-9).all() and (small <= larger + 1e-9).all() and (larger <= full + 1e-9).all()


def drawn(logits: torch.Tensor, number: int, proposal_power: float, g: torch.Generator) -> SparseTargets:
    """`number` draws a position from `p ** power`, with their importance weights; distinct ids, repeats counted."""
    log_p = logits.log_softmax(-1)
    proposal = (proposal_power * log_p).softmax(-1)
    draws = torch.multinomial(proposal, number, replacement=True, generator=g)
    counts = torch.zeros_like(log_p).scatter_add_(1, draws, torch.ones(draws.shape, dtype=log_p.dtype))
    k = int((counts > 0).sum(-1).max())
    ids = counts.topk(k, dim=-1).indices
    found = counts.gather(1, ids)
    weights = found / number * (log_p.exp() / proposal).gather(1, ids)
    support = torch.where(found > 0, log_p.gather(1, ids), -torch.inf)
    return SparseTargets(ids, support, normalisers(logits), torch.where(found > 0, weights, 0.0))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("proposal_power", [1.0, 0.6])
def test_a_drawn_support_is_unbiased_where_a_renormalised_head_is_not(
    temperature: float, proposal_power: float
) -> None:
    repeats, parts = 4000, Parts(n=2, v=8)
    parts.hard = torch.zeros_like(parts.hard)
    exact = parts.gradients(parts.loss(dense(parts.teacher), temperature=temperature)[0])[0]
    many = Parts(n=2, v=8)
    many.hidden = parts.hidden.detach().repeat(repeats, 1).requires_grad_()
    many.labels, many.hard, many.soft = (v.repeat(repeats) for v in (parts.labels, parts.hard, parts.soft))
    targets = drawn(parts.teacher.repeat(repeats, 1), 4, proposal_power, generator(1))
    value, _ = many.loss(targets, temperature=temperature, chunk_tokens=1000)
    samples = many.gradients(value)[0].view(repeats, 2, 8)
    error = samples.std(0) / repeats**0.5
    assert ((samples.mean(0) - exact).abs() < 5 * error + 1e-12).all()

    head = top_k(parts.teacher, 2)
    kept = head.log_probs - torch.logsumexp(head.log_probs, -1, keepdim=True)
    renormalised = SparseTargets(head.token_ids, kept, normalisers(parts.teacher), kept.exp())
    biased = parts.gradients(parts.loss(renormalised)[0])[0]
    at_one = parts.gradients(parts.loss(dense(parts.teacher))[0])[0]
    assert (biased - at_one).norm() > 10 * error.norm()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_gradcheck_of_a_drawn_support(temperature: float, share: float) -> None:
    parts = Parts(n=4, v=9, width=3)
    targets = drawn(parts.teacher, 5, 0.8, generator(2))
    hard, soft = (1 - share) * parts.hard, share * parts.hard
    options = LossSettings(temperature=temperature, chunk_tokens=3, compiled=False)

    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden, head, targets, parts.labels, hard, soft, options)[0]

    assert torch.autograd.gradcheck(loss, (parts.hidden, parts.head))


def test_what_is_not_defined_is_refused() -> None:
    parts = Parts()
    targets, sampled = top_k(parts.teacher, K), drawn(parts.teacher, 5, 1.0, generator())
    with pytest.raises(TargetsError, match="alpha_beta, which is not defined with the tail as one outcome"):
        parts.loss(targets, divergence={"kind": "alpha_beta"})
    with pytest.raises(TargetsError, match="reverse_kl, and a sampled support estimates the forward KL only"):
        parts.loss(sampled, divergence={"kind": "reverse_kl"})
    with pytest.raises(TargetsError, match=r"keep the normaliser of 0\.5, 1, 2 only"):
        parts.loss(targets, temperature=3.0)


def test_a_tail_too_small_for_float32_needs_its_mass() -> None:
    parts = Parts(dtype=torch.float32)
    parts.teacher[:, 3] += 40.0  # sure of a token: 1 - sum p is 0 in float32
    kept = top_k(parts.teacher, K)
    for divergence in ({"kind": "reverse_kl"}, {"kind": "jensen_shannon", "beta": 1.0}):
        value, rows = parts.loss(kept, divergence=divergence)
        exact = parts.loss(dense(parts.teacher), divergence=divergence)[1].divergence
        assert torch.isfinite(value) and all(torch.isfinite(g).all() for g in parts.gradients(value))
        assert (rows.divergence <= exact * 1.001).all() and (rows.divergence >= 0.8 * exact).all()
        bare = SparseTargets(kept.token_ids, kept.log_probs, kept.logsumexp)
        with pytest.raises(TargetsError, match="do not keep that mass at this temperature"):
            parts.loss(bare, divergence=divergence)


def test_kept_extras_become_metrics() -> None:
    parts = Parts()
    log_p = parts.teacher.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=parts.teacher).entropy()
    plain = top_k(parts.teacher, K)
    extras = replace(plain, entropy=entropy, label_log_probs=log_p.gather(1, parts.labels[:, None])[:, 0])
    rows, expected = parts.loss(extras)[1], parts.loss(dense(parts.teacher))[1]
    for name in ("cross_entropy", "student_entropy", "teacher_entropy", "agreement", "teacher_nll"):
        torch.testing.assert_close(getattr(rows, name), getattr(expected, name))
    assert parts.loss(plain)[1].teacher_nll.isnan().all()


def test_extreme_logits_and_a_wide_id() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0, 5.0], [0.0, 0.0, 1e4, -1e4]], dtype=torch.float32)
    hidden, head = student.requires_grad_(), torch.eye(4).requires_grad_()
    teacher = torch.tensor([[1e4, -1e4, 0.0, 5.0], [0.0, 1e4, 0.0, -torch.inf]])
    for k in (1, 2, 4):
        options = LossSettings(compiled=False)
        weights = torch.full((2,), 0.5)
        value, _ = chunked_loss(hidden, head, top_k(teacher, k), torch.tensor([0, 1]), weights, weights, options)
        gradients = torch.autograd.grad(value, [hidden, head])
        assert torch.isfinite(value) and all(torch.isfinite(g).all() for g in gradients)
    parts = Parts(n=2, v=151_936, dtype=torch.float32)
    parts.teacher[:, 151_935] = 50.0
    value, rows = parts.loss(top_k(parts.teacher, 4))
    expected = parts.loss(dense_rows_of(parts))[1]
    torch.testing.assert_close(rows.divergence, expected.divergence, rtol=1e-4, atol=1e-4)


def dense_rows_of(parts: Parts) -> DenseTargets:
    """The same logits as a product of two thin factors."""
    return DenseTargets(torch.eye(len(parts.teacher), dtype=parts.teacher.dtype), parts.teacher.T.contiguous())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tail", "sampled"])
def test_the_compiled_loss_is_the_plain_one(kind: str) -> None:
    for temperature in (1.0, 2.0):
        results = []
        for compiled in (False, True):
            parts = Parts(n=23, v=503, dtype=torch.float32)
            targets = top_k(parts.teacher, 20, 3) if kind == "tail" else drawn(parts.teacher, 30, 1.0, generator())
            value, _ = parts.loss(targets, compiled=compiled, chunk_tokens=16, temperature=temperature)
            results.append((value, parts.gradients(value)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
