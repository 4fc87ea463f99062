"""The precision in which a model computes on this machine where its recipe leaves that open."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from leadspan.models.settings import ModelSettings
from leadspan.models.shapes import shape_from

Precision = Literal["auto", "float32", "bfloat16"]

MIN_CPU_PARAMS = 100_000_000
"""Parameters from which a model computes in bfloat16 on a CPU. Measured with 135 million on two cores with AMX: 500
tokens per second in training, against 200 in float32; smaller models were not measured."""


def uses_bf16(precision: Precision, model: ModelSettings) -> bool:
    """Whether a model computes in bfloat16 here: as set, else where the device supports it and the model is faster.

    Training keeps float32 weights, and bfloat16 comes in by autocast; models that are only read have bfloat16 weights.

    Raises:
        ModelError: The size of the model decides, and its config cannot be read.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return cpu_has_bf16() and shape_from(model).num_params >= MIN_CPU_PARAMS


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies matrices of bfloat16: AMX-BF16, or AVX512-BF16."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16", False) or has.get("avx512_bf16", False))


@contextlib.contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Let a CPU multiply float32 matrices as what their values are: numbers of a narrower type.

    Products of bfloat16 numbers are exact in float32 and are summed in it, so nothing is rounded that would not be
    otherwise; with AVX512-BF16 they take half of the time. No operator of PyTorch has narrow factors and a wide result
    on a CPU. Does nothing for another type, or where the processor does not multiply it.
    **Source**: PyTorch, `torch.backends.mkldnn.matmul.fp32_precision`.
    """
    if dtype != torch.bfloat16:
        yield
        return
    matmul = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]  # the module is replaced
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
