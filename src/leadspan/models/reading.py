"""What is read of a directory in Hugging Face form without its weights: checks of its files, and its tokenizer.

The checks come before a library reads the files: no code of such a directory runs, and a fault in it is one error that
names the file. Apart from `loading`, which imports Transformers' models: that takes two seconds, and data are prepared
without a model.
"""

import contextlib
import importlib.util
import json
import pickle
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils import logging as transformers_logging

from leadspan.errors import LeadspanError, ModelError
from leadspan.files import DIGESTS_FILE, fault
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.text import shortened

_SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_SETTINGS_FILES += ("added_tokens.json", "adapter_config.json")
_SETTINGS_FILES += ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_OTHER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
_TOKENIZER_PATTERNS = ("*token*", "vocab*", "*.model", "tekken.json")
_NO_CODE = "leadspan never runs code from a model"
_NEVER = f"{_NO_CODE}; give one whose architecture Transformers has"
_MAX_SETTINGS_BYTES = 32 << 20  # the index of a model of 500,000 tensors
_MAX_TOKENIZER_BYTES = 512 << 20  # ten times the largest known
_MAX_MODULES = 10_000  # layers or experts; each takes milliseconds to build, even without weights
_AT_LEAST_ONE = ("vocab_size", "hidden_size", "max_position_embeddings")


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error that a library raises over a file or a config into one error.

    Libraries that read model files raise whatever the first wrong value happens to break: assertions, attribute and
    index errors, errors of recursion, and panics of Rust, which are not an `Exception`. Warnings of Transformers
    are not shown, since they quote the files unchecked.

    Args:
        what: Begins the message, e.g. `model PATH`.

    Raises:
        ModelError: In place of any other error but those of leadspan and an interruption.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except (LeadspanError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{what}: {reason(error)}") from None
    finally:
        transformers_logging.set_verbosity(before)


def reason(error: BaseException) -> str:
    """The message of another library's error in one line, with its type where the words alone say little."""
    if "trust_remote_code" in str(error):  # of a Hub model, whose files are looked over by Transformers alone
        return f"auto_map asks for code that comes with it, and {_NEVER}"
    if isinstance(error, pickle.UnpicklingError):  # torch recommends to load it with its code
        return f"its pickled weights hold something other than tensors, and {_NO_CODE}; save them as safetensors"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # Some messages begin with a line such as "Errors:", and the second line says which.
    line = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    line = " ".join(lines) if line.startswith("(1)") else line  # Transformers lists what a tokenizer may be made from
    line = shortened(line, 303)
    if isinstance(error, OSError | ValueError) and " " in line:
        return line
    return f"{type(error).__name__} ({line})" if line else f"{type(error).__name__} while Transformers read it"


def check_directory(path: str, role: str, gguf_file: str | None = None) -> None:
    """Check a directory: it exists, its files are regular, JSON files parse, and none asks for code of its own.

    A path that is not a directory may be a Hub name, `owner/name`, and is left to Transformers.

    Args:
        path: Directory or Hub name.
        role: What it is read as, for messages: `model` or `tokenizer`.
        gguf_file: A file in it that is read in place of all others, or None.

    Raises:
        ModelError: Names the file and what is wrong with it.
    """
    directory, what = Path(path), f"{role} {path}"
    # A Hub name has one slash at most.
    if not (path.count("/") > 1 or path.startswith((".", "/", "~")) or directory.exists()):
        return
    if not directory.is_dir():
        raise ModelError(f"{what}: no such directory; give a directory in Hugging Face form, or a Hub name")
    check_written(directory, _SETTINGS_FILES + _OTHER_FILES, what)
    if gguf_file is not None:
        _check_gguf(directory / gguf_file, what)
        return
    if (ggufs := sorted(directory.glob("*.gguf"))) and not any(directory.glob("*.json")):
        remedy = f"set gguf_file: {ggufs[0].name}" if role == "model" else f"give {ggufs[0]}"
        raise ModelError(f"{what}: it holds GGUF files alone; {remedy}")
    if role == "tokenizer" and not any(next(directory.glob(pattern), None) for pattern in _TOKENIZER_PATTERNS):
        raise ModelError(
            f"{what}: holds no tokenizer (no tokenizer.json); name one that does, in a recipe as `tokenizer`"
        )
    with reading(what):
        for name in _OTHER_FILES:
            _size_of(directory / name, what, _MAX_TOKENIZER_BYTES)
        for name in _SETTINGS_FILES:
            values, is_config = read_json_object(directory / name, what), (name, role) == ("config.json", "model")
            if values is None and is_config:
                raise ModelError(f"{what}: it has no config.json; give a directory in Hugging Face form")
            if values is None or not (is_config or name == "tokenizer_config.json"):
                continue
            kind = values.get("model_type" if is_config else "tokenizer_class")
            # Where Transformers has the class too, that one is used, and the code stays unread.
            has_class = isinstance(kind, str) and (
                kind in CONFIG_MAPPING if is_config else tokenizer_class_from_name(kind)
            )
            if "auto_map" in values and not has_class:
                asked = f"code that comes with it ({values['auto_map']})"
                raise ModelError(f"{what}: auto_map in {name} asks for {asked}, and {_NEVER}")
            if is_config:
                check_values(values, f"{what}: {name}")


def check_written(directory: Path, names: Iterable[str], what: str) -> None:
    """Compare the files of a student that leadspan has written with their digests.

    Raises:
        ModelError: One is missing or damaged.
    """
    wrong = fault(directory, names)
    if wrong:
        raise ModelError(
            f"{what}: {wrong}; `leadspan distill` with --resume writes the student of a run again; if it was changed "
            f"on purpose, remove {DIGESTS_FILE}"
        )


def read_json_object(path: Path, what: str) -> dict[str, Any] | None:
    """The object of a small JSON file, or None where there is no such file.

    Raises:
        ModelError: It is not a regular file, too large, or not a JSON object.
    """
    if _size_of(path, what, _MAX_SETTINGS_BYTES) is None:
        return None
    remedy = "save or download it again"
    try:
        values = json.loads(path.read_bytes())
    except RecursionError:
        raise ModelError(f"{what}: {path.name} is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise ModelError(f"{what}: {path.name} is not valid JSON ({reason(error)}); {remedy}") from None
    if not isinstance(values, dict):
        kinds = {list: "a list", str: "text", int: "a number", float: "a number", bool: "a truth value"}
        kind = kinds.get(type(values), "null")
        raise ModelError(f"{what}: {path.name} holds {kind}, not an object of settings; {remedy}")
    return values


def check_values(values: dict[str, Any], what: str) -> None:
    """Refuse values that no model has, at any depth of a config, before a library reads them.

    They are counts of layers and experts that no machine could build, sizes below one, integers that no float holds,
    dropout that is not a probability, and implementations that a repository would bring.

    Raises:
        ModelError: Names the field and its value.
    """
    for name, value in values.items():
        for inner in value if isinstance(value, list) else (value,):
            if isinstance(inner, dict):
                check_values(inner, what)
            elif (wrong := _wrong(name, inner)) is not None:
                shown = repr(inner) if not isinstance(inner, int) or inner.bit_length() <= 64 else "a huge integer"
                raise ModelError(f"{what}: {name} = {shown} {wrong}")


def _wrong(name: str, value: Any) -> str | None:  # Any: a plain value of JSON
    """What is wrong with one value of a config."""
    if isinstance(value, str):
        is_foreign = name.endswith("_implementation") and "/" in value
        return f"asks for code of a repository, and {_NO_CODE}; leave it out" if is_foreign else None
    if not isinstance(value, int | float) or isinstance(value, bool):  # True is an int to Python
        return None
    if isinstance(value, int) and value.bit_length() > 64:
        return "has more than 64 bits; no model has such a value"
    if name.endswith(("dropout", "dropout_prob", "dropout_rate", "pdrop")) and not 0 <= value <= 1:
        return "is not a probability; give one from 0 to 1"
    counts_modules = "layer" in name or "expert" in name or "block" in name
    if counts_modules and isinstance(value, int) and value > _MAX_MODULES:
        return f"is above {_MAX_MODULES}; no model has so many"
    return "is below 1; no model has so few" if name in _AT_LEAST_ONE and value < 1 else None


def count_tensors(directory: Path, what: str) -> int | None:
    """How many tensors the safetensors files of a directory hold, by their headers; None where it has no such file.

    Raises:
        ModelError: A header cannot be read, or the index names a file that is not there.
    """
    index = read_json_object(directory / "model.safetensors.index.json", what)
    if index is None:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
    else:
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{what}: model.safetensors.index.json has no weight_map of tensor names to files")
        names = sorted(set(shards.values()))
    tensors: set[str] = set()
    for name in names:
        if _size_of(directory / name, what) is None:
            raise ModelError(
                f"{what}: {name}, which model.safetensors.index.json names, is not there; download it again"
            )
        with reading(f"{what}: {name} is damaged"), safe_open(directory / name, framework="pt") as file:
            tensors.update(file.keys())
    return len(tensors) if names else None


def _check_gguf(file: Path, what: str) -> None:
    """Refuse a file that is not in GGUF form, before a library maps it into memory."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{what}: gguf_file {file.name} needs the package gguf; pip install 'leadspan[gguf]'")
    if _size_of(file, what) is None:
        raise ModelError(f"{what}: gguf_file {file.name} is not there; give the name of a file in it")
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise ModelError(f"{what}: gguf_file {file.name} is not a GGUF file; download it again")


def _size_of(path: Path, what: str, most: int | None = None) -> int | None:
    """Bytes of a regular file, or None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelError(f"{what}: {path.name} is a link to a file that is not there; download it again") from None
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{what}: {path.name} is not a regular file; give a directory in Hugging Face form")
    if most is not None and status.st_size > most:
        raise ModelError(f"{what}: {path.name} has {status.st_size} bytes, above {most}; save or download it again")
    return status.st_size


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory, Hub name, or GGUF file in either.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    directory, file = path, None
    if path.endswith(".gguf"):
        directory, _, name = path.rpartition("/")
        file = None if (Path(directory) / "tokenizer.json").exists() else name
    check_directory(directory, "tokenizer", file)
    options = {} if file is None else {"gguf_file": file}
    with reading(f"tokenizer {path}"):
        tokenizer = AutoTokenizer.from_pretrained(directory, revision=revision, trust_remote_code=False, **options)
    if not isinstance(tokenizer.model_max_length, int | float):
        shown = repr(tokenizer.model_max_length)[:60]
        raise ModelError(
            f"tokenizer {path}: tokenizer_config.json: model_max_length = {shown} is not a number; leave it out"
        )
    if file is not None:
        return tokenizer
    files = {*tokenizer.vocab_files_names.values(), "tekken.json"}
    if Path(directory).is_dir() and not any((Path(directory) / name).exists() for name in files):
        raise ModelError(f"tokenizer {path}: it has none of {', '.join(sorted(files))}; give a tokenizer's directory")
    return tokenizer


def load_own_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a model comes with; None for one that is built from a config.

    Raises:
        ModelError: It cannot be read.
    """
    return load_tokenizer(settings.tokenizer_path, settings.revision) if isinstance(settings, Pretrained) else None


def check_vocabulary(
    data: PreTrainedTokenizerBase, role: str, own_tokenizer: PreTrainedTokenizerBase | None, num_rows: int | None
) -> None:
    """Check that every token id means the same to a model and the data, and that the model's head has a row for it.

    Args:
        data: Tokenizer that renders the data.
        role: What the model is, for messages: `student` or `teacher`.
        own_tokenizer: The model's own tokenizer, or None when it has none.
        num_rows: Rows of the model's head; None where they are not known.

    Raises:
        ModelError: Names the first token that differs, or the head that is too small.
    """
    ours = data.get_vocab()
    needed = max(ours.values()) + 1  # ids may have gaps, so the number of tokens is not enough
    if num_rows is not None and num_rows < needed:
        raise ModelError(
            f"{role}: its head has {num_rows} rows, the tokenizer {needed} token ids; "
            "take the tokenizer that belongs to the models, or resize the embeddings"
        )
    theirs = ours if own_tokenizer is None else own_tokenizer.get_vocab()
    if theirs == ours:
        return
    # The model may know more tokens than the data: only those of the data must agree.
    by_id = {index: token for token, index in theirs.items()}
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if by_id.get(index) != token:
            raise ModelError(
                f"the {role}'s vocabulary is not that of the data: token id {index} is {token!r} in the data and "
                f"{by_id.get(index)!r} for the {role}; models distilled over the vocabulary need one tokenizer"
            )
