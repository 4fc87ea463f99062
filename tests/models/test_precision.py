"""Where a model computes in bfloat16 of itself."""

from pathlib import Path

import pytest
import torch

from leadspan.models.heads import products_of
from leadspan.models.settings import RandomInit
from leadspan.models.shapes import MIN_CPU_PARAMS, Precision, uses_bf16
from leadspan.pipeline.run import run
from recipes import toy_recipe

LLAMA = {"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 1, "tie_word_embeddings": True}
# 65,536 x 1,024 embedding, 4 x 1,024^2 of attention, 3 x 1,024 x intermediate, three norms of 1,024.
EXACT = (MIN_CPU_PARAMS - 65536 * 1024 - 4 * 1024**2 - 3 * 1024) / (3 * 1024)


def llama(intermediate_size: int) -> RandomInit:
    return RandomInit(config=LLAMA | {"vocab_size": 65536, "intermediate_size": intermediate_size})


@pytest.mark.skipif(torch.cuda.is_available(), reason="gpu: its own capability decides")
@pytest.mark.parametrize(
    ("capabilities", "precision", "is_large", "expected"),
    [
        pytest.param({"amx_bf16": True}, "auto", True, True, id="AMX, large"),
        pytest.param({"amx_bf16": True}, "auto", False, False, id="AMX, small"),
        pytest.param({"avx512_bf16": True, "amx_bf16": False}, "auto", True, True, id="AVX512-BF16, large"),
        pytest.param({"avx2": True, "amx_tile": True}, "auto", True, False, id="neither"),
        pytest.param({"amx_bf16": True}, "float32", True, False, id="turned off"),
        pytest.param({}, "bfloat16", False, True, id="asked for"),
    ],
)
def test_which_cpus_and_models(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: Precision, is_large: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert uses_bf16(precision, llama(int(EXACT) + is_large)) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="gpu: its own capability decides")
def test_this_processor_is_asked() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert uses_bf16("auto", llama(int(EXACT) + 1)) is bool({"amx_bf16", "avx512_bf16"} & set(flags))


@pytest.mark.slow
def test_a_run_in_bfloat16_trains_samples_and_says_so(tmp_path: Path) -> None:
    task = {"name": "t", "path": str(tmp_path / "traces.jsonl"), "problem": "prompt", "answer": "answer", "limit": 2}
    sampling = {"max_new_tokens": 4, "precision": "bfloat16"}
    recipe = toy_recipe(tmp_path, steps=3, precision="bfloat16", evaluation={"tasks": [task], "sampling": sampling})
    result = run(recipe)
    assert result.train is not None and result.train.precision == "bfloat16"
    assert result.evaluations[0].sampling["precision"] == "bfloat16"
    assert result.train.final_loss < result.train.first_loss


def test_bfloat16_numbers_are_multiplied_without_rounding_their_sums() -> None:
    """bfloat16 results would be off by 4e-3."""
    torch.manual_seed(0)
    left, right = torch.randn(64, 512).bfloat16(), torch.randn(512, 96).bfloat16()
    before = torch.backends.mkldnn.matmul.fp32_precision
    with products_of(torch.bfloat16):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        product = left.float() @ right.float()
    torch.testing.assert_close(product.double(), left.double() @ right.double(), rtol=1e-5, atol=1e-4)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_other_numbers_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    with products_of(dtype):
        assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
    with pytest.raises(RuntimeError), products_of(torch.bfloat16):
        raise RuntimeError
    assert torch.backends.mkldnn.matmul.fp32_precision != "bf16"
