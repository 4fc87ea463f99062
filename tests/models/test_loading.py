import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from architectures import tiny_config
from leadspan.errors import ModelError, SettingsError
from leadspan.models.loading import load_model, save_student, weights_hash
from leadspan.models.reading import check_vocabulary, load_tokenizer
from leadspan.models.settings import Pretrained, RandomInit, pretrained_at
from leadspan.models.shapes import shape_of
from leadspan.settings import validate
from toys import ALPHABET, SPECIALS, TEMPLATE, VOCAB, character_tokenizer, tiny


def test_random_init_depends_on_its_seed_only() -> None:
    torch.manual_seed(5)
    first = weights_hash(load_model(tiny(seed=1), torch.float32))
    torch.manual_seed(6)
    assert weights_hash(load_model(tiny(seed=1), torch.float32)) == first
    assert weights_hash(load_model(tiny(seed=2), torch.float32)) != first


def test_a_weight_without_a_dimension_is_part_of_the_hash() -> None:
    model = load_model(RandomInit(config=tiny_config("apertus")), torch.float32)
    before = weights_hash(model)
    next(tensor for tensor in model.state_dict().values() if tensor.dim() == 0).add_(1)
    assert weights_hash(model) != before


def test_a_saved_student_loads_and_stops(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # as base checkpoints have it
    model = load_model(tiny(), torch.float32)
    save_student(model, tokenizer, TEMPLATE, SPECIALS.index("<|im_end|>"), tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert loaded.generation_config.eos_token_id == [
        SPECIALS.index("<|im_end|>"),
        SPECIALS.index("<|endoftext|>"),
    ]
    assert weights_hash(loaded) == weights_hash(model)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").chat_template == TEMPLATE
    ours = load_model(Pretrained(path=str(tmp_path / "student")), torch.float32)
    assert weights_hash(ours) == weights_hash(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"hidden_size": 8}, "model_type is missing", id="no type"),
        pytest.param({"model_type": "qwen33"}, r"random_init.config \(qwen33\)", id="unknown type"),
    ],
)
def test_wrong_configs_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(RandomInit(config=config), torch.float32)


@register_quantization_config("narrow")
class NarrowConfig(QuantizationConfigMixin):
    def __init__(self, **values: object):
        self.quant_method = "narrow"


@register_quantizer("narrow")
class NarrowWeights(HfQuantizer):
    """A method whose weights stay as they are in the files."""

    requires_calibration = False
    is_trainable = False

    def is_serializable(self) -> bool:
        return True


def test_quantised_weights_are_read_and_not_trained(tmp_path: Path) -> None:
    load_model(tiny(), torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "narrow"}}))
    settings = Pretrained(path=str(tmp_path))
    load_model(settings, torch.float32, is_frozen=True)
    load_model(settings, torch.float32, for_training=False)
    with pytest.raises(ModelError, match="its files hold quantised weights, which cannot be trained"):
        load_model(settings, torch.float32)


def test_missing_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"model {tmp_path}/none"):
        load_model(Pretrained(path=f"{tmp_path}/none"), torch.float32)
    with pytest.raises(ModelError, match=f"tokenizer {tmp_path}/none"):
        load_tokenizer(f"{tmp_path}/none")


def test_a_model_that_transforms_its_logits_in_its_own_way_is_refused() -> None:
    config = {**tiny().config, "model_type": "hyperclovax", "logits_scaling": 4.0}  # multiplies where Granite divides
    with pytest.raises(ModelError, match="its logits are not those of its hidden states and head"):
        load_model(RandomInit(config=config), torch.float32)


@pytest.mark.parametrize("seed", [2**64, -(2**64)])
def test_a_seed_that_torch_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(SettingsError, match="seed"):
        validate(RandomInit, {"config": {"model_type": "qwen3"}, "seed": seed}, "student")


def test_of_several_gguf_files_none_is_taken_unasked(tmp_path: Path) -> None:
    (tmp_path / "a-Q4.gguf").touch()
    assert pretrained_at(str(tmp_path)).gguf_file == "a-Q4.gguf"
    (tmp_path / "a-Q8.gguf").touch()
    with pytest.raises(ModelError, match=r"it has 2 GGUF files, a-Q4\.gguf, a-Q8\.gguf; name one, as .*/a-Q4\.gguf"):
        pretrained_at(str(tmp_path))
    assert pretrained_at(str(tmp_path / "a-Q8.gguf")).gguf_file == "a-Q8.gguf"


def test_vocabularies() -> None:
    ours = character_tokenizer()
    check_vocabulary(ours, "student", None, VOCAB)
    check_vocabulary(ours, "teacher", character_tokenizer(), VOCAB + 5)
    with pytest.raises(ModelError, match=rf"teacher: its head has 10 rows, the tokenizer {VOCAB} token ids"):
        check_vocabulary(ours, "teacher", None, 10)
    other = character_tokenizer()
    backend = other.backend_tokenizer.to_str().replace('"a":5', '"a":6').replace('"b":6', '"b":5')
    other = type(other)(tokenizer_object=type(other.backend_tokenizer).from_str(backend))
    for role in ("student", "teacher"):
        with pytest.raises(ModelError, match=f"token id 5 is 'a' in the data and 'b' for the {role}"):
            check_vocabulary(ours, role, other, VOCAB)
    assert ALPHABET[0] == "a"


def test_shape_counts_the_weights_of_linear_layers() -> None:
    shape = shape_of(load_model(tiny(), torch.float32))
    per_layer = 32 * (4 * 8) + 2 * 32 * (2 * 8) + (4 * 8) * 32 + 3 * 32 * 64
    assert shape.linear_params == 2 * per_layer
    assert shape.attention_dims == (32, 32) and shape.windows == (None, None)
    assert (shape.hidden_size, shape.vocab_size) == (32, VOCAB)


def test_a_mixture_counts_the_routed_experts_only() -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    settings = RandomInit(config={**tiny().config, **moe, "model_type": "qwen3_moe"})
    shape = shape_of(load_model(settings, torch.float32))
    attention = 32 * (4 * 8) + 2 * 32 * (2 * 8) + (4 * 8) * 32
    router, experts = 32 * 4, 2 * 3 * 32 * 16
    assert shape.linear_params in (2 * (attention + experts), 2 * (attention + router + experts))
