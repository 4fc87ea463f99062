"""Per-position losses from logits, with closed-form gradients with respect to the student's logits.

Notation: `z_s`, `z_t` logits [N, V] of student and teacher; `q = softmax(z_s / T)`, `p = softmax(z_t / T)`. A KL of
equal distributions is 0: the teacher's entropy is part of it, so it is not the cross-entropy of soft targets.
"""

import torch
from jaxtyping import Float, Int


def cross_entropy(
    student_logits: Float[torch.Tensor, "N V"],
    labels: Int[torch.Tensor, "N"],  # a dimension name
) -> tuple[Float[torch.Tensor, "N"], Float[torch.Tensor, "N V"]]:
    """Negative log-likelihood of the labels, in nats.

    Value: `-log q[label]`; gradient: `q - onehot(label)`.
    """
    log_q = torch.log_softmax(student_logits, dim=-1)
    value = -log_q.gather(1, labels[:, None]).squeeze(1)
    gradient = log_q.exp_()
    gradient.scatter_add_(1, labels[:, None], torch.full_like(value, -1.0)[:, None])
    return value, gradient


def forward_kl(
    student_logits: Float[torch.Tensor, "N V"],
    teacher_logits: Float[torch.Tensor, "N V"],
    temperature: float = 1.0,
) -> tuple[Float[torch.Tensor, "N"], Float[torch.Tensor, "N V"]]:
    """Kullback-Leibler divergence of the student from the teacher, in nats, without the factor `T^2`.

    Value: `KL(p || q) = sum_j p_j (log p_j - log q_j)`; gradient with respect to `z_s`: `(q - p) / T`.

    Source: Hinton et al., arXiv 1503.02531, section 2 (the gradient, equation 2).
    """
    log_q = torch.log_softmax(student_logits / temperature, dim=-1)
    log_p = torch.log_softmax(teacher_logits / temperature, dim=-1)
    p = log_p.exp()
    value = torch.linalg.vecdot(p, log_p.sub_(log_q).nan_to_num_(nan=0.0))  # 0 * (-inf - -inf) is 0
    return value, log_q.exp_().sub_(p).div_(temperature)


def mixed_rows(
    student_logits: Float[torch.Tensor, "N V"],
    teacher_logits: Float[torch.Tensor, "N V"] | None,
    labels: Int[torch.Tensor, "N"],
    hard_weights: Float[torch.Tensor, "N"],
    soft_weights: Float[torch.Tensor, "N"],
    temperature: float,
) -> tuple[
    Float[torch.Tensor, "N"],
    Float[torch.Tensor, "N"] | None,
    Float[torch.Tensor, "N V"],
]:
    """Cross-entropy, forward KL, and the gradient of `hard * CE + soft * T^2 * KL`.

    At `T = 1` one softmax of the student serves both, and the gradient is `(hard + soft) q - soft p - hard onehot`, a
    cross-entropy with soft targets.
    """
    if teacher_logits is None:
        value, gradient = cross_entropy(student_logits, labels)
        return value, None, gradient.mul_(hard_weights[:, None])
    if temperature != 1.0:
        value, gradient = cross_entropy(student_logits, labels)
        kl, soft_gradient = forward_kl(student_logits, teacher_logits, temperature)
        gradient.mul_(hard_weights[:, None])
        return value, kl, gradient.add_(soft_gradient.mul_((temperature**2 * soft_weights)[:, None]))
    log_q = torch.log_softmax(student_logits, dim=-1)
    log_p = torch.log_softmax(teacher_logits, dim=-1)
    value = -log_q.gather(1, labels[:, None]).squeeze(1)
    p = log_p.exp()
    kl = torch.linalg.vecdot(p, log_p.sub_(log_q).nan_to_num_(nan=0.0))
    gradient = log_q.exp_().mul_((hard_weights + soft_weights)[:, None]).sub_(p.mul_(soft_weights[:, None]))
    gradient.scatter_add_(1, labels[:, None], -hard_weights[:, None])
    return value, kl, gradient
