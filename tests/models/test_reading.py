"""Model directories that are damaged, or that ask for code: one error each, and nothing of theirs runs."""

import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leadspan.errors import ModelError
from leadspan.models.loading import load_model, save_student
from leadspan.models.reading import load_tokenizer
from leadspan.models.settings import Pretrained, RandomInit
from leadspan.text import LogFormatter
from toys import TEMPLATE, character_tokenizer, tiny


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "sound"
    save_student(load_model(tiny(), torch.float32), character_tokenizer(), TEMPLATE, 0, directory)
    return directory


def load(directory: Path) -> None:
    """All that is read of a directory: config, weights, tokenizer."""
    load_model(Pretrained(path=str(directory)), torch.float32)
    load_tokenizer(str(directory))


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def changed(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return changed


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda directory: void(
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)
    )


def truncate(name: str, share: float) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / name, int((directory / name).stat().st_size * share))


def remove(*names: str) -> Callable[[Path], None]:
    return lambda directory: void([(directory / name).unlink() for name in names])


def weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edited(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    return edited


def special(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return made


def index(shards: Any) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))

    return made


def pickled(content: bytes) -> Callable[[Path], None]:
    def made(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        (directory / "pytorch_model.bin").write_bytes(content)

    return made


def void(_: object) -> None:
    """For lambdas."""


EMBEDDING = "model.embed_tokens.weight"
DAMAGED = {
    "config of another vocabulary": (
        change("config.json", vocab_size=5),
        r"(embed_tokens|lm_head).weight has shape \(\d+, \d+\) in its files and \(5, \d+\) by its config.json",
    ),
    "config missing": (remove("config.json"), "no config.json"),
    "config empty": (write("config.json", ""), "config.json is not valid JSON"),
    "config truncated": (truncate("config.json", 0.5), "config.json is not valid JSON"),
    "config of bytes": (write("config.json", bytes(range(128, 256))), "config.json is not valid JSON"),
    "config a list": (write("config.json", "[]"), "config.json holds a list"),
    "config null": (write("config.json", "null"), "config.json holds null"),
    "config nested": (write("config.json", '{"a":' * 100_000), "config.json is nested too deeply|no valid JSON"),
    "config of digits": (write("config.json", f'{{"vocab_size": {"9" * 5000}}}'), "config.json is not valid JSON"),
    "config without type": (write("config.json", "{}"), "model_type"),
    "type unknown": (change("config.json", model_type="qwen33"), "qwen33"),
    "type a number": (change("config.json", model_type=3), "model .*: "),
    "config a pipe": (special("config.json", os.mkfifo), "config.json is not a regular file"),
    "hidden size text": (change("config.json", hidden_size="32"), "hidden_size"),
    "hidden size null": (change("config.json", hidden_size=None), "hidden_size"),
    "hidden size negative": (change("config.json", hidden_size=-32), "model .*: "),
    "hidden size 0": (change("config.json", hidden_size=0), "model .*: "),
    "heads 0": (change("config.json", num_attention_heads=0), "model .*: "),
    "heads do not divide": (change("config.json", num_key_value_heads=3), "model .*: "),
    "layers without end": (change("config.json", num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    "no encoder": (change("config.json", is_encoder_decoder=True), "has no encoder"),
    "no vocabulary": (change("config.json", vocab_size=0), "vocab_size = 0 is below 1"),
    "no positions": (change("config.json", max_position_embeddings=-1), "max_position_embeddings = -1 is below 1"),
    "more layers than weights": (change("config.json", num_hidden_layers=9_999, layer_types=None), "9999 layers"),
    "one layer more": (change("config.json", num_hidden_layers=3, layer_types=None), "lack .* weights"),
    "vocabulary beyond memory": (change("config.json", vocab_size=10**12), "GB of memory"),
    "activation unknown": (change("config.json", hidden_act="none such"), "none such"),
    "type of weights unknown": (change("config.json", dtype="float33"), "float33"),
    "rope a list": (change("config.json", rope_parameters=[1]), "model .*: "),
    "rope of a kind unknown": (change("config.json", rope_parameters={"rope_type": "none such"}), "none such"),
    "layer types too few": (change("config.json", layer_types=["full_attention"]), "model .*: "),
    "layer types unknown": (change("config.json", layer_types=["none such"] * 2), "layer_types"),
    "no causal model": (write("config.json", '{"model_type": "vit"}'), "vit is not a causal language model"),
    "quantised by a library that is not there": (
        change("config.json", quantization_config={"quant_method": "none such"}),
        "quant_method 'none such' is none of",
    ),
    "quantised, a list": (change("config.json", quantization_config=[4]), "model .*: "),
    "generation config empty": (write("generation_config.json", ""), "generation_config.json is not valid JSON"),
    "generation config a list": (write("generation_config.json", "[1]"), "generation_config.json holds a list"),
    "weights missing": (remove("model.safetensors"), "model .*: "),
    "weights empty": (truncate("model.safetensors", 0), "model.safetensors is damaged"),
    "weights truncated": (truncate("model.safetensors", 0.7), "model.safetensors is damaged"),
    "weights of a header without end": (write("model.safetensors", b"\xff" * 64), "model.safetensors is damaged"),
    "weights a directory": (
        special("model.safetensors", Path.mkdir),
        "model.safetensors is not a regular file",
    ),
    "weights of another shape": (weights(lambda w: w.update({EMBEDDING: w[EMBEDDING][:, :8].clone()})), "model .*: "),
    "weights lack a tensor": (weights(lambda w: void(w.pop("model.norm.weight"))), "lack 1 weights .* model.norm"),
    "weights of another model": (weights(lambda w: w.clear() or w.update(x=torch.zeros(2))), "model .*: "),
    "index of absent files": (index({EMBEDDING: "model-00002-of-00002.safetensors"}), "00002.safetensors, which"),
    "index a list": (index(["a"]), "no weight_map"),
    "index of numbers": (index({EMBEDDING: 5}), "no weight_map"),
    "index truncated": (write("model.safetensors.index.json", '{"weight_map": {'), "index.json is not valid JSON"),
    "pickle empty": (pickled(b""), "model .*: "),
    "pickle of text": (pickled(b"no pickle at all"), "model .*: "),
    "tokenizer missing": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "tokenizer .*: holds no tokenizer .no tokenizer.json.; name one that does",
    ),
    "tokenizer empty": (write("tokenizer.json", ""), "tokenizer .*: "),
    "tokenizer truncated": (truncate("tokenizer.json", 0.6), "tokenizer .*: "),
    "tokenizer a list": (write("tokenizer.json", "[]"), "tokenizer .*: "),
    "tokenizer an object": (write("tokenizer.json", "{}"), "tokenizer .*: "),
    "tokenizer of another model type": (change("tokenizer.json", model={"type": "none such"}), "tokenizer .*: "),
    "tokenizer without entries": (
        change("tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "?"}, added_tokens=3),
        "tokenizer .*: ",
    ),
    "tokenizer config a list": (write("tokenizer_config.json", "[]"), "tokenizer_config.json holds a list"),
    "tokenizer config truncated": (truncate("tokenizer_config.json", 0.5), "tokenizer_config.json is not valid JSON"),
    "tokenizer class unknown": (change("tokenizer_config.json", tokenizer_class=7), "tokenizer .*: "),
    "special token a number": (change("tokenizer_config.json", eos_token=7), "tokenizer .*: "),
    "length no number": (change("tokenizer_config.json", model_max_length="x"), "max_length = .x. is not a number"),
    "added token of a text id": (
        change("tokenizer_config.json", added_tokens_decoder={"x": {"content": "a"}}),
        "tokenizer .*: ",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_directory_is_one_error(name: str, sound: Path, tmp_path: Path) -> None:
    damage, message = DAMAGED[name]
    directory = tmp_path / "model"
    shutil.copytree(sound, directory)
    damage(directory)
    with pytest.raises(ModelError, match=message) as error:
        load(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def test_names_of_tensors_reach_no_terminal_as_they_are(
    sound: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, said = tmp_path / "model", io.StringIO()
    shutil.copytree(sound, directory)
    weights(lambda tensors: tensors.update({"\x1b]0;title\x07": torch.zeros(1)}))(directory)
    listener = logging.StreamHandler(said)
    logging.getLogger("transformers").addHandler(listener)
    try:
        load(directory)
    finally:
        logging.getLogger("transformers").removeHandler(listener)
    assert said.getvalue() == ""
    [record] = [record for record in caplog.records if record.name == "leadspan.models.loading"]
    assert (
        LogFormatter()
        .format(record)
        .endswith(
            "1 tensors of its files are not used, \N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER} among them"
        )
    )


class MakesDirectory:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_nothing(sound: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(sound, directory)
    (directory / "model.safetensors").unlink()
    torch.save(MakesDirectory(tmp_path / "ran"), directory / "pytorch_model.bin")
    message = "its pickled weights hold something other than tensors, and leadspan never runs code"
    with pytest.raises(ModelError, match=message) as error:
        load(directory)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "ran").exists()


CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Config: pass\nclass Model: pass\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("answer", ["y\n", ""])
def test_code_of_a_directory_is_refused_without_a_question(
    file: str, answer: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(sound, directory)
    (directory / "custom.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    if file == "config.json":
        change(file, model_type="own", auto_map=auto_map)(directory)
    else:
        change(file, tokenizer_class=None, auto_map={"AutoTokenizer": ["custom.Config", None]})(directory)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    with pytest.raises(ModelError, match=rf"auto_map in {file} asks for code .* leadspan never runs code"):
        load(directory)
    assert not marker.exists() and sys.stdin.read() == answer


def test_a_known_architecture_is_loaded_without_the_code_beside_it(sound: Path, tmp_path: Path) -> None:
    directory, marker = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(sound, directory)
    (directory / "custom.py").write_text(CODE.format(marker=str(marker)))
    change("config.json", auto_map={"AutoModelForCausalLM": "custom.Model"})(directory)
    load(directory)
    assert not marker.exists()


BAD_CONFIGS = {
    "vocabulary below the pad id": (
        {"model_type": "phi3", "vocab_size": 88},
        r"\(phi3\): Assertion",
    ),
    "unknown field type": ({**tiny().config, "hidden_size": "wide"}, "hidden_size"),
    "layers without end": ({**tiny().config, "num_hidden_layers": 10**8}, "num_hidden_layers = 100000000 is above"),
    "experts without end": ({"model_type": "qwen3_moe", "num_experts": 10**8}, "num_experts = 100000000 is above"),
    "beyond memory": ({**tiny().config, "hidden_size": 10**9}, "GB of memory"),
    "integer beyond floats": ({**tiny().config, "x": [{"y": 10**400}]}, "y = a huge integer has more than 64 bits"),
    "dropout above 1": ({**tiny().config, "attention_dropout": 1.5}, r"attention_dropout = 1\.5 is not a probability"),
    "dropout no number": ({**tiny().config, "attention_dropout": float("nan")}, "nan is not a probability"),
    "attention of a repository": (
        {**tiny().config, "attn_implementation": "owner/kernel"},
        "attn_implementation = 'owner/kernel' asks for code of a repository, and leadspan never runs code",
    ),
    "attention of a repository for a part": (
        {**tiny().config, "text_config": {"_attn_implementation": "owner/kernel:f"}},
        "_attn_implementation = 'owner/kernel:f' asks for code of a repository",
    ),
    "no causal model": ({"model_type": "vit"}, "vit is not a causal language model"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_config_that_cannot_be_is_one_error(name: str) -> None:
    config, message = BAD_CONFIGS[name]
    with pytest.raises(ModelError, match=message) as error:
        load_model(RandomInit(config=config), torch.float32)
    assert "\n" not in str(error.value)


def test_a_directory_of_gguf_files_alone_says_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=rf"tokenizer .*: it holds GGUF files alone; give {tmp_path}/m.gguf"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match=r"model .*: it holds GGUF files alone; set gguf_file: m\.gguf"):
        load_model(Pretrained(path=str(tmp_path)), torch.float32)
