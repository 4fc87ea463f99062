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

from leadspan.losses.divergences import DIVERGENCES, Distribution, with_one_stop
from leadspan.losses.rows import RowPart, Rows, statistics_of
from leadspan.losses.settings import AnyDivergence
from leadspan.models.heads import LogitTransform
from leadspan.teacher.targets import SparseTargets


def tail_mass(targets: SparseTargets, log_probs: Tensor, temperature: float) -> Tensor:
    """Mass of the tail, [m]: as stored, else `1 - sum_K p`, and 0 where rounded log-probabilities sum to above 1."""
    if (stored_mass := targets.tail_mass.get(temperature)) is not None:
        return stored_mass
    return (1 - log_probs.double().exp().sum(-1)).clamp_min(0).to(log_probs.dtype)


def ends_apart(
    token_ids: Int[Tensor, "m k"],
    log_probs: Float[Tensor, "m k"],
    tail: Float[Tensor, "m"],  # a dimension name
    end_ids: tuple[int, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the tokens that end a turn the last columns of the support, where all of them are in it.

    In a row that lacks one of them, those that it has join the tail, where the others are: what is known of a stop
    there is its mass with the tail's. Both are sums of known masses over a partition that is coarser than that with
    one stop and single tokens, so that an f-divergence over it is a lower bound of the one over that.

    `tail` is the mass of all tokens that are not in the support.

    Returns:
        The three with the end tokens apart, [m, k + len(end_ids)] and [m].
    """
    ends = torch.tensor(end_ids, device=token_ids.device)
    is_end = (token_ids[..., None] == ends) & (log_probs > -torch.inf)[..., None]
    of_ends = torch.where(is_end, log_probs[..., None], -torch.inf).amax(1)
    has_all = (of_ends > -torch.inf).all(-1, keepdim=True)
    tail = tail + torch.where(has_all, 0.0, of_ends.exp()).sum(-1)
    others = torch.where(is_end.any(-1), -torch.inf, log_probs)
    log_probs = torch.cat([others, torch.where(has_all, of_ends, -torch.inf)], dim=1)
    return torch.cat([token_ids, ends.expand(len(token_ids), -1)], dim=1), log_probs, tail


def split_support(
    z_s: Float[Tensor, "C V"], token_ids: Int[Tensor, "C k"], is_used: Tensor
) -> tuple[Float[Tensor, "C k"], Int[Tensor, "C k"]]:
    """Take the support's logits out of `z_s`, leaving -inf in their place.

    `z_s` is changed in place; `is_used` says which slots of the support are used, [C, k].

    Returns:
        The support's raw logits, and its ids with unused slots pointing to a used token of the row, if it has one.
    """
    # An unused slot points to a used token, so that scattering -inf there a second time changes nothing.
    ids = torch.where(is_used, token_ids, token_ids.gather(1, is_used.int().argmax(1, keepdim=True)))
    support = z_s.gather(1, ids)
    # A row of which all is tail loses nothing: each of its slots points to the same token, and puts it back.
    z_s.scatter_(1, ids, torch.where(is_used.any(1, keepdim=True), -torch.inf, support))
    return support, ids


def tail_rows(transform: LogitTransform, divergence: AnyDivergence, temperature: float, num_ends: int = 0) -> RowPart:
    """Row part for a head of the distribution with its tail as one outcome; so are the last `num_ends` of the support.

    The returned function overwrites the masked logits `z_s` by the gradient of the tail, and `support` by that of the
    support.
    """
    function = functools.partial(DIVERGENCES[divergence.kind], **divergence.model_dump(exclude={"kind"}))

    def rows(
        z_s: Tensor,
        support: Tensor,
        log_p: Tensor,
        tail_mass: Rows,
        likeliest: Float[Tensor, "C 1"],
        label_logits: Rows,
        hard: Rows,
        soft: Rows,
    ) -> Tensor:
        is_used = log_p > -torch.inf
        tail, head = _transformed(transform, z_s, support, is_used)
        tail_lse, lse = _logsumexps(tail, head, temperature)
        log_q = torch.cat([head / temperature - lse, tail_lse - lse], dim=1)
        # A support of the whole vocabulary has no tail; a mass that rounding left there must not count.
        has_tail = is_used.sum(-1) < z_s.shape[1]
        rest = torch.where(has_tail, tail_mass, 0.0)[:, None]
        outcomes = torch.cat([log_p, rest.log()], dim=1)
        if num_ends:
            columns = tuple(range(log_p.shape[1] - num_ends, log_p.shape[1]))
            value, gradient = with_one_stop(function, log_q, outcomes, 1.0, columns)
        else:
            p = Distribution(torch.cat([log_p.exp(), rest], dim=1), outcomes)
            value, gradient = function(Distribution(log_q.exp(), log_q), p)
        gradient = torch.where(soft[:, None] == 0, 0.0, gradient)
        share = (soft * temperature)[:, None]
        # The gradient of the one tail outcome is dealt to its tokens in proportion to the student's probabilities.
        tail_soft = share * gradient[:, -1:] * _softmax(tail / temperature, tail_lse)
        soft_gradients = tail_soft, share * gradient[:, :-1]
        statistics = _finish(transform, (z_s, support), (tail, head), soft_gradients, label_logits, hard)
        top = transform.logits(likeliest).squeeze(1)
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
