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


def support(parts: Parts, k: int, temperature: float) -> SparseTargets:
    """The `k` likeliest tokens of every position, with the tail's mass."""
    logits = (parts.targets.hidden @ parts.targets.head.T).detach()
    log_p, of_tempered = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
    values, ids = log_p.topk(k)
    norms = {t: (logits / t).logsumexp(-1) for t in (1.0, temperature)}
    tails = {1.0: 1 - values.exp().sum(-1), temperature: 1 - of_tempered.gather(1, ids).exp().sum(-1)}
    return SparseTargets(ids, values, norms, None, tails)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize(
    "divergence", [d for d in ALL if d["kind"] not in ("alpha_beta", "adaptive_kl")], ids=lambda d: d["kind"]
)
def test_a_support_has_one_stop_where_it_has_every_end_and_else_one_with_its_tail(
    divergence: dict, temperature: float
) -> None:
    parts = Parts(n=60, v=13)
    student, teacher = (
        (logits / temperature).softmax(-1)
        for logits in (parts.hidden @ parts.head.T, parts.targets.hidden @ parts.targets.head.T)
    )
    parts.targets = support(parts, 6, temperature)
    options = settings(divergence=divergence, temperature=temperature, chunk_tokens=7)
    value, rows = loss(parts, options)
    gradients = torch.autograd.grad(value, [parts.hidden, parts.head], retain_graph=True)

    more = {key: x for key, x in options.divergence.model_dump().items() if key != "kind"}
    expected, kinds = [], set()
    for q, p, ids in zip(student, teacher, parts.targets.token_ids.tolist(), strict=True):
        listed = set(ids) & set(ENDS)
        kinds.add("all" if len(listed) == len(ENDS) else "some" if listed else "none")
        others = [[i] for i in ids if i not in ENDS]
        rest = [i for i in range(13) if i not in ids]
        # A partition of the vocabulary: with one of the ends unknown, all of them are in one set with the tail.
        sets = [*others, list(ENDS), rest] if len(listed) == len(ENDS) else [*others, [*rest, *listed]]
        both = [torch.stack([x[s].sum() for s in sets])[None] for x in (q, p)]
        expected.append(DIVERGENCES[divergence["kind"]](*(Distribution(x, x.log()) for x in both), **more)[0])
    assert kinds == {"all", "some", "none"}
    expected = torch.cat(expected)
    torch.testing.assert_close(rows, expected.detach())
    ce = torch.nn.functional.cross_entropy(parts.hidden @ parts.head.T, parts.labels, reduction="none")
    oracle = (parts.hard * ce).sum() + temperature**2 * (parts.soft * expected).sum()
    torch.testing.assert_close(value, oracle)
    torch.testing.assert_close(gradients, torch.autograd.grad(oracle, [parts.hidden, parts.head]))


def test_a_support_of_nothing_but_an_end_is_all_tail() -> None:
    parts = Parts(n=40, v=13)
    parts.targets = support(parts, 1, 1.0)
    is_end = torch.isin(parts.targets.token_ids[:, 0], torch.tensor(ENDS))
    assert 0 < is_end.sum() < 40
    value, rows = loss(parts, settings(divergence={"kind": "reverse_kl"}))
    assert (rows[is_end].abs() < 1e-9).all() and (rows[~is_end] > 1e-4).all()
    assert torch.autograd.grad(value, [parts.head])[0].isfinite().all()


@pytest.mark.parametrize("k", [6, 13])
def test_with_a_support_of_a_few_tokens_agreement_is_of_tokens_and_the_stop_a_lower_bound(k: int) -> None:
    parts = Parts(n=200, v=13)
    options = settings(divergence={"kind": "reverse_kl"})
    _, whole = parts.loss(options, end_ids=ENDS)
    parts.targets = support(parts, k, 1.0)
    _, rows = parts.loss(options, end_ids=ENDS)
    assert torch.equal(rows.agreement, whole.agreement) and 0 < rows.agreement.mean() < 1
    assert (rows.divergence <= whole.divergence + 1e-9).all()
    if k == 13:
        torch.testing.assert_close(rows.divergence, whole.divergence)


def test_drawn_tokens_do_not_say_how_likely_a_stop_is() -> None:
    parts = Parts(n=3, v=13)
    ids, log_probs = torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.4, dtype=torch.float64).log()
    parts.targets = SparseTargets(ids, log_probs, {1.0: torch.zeros(3)}, torch.full((3, 2), 0.5))
    with pytest.raises(TargetsError, match=r"loss\.stop is event.*live teacher, capture top_k.* or set loss"):
        loss(parts, settings())


@pytest.mark.slow
@pytest.mark.parametrize("k", [None, 40])
def test_the_compiled_loss_is_the_plain_one(k: int | None) -> None:
    results = []
    for compiled in (False, True):
        parts = Parts(n=37, v=503, dtype=torch.float32)
        parts.targets = parts.targets if k is None else support(parts, k, 1.0)
        options = settings(divergence={"kind": "reverse_kl"}, chunk_tokens=16, compiled=compiled)
        value, _ = loss(parts, options)
        results.append((value, *torch.autograd.grad(value, [parts.hidden, parts.head])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
