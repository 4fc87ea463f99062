"""Causal language models and their tokenizers: loading, checks, and writing a student back."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from leadspan.errors import ModelError
from leadspan.models.attention import ATTENTION
from leadspan.models.config import ModelSettings, Pretrained, RandomInit
from leadspan.models.forward import final_hidden_states
from leadspan.models.heads import head_of, transform_of

logger = logging.getLogger(__name__)

_BAD_CONFIG = (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError)


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or Hub name.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    _check_path(path, "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"tokenizer {path}: {first_line(error)}") from None


def load_model(settings: ModelSettings, dtype: torch.dtype, for_training: bool = True) -> PreTrainedModel:
    """A causal language model.

    Args:
        settings: Where it comes from.
        dtype: Type of its weights.
        for_training: Load with the attention for packed rows; else with Transformers' default, for generation.

    Raises:
        ModelError: It cannot be read, is no causal language model, or mixes the examples of a packed row.
    """
    attention = None
    if for_training:
        attention = ATTENTION if settings.attention == "packed" else settings.attention
    if isinstance(settings, RandomInit):
        model = _build(settings, attention, dtype)
    else:
        model = _read(settings, attention, dtype)
    if for_training:
        _check_trainable(model, name_of(settings))
    return model


def name_of(settings: ModelSettings) -> str:
    """How to call a model in messages and results."""
    if isinstance(settings, Pretrained):
        return settings.path
    return f"random {settings.config.get('model_type', 'model')} (seed {settings.seed})"


def check_vocabularies(
    data: PreTrainedTokenizerBase, own: dict[str, PreTrainedTokenizerBase | None], rows: dict[str, int]
) -> None:
    """Check that every model means the same as the data by every token id, and that its head has a row for it.

    Args:
        data: Tokenizer that renders the data.
        own: Each model's own tokenizer by role, or None when it has none.
        rows: Rows of each model's head by role.

    Raises:
        ModelError: Names the first token that differs, or the head that is too small.
    """
    ours = data.get_vocab()
    needed = max(ours.values()) + 1
    for role, count in rows.items():
        if count < needed:
            raise ModelError(
                f"{role}: its head has {count} rows, the tokenizer {needed} token ids; "
                "take the tokenizer that belongs to the models, or resize the embeddings"
            )
    for role, tokenizer in own.items():
        theirs = tokenizer.get_vocab() if tokenizer is not None else ours
        if theirs == ours:
            continue
        by_id = {index: token for token, index in theirs.items()}
        for token, index in sorted(ours.items(), key=lambda item: item[1]):
            if by_id.get(index) != token:
                raise ModelError(
                    f"the {role}'s vocabulary is not that of the data: token id {index} is {token!r} in the data and "
                    f"{by_id.get(index)!r} for the {role}; models distilled over the vocabulary need one tokenizer"
                )


def save_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    stop_token_id: int,
    directory: Path,
) -> None:
    """Write a model in Hugging Face form, ready to be loaded and to stop.

    The tokenizer carries the chat template it was trained with; the generation config names *all* end-of-turn ids,
    since the one of the chat template is missing from base checkpoints, whose students would otherwise never stop.
    """
    known = model.generation_config.eos_token_id if model.generation_config else None
    before = known if isinstance(known, list) else [known]
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
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """The Transformers config of a model; no weights are read.

    Raises:
        ModelError: It cannot be read, or its values are refused.
    """
    if isinstance(settings, Pretrained):
        _check_path(settings.path, "model")
        try:
            return AutoConfig.from_pretrained(settings.path, revision=settings.revision)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model {settings.path}: {first_line(error)}") from None
    values = dict(settings.config)
    kind = values.pop("model_type", None)
    if kind is None:
        raise ModelError("random_init.config: model_type is missing; name a Transformers architecture, e.g. qwen3")
    try:
        return AutoConfig.for_model(kind, **values)
    except _BAD_CONFIG as error:
        raise ModelError(f"random_init.config ({kind}): {first_line(error)}") from None


def _build(settings: RandomInit, attention: str | None, dtype: torch.dtype) -> PreTrainedModel:
    config = load_config(settings)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    except _BAD_CONFIG as error:
        raise ModelError(f"random_init.config ({config.model_type}): {first_line(error)}") from None


def _read(settings: Pretrained, attention: str | None, dtype: torch.dtype) -> PreTrainedModel:
    options: dict[str, Any] = {"revision": settings.revision, "dtype": dtype}
    if attention is not None:
        options["attn_implementation"] = attention
    _check_path(settings.path, "model")
    try:
        return AutoModelForCausalLM.from_pretrained(settings.path, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(f"model {settings.path}: {first_line(error)}") from None


def _check_trainable(model: PreTrainedModel, name: str) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ModelError(
            f"model {name}: layers of type {', '.join(sorted(kinds))} carry state across the examples of a packed row; "
            "use a model whose layers are all attention"
        )
    head_of(model)
    _check_packing(model, name)


@torch.no_grad()
def _check_packing(model: PreTrainedModel, name: str) -> None:
    """Run a short example alone and behind another in one packed row, and its logits against those of the loss.

    Some architectures ignore the borders, and some transform their logits in a way of their own.
    """
    if model.config._attn_implementation != ATTENTION:
        return  # the kernels of flash attention need a GPU and keep examples apart themselves
    first, second = torch.arange(5) + 3, torch.arange(7) + 2
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    was_training = model.training
    model.eval()
    alone = final_hidden_states(model, second[None], torch.arange(7)[None], (0, 7), torch.arange(7))
    whole = model(input_ids=second[None], position_ids=torch.arange(7)[None], use_cache=False, example_borders=(0, 7))
    ours = transform_of(model).logits(alone.float() @ head_of(model).weight.float().T)
    row = torch.cat([first, second])[None]
    packed = final_hidden_states(model, row, positions, (0, 5, 12), torch.arange(5, 12))
    model.train(was_training)
    apart = float((whole.logits[0].float() - ours).norm() / ours.norm())
    error = float((alone - packed).norm() / alone.norm())
    tolerance = 1e-4 if alone.dtype.itemsize >= 4 else 3e-2  # bfloat16 rounds to 4e-3 in every layer
    if not error < tolerance:
        raise ModelError(
            f"model {name}: an example changes with its neighbours in a packed row (relative difference {error:.2g}), "
            "so its architecture ignores positions or example borders; use another model"
        )
    if not apart < tolerance:
        raise ModelError(
            f"model {name}: its logits are not those of its hidden states and head (relative difference {apart:.2g}), "
            "so its architecture transforms them in a way the loss does not know; use another model"
        )


def _check_path(path: str, role: str) -> None:
    """A path that can only be local must exist; what is left may be a Hub name, `owner/name`."""
    is_local = path.count("/") > 1 or path.startswith((".", "/", "~"))
    if is_local and not Path(path).is_dir():
        raise ModelError(f"{role} {path}: no such directory; give a directory in Hugging Face form, or a Hub name")


def first_line(error: Exception) -> str:
    """What an error of another library says, without its explanations."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
