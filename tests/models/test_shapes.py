"""Published parameter counts, from configs alone: no weights are read or made."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from architectures import tiny_config
from leadspan.costs.flops import ExampleSize, forward_body, training_flops
from leadspan.errors import ModelError
from leadspan.models.loading import load_model
from leadspan.models.settings import Pretrained, RandomInit
from leadspan.models.shapes import shape_from, shape_of

QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
QWEN3_06B = QWEN3 | {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "tie_word_embeddings": True,
}
QWEN3_8B = QWEN3 | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B = QWEN3 | {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
LLAMA_31_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
GEMMA_2_2B = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "num_params", "linear_params"),
    [
        # Qwen's cards: 0.6B with 0.44B non-embedding, 8.2B with 6.95B, 30.5B; Meta's: 8.03B; Mistral's: 46.7B, of which
        # a token uses 12.9B (embedding and head included); Google's: 2.61B, 590M of them embedding
        (QWEN3_06B, 596_049_920, 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)),
        (QWEN3_8B, 8_190_735_360, 36 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288)),
        (
            QWEN3_30B_A3B,
            30_532_122_624,
            48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2048 * 128 + 8 * 3 * 2048 * 768),
        ),
        (LLAMA_31_8B, 8_030_261_248, 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)),
        (
            MIXTRAL_8X7B,
            46_702_792_704,
            32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 8 + 2 * 3 * 4096 * 14336),
        ),
        (GEMMA_2_2B, 2_614_341_888, 26 * (2 * 2304 * 2048 + 2 * 2304 * 1024 + 3 * 2304 * 9216)),
    ],
    ids=["qwen3-0.6b", "qwen3-8b", "qwen3-30b-a3b", "llama-3.1-8b", "mixtral-8x7b", "gemma-2-2b"],
)
def test_published_counts(config: dict[str, Any], num_params: int, linear_params: int) -> None:
    shape = shape_from(RandomInit(config=config))
    assert shape.num_params == num_params
    assert shape.linear_params == linear_params


def test_windows_and_tied_heads_are_read() -> None:
    gemma, llama = (shape_from(RandomInit(config=config)) for config in (GEMMA_2_2B, LLAMA_31_8B))
    assert gemma.windows == (4096, None) * 13 and gemma.is_tied
    assert llama.windows == (None,) * 32 and not llama.is_tied
    assert shape_from(RandomInit(config=QWEN3_8B)).attention_dims == (32 * 128,) * 36


def test_halving_is_linear_at_4k_and_the_teacher_is_most_of_the_bill() -> None:
    """Qwen3-8B into Qwen3-0.6B with checkpointing: half the tokens for 47 % of the FLOPs; a store saves 73 %."""
    student, teacher = (shape_from(RandomInit(config=config)) for config in (QWEN3_06B, QWEN3_8B))
    full, half = (training_flops(student, teacher, [ExampleSize(n, n)], recompute=True) for n in (4096, 2048))
    attention = (full.student_attention + full.teacher_attention) / full.total
    of_teacher = (full.teacher_body + full.teacher_attention + full.teacher_head) / full.total
    assert half.total / full.total == pytest.approx(0.466, abs=0.001)
    assert attention == pytest.approx(0.116, abs=0.001)
    assert of_teacher == pytest.approx(0.726, abs=0.001)


def test_a_config_that_is_none_is_told() -> None:
    with pytest.raises(ModelError, match="no such directory"):
        shape_from(Pretrained(path="./missing"))
    with pytest.raises(ModelError, match="model_type is missing"):
        shape_from(RandomInit(config={}))
    with pytest.raises(ModelError, match="t5 is not a causal language model"):
        shape_from(RandomInit(config={"model_type": "t5"}))


@pytest.mark.parametrize(
    ("kind", "attention_dims", "state_size"),
    [
        pytest.param("lfm2", (32,), 0, id="a convolution and attention"),
        pytest.param("qwen3_next", (32,), 4 * 8 * 8, id="a gated delta rule and attention"),
        pytest.param("granitemoehybrid", (32,), 8 * 8 * 8, id="Mamba 2 and attention"),
        pytest.param("falcon_h1", (32, 32), 2 * 8 * 8 * 8, id="both in every layer"),
        pytest.param("mamba", (), 2 * 48 * 8, id="Mamba"),
        pytest.param("minimax", (32,), 4 * 8 * 8, id="linear attention"),
        pytest.param("xlstm", (), 0, id="cells with heads of their own"),
        pytest.param("deepseek_v3", (32, 32), 0, id="latent attention"),
    ],
)
def test_layers_count_as_what_they_compute(kind: str, attention_dims: tuple[int, ...], state_size: int) -> None:
    shape = shape_from(RandomInit(config=tiny_config(kind)))
    assert (shape.attention_dims, shape.state_size) == (attention_dims, state_size)
    assert forward_body(shape, 10) == 10 * (2 * shape.linear_params + 6 * state_size)


def test_a_convolution_along_the_sequence_is_counted() -> None:
    config = tiny_config("lfm2")
    model = load_model(RandomInit(config=config), torch.float32, for_training=False)
    shape, tokens = shape_of(model), 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.set_attn_implementation("eager")
        model.model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    pairs = tokens * tokens * sum(4 * dim for dim in shape.attention_dims)
    assert forward_body(shape, tokens) + pairs == pytest.approx(counter.get_total_flops(), rel=0.01)
