"""Weights and tokenizer from a GGUF file that is written here."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from leadspan.errors import ModelError, SettingsError
from leadspan.models.loading import load_model, save_student, weights_id
from leadspan.models.reading import load_tokenizer
from leadspan.models.settings import Pretrained
from leadspan.models.shapes import shape_from
from leadspan.recipe import Recipe
from recipes import toy_recipe
from toys import TEMPLATE

HIDDEN, HEADS, INNER, LAYERS = 64, 2, 96, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", "ab", "abc"]
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN, HIDDEN),
    "attn_v": (HIDDEN, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def write(path: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32) -> dict[str, np.ndarray]:
    """A llama of random weights, whose tokenizer merges `ab` and `abc`; returns the weights."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    weights = {"token_embd.weight": random.normal(size=(len(TOKENS), HIDDEN))}
    weights |= {
        f"blk.{i}.{name}.weight": random.normal(size=shape) / 8 for i in range(LAYERS) for name, shape in SHAPES.items()
    }
    norms = ["output_norm", *(f"blk.{i}.{name}_norm" for i in range(LAYERS) for name in ("attn", "ffn"))]
    plain = {f"{name}.weight": np.ones(HIDDEN) for name in norms}
    for name, values in (weights | plain).items():
        values = values.astype(np.float32)
        own = kind if name in weights else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_student_is_dequantised_and_can_be_saved(tmp_path: Path) -> None:
    weights = write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    settings = Pretrained(path=str(tmp_path), gguf_file="tiny.gguf")
    student = load_model(settings, torch.float32)
    down = student.model.layers[1].mlp.down_proj.weight
    exact = torch.from_numpy(weights["blk.1.ffn_down.weight"]).float()
    assert down.dtype == torch.float32 and 0 < float((down - exact).detach().abs().max()) < 0.01
    tokenizer = load_tokenizer(settings.tokenizer_path)
    save_student(student, tokenizer, TEMPLATE, 2, tmp_path / "student")
    saved = load_model(Pretrained(path=str(tmp_path / "student")), torch.float32)
    assert torch.equal(saved.model.layers[1].mlp.down_proj.weight, down)
    assert load_tokenizer(str(tmp_path / "student")).get_vocab() == tokenizer.get_vocab()


def test_its_tokenizer_template_shape_and_fingerprint_are_read(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    settings = Pretrained(path=str(tmp_path), gguf_file="tiny.gguf")
    tokenizer = load_tokenizer(settings.tokenizer_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abcab")["input_ids"])[-2:] == ["abc", "ab"]
    assert (tokenizer.chat_template, tokenizer.eos_token) == (TEMPLATE, "<|im_end|>")
    shape = shape_from(settings)
    assert shape.linear_params == LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
    before = weights_id(settings)
    assert weights_id(settings.model_copy(update={"quantization": "bitsandbytes_4bit"})) != before
    write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    assert weights_id(settings) != before


@pytest.mark.slow
def test_a_frozen_teacher_says_the_same(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    settings = Pretrained(path=str(tmp_path), gguf_file="tiny.gguf")
    student, teacher = (load_model(settings, torch.float32, is_frozen=frozen) for frozen in (False, True))
    ids = torch.arange(9)[None]
    found = teacher.model(input_ids=ids, position_ids=ids, example_borders=(0, 9), use_cache=False).last_hidden_state
    expected = student.model(input_ids=ids, position_ids=ids, example_borders=(0, 9), use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "gguf_file tiny.gguf is not there", id="missing"),
        pytest.param(b"", "gguf_file tiny.gguf is not a GGUF file", id="empty"),
        pytest.param(b"{}", "gguf_file tiny.gguf is not a GGUF file", id="another file"),
        pytest.param(b"GGUF\x03\0\0\0", "model .*tiny.gguf", id="cut off"),
    ],
)
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tiny.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_model(Pretrained(path=str(tmp_path), gguf_file="tiny.gguf"), torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
def test_quantising_needs_cuda(tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf")
    load_model(Pretrained(path=str(tmp_path), gguf_file="tiny.gguf"), torch.float32).save_pretrained(tmp_path / "model")
    settings = Pretrained(path=str(tmp_path / "model"), quantization="bitsandbytes_4bit")
    with pytest.raises(ModelError, match="quantization: bitsandbytes_4bit needs a CUDA device"):
        load_model(settings, torch.float32, is_frozen=True)


def test_a_quantised_student_is_refused(tmp_path: Path) -> None:
    values = toy_recipe(tmp_path).model_dump() | {
        "student": {"kind": "pretrained", "path": "x", "quantization": "bitsandbytes_8bit"}
    }
    with pytest.raises((SettingsError, ValueError), match="quantised weights cannot be trained"):
        Recipe.model_validate(values)
