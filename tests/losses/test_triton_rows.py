import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leadspan.losses.chunked import chunked_loss
from leadspan.losses.settings import JensenShannon, LossSettings, ReverseKl
from leadspan.teacher.targets import DenseTargets


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is installed on Linux only")
def test_the_kernel_is_the_plain_row_part() -> None:
    script = Path(__file__).parent / "triton_against_plain.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) == 18
    for case, difference in differences.items():
        # logits of 1e4 have a spacing of 1e-3 in float32
        assert difference < (1e-3 if case.endswith("extreme") else 2e-5), case


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is installed on Linux only")
@pytest.mark.parametrize("is_reverse", [False, True])
def test_the_kernel_compiles_for_an_h100_where_there_is_none(is_reverse: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from leadspan.losses.triton_rows import rows_kernel

    constants = {"NUM_COLUMNS": 6, "BLOCK": 4096, "IS_REVERSE": is_reverse, "S_HAS_CAP": True, "T_HAS_CAP": False}
    types = dict.fromkeys(rows_kernel.arg_names, "fp32") | dict.fromkeys(constants, "constexpr")
    types |= {"s_ptr": "*bf16", "t_ptr": "*bf16", "label_ptr": "*i64", "hard_ptr": "*fp32", "soft_ptr": "*fp32"}
    types |= {"out_ptr": "*fp32", "s_stride": "i32", "t_stride": "i32", "num_entries": "i32"}
    source = ASTSource(
        rows_kernel, types, {(rows_kernel.arg_names.index(name),): constants[name] for name in constants}
    )
    compute_capability, threads_per_warp = 90, 32
    compiled = triton.compile(source, target=GPUTarget("cuda", compute_capability, threads_per_warp))
    assert ".target sm_90" in compiled.asm["ptx"] and compiled.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("divergence", [None, ReverseKl(), JensenShannon()])
def test_bfloat16_on_a_gpu_against_float64(divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(300, 64, generator=generator).bfloat16() for _ in range(2))
    head, teacher_head = (0.3 * torch.randn(5003, 64, generator=generator).bfloat16() for _ in range(2))
    labels, weights = torch.randint(0, 5003, (300,), generator=generator), torch.rand(300, generator=generator)
    found = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        leaves = [t.to(device, dtype).requires_grad_() for t in (hidden, head)]
        targets = DenseTargets(teacher.to(device, dtype), teacher_head.to(device, dtype))
        options = LossSettings(chunk_tokens=128) if divergence is None else LossSettings(divergence=divergence)
        value, _ = chunked_loss(*leaves, targets, labels.to(device), *(2 * [weights.to(device)]), options)
        found.append((value.cpu().double(), *(g.cpu().double() for g in torch.autograd.grad(value, leaves))))
    for exact, ours in zip(*found, strict=True):
        assert (ours - exact).norm() <= 0.01 * exact.norm()
