"""Activation memory of a training step, read from the model's own code: one pass over fake tensors.

Fake tensors have shapes, types and storages but no memory, so that an 8B model passes in a second or two on a laptop.
The pass runs the model's own layers with PyTorch's own autograd, autocast and checkpointing; what is alive at each
moment is what the real step holds. Instead of a formula by architecture, such as that of Korthikanti et al.
(arXiv 2205.05198, section 4), which knows one kind of layer in one precision.

Tokens are told from weights by their number: tensors with a dimension that is a multiple of the traced length, a prime.
Masks of sliding windows have two such dimensions and grow with the square of an example's length; they are counted
apart, in a trace whose windows are shorter than the traced length, since an example that fits its window has none.
"""

import weakref
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from leadspan.costs.memory import ActivationBytes
from leadspan.errors import ModelError
from leadspan.models.attention import ATTENTION
from leadspan.models.config import ModelSettings
from leadspan.models.forward import final_hidden_states
from leadspan.models.loading import first_line, load_config, name_of
from leadspan.models.shapes import build_untrained

_LENGTH = 1009
_WINDOW = 100
_EXPERTS = "leadspan_trace"


def student_activations(settings: ModelSettings, use_bf16: bool, checkpointing: bool) -> ActivationBytes:
    """Bytes a token of a training step holds, without those of the head and the loss.

    All weights are taken to be trained. Low-rank adapters hold the same inputs of linear layers, their own narrow
    outputs, and less of the norms, so that a few per cent too much are predicted for them.

    Args:
        settings: The student; its weights are not read.
        use_bf16: Autocast to bfloat16 over float32 weights; else float32.
        checkpointing: Whether layers are recomputed in the backward pass.

    Raises:
        ModelError: The model's code cannot run without values.
    """
    with FakeTensorMode():
        model = _fake_model(settings, torch.float32).train()
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        with _Alive() as alive, _named(settings):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_bf16):
                hidden = _run(model)
            held = alive.now, alive.now_masks
            hidden.sum().backward()
        return _bytes(settings, held, alive)


def teacher_activations(settings: ModelSettings, use_bf16: bool) -> ActivationBytes:
    """Bytes a token of a frozen teacher's forward pass takes: at its peak, and of the hidden states left."""
    with FakeTensorMode(), torch.no_grad():
        model = _fake_model(settings, torch.bfloat16 if use_bf16 else torch.float32).eval()
        with _Alive() as alive, _named(settings):
            hidden = _run(model)
        return _bytes(settings, (hidden.nbytes, 0), alive)


def _bytes(settings: ModelSettings, held: tuple[int, int], alive: "_Alive") -> ActivationBytes:
    """By token and by pair, of what is held and of the peaks."""
    text = load_config(settings).get_text_config()
    has_masks = alive.most_masks[1] > 0
    return ActivationBytes(
        held=round(held[0] / _LENGTH),
        peak=round(alive.most[0] / _LENGTH),
        window=getattr(text, "sliding_window", None) if has_masks else None,
        held_pair=held[1] / _LENGTH**2,
        peak_pair=alive.most[1] / _LENGTH**2,
        masked=round(alive.most_masks[0] / _LENGTH) if has_masks else 0,
        masked_pair=alive.most_masks[1] / _LENGTH**2,
    )


def _fake_model(settings: ModelSettings, dtype: torch.dtype) -> PreTrainedModel:
    config = load_config(settings)
    text = config.get_text_config()
    if getattr(text, "sliding_window", None):
        text.sliding_window = min(text.sliding_window, _WINDOW)
    return build_untrained(
        config,
        name_of(settings),
        dtype=dtype,
        attn_implementation=ATTENTION,
        experts_implementation=_EXPERTS,
    )


def _run(model: PreTrainedModel) -> torch.Tensor:
    ids, positions = torch.zeros(1, _LENGTH, dtype=torch.long), torch.arange(_LENGTH)
    return final_hidden_states(model, ids, positions[None], (0, _LENGTH), positions)


class _named:
    """Turn what a model's code cannot do with fake tensors into an error that names the model."""

    def __init__(self, settings: ModelSettings):
        self.name = name_of(settings)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError | ValueError | TypeError | NotImplementedError):
            raise ModelError(
                f"model {self.name}: its activation memory cannot be predicted, since its code does not run without "
                f"values ({first_line(error)})"
            ) from None


class _Alive(TorchDispatchMode):
    """Counts the bytes of token tensors that are alive, and of masks over pairs of tokens; each storage once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.now_masks = 0
        self.most = self.most_masks = (0, 0)  # at the moment of most tokens, and of most masks
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                dims = sum(size > 0 and size % _LENGTH == 0 for size in leaf.shape)
                if dims:
                    self._count(leaf.untyped_storage(), dims > 1)
        return output

    def _count(self, storage: torch.UntypedStorage, is_mask: bool) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._add(size, is_mask)
        weakref.finalize(storage, self._add, -size, is_mask)

    def _add(self, size: int, is_mask: bool) -> None:
        self.now, self.now_masks = self.now + size * (not is_mask), self.now_masks + size * is_mask
        self.most = max(self.most, (self.now, self.now_masks))
        if (self.now_masks, self.now) > self.most_masks[::-1]:
            self.most_masks = (self.now, self.now_masks)


def _experts_without_values(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Routed experts with the shapes of Transformers' `grouped_mm`, which needs values: every token to one expert."""
    num_tokens, top_k = top_k_index.shape

    def project(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        one = weight[0].T if self.is_transposed else weight[0]
        return nn.functional.linear(rows.to(one.dtype), one)

    rows = hidden_states[torch.arange(num_tokens * top_k) // top_k]
    inner = project(rows, self.gate_up_proj if self.has_gate else self.up_proj)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    weighted = project(inner, self.down_proj) * top_k_weights.reshape(-1)[:, None]
    restored = weighted[torch.arange(num_tokens * top_k)]
    return restored.view(num_tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)


ALL_EXPERTS_FUNCTIONS.register(_EXPERTS, _experts_without_values)
