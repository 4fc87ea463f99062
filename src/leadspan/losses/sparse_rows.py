"""The row part of the loss against sparse targets: a support of `k` tokens per position instead of the vocabulary.

The student's logits are split once into the support [C, k] and the rest; the rest is left in place, with -inf at the
support, so that its mass is a sum of its own terms and never `1 - sum`, which would cancel.

A head of the distribution (top-k, top-p) is compared as `k + 1` outcomes, the last being the tail on both sides. By
the data-processing inequality an f-divergence of that is a lower bound of the full one, with equality when the tail is
empty or has the student's shape. With `g` the divergence's gradient over those outcomes, a token of the tail gets
`g_tail q_j / q_tail`. A drawn support gives the unbiased estimate `sum_i w_i (log p_i - log q_i)` of the forward KL,
with gradient `q sum_i w_i - w` (Anshumann et al., arXiv 2503.16870, section 4); nothing else is unbiased there.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leadspan.losses.divergences import DIVERGENCES, Distribution
from leadspan.losses.rows import RowPart, Rows, statistics_of
from leadspan.losses.settings import AnyDivergence
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import SparseTargets


def tail_mass(targets: SparseTargets, log_probs: Tensor, temperature: float) -> Tensor:
    """Mass of the tail, [m]: as stored, else `1 - sum_K p`, and 0 where rounded log-probabilities sum to above 1."""
    if (stored_mass := targets.tail_mass.get(temperature)) is not None:
        return stored_mass
    return (1 - log_probs.double().exp().sum(-1)).clamp_min(0).to(log_probs.dtype)


def split_support(
    z_s: Float[Tensor, "C V"], token_ids: Int[Tensor, "C k"], is_used: Tensor
) -> tuple[Float[Tensor, "C k"], Int[Tensor, "C k"]]:
    """Take the support's logits out of `z_s`, leaving -inf in their place.

    Args:
        z_s: Raw logits, changed in place.
        token_ids: The support.
        is_used: Which slots of the support are used, [C, k]; the first of a row always is.

    Returns:
        The support's raw logits, and its ids with unused slots pointing to the row's first token.
    """
    # An unused slot points to the row's first token, so that scattering -inf there a second time changes nothing.
    ids = torch.where(is_used, token_ids, token_ids[:, :1])
    support = z_s.gather(1, ids)
    z_s.scatter_(1, ids, -torch.inf)
    return support, ids


def tail_rows(transform: LogitTransform, divergence: AnyDivergence, temperature: float) -> RowPart:
    """Row part for a head of the distribution with its tail as one outcome.

    The returned function overwrites the masked logits `z_s` by the gradient of the tail, and `support` by that of the
    support.
    """
    function = functools.partial(DIVERGENCES[divergence.kind], **divergence.model_dump(exclude={"kind"}))

    def rows(
        z_s: Tensor, support: Tensor, log_p: Tensor, tail_mass: Rows, label_logits: Rows, hard: Rows, soft: Rows
    ) -> Tensor:
        is_used = log_p > -torch.inf
        tail, head = _transformed(transform, z_s, support, is_used)
        tail_lse, lse = _logsumexps(tail, head, temperature)
        log_q = torch.cat([head / temperature - lse, tail_lse - lse], dim=1)
        q = Distribution(log_q.exp(), log_q)
        # A support of the whole vocabulary has no tail; a mass that rounding left there must not count.
        has_tail = is_used.sum(-1) < z_s.shape[1]
        rest = torch.where(has_tail, tail_mass, 0.0)[:, None]
        p = Distribution(torch.cat([log_p.exp(), rest], dim=1), torch.cat([log_p, rest.log()], dim=1))
        value, gradient = function(q, p)
        gradient = torch.where(soft[:, None] == 0, 0.0, gradient)
        share = (soft * temperature)[:, None]
        # The gradient of the one tail outcome is dealt to its tokens in proportion to the student's probabilities.
        tail_soft = share * gradient[:, -1:] * _softmax(tail / temperature, tail_lse)
        soft_gradients = tail_soft, share * gradient[:, :-1]
        statistics = _finish(transform, (z_s, support), (tail, head), soft_gradients, label_logits, hard)
        # The teacher's most likely token is always in the support, the student's need not be.
        top = head.gather(1, log_p.argmax(-1, keepdim=True)).squeeze(1)
        agreement = top >= torch.maximum(tail.amax(-1), head.amax(-1))
        return statistics_of(*statistics, value, agreement)

    return rows


def sampled_rows(transform: LogitTransform, temperature: float) -> RowPart:
    """Row part for a drawn support: `sum_i w_i (log p_i - log q_i)`."""

    def rows(
        z_s: Tensor, support: Tensor, log_p: Tensor, weights: Tensor, label_logits: Rows, hard: Rows, soft: Rows
    ) -> Tensor:
        is_used = log_p > -torch.inf
        tail, head = _transformed(transform, z_s, support, is_used)
        _, lse = _logsumexps(tail, head, temperature)
        log_q = head / temperature - lse
        value = torch.where(weights == 0, 0.0, weights * (log_p - log_q)).sum(-1)
        # The weights of one draw need not add up to 1, so the gradient of `log q` carries their sum.
        share, total = (soft * temperature)[:, None], weights.sum(-1, keepdim=True)
        tail_soft = share * total * _softmax(tail / temperature, lse)
        head_soft = share * (total * log_q.exp() - weights)
        statistics = _finish(transform, (z_s, support), (tail, head), (tail_soft, head_soft), label_logits, hard)
        return statistics_of(*statistics, value)

    return rows


def _transformed(transform: LogitTransform, z_s: Tensor, support: Tensor, is_used: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the tail (-inf at the support) and of the support (-inf in unused slots)."""
    # -inf was put at the support by `split_support`; a transform such as a softcap would make it finite.
    is_tail = z_s > -torch.inf
    tail = torch.where(is_tail, transform.logits(z_s), -torch.inf)
    return tail, torch.where(is_used, transform.logits(support), -torch.inf)


def _logsumexps(tail: Tensor, head: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-normaliser of the tail, and of all, [C, 1] each."""
    tail_lse = torch.logsumexp(tail / temperature, dim=-1, keepdim=True)
    head_lse = torch.logsumexp(head / temperature, dim=-1, keepdim=True)
    return tail_lse, torch.logaddexp(tail_lse, head_lse)


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    """`exp(logits - lse)`, 0 where the logits are -inf."""
    return torch.where(logits > -torch.inf, (logits - lse).exp(), 0.0)


def _finish(
    transform: LogitTransform,
    targets: tuple[Tensor, Tensor],
    logits: tuple[Tensor, Tensor],
    soft_gradients: tuple[Tensor, Tensor],
    label_logits: Rows,
    hard: Rows,
) -> tuple[Rows, Rows]:
    """Add the cross-entropy's gradient except for its one-hot part, write both gradients in place of the logits.

    Returns:
        The label's log-probability and the student's entropy, at temperature 1.
    """
    lse = _logsumexps(*logits, 1.0)[1]
    # `lse - sum q z` is the entropy of softmax(z): no logarithm of a probability that may underflow.
    entropy = lse[:, 0]
    for target, values, soft_gradient in zip(targets, logits, soft_gradients, strict=True):
        q = _softmax(values, lse)
        entropy = entropy - torch.where(q == 0, 0.0, q * values).sum(-1)
        gradient = transform.chain(soft_gradient + hard[:, None] * q, values)
        target.copy_(torch.where(values > -torch.inf, gradient, 0.0))
    return transform.logits(label_logits) - lse[:, 0], entropy
