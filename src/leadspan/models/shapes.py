"""The shape of a model for FLOP and memory counts, read from its modules and from one forward pass without values.

A model whose weights are not needed is built and run on PyTorch's meta device by its own Transformers class, so that
whatever an architecture does to its config (tied heads, experts, windows, odd layers) is counted as it is. Its size
decides on the precision in which it computes, where a recipe leaves that open.
"""

import contextlib
import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from leadspan.costs.flops import ModelShape
from leadspan.models.forward import body_of
from leadspan.models.heads import head_of, head_shape
from leadspan.models.loading import build_untrained, load_config, name_of
from leadspan.models.settings import ModelSettings

EXPERTS = "leadspan_trace"
"""Routed experts that need no values."""
_ATTENTION = "leadspan_recorded"
_LENGTH = 16  # positions: enough for every layer to run, and the counts do not depend on it


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The attention of one layer.

    Attributes:
        dim: `heads * head_dim`; where scores and values have different widths (latent attention), their mean.
        window: Sliding window, or None.
        is_explicit: Whether it has a soft cap or sinks, so that its scores exist.
    """

    dim: int
    window: int | None
    is_explicit: bool


@dataclass(frozen=True, slots=True)
class Layers:
    """What a model's layers do along a sequence.

    Attributes:
        attention: One call for every layer of attention.
        state_size: Elements of the states that layers carry from a position to the next.
        has_others: Whether some layers have no attention.
    """

    attention: tuple[AttentionCall, ...]
    state_size: int
    has_others: bool


_TRACED: dict[str, Layers | None] = {}  # by config


def traced_layers(config: PreTrainedConfig) -> Layers | None:
    """Run a model of a config without values; None where its code needs values, or has an attention of its own.

    A config is traced once per process, since costs, memory and shapes of a run all need it.
    """
    key = config_key(config)
    if key in _TRACED:
        return _TRACED[key]
    _TRACED[key] = None
    config = copy.deepcopy(config)  # building a model sets the attention in its config
    calls: list[AttentionCall] = []
    # Any error means that the code needs values: models raise whatever their first use of one happens to break.
    with contextlib.suppress(Exception), torch.device("meta"), torch.no_grad():
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=_ATTENTION, experts_implementation=EXPERTS, trust_remote_code=False
        ).eval()
        ids = torch.zeros(1, _LENGTH, dtype=torch.long)
        output = body_of(model)(input_ids=ids, use_cache=True, attention_calls=calls)
        state = sum(_state_size(value) for name, value in output.items() if name != "last_hidden_state")
        layers = config.get_text_config().num_hidden_layers
        _TRACED[key] = Layers(tuple(calls), state, len(calls) < layers) if calls or state else None
    return _TRACED[key]


def config_key(config: PreTrainedConfig) -> str:
    """Text that is equal for equal configs only: the key of traces in this process."""
    return f"{type(config).__name__} {config.to_json_string(use_diff=False)}"


def _state_size(cache: Any) -> int:
    """Elements of what is carried along: of Transformers' caches, of MiniMax's, and of RWKV's list of tensors."""
    if isinstance(cache, list | tuple):
        return sum(_state_size(value) for value in cache)
    if isinstance(cache, torch.Tensor):
        return cache.numel()
    states = [
        state for layer in getattr(cache, "layers", ()) for state in getattr(layer, "recurrent_states", {}).values()
    ]
    return _state_size([*states, *getattr(cache, "linear_cache", ())])


def _recorded(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attention_calls: list[AttentionCall] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    heads, width = query.shape[1], query.shape[-1] + value.shape[-1]
    is_explicit = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    if attention_calls is not None:
        attention_calls.append(AttentionCall(heads * width // 2, kwargs.get("sliding_window"), is_explicit))
    return query.new_empty(query.shape[0], query.shape[2], heads, value.shape[-1]), None


def _experts_without_values(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Routed experts with the shapes of Transformers' `grouped_mm`, which needs values: every token to one expert."""
    num_tokens, top_k = top_k_index.shape

    def project(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        first_expert = weight[0].T if self.is_transposed else weight[0]
        return nn.functional.linear(rows.to(first_expert.dtype), first_expert)

    rows = hidden_states[torch.arange(num_tokens * top_k) // top_k]
    inner = project(rows, self.gate_up_proj if self.has_gate else self.up_proj)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    weighted = project(inner, self.down_proj) * top_k_weights.reshape(-1)[:, None]
    restored = weighted[torch.arange(num_tokens * top_k)]
    return restored.view(num_tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS, _experts_without_values)
ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _recorded)

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
    attention = () if traced is None else traced.attention
    heads: int | None = getattr(config, "num_attention_heads", None)  # None of xLSTM, whose heads are of its cells
    if traced is None and heads is not None:
        # Every layer that the config calls attention; without kinds of layers, a window is that of all.
        head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        window = getattr(config, "sliding_window", None) or None
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
        attention = tuple(
            AttentionCall(heads * head_dim, window if kind == "sliding_attention" else None, is_explicit=False)
            for kind in kinds
            if "attention" in kind and "linear" not in kind
        )
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


def _first(config: Any, names: tuple[str, ...]) -> int:
    return next((value for name in names if (value := getattr(config, name, None))), 0)


Precision = Literal["auto", "float32", "bfloat16"]

MIN_CPU_PARAMS = 100_000_000
"""Parameters from which a model computes in bfloat16 on a CPU. Measured with 135 million on two cores with AMX: 500
tokens per second in training, against 200 in float32; smaller models were not measured."""


def uses_bf16(precision: Precision, model: ModelSettings) -> bool:
    """Whether a model computes in bfloat16 here: as set, else where the device supports it and the model is faster.

    Training keeps float32 weights, and bfloat16 comes in by autocast; models that are only read have bfloat16 weights.

    Raises:
        ModelError: The size of the model decides, and its config cannot be read.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    # A processor that multiplies matrices of bfloat16 has AMX-BF16 or AVX512-BF16.
    has = torch.cpu.get_capabilities()
    has_bf16 = has.get("amx_bf16", False) or has.get("avx512_bf16", False)
    return bool(has_bf16) and shape_from(model).num_params >= MIN_CPU_PARAMS
