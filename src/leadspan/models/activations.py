"""Activation memory of a training step, read from the model's own code: one pass over fake tensors.

Fake tensors have shapes, types and storages but no memory, so that an 8B model passes in a second or two on a laptop.
The pass runs the model's own layers with PyTorch's own autograd, autocast and checkpointing; what is alive at each
moment is what the real step holds. Instead of a formula by architecture, such as that of Korthikanti et al.
(arXiv 2205.05198, section 4), which knows one kind of layer in one precision.

The traced length is a prime, so a tensor with a dimension that is a multiple of it counts tokens, and all others belong
to weights. Masks of sliding windows have two such dimensions and grow with the square of an example's length. They are
counted separately, in a trace whose windows are shorter than the traced length, since an example that fits its window
has no mask.
"""

import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from leadspan.costs.memory import ActivationBytes
from leadspan.errors import ModelError
from leadspan.models.forward import ATTENTION, LAYOUT, final_hidden_states
from leadspan.models.loading import build_untrained, load_config, name_of
from leadspan.models.reading import reason
from leadspan.models.settings import ModelSettings
from leadspan.models.shapes import EXPERTS, Layers, config_key, traced_layers

# A failure on fake tensors is raised; torch would log it with a traceback as well.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

_LENGTH = 1009  # a prime that divides no size of a model
_WINDOW = 100  # sliding windows are shortened to this, so that the traced length is beyond them
_FEW = 8  # positions, where a layer goes through them one by one
_MIN_UNIT = 64  # chunks of a gated delta rule, which no config names

# By config, precision, and checkpointing (None for a teacher): prediction, plan and doctor of a run all ask.
_TRACED: dict[tuple[str, bool, bool | None], ActivationBytes] = {}


def activation_bytes(settings: ModelSettings, use_bf16: bool, checkpointing: bool | None) -> ActivationBytes:
    """Activation bytes per token, without the head and the loss: of a student's training step, or of a teacher.

    Assumes that all weights are trained. Low-rank adapters keep the same inputs of linear layers, their own narrow
    outputs, and less of the norms, so the prediction for them is a few per cent too high.

    Args:
        settings: The model; its weights are not read.
        use_bf16: A student autocasts to bfloat16 over float32 weights, a teacher has weights of it; else float32.
        checkpointing: Whether a student's layers are recomputed in the backward pass. None for a frozen teacher, which
            has a forward pass alone, and retains the final hidden states.

    Raises:
        ModelError: The model's code cannot run without values.
    """
    config, is_teacher = load_config(settings), checkpointing is None
    key = (config_key(config), use_bf16, checkpointing)
    if key in _TRACED:
        return _TRACED[key]
    layers = traced_layers(config)  # outside the mode of fake tensors

    def passes(length: int, by_token: bool) -> tuple[tuple[int, int], "_Alive"]:
        shortened = load_config(settings)
        text = shortened.get_text_config()
        if getattr(text, "sliding_window", None):
            text.sliding_window = min(text.sliding_window, _WINDOW)
        # A student's weights are float32 under autocast, a teacher's have the type of the run.
        options: dict[str, Any] = {"dtype": torch.bfloat16 if is_teacher and use_bf16 else torch.float32}
        is_packed = layers is not None and not layers.has_others
        options |= {"attn_implementation": ATTENTION} if is_packed else {}
        model = build_untrained(shortened, f"model {name_of(settings)}", experts_implementation=EXPERTS, **options)
        if not is_packed:
            setattr(model, LAYOUT, "alone")  # layers with a state mix the examples of a packed row
        model.train(not is_teacher)
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        try:
            with _Alive(by_token) as alive:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=use_bf16 and not is_teacher):
                    hidden = _run(model, length)
                if is_teacher:
                    return (hidden.nbytes, 0), alive
                retained = alive.now, alive.now_masks
                hidden.sum().backward()  # any scalar: the head and the loss are counted elsewhere
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(
                f"model {name_of(settings)}: its activation memory cannot be predicted, since its code does not run "
                f"without values ({reason(error)})"
            ) from None
        return retained, alive

    with FakeTensorMode(), torch.set_grad_enabled(not is_teacher):
        return _TRACED.setdefault(key, _measured(settings, layers, passes))


def _measured(
    settings: ModelSettings, layers: Layers | None, passes: Callable[[int, bool], tuple[tuple[int, int], "_Alive"]]
) -> ActivationBytes:
    """Bytes by token and by pair of tokens, of what is retained and of the peaks.

    Layers that carry a state cut a sequence into chunks, or go through it position by position. Their tensors do not
    show the length in a dimension, so the difference between two lengths gives the bytes per token.
    """
    text = load_config(settings).get_text_config()
    if layers is not None and layers.has_others:
        unit = _FEW
        (short, low), (long, high) = (passes(length, False) for length in (unit, 2 * unit))
        # Where a longer sequence needs more operations, a layer goes through positions one by one: then a few are
        # enough, and many would be slow to trace. Else the lengths are whole chunks.
        if high.operations == low.operations:
            chunks = [size for name, size in vars(text).items() if "chunk_size" in name or name == "block_size"]
            unit = max([_MIN_UNIT, *(size for size in chunks if isinstance(size, int))])
            (short, low), (long, high) = (passes(length, False) for length in (unit, 2 * unit))
        by_token, peak = (long[0] - short[0]) // unit, (high.most[0] - low.most[0]) // unit
        return ActivationBytes(retained=by_token, peak=max(peak, by_token))
    retained, alive = passes(_LENGTH, True)
    is_explicit = layers is None or any(call.is_explicit for call in layers.attention)
    window = 0 if is_explicit else getattr(text, "sliding_window", None)
    has_masks = alive.most_masks[1] > 0
    return ActivationBytes(
        retained=round(retained[0] / _LENGTH),
        peak=round(alive.most[0] / _LENGTH),
        window=window if has_masks else None,
        retained_pair=retained[1] / _LENGTH**2,
        peak_pair=alive.most[1] / _LENGTH**2,
        masked=round(alive.most_masks[0] / _LENGTH) if has_masks else 0,
        masked_pair=alive.most_masks[1] / _LENGTH**2,
    )


def _run(model: PreTrainedModel, length: int) -> torch.Tensor:
    # A function of its own, so that its inputs do not count as alive after the pass.
    ids, positions = torch.zeros(1, length, dtype=torch.long), torch.arange(length)
    return final_hidden_states(model, ids, positions[None], (0, length), positions)


class _Alive(TorchDispatchMode):
    """Counts the bytes of token tensors that are alive, and of masks over pairs of tokens; each storage once.

    Without `by_token` it counts all tensors that are made, gradients of weights among them.
    """

    def __init__(self, by_token: bool) -> None:
        super().__init__()
        self.by_token, self.operations = by_token, 0
        self.now = self.now_masks = 0
        self.most = self.most_masks = (0, 0)  # at the moment of most tokens, and of most masks
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operations += 1
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                dims = sum(size > 0 and size % _LENGTH == 0 for size in leaf.shape)
                if dims or not self.by_token:
                    self._count(leaf.untyped_storage(), self.by_token and dims > 1)
        return output

    def _count(self, storage: torch.UntypedStorage, is_mask: bool) -> None:
        if storage in self._known:  # a view: its memory is counted already
            return
        self._known.add(storage)
        size = storage.nbytes()
        self._add(size, is_mask)
        # Called when autograd drops its last reference: that is when the real memory would be freed.
        weakref.finalize(storage, self._add, -size, is_mask)

    def _add(self, size: int, is_mask: bool) -> None:
        self.now, self.now_masks = self.now + size * (not is_mask), self.now_masks + size * is_mask
        self.most = max(self.most, (self.now, self.now_masks))
        if (self.now_masks, self.now) > self.most_masks[::-1]:
            self.most_masks = (self.now, self.now_masks)
