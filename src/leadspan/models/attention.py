"""Attention over a packed row, one example at a time: cost `sum(T_i^2)`, no mask, no crossing.

Registered with Transformers under `ATTENTION`, so that any model that takes an attention implementation by name can
use it. It computes packed rows only, and refuses to run without example borders, since a padded batch needs a mask.
"""

import itertools

import torch
import torch.nn.functional as F  # the field's name
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from leadspan.errors import ModelError

ATTENTION = "leadspan_packed"


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
