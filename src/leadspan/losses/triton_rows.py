"""The dense row part as one Triton kernel for CUDA: forward and reverse KL with cross-entropy, at any temperature.

One program a row, two passes over its logits. The first keeps running maxima, normalisers and weighted sums of student
and teacher (Milakov and Gimelshein, arXiv 1805.02867); the second forms the gradient in place of the student's logits.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from leadspan.losses.rows import ROW_COLUMNS, RowPart
from leadspan.models.heads import LogitTransform

KERNEL_DIVERGENCES = ("forward_kl", "reverse_kl")
# Logits of one row that a program holds at a time, and the warps that share them.
_BLOCK = 4096
_WARPS = 8


def triton_dense_rows(
    transform: LogitTransform, teacher_transform: LogitTransform, divergence: str, temperature: float
) -> RowPart:
    """The kernel with the interface of `leadspan.losses.rows.dense_rows`."""
    options: dict[str, Any] = {
        "temperature": temperature,
        "s_scale": transform.scale,
        "s_cap": transform.cap or 0.0,
        "t_scale": teacher_transform.scale,
        "t_cap": teacher_transform.cap or 0.0,
        "IS_REVERSE": divergence == "reverse_kl",
        "S_HAS_CAP": transform.cap is not None,
        "T_HAS_CAP": teacher_transform.cap is not None,
    }

    def rows(
        z_s: torch.Tensor, z_t: torch.Tensor, labels: torch.Tensor, hard: torch.Tensor, soft: torch.Tensor
    ) -> torch.Tensor:
        statistics = torch.empty(len(labels), len(ROW_COLUMNS), dtype=torch.float32, device=z_s.device)
        launch: Any = rows_kernel[(len(labels),)]
        launch(
            z_s, z_t, z_s.stride(0), z_t.stride(0), labels, hard, soft, statistics, z_s.shape[1],
            NUM_COLUMNS=len(ROW_COLUMNS), BLOCK=_BLOCK, num_warps=_WARPS, **options,
        )  # fmt: skip
        return statistics

    return rows


@triton.jit
def _logits(product, scale, cap, HAS_CAP: tl.constexpr):
    """`cap tanh(scale z / cap)`; tanh(x) = 2 sigmoid(2 x) - 1."""
    z = product * scale
    if HAS_CAP:
        z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)
    return z


@triton.jit
def _weighted(weight, value):
    """`weight * value`, 0 where the weight is."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def _rescaled(old, new):
    """Factor on sums when their maximum rises from `old` to `new`; both may be -inf."""
    return tl.where(old == new, 1.0, tl.exp(old - new))


@triton.jit
def _statistics(
    s_row, t_row, columns, num_entries, temperature, s_scale, s_cap, t_scale, t_cap,
    BLOCK: tl.constexpr, IS_REVERSE: tl.constexpr, S_HAS_CAP: tl.constexpr, T_HAS_CAP: tl.constexpr,
):  # fmt: skip
    """First walk over a row: maxima and sums in one pass, each sum rescaled whenever its maximum grows.

    `..T` is at the loss's temperature, the others at 1, where cross-entropy, entropy and agreement are taken.

    Returns:
        Maxima, log-sum-exps, tempered log-sum-exps and mean logits of student and teacher, and the divergence.
    """
    s_max, t_max = float("-inf"), float("-inf")
    s_sum, t_sum, s_tempered, t_tempered, s_mean, t_mean, gap = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, num_entries, BLOCK):
        inside = start + columns < num_entries
        s = _logits(tl.load(s_row + start + columns, inside, 0.0), s_scale, s_cap, S_HAS_CAP)
        t = _logits(tl.load(t_row + start + columns, inside, 0.0), t_scale, t_cap, T_HAS_CAP)
        s, t = tl.where(inside, s, float("-inf")), tl.where(inside, t, float("-inf"))
        s_new, t_new = tl.maximum(s_max, tl.max(s, 0)), tl.maximum(t_max, tl.max(t, 0))
        s_e = tl.where(s == float("-inf"), 0.0, tl.exp(s - s_new))
        t_e = tl.where(t == float("-inf"), 0.0, tl.exp(t - t_new))
        s_eT = tl.where(s == float("-inf"), 0.0, tl.exp((s - s_new) / temperature))
        t_eT = tl.where(t == float("-inf"), 0.0, tl.exp((t - t_new) / temperature))
        s_old, t_old = _rescaled(s_max, s_new), _rescaled(t_max, t_new)
        s_oldT, t_oldT = (
            _rescaled(s_max / temperature, s_new / temperature),
            _rescaled(t_max / temperature, t_new / temperature),
        )
        s_sum, t_sum = s_sum * s_old + tl.sum(s_e, 0), t_sum * t_old + tl.sum(t_e, 0)
        s_mean, t_mean = s_mean * s_old + tl.sum(_weighted(s_e, s), 0), t_mean * t_old + tl.sum(_weighted(t_e, t), 0)
        s_tempered, t_tempered = s_tempered * s_oldT + tl.sum(s_eT, 0), t_tempered * t_oldT + tl.sum(t_eT, 0)
        if IS_REVERSE:
            gap = gap * s_oldT + tl.sum(_weighted(s_eT, (s - t) / temperature), 0)
        else:
            gap = gap * t_oldT + tl.sum(_weighted(t_eT, (t - s) / temperature), 0)
        s_max, t_max = s_new, t_new

    s_lse, t_lse = s_max + tl.log(s_sum), t_max + tl.log(t_sum)
    s_lseT, t_lseT = s_max / temperature + tl.log(s_tempered), t_max / temperature + tl.log(t_tempered)
    if IS_REVERSE:
        value = gap / s_tempered - s_lseT + t_lseT
    else:
        value = gap / t_tempered - t_lseT + s_lseT
    return s_max, t_max, s_lse, t_lse, s_lseT, t_lseT, s_mean / s_sum, t_mean / t_sum, value


@triton.jit
def rows_kernel(
    s_ptr, t_ptr, s_stride, t_stride, label_ptr, hard_ptr, soft_ptr, out_ptr, num_entries,
    temperature, s_scale, s_cap, t_scale, t_cap,
    NUM_COLUMNS: tl.constexpr, BLOCK: tl.constexpr, IS_REVERSE: tl.constexpr,
    S_HAS_CAP: tl.constexpr, T_HAS_CAP: tl.constexpr,
):  # fmt: skip
    """Statistics and gradient of one row."""
    # 64 bits: row times stride can exceed 2^31.
    row = tl.program_id(0).to(tl.int64)
    s_row, t_row = s_ptr + row * s_stride, t_ptr + row * t_stride
    label = tl.load(label_ptr + row)
    s_label = _logits(tl.load(s_row + label), s_scale, s_cap, S_HAS_CAP)
    t_label = _logits(tl.load(t_row + label), t_scale, t_cap, T_HAS_CAP)
    hard, soft = tl.load(hard_ptr + row), tl.load(soft_ptr + row)
    columns = tl.arange(0, BLOCK)
    s_max, t_max, s_lse, t_lse, s_lseT, t_lseT, s_mean, t_mean, value = _statistics(
        s_row, t_row, columns, num_entries, temperature, s_scale, s_cap, t_scale, t_cap,
        BLOCK, IS_REVERSE, S_HAS_CAP, T_HAS_CAP,
    )  # fmt: skip

    # Second walk: the gradient needs the normalisers of the whole row. It overwrites the logits.
    agreement = 0.0
    for start in range(0, num_entries, BLOCK):
        inside = start + columns < num_entries
        s = _logits(tl.load(s_row + start + columns, inside, 0.0), s_scale, s_cap, S_HAS_CAP)
        t = _logits(tl.load(t_row + start + columns, inside, 0.0), t_scale, t_cap, T_HAS_CAP)
        is_top = inside & (s == s_max) & (t == t_max)
        agreement = tl.maximum(agreement, tl.max(tl.where(is_top, 1.0, 0.0), 0))
        log_q = s / temperature - s_lseT
        q = tl.exp(log_q)
        if IS_REVERSE:
            gradient = _weighted(q, log_q - t / temperature + t_lseT - value)
        else:
            gradient = q - tl.exp(t / temperature - t_lseT)
        onehot = tl.where(start + columns == label, 1.0, 0.0)
        # T^2 of the objective over T of the tempered logits leaves one factor T.
        gradient = soft * temperature * gradient + hard * (tl.exp(s - s_lse) - onehot)
        # Chain rule through `scale`, then through `cap * tanh(z / cap)`, whose slope is 1 - (s / cap)^2.
        gradient = gradient * s_scale
        if S_HAS_CAP:
            gradient = gradient * (1 - (s / s_cap) * (s / s_cap))
        tl.store(s_row + start + columns, gradient, inside)

    out = out_ptr + row * NUM_COLUMNS
    tl.store(out, s_lse - s_label)
    tl.store(out + 1, value)
    tl.store(out + 2, s_lse - s_mean)
    tl.store(out + 3, t_lse - t_mean)
    tl.store(out + 4, agreement)
    tl.store(out + 5, t_lse - t_label)
