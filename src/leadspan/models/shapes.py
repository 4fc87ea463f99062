"""The shape of a model for FLOP and memory counts, read from its modules, with or without weights.

A model whose weights are not needed is built on PyTorch's meta device by its own Transformers class, so that whatever
an architecture does to its config (tied heads, experts, windows, odd layers) is counted as it is.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from leadspan.costs.flops import ModelShape
from leadspan.models.heads import head_of, head_shape
from leadspan.models.loading import build_untrained, load_config, name_of
from leadspan.models.settings import ModelSettings
from leadspan.models.tracing import AttentionCall, traced_layers

# Names of one thing in the configs of different architectures.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "top_k_experts", "moe_k")


def shape_from(settings: ModelSettings) -> ModelShape:
    """The shape of a model that is not loaded, from its config alone.

    Raises:
        ModelError: The config cannot be read, or is not that of a causal language model.
    """
    with torch.device("meta"):
        return shape_of(build_untrained(load_config(settings), f"model {name_of(settings)}"))


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Read the shape for the cost counts from a model's modules and config; the values of its weights are not read.

    Linear weights are all two-dimensional parameters but those of embeddings and the head (a router's among them);
    stacked experts are three-dimensional, and a token passes `k / E` of them. A convolution along the sequence does as
    many products for a token as it has weights. What layers do along the sequence is traced.
    """
    config, head = model.config.get_text_config(), head_of(model)
    # The decoder layers are the longest list of modules.
    layers = max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=())
    traced = traced_layers(model.config)
    attention = _attention_by_config(config) if traced is None else traced.attention
    outside = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(head.weight)}
    inside = [p for p in model.parameters() if id(p) not in outside]
    convolutions = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv1d)}
    linear_params = sum(p.numel() for p in inside if p.dim() == 2 or id(p) in convolutions)
    if experts := _first(config, _EXPERTS):
        stacked = (p for p in inside if p.dim() == 3 and p.shape[0] == experts and id(p) not in convolutions)
        per_token = _first(config, _EXPERTS_PER_TOKEN) or 1
        linear_params += sum(p.numel() for p in stacked) * per_token // experts
    last_params = 0
    for layer in layers:
        # A norm needs the output of the projection before it in the backward pass, so checkpointing recomputes that.
        last = getattr(getattr(layer, "mlp", None), "down_proj", None)
        is_followed = any(hasattr(layer, name) for name in ("post_feedforward_layernorm", "post_mlp_layernorm"))
        last_params += last.weight.numel() if isinstance(last, nn.Linear) and not is_followed else 0
    return ModelShape(
        linear_params=linear_params,
        attention_dims=tuple(call.dim for call in attention),
        windows=tuple(call.window for call in attention),
        state_size=0 if traced is None else traced.state_size,
        hidden_size=head_shape(model)[1],
        vocab_size=head_shape(model)[0],
        num_params=sum(p.numel() for p in model.parameters()),
        is_tied=head.weight is getattr(model.get_input_embeddings(), "weight", None),
        last_params=last_params,
        layer_params=max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0),
    )


def _attention_by_config(config: Any) -> list[AttentionCall]:
    """For a model whose layers cannot be traced: every layer that its config calls attention."""
    heads: int | None = getattr(config, "num_attention_heads", None)
    if heads is None:
        return []  # xLSTM's heads are of its cells
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    window = getattr(config, "sliding_window", None) or None
    # Without kinds of layers, a window is that of all.
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [
        AttentionCall(heads * head_dim, window if kind == "sliding_attention" else None, is_explicit=False)
        for kind in kinds
        if "attention" in kind and "linear" not in kind
    ]


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next((value for name in names if (value := getattr(config, name, None))), 0)
