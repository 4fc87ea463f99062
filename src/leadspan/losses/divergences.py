"""Divergences between teacher and student per position, with closed-form gradients.

Notation: `p` and `q` are the distributions of teacher and student over one set of outcomes: the vocabulary, or a
support with its tail as one outcome. A gradient is with respect to the student's *tempered logits* `z_s / T`, of which
`q = softmax(z_s / T)`; through `dq_i / dz_j = q_i (1[i=j] - q_j)` a divergence with `h_i = dD / dq_i` has
`dD / dz_j = q_j (h_j - sum_i q_i h_i)`. An outcome of probability 0 contributes its limit. A divergence of equal
distributions is 0: the teacher's entropy is part of it. Values are in nats where there is a logarithm, and never carry
the factor `T^2`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float

ValueAndGradient = tuple[Float[torch.Tensor, "N"], Float[torch.Tensor, "N V"]]  # a dimension name


class Distribution(NamedTuple):
    """Probabilities and their logarithms, each as exact as float32 gives them: neither is made from the other.

    Attributes:
        prob: [N, V].
        log: [N, V].
    """

    prob: Float[torch.Tensor, "N V"]
    log: Float[torch.Tensor, "N V"]

    @classmethod
    def of(cls, logits: Float[torch.Tensor, "N V"]) -> "Distribution":
        """`softmax(logits)`."""
        # Two functions: log(softmax) is -inf where the probability underflows, and exp(log_softmax) loses digits.
        return cls(torch.softmax(logits, dim=-1), torch.log_softmax(logits, dim=-1))


Divergence = Callable[[Distribution, Distribution], ValueAndGradient]
"""`(student, teacher) -> (value [N], gradient [N, V])`."""


def from_logits(
    divergence: Divergence,
    student_logits: Float[torch.Tensor, "N V"],
    teacher_logits: Float[torch.Tensor, "N V"],
    temperature: float = 1.0,
    end_ids: tuple[int, ...] = (),
) -> ValueAndGradient:
    """A divergence of `softmax(z_t / T)` and `softmax(z_s / T)`, and its gradient with respect to `z_s`.

    The tokens of `end_ids`, two or more, are one outcome. It has the mass of its tokens, so its logit is
    `s = logsumexp` of theirs, and with `g` the gradient with respect to `s` each of them gets `g exp(z_e / T - s)`.
    Merging outcomes never raises an f-divergence, by the data-processing inequality (Csiszar, Studia Sci. Math.
    Hungarica 2, 1967).
    """
    student, teacher = student_logits / temperature, teacher_logits / temperature
    if not end_ids:
        value, gradient = divergence(Distribution.of(student), Distribution.of(teacher))
        return value, gradient / temperature
    ends = torch.tensor(end_ids, device=student.device)

    def merged(logits: torch.Tensor) -> Distribution:
        # The merged outcome takes the column of the first token; the columns of the others get probability 0.
        stop = logits.index_select(1, ends).logsumexp(-1, keepdim=True)
        columns = torch.cat([stop, torch.full_like(logits[:, : len(end_ids) - 1], -torch.inf)], dim=1)
        return Distribution.of(logits.index_copy(1, ends, columns))

    value, gradient = divergence(merged(student), merged(teacher))
    # Where a support has none of the tokens their logits are -inf, and 0 / 0 is a share of nothing.
    of_ends = student.index_select(1, ends)
    shares = torch.where(of_ends > -torch.inf, torch.softmax(of_ends, dim=-1), 0.0)
    return value, gradient.index_copy(1, ends, gradient.index_select(1, ends[:1]) * shares) / temperature


def forward_kl(q: Distribution, p: Distribution) -> ValueAndGradient:
    """`KL(p || q) = sum p log(p / q)`; gradient `q - p`.

    Source: Hinton et al., arXiv 1503.02531, section 2 (equation 2 for the gradient).
    """
    return expectation(p.prob, p.log - q.log), q.prob - p.prob


def reverse_kl(q: Distribution, p: Distribution) -> ValueAndGradient:
    """`KL(q || p) = sum q log(q / p)`; gradient `q (log(q / p) - KL(q || p))`.

    Source: Gu et al., MiniLLM, arXiv 2306.08543, section 2.1.
    """
    ratio = q.log - p.log
    value = expectation(q.prob, ratio)
    return value, _product(q.prob, ratio - value[:, None])


def jensen_shannon(q: Distribution, p: Distribution, beta: float) -> ValueAndGradient:
    """`beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q`.

    Gradient: `(1 - beta) q (log(q / m) - KL(q || m))`. The value vanishes at both ends; there the divergence is
    *defined* as its rescaled limit: forward KL at `beta = 0`, reverse KL at `beta = 1`.

    Source: Agarwal et al., GKD, arXiv 2306.13649, section 2 (equation 1); the ends as in TRL's GKD trainer.
    """
    if beta == 0:
        return forward_kl(q, p)
    if beta == 1:
        return reverse_kl(q, p)
    m = _mixture(p, q, beta)
    ratio = (q.prob / m).log()
    student = expectation(q.prob, ratio)
    value = beta * expectation(p.prob, (p.prob / m).log()) + (1 - beta) * student
    return value, (1 - beta) * _product(q.prob, ratio - student[:, None])


def skew_forward_kl(q: Distribution, p: Distribution, alpha: float) -> ValueAndGradient:
    """`KL(p || m)` with `m = alpha p + (1 - alpha) q`; gradient `q sum r - r` with `r = (1 - alpha) q p / m`.

    Source: Ko et al., DistiLLM, arXiv 2402.03898, section 3.1.
    """
    if alpha == 0:
        return forward_kl(q, p)
    ratio = p.prob / _mixture(p, q, alpha)
    r = (1 - alpha) * q.prob * ratio
    return expectation(p.prob, ratio.log()), q.prob * r.sum(-1, keepdim=True) - r


def skew_reverse_kl(q: Distribution, p: Distribution, alpha: float) -> ValueAndGradient:
    """`KL(q || m)` with `m = alpha q + (1 - alpha) p`; gradient `q (h - sum q h)`, `h = log(q / m) - alpha q / m`.

    Source: Ko et al., DistiLLM, arXiv 2402.03898, section 3.1.
    """
    if alpha == 0:
        return reverse_kl(q, p)
    mixture = _mixture(q, p, alpha)
    ratio, excess = q.prob / mixture, (1 - alpha) * (q.prob - p.prob) / mixture  # q / m, and q / m - 1
    # Where alpha is near 1 the ratio is, too, and its logarithm has digits in the excess alone.
    log_ratio = torch.where(ratio < 0.5, ratio.log(), excess.log1p())
    h = log_ratio - alpha * excess  # and a constant, which the mean takes away
    return expectation(q.prob, log_ratio), _product(q.prob, h - expectation(q.prob, h)[:, None])


def total_variation(q: Distribution, p: Distribution) -> ValueAndGradient:
    """`1/2 sum |p - q|`; gradient `1/2 (q s - q sum q s)` with `s = sign(q - p)`, a subgradient where `p = q`.

    Source: Wen et al., f-distill, arXiv 2307.15190, section 2.2.
    """
    gap = q.prob - p.prob
    signed = q.prob * gap.sign()
    return 0.5 * gap.abs().sum(-1), 0.5 * (signed - q.prob * signed.sum(-1, keepdim=True))


def alpha_beta(q: Distribution, p: Distribution, alpha: float, beta: float) -> ValueAndGradient:
    """`-1 / (a b) sum [p^a q^b - a / (a + b) p^(a+b) - b / (a + b) q^(a+b)]`, with its limits at `a = 0` and `b = 0`.

    Gradient: `u - q sum u` with `u = q^b (q^a - p^a) / a`, at `a = 0` `u = q^b log(q / p)`. Forward KL is (1, 0),
    reverse KL (0, 1), and (0.5, 0.5) four times the squared Hellinger distance.

    Source: Wang et al., ABKD, arXiv 2505.04560, definition 3.1, after Cichocki et al. (Entropy 13, 2011), equation 20.
    """
    total = alpha + beta
    p_total, q_total, p_alpha = _power(p, total), _power(q, total), _power(p, alpha)
    if alpha == 0:
        u = _product(q_total, q.log - p.log)
        terms = (beta * u - q_total + p_total) / beta**2
    elif beta == 0:
        q_alpha = _power(q, alpha)
        u = (q_alpha - p_alpha) / alpha
        terms = (alpha * _product(p_alpha, p.log - q.log) - p_alpha + q_alpha) / alpha**2
    else:
        mixed = p_alpha * _power(q, beta)
        u = (q_total - mixed) / alpha
        terms = (alpha * p_total + beta * q_total - total * mixed) / (alpha * beta * total)
    return terms.sum(-1), u - q.prob * u.sum(-1, keepdim=True)


def adaptive_kl(q: Distribution, p: Distribution, mass: float) -> ValueAndGradient:
    """`w KL(p || q) + (1 - w) KL(q || p)`, where `w` is the share of `sum |p - q|` that lies in the teacher's head.

    The head is the teacher's most likely token and those after it, in order, up to a cumulative probability of `mass`.
    The gradient takes `w` as given.

    Source: Wu et al., arXiv 2404.02657, section 4.2.
    """
    # The head always has the teacher's first token, even where that alone exceeds `mass`.
    ranked, order = p.prob.sort(dim=-1, descending=True)
    is_head = ranked.cumsum(-1) <= mass
    is_head[:, 0] = True
    gaps = (p.prob - q.prob).abs()
    head = torch.where(is_head, gaps.gather(-1, order), 0.0).sum(-1)
    total = gaps.sum(-1)
    share = torch.where(total > 0, head / total, 0.5)
    (forward, forward_gradient), (reverse, reverse_gradient) = forward_kl(q, p), reverse_kl(q, p)
    gradient = share[:, None] * forward_gradient + (1 - share)[:, None] * reverse_gradient
    return share * forward + (1 - share) * reverse, gradient


def _product(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`weight * value`, 0 where the weight is: `0 log 0 = 0`."""
    return torch.where(weight == 0, 0.0, weight * value)


def expectation(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`sum weight * value` of each row, to which outcomes of weight 0 add nothing."""
    return _product(weight, value).sum(-1)


def _power(distribution: Distribution, exponent: float) -> torch.Tensor:
    """`probability ** exponent`, also where the probability itself is too small for its type."""
    tiny = torch.finfo(distribution.prob.dtype).tiny
    # A subnormal probability loses digits; its logarithm does not.
    small = (exponent * distribution.log).exp()
    return torch.where(distribution.prob > tiny, distribution.prob.clamp_min(tiny) ** exponent, small)


def _mixture(a: Distribution, b: Distribution, share: float) -> torch.Tensor:
    """`share a + (1 - share) b`, kept above 0: where it underflows, so does what it divides."""
    return (share * a.prob + (1 - share) * b.prob).clamp_min(torch.finfo(a.prob.dtype).tiny)


DIVERGENCES: dict[str, Callable[..., ValueAndGradient]] = {
    function.__name__: function
    for function in (
        *(forward_kl, reverse_kl, jensen_shannon, skew_forward_kl, skew_reverse_kl),
        *(total_variation, alpha_beta, adaptive_kl),
    )
}
