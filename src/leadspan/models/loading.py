"""Causal language models and their tokenizers: loading, checks, shapes, and writing a student back."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from leadspan.costs.flops import ModelShape
from leadspan.errors import ModelError
from leadspan.models.attention import ATTENTION
from leadspan.models.config import ModelSettings, Pretrained, RandomInit

logger = logging.getLogger(__name__)

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or Hub name.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"tokenizer {path}: {_first_line(error)}") from None


def load_model(settings: ModelSettings, dtype: torch.dtype, for_training: bool = True) -> PreTrainedModel:
    """A causal language model.

    Args:
        settings: Where it comes from.
        dtype: Type of its weights.
        for_training: Load with the attention for packed rows; else with Transformers' default, for generation.

    Raises:
        ModelError: It cannot be read, is no causal language model, or transforms its logits in a way the loss does not.
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


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The projection to the vocabulary."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ModelError(
            f"{type(model).__name__}: the output head is {type(head).__name__}, not a linear layer without bias; "
            "leave it out of the adapter's target modules, or use another model"
        )
    return head


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Read the shape that the cost counts need from a model's modules and config."""
    config = model.config.get_text_config()
    heads: int = config.num_attention_heads
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers: int = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
    window = getattr(config, "sliding_window", None)
    head = head_of(model)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return ModelShape(
        linear_params=linear + _routed_params(model, config),
        attention_dims=(heads * head_dim,) * layers,
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        hidden_size=head.weight.shape[1],
        vocab_size=head.weight.shape[0],
        num_params=sum(p.numel() for p in model.parameters()),
    )


def check_vocabularies(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase | None, rows: dict[str, int]
) -> None:
    """Check that student and teacher mean the same by every token id, and that both heads have a row for it.

    Args:
        student: Tokenizer of the student, which renders the data.
        teacher: Tokenizer of the teacher, or None when it has none of its own.
        rows: Rows of each model's head by role.

    Raises:
        ModelError: Names the first token that differs, or the head that is too small.
    """
    for role, count in rows.items():
        if count < len(student):
            raise ModelError(
                f"{role}: its head has {count} rows, the tokenizer {len(student)} tokens; "
                "take the tokenizer that belongs to the models, or resize the embeddings"
            )
    if teacher is None:
        return
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    by_id = {index: token for token, index in theirs.items()}
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if by_id.get(index) != token:
            raise ModelError(
                f"teacher and student have different vocabularies: token id {index} is {token!r} for the student and "
                f"{by_id.get(index)!r} for the teacher; distillation over the vocabulary needs one tokenizer for both"
            )
    logger.warning("the teacher's tokenizer has %d tokens the student's lacks", len(theirs) - len(ours))


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
    generation = model.generation_config or GenerationConfig()
    generation.eos_token_id = list(stops)
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token_id
    model.generation_config = generation
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


def _build(settings: RandomInit, attention: str | None, dtype: torch.dtype) -> PreTrainedModel:
    values = dict(settings.config)
    kind = values.pop("model_type", None)
    if kind is None:
        raise ModelError("random_init.config: model_type is missing; name a Transformers architecture, e.g. qwen3")
    try:
        config = AutoConfig.for_model(kind, **values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"random_init.config ({kind}): {_first_line(error)}") from None


def _read(settings: Pretrained, attention: str | None, dtype: torch.dtype) -> PreTrainedModel:
    options: dict[str, Any] = {"revision": settings.revision, "dtype": dtype}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        return AutoModelForCausalLM.from_pretrained(settings.path, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(f"model {settings.path}: {_first_line(error)}") from None


def _check_trainable(model: PreTrainedModel, name: str) -> None:
    config = model.config.get_text_config()
    for field in _LOGIT_TRANSFORMS:
        if getattr(config, field, None) not in (None, 1, 1.0):
            raise ModelError(
                f"model {name}: its config sets {field}, and the loss does not apply it; use another model"
            )
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ModelError(
            f"model {name}: layers of type {', '.join(sorted(kinds))} carry state across the examples of a packed row; "
            "use a model whose layers are all attention"
        )
    head_of(model)


def _routed_params(model: PreTrainedModel, config: Any) -> int:
    """Expert weights a token passes: `k / E` of the stacked expert tensors, whose first dimension is `E`."""
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    if not experts:
        return 0
    stacked = sum(p.numel() for p in model.parameters() if p.dim() == 3 and p.shape[0] == experts)
    return stacked * config.num_experts_per_tok // experts


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
