"""The body of a causal language model over a packed row: final hidden states at chosen positions, no logits.

A row goes through the model in one of three ways, chosen when it is loaded (`leadspan.models.layout`). The attention
for packed rows takes one example at a time: cost `sum(T_i^2)`, no mask, no crossing. Any model that takes an attention
by name can use it. It refuses to run without example borders, since a padded batch needs a mask.
"""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float, Int
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from leadspan.errors import ModelError
from leadspan.models.heads import head_of

ATTENTION = "leadspan_packed"  # the name of `packed_attention` in Transformers

Layout = Literal["packed", "padded", "alone"]
"""`packed`: the row as it is, its attention example by example. `padded`: examples of nearly one length side by side,
through the model's own attention. `alone`: one example at a time."""

LAYOUT = "leadspan_layout"  # attribute of a loaded model that holds its layout

_MAX_PADDING = 0.1  # of a padded batch's tokens: above it, more passes are cheaper than more padding


def final_hidden_states(
    model: PreTrainedModel,
    input_ids: Int[torch.Tensor, "1 n"],
    position_ids: Int[torch.Tensor, "1 n"],
    borders: tuple[int, ...],
    positions: Int[torch.Tensor, "m"],  # a dimension name
) -> Float[torch.Tensor, "m d"]:
    """Run everything below the head and keep the hidden states that predict a weighted token.

    `borders` are those of the examples, from 0 to n; positions restart with every example.

    Returns:
        As `head_weight` takes them: with a 1 appended to each where the head has a bias.
    """
    layout: Layout = getattr(model, LAYOUT, "packed")
    if layout == "packed":
        longest = max(end - start for start, end in itertools.pairwise(borders))
        # Flash attention takes borders as tensors (`cu_seq_lens_*`), `packed_attention` as `example_borders`.
        cumulative = torch.tensor(borders, dtype=torch.int32).to(input_ids.device, non_blocking=True)
        output = body_of(model)(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            example_borders=borders,
            cu_seq_lens_q=cumulative,
            cu_seq_lens_k=cumulative,
            max_length_q=longest,
            max_length_k=longest,
        )
        hidden = output.last_hidden_state[0]
    else:
        hidden = _in_groups(model, input_ids, borders, layout)
    hidden = hidden.index_select(0, positions)
    return hidden if head_of(model).bias is None else torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)


def groups_of(borders: tuple[int, ...], layout: Layout) -> list[list[int]]:
    """Which examples of a row go through the model together, longest first.

    >>> groups_of((0, 10, 19, 24), "padded")
    [[0, 1], [2]]
    """
    lengths = [end - start for start, end in itertools.pairwise(borders)]
    groups: list[list[int]] = []
    # Longest first: the first of a group sets its width, and neighbours in length waste the least padding.
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        last = groups[-1] if groups and layout == "padded" else []
        padded_tokens = (len(last) + 1) * lengths[last[0]] if last else 0
        if last and sum(lengths[i] for i in last) + lengths[index] >= (1 - _MAX_PADDING) * padded_tokens:
            last.append(index)
        else:
            groups.append([index])
    return groups


def body_of(model: PreTrainedModel) -> nn.Module:
    """Everything below the head.

    Transformers' `get_decoder` goes by attribute names, and for some models returns the head or the model itself.
    """
    body = model.get_decoder()
    if isinstance(body, PreTrainedModel) and body is not model:
        return body
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


def _in_groups(
    model: PreTrainedModel, input_ids: torch.Tensor, borders: tuple[int, ...], layout: Layout
) -> torch.Tensor:
    """Hidden states of a row whose examples go through the model's own attention, group by group.

    Padding comes after an example, where no causal layer sees it: neither attention, which looks back, nor a state,
    which is carried forward. So there is no mask.
    """
    groups = groups_of(borders, layout)
    num_passes = len(groups)
    # Sharded weights are gathered by all ranks together, so every rank makes as many passes as any. Reduced before the
    # first pass, so that all ranks reduce at the same point.
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        most = torch.tensor(num_passes, device=next(model.parameters()).device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        num_passes = int(most)
    # `dynamic` frequencies grow with the longest example seen so far: before each pass they are as in the beginning.
    dynamic = [module for module in model.modules() if "dynamic" in str(getattr(module, "rope_type", ""))]
    hidden_of: dict[int, torch.Tensor] = {}
    for group in groups:
        rows = [input_ids[0, borders[i] : borders[i + 1]] for i in group]
        for module in dynamic:
            for name, frequencies in list(module.named_buffers(recurse=False)):
                if name.endswith("original_inv_freq"):
                    restarted = name.removesuffix("original_inv_freq") + "inv_freq"
                    module.register_buffer(restarted, frequencies.clone(), persistent=False)
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                setattr(module, name, module.original_max_seq_len)
        hidden = body_of(model)(
            input_ids=nn.utils.rnn.pad_sequence(rows, batch_first=True), use_cache=False
        ).last_hidden_state
        # Padding is cut off, and each example goes back to its number in the row.
        hidden_of |= {i: hidden[row, : len(rows[row])] for row, i in enumerate(group)}
    states = torch.cat([hidden_of[i] for i in range(len(borders) - 1)])
    for _ in range(num_passes - len(groups)):  # passes that add 0
        states = states + 0 * body_of(model)(input_ids=input_ids[:, :1], use_cache=False).last_hidden_state.sum()
    return states


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    example_borders: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each example of a packed row.

    Args:
        module: The attention layer; its `is_causal` is taken to be true.
        query: [1, heads, n, head_dim].
        key: [1, kv_heads, n, head_dim].
        value: [1, kv_heads, n, head_dim].
        attention_mask: Must be None; borders say all.
        dropout: Dropout probability on the attention weights.
        scaling: Factor on the scores; `head_dim ** -0.5` when None.
        example_borders: `(0, T_1, T_1 + T_2, ..., n)`.
        sliding_window: A position sees itself and the `sliding_window - 1` before it.
        softcap: Bound of the scores, or None for none.
        s_aux: Per head the score of its sink, or None for no sinks.
        kwargs: Further options of Transformers' attention interface.

    Returns:
        Output [1, n, heads, head_dim], and None for the weights.

    Raises:
        ModelError: It is called without borders, or with a mask.
    """
    if example_borders is None or attention_mask is not None:
        raise ModelError(
            f"{type(module).__name__}: loaded with attention: packed, it takes packed rows with example borders only; "
            "load it again with Transformers' default attention to generate or to use padded batches"
        )
    outputs = []
    for start, end in itertools.pairwise(example_borders):
        rows = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
        if softcap is not None or s_aux is not None:
            outputs.append(_explicit(*rows, sliding_window, dropout, scaling, softcap, s_aux))
            continue
        mask = _window_mask(end - start, sliding_window, query.device)
        outputs.append(
            F.scaled_dot_product_attention(
                *rows,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _explicit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one example with a soft cap or sinks, which no fused kernel has; forms the scores `[heads, T, T]`.

    Scores are capped as `cap tanh(score / cap)` (Gemma 2). A sink is one more score per head, which takes part in the
    softmax and has no value (gpt-oss).
    """
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ keys.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    length = query.shape[2]
    mask = _window_mask(length, window, query.device)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    # After the soft cap, which would make -inf finite.
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores)[None, :, None, None].expand(-1, -1, length, 1)], dim=-1)
    # In float32 at least, as Transformers' plain form; the sink's own weight is dropped.
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., :length]
    return F.dropout(weights.to(values.dtype), dropout) @ values


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    if window is None or length <= window:
        return None  # a mask would keep SDPA from its causal kernel
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
