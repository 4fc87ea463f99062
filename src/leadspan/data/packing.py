"""Batches without padding: examples laid end to end in one row, and plans of which examples share a batch.

In a packed row positions restart at every example and attention never crosses a border, so that a packed batch has the
loss and the gradients of its examples one by one.
"""

import bisect
import itertools
import random
from collections.abc import Sequence
from typing import TypedDict, TypeVar, cast

import numpy as np
import torch

from leadspan.data.examples import Example
from leadspan.errors import SettingsError

ItemT = TypeVar("ItemT")


class Batch(TypedDict):
    """A packed row of `n` tokens with `m` weighted positions.

    Keys:
        input_ids: int64, [1, n].
        position_ids: int64, [1, n]; restart at 0 with every example.
        borders: Example `i` is `[borders[i], borders[i + 1])` of the row; plain ints, so that no device is asked.
        positions: int64, [m]; the position whose hidden state predicts the target.
        labels: int64, [m]; the token to predict.
        weights: float32, [m]; above 0.
        section_ids: int64, [m]; section of the token to predict.
        tenths: int64, [m]; tenth of the uncut conversation it stands in.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    borders: tuple[int, ...]
    positions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    section_ids: torch.Tensor
    tenths: torch.Tensor


def pack(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end and list the weighted positions with their labels."""
    input_ids = np.concatenate([e.input_ids for e in examples])
    weights = np.concatenate([e.weights for e in examples])
    section_ids = np.concatenate([e.section_ids for e in examples])
    tenths = np.concatenate([e.tenths for e in examples])
    lengths = [len(e.input_ids) for e in examples]
    targets = np.flatnonzero(weights > 0)
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        borders=(0, *itertools.accumulate(lengths)),
        positions=torch.from_numpy(targets - 1),
        labels=torch.from_numpy(input_ids[targets]),
        weights=torch.from_numpy(weights[targets]),
        section_ids=torch.from_numpy(section_ids[targets].astype(np.int64)),
        tenths=torch.from_numpy(tenths[targets].astype(np.int64)),
    )


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch whose tensors are on a device."""
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return cast(Batch, moved)


def best_fit(lengths: Sequence[int], max_tokens: int, order: Sequence[int]) -> list[list[int]]:
    """Best-fit decreasing bin packing: longest first, each into the fullest pack that still has room.

    Args:
        lengths: Tokens of each example.
        max_tokens: Token budget of a pack.
        order: Indices to pack; decides between equal lengths.

    Returns:
        Packs of indices, every index of `order` exactly once, none above the budget.

    Raises:
        SettingsError: An example is longer than the budget.
    """
    longest = max((lengths[i] for i in order), default=0)
    if longest > max_tokens:
        raise SettingsError(
            f"training.batching.tokens_per_batch = {max_tokens}: the longest example has {longest} tokens; "
            "raise it, set data.max_tokens, or cut more"
        )
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), ascending
    for index in sorted(order, key=lambda i: -lengths[i]):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at == len(room):
            packs.append([])
            free, pack_index = max_tokens, len(packs) - 1
        else:
            free, pack_index = room.pop(at)
        packs[pack_index].append(index)
        bisect.insort(room, (free - lengths[index], pack_index))
    return packs


def plan_by_examples(num_examples: int, batch_size: int, num_batches: int, seed: int) -> list[list[int]]:
    """Batches of a fixed number of examples from a stream of reshuffled epochs.

    The stream depends on the seed only, so the examples of an optimiser step are the same however it is split into
    micro-batches. An epoch may end inside a batch; nothing is left out.
    """
    stream: list[int] = []
    epoch = 0
    while len(stream) < batch_size * num_batches:
        stream += _shuffled(range(num_examples), seed, epoch)
        epoch += 1
    return [stream[i * batch_size : (i + 1) * batch_size] for i in range(num_batches)]


def plan_by_tokens(lengths: Sequence[int], max_tokens: int, num_batches: int | None, seed: int) -> list[list[int]]:
    """Best-fit packs up to a token budget, reshuffled and packed anew every epoch.

    Args:
        lengths: Tokens of each example.
        max_tokens: Token budget of a batch.
        num_batches: How many batches; those of one epoch when None.
        seed: Seed of the order.

    Raises:
        SettingsError: An example is longer than the budget.
    """
    plan: list[list[int]] = []
    epoch = 0
    while epoch == 0 or (num_batches is not None and len(plan) < num_batches):
        packs = best_fit(lengths, max_tokens, _shuffled(range(len(lengths)), seed, epoch))
        plan += _shuffled(packs, seed, epoch)
        epoch += 1
    return plan[:num_batches]


def _shuffled(items: Sequence[ItemT], seed: int, epoch: int) -> list[ItemT]:
    shuffled = list(items)
    random.Random(f"{seed}:{epoch}").shuffle(shuffled)
    return shuffled
