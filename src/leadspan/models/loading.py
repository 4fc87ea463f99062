"""Causal language models: loading, checks, the identity of their weights, and writing a student back."""

import contextlib
import copy
import functools
import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from leadspan.errors import ModelError
from leadspan.files import file_hash
from leadspan.models.layout import settle_layout
from leadspan.models.reading import check_directory, check_values, check_written, count_tensors, reading
from leadspan.models.settings import ModelSettings, Pretrained, RandomInit

logger = logging.getLogger(__name__)

_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


def load_model(
    settings: ModelSettings, dtype: torch.dtype, for_training: bool = True, is_frozen: bool = False
) -> PreTrainedModel:
    """A causal language model.

    Args:
        settings: Where it comes from.
        dtype: Type of its weights.
        is_frozen: A teacher, whose weights may stay packed.
        for_training: Settle how packed rows go through it; else leave Transformers' default attention, for generation.

    Raises:
        ModelError: It cannot be read, is not a causal language model, computes logits that the loss does not know, or
            is to be trained and has quantised weights.
    """
    if isinstance(settings, RandomInit):
        config = load_config(settings)
        _check_fit(config, settings, dtype)
        # The global generator stays as it is: whether a model is built here must not change later draws.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_untrained(config, _title(settings), dtype=dtype)
    else:
        model = _read(settings, dtype, is_frozen)
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0  # RWKV halves its weights in evaluation, against overflow of float16 alone
    if for_training and not is_frozen and getattr(model, "is_quantized", False):
        raise ModelError(
            f"{_title(settings)}: its files hold quantised weights, which cannot be trained; give the weights before "
            "they were quantised"
        )
    if for_training:
        settle_layout(model, settings.attention, _title(settings))
    return model


def name_of(settings: ModelSettings) -> str:
    """Name of a model in messages and results."""
    if isinstance(settings, Pretrained):
        return settings.path
    return f"random {settings.config.get('model_type', 'model')} (seed {settings.seed})"


def _title(settings: ModelSettings) -> str:
    """Name of a model at the beginning of an error message."""
    if isinstance(settings, Pretrained):
        return f"model {settings.path}"
    return f"random_init.config ({settings.config.get('model_type')})"


def save_student(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str, stop_token_id: int, directory: Path
) -> None:
    """Write a model in Hugging Face form, ready to load, with a generation config that makes it stop.

    The tokenizer carries the chat template it was trained with; the generation config names *all* end-of-turn ids,
    since the one of the chat template is missing from base checkpoints, whose students would otherwise never stop.
    """
    configured = model.generation_config.eos_token_id if model.generation_config else None
    before = configured if isinstance(configured, list) else [configured]
    stops = dict.fromkeys(i for i in (stop_token_id, tokenizer.eos_token_id, *before) if i is not None)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=list(stops), pad_token_id=pad
    )
    tokenizer.chat_template = template
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over names, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Flat first: a tensor without a dimension has no view as bytes.
        digest.update(tensor.detach().reshape(-1).cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def weights_id(settings: ModelSettings) -> str:
    """SHA-256 over a model's config and weight files, in pieces; of random weights over their config and seed.

    Raises:
        ModelError: A Hub model is not in the local cache, or a directory has no weights.
    """
    digest = hashlib.sha256()
    if isinstance(settings, RandomInit):
        digest.update(settings.model_dump_json(include={"config", "seed"}).encode())
        return digest.hexdigest()[:32]
    directory = Path(settings.path)
    if not directory.is_dir():
        try:
            directory = Path(snapshot_download(settings.path, revision=settings.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
            raise ModelError(
                f"model {settings.path}: not in the local cache, so its weights cannot be compared with those of a "
                "store; download it, or leave the teacher out of a recipe that trains from a store"
            ) from None
    if settings.gguf_file is not None:
        files = [directory / settings.gguf_file]
    else:
        weights = sorted(path for pattern in _WEIGHT_FILES for path in directory.glob(pattern))
        files = [directory / "config.json", *weights] if weights else []
    if not files or not files[-1].is_file():
        names = settings.gguf_file or " or ".join(_WEIGHT_FILES)
        raise ModelError(f"model {settings.path}: no {names} in {directory}; give a model's directory")
    if settings.quantization is not None:
        digest.update(f"{settings.quantization};".encode())
    # Names without directories: a model is the same in any directory.
    for path in files:
        digest.update(f"{path.name} {file_hash(path)};".encode())
    return digest.hexdigest()[:32]


def content_id(settings: ModelSettings) -> str:
    """`weights_id` for any model that can be loaded: one on the Hub, which may not be downloaded yet, has its commit.

    Raises:
        ModelError: It cannot be read.
    """
    if not isinstance(settings, RandomInit) and not Path(settings.path).is_dir():
        return f"{settings.path}@{load_config(settings)._commit_hash}"
    return weights_id(settings)


def load_end_ids(settings: ModelSettings) -> list[int]:
    """Tokens with which a model ends a turn, by its generation config or else its config; no weights are read.

    Raises:
        ModelError: The config cannot be read.
    """
    config = load_config(settings)
    with reading(f"model {name_of(settings)}"):
        if isinstance(settings, Pretrained):
            with contextlib.suppress(OSError):  # there is none, as with many base models
                return end_ids_of(GenerationConfig.from_pretrained(settings.path, revision=settings.revision or "main"))
        return end_ids_of(GenerationConfig.from_model_config(config))


def end_ids_of(config: GenerationConfig | None) -> list[int]:
    """Tokens with which a model ends a turn, by its generation config, ascending."""
    end_ids = None if config is None else config.eos_token_id
    id_list = end_ids if isinstance(end_ids, list) else [end_ids]
    # A config may hold one id, a list, or None, alone or within the list.
    return sorted({token for token in id_list if isinstance(token, int)})


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """The Transformers config of a model; no weights are read.

    Raises:
        ModelError: It cannot be read, or its values are refused.
    """
    if isinstance(settings, Pretrained):
        name = f"model {settings.path}"
        check_directory(settings.path, "model", settings.gguf_file)
        if settings.gguf_file is not None:
            file = Path(settings.path) / settings.gguf_file
            # Part of the key of the cache; copied, since callers change a config.
            changed = file.stat().st_mtime_ns if file.exists() else 0
            config = copy.deepcopy(_gguf_config(settings.path, settings.gguf_file, settings.revision, changed))
        else:
            with reading(name):
                config = AutoConfig.from_pretrained(settings.path, revision=settings.revision, trust_remote_code=False)
    else:
        name, values = "random_init.config", dict(settings.config)
        kind = values.pop("model_type", None)
        if kind is None:
            raise ModelError(f"{name}: model_type is missing; name a Transformers architecture, e.g. qwen3")
        check_values(values, name)
        with reading(f"{name} ({kind})"):
            config = AutoConfig.for_model(kind, **values)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{name}: model_type {config.model_type} is not a causal language model of Transformers")
    if config.is_encoder_decoder and not hasattr(config, "decoder_layers"):  # the decoder of Bart and its like loads
        raise ModelError(f"{name}: is_encoder_decoder is true, and {config.model_type} has no encoder; leave it out")
    quantised = getattr(config, "quantization_config", None) or {}
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
    if method is not None and method not in AUTO_QUANTIZER_MAPPING:
        raise ModelError(
            f"{name}: quantization_config.quant_method {method!r} is none of {sorted(AUTO_QUANTIZER_MAPPING)}"
        )
    return config


@functools.lru_cache(maxsize=8)
def _gguf_config(path: str, file: str, revision: str | None, changed: int) -> PreTrainedConfig:
    """The config in a GGUF file, kept as long as the file does not change: its header takes seconds to read."""
    with reading(f"model {path}, {file}"):
        return AutoConfig.from_pretrained(path, revision=revision, gguf_file=file, trust_remote_code=False)


def build_untrained(config: PreTrainedConfig, name: str, **options: Any) -> PreTrainedModel:
    """A model of a config, on the device (or in the tensor mode) at hand; `options` go to `from_config`.

    Raises:
        ModelError: The config's values do not fit each other, or are those of no causal language model.
    """
    with reading(name):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def _read(settings: Pretrained, dtype: torch.dtype, is_frozen: bool) -> PreTrainedModel:
    name, config = _title(settings), load_config(settings)
    weights = Path(settings.path).glob("*.safetensors")
    check_written(Path(settings.path), (path.name for path in weights), name)
    options = _quantized(settings, dtype, is_frozen)
    num_tensors = count_tensors(Path(settings.path), name) if settings.gguf_file is None else None
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if num_tensors is not None and layers > num_tensors:
        raise ModelError(f"{name}: config.json has {layers} layers, and the weights {num_tensors} tensors in all")
    _check_fit(config, settings, dtype)
    with reading(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            settings.path,
            revision=settings.revision,
            dtype=dtype,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    if settings.gguf_file is not None and not is_frozen:
        vars(model.config).pop("quantization_config", None)  # its weights are plain now, and can be saved
    for key, in_file, expected in sorted(info["mismatched_keys"]):  # the first says enough
        raise ModelError(
            f"{name}: {key} has shape {tuple(in_file)} in its files and {tuple(expected)} by its config.json; they are "
            "of another model"
        )
    if unused := sorted(info["unexpected_keys"]):
        logger.warning("%s: %d tensors of its files are not used, %s among them", name, len(unused), unused[0])
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{name}: its files lack {len(missing)} weights of the architecture in config.json, {missing[0]} among "
            "them; they are of another model, or incomplete"
        )
    return model


def _quantized(settings: Pretrained, dtype: torch.dtype, is_frozen: bool) -> dict[str, Any]:
    """Options of `from_pretrained` for quantised weights, in a GGUF file or quantised on loading.

    Raises:
        ModelError: This machine cannot quantise on loading.
    """
    if settings.gguf_file is not None:
        return {"gguf_file": settings.gguf_file, "quantization_config": GgufConfig(dequantize=not is_frozen)}
    if settings.quantization is None:
        return {}
    has_package = importlib.util.find_spec("bitsandbytes") is not None
    if not torch.cuda.is_available() or not has_package:
        missing = "the package bitsandbytes" if torch.cuda.is_available() else "a CUDA device"
        raise ModelError(
            f"{_title(settings)}: quantization: {settings.quantization} needs {missing}, which this machine lacks; "
            "leave quantization out"
        )
    in_4bit = settings.quantization == "bitsandbytes_4bit"
    config = BitsAndBytesConfig(
        load_in_4bit=in_4bit,
        load_in_8bit=not in_4bit,
        bnb_4bit_quant_type="nf4",  # QLoRA, arXiv 2305.14314: of 4-bit types the one with the least loss
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def _check_fit(config: PreTrainedConfig, settings: ModelSettings, dtype: torch.dtype) -> None:
    """Refuse an attention that is not installed, and weights above the machine's memory, before they are made."""
    name = _title(settings)
    flash = {"attn_implementation": settings.attention} if settings.attention.startswith("flash") else {}
    # A copy: building a model sets the attention in its config.
    with torch.device("meta"):
        model = build_untrained(copy.deepcopy(config), name, dtype=dtype, **flash)
    needed, present = sum(p.nbytes for p in model.parameters()), psutil.virtual_memory().total
    if needed > present:
        raise ModelError(
            f"{name}: its weights take {needed / 1e9:.0f} GB, and this machine has {present / 1e9:.0f} GB of memory; "
            "use a smaller model, or a larger machine"
        )
