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
