"""Batches without padding: examples laid end to end in one row, and plans of which examples share a batch.

In a packed row positions restart at every example and attention never crosses a border, so that a packed batch has the
loss and the gradients of its examples one by one.
"""

import bisect
import itertools
import random
from collections.abc import Callable, Sequence
from typing import NotRequired, TypedDict, TypeVar, cast

import numpy as np
import torch

from leadspan.data.examples import Example
from leadspan.errors import SettingsError

ItemT = TypeVar("ItemT")


class HiddenRows(TypedDict):
    """Stored final hidden states of the teacher at the `m` weighted positions of a batch."""

    hidden: torch.Tensor  # [m, d_t]


class SparseRows(TypedDict):
    """Stored supports of the teacher's distributions at the `m` weighted positions of a batch."""

    token_ids: torch.Tensor  # int64, [m, k]
    log_probs: torch.Tensor  # float32, [m, k]
    sample_weights: NotRequired[torch.Tensor]  # float32, [m, k]; of drawn supports
    logsumexp: dict[float, torch.Tensor]  # float32, [m], by temperature
    tail_mass: dict[float, torch.Tensor]  # float32, [m], by temperature
    entropy: NotRequired[torch.Tensor]  # float32, [m]; where it was kept
    label_log_probs: torch.Tensor  # float32, [m]


StoredRows = HiddenRows | SparseRows


class Batch(TypedDict):
    """A packed row of `n` tokens with `m` weighted positions.

    Example `i` is `[borders[i], borders[i + 1])` of the row: plain ints, so that no device is asked.
    """

    input_ids: torch.Tensor  # int64, [1, n]
    position_ids: torch.Tensor  # int64, [1, n]; restart at 0 with every example
    borders: tuple[int, ...]
    positions: torch.Tensor  # int64, [m]; the position whose hidden state predicts the target
    labels: torch.Tensor  # int64, [m]; the token to predict
    weights: torch.Tensor  # float32, [m]; above 0
    section_ids: torch.Tensor  # int64, [m]; section of the token to predict
    tenths: torch.Tensor  # int64, [m]; tenth of the uncut conversation it stands in
    teachers: tuple[str, ...]  # of each example, which of several teachers it is learnt from
    stored: StoredRows | None  # targets of the weighted positions; None where the teacher is live or there is none
    drawn_log_probs: NotRequired[torch.Tensor]  # float32, [m]; by an earlier student, of tokens it drew, else NaN
    drawn_from: NotRequired[int | None]  # the first entries of its head that it drew among; None for all


def pack(examples: Sequence[Example], stored: Callable[[Sequence[Example]], StoredRows] | None = None) -> Batch:
    """Lay examples end to end and list the weighted positions with their labels, and what a store has of them."""
    input_ids = np.concatenate([e.input_ids for e in examples])
    weights = np.concatenate([e.weights for e in examples])
    section_ids = np.concatenate([e.section_ids for e in examples])
    tenths = np.concatenate([e.tenths for e in examples])
    lengths = [len(e.input_ids) for e in examples]
    # `weights[0]` of every example is 0, so that `targets - 1` never crosses into the example before.
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
        teachers=tuple(e.teacher for e in examples),
        stored=None if stored is None else stored(examples),
    )


def on_device(values: ItemT, device: torch.device) -> ItemT:
    """A batch whose tensors, those of its stored rows included, are on a device."""
    if isinstance(values, dict):
        return cast(ItemT, {name: on_device(inner, device) for name, inner in values.items()})
    return cast(ItemT, values.to(device)) if isinstance(values, torch.Tensor) else values


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
    # The sort is stable: among equal lengths the shuffled order decides, so that epochs pack differently.
    for index in sorted(order, key=lambda i: -lengths[i]):
        # The first pack with enough room is the fullest one that fits, because `room` ascends.
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at == len(room):
            packs.append([])
            free, pack_index = max_tokens, len(packs) - 1
        else:
            free, pack_index = room.pop(at)
        packs[pack_index].append(index)
        bisect.insort(room, (free - lengths[index], pack_index))
    return packs


def plan_by_tokens(lengths: Sequence[int], max_tokens: int, seed: int) -> list[list[int]]:
    """Best-fit packs of the first epoch up to a token budget, in random order; see `best_fit`."""
    return _shuffled(best_fit(lengths, max_tokens, _shuffled(range(len(lengths)), seed, 0)), seed, 0)


def plan_staged(
    lengths: Sequence[int], batches_per_stage: Sequence[int], seed: int, batch_size: int | None, max_tokens: int = 0
) -> list[list[int]]:
    """Batches of a run whose cut changes from stage to stage, over one stream of reshuffled epochs.

    Where a stage ends within an epoch, the epoch goes on with the cut of the next stage, so that no trace is seen twice
    in it. A trace of length 0 is skipped in that stage. The first epoch of one stage with a token budget is
    `plan_by_tokens`.

    Args:
        lengths: Tokens of each example, stage after stage: trace `i` in stage `k` is example `k * num_traces + i`;
            one of every stage at least is above 0.
        batches_per_stage: Batches of each stage.
        seed: Seed of the order.
        batch_size: Examples per batch; None packs by tokens.
        max_tokens: Token budget of a batch, where `batch_size` is None.

    Raises:
        SettingsError: An example is longer than the budget.
    """
    num_traces = len(lengths) // len(batches_per_stage)
    plan: list[list[int]] = []
    remaining: list[int] = []
    epoch = -1
    for stage, num_batches in enumerate(batches_per_stage):
        offset, end = stage * num_traces, len(plan) + num_batches
        started: list[int] = []
        while len(plan) < end:
            # A trace may have no weighted position in this stage and one in the next: it stays in the epoch until it
            # is used.
            usable = [offset + trace for trace in remaining if lengths[offset + trace]]
            if not usable:
                epoch += 1
                remaining = _shuffled(range(num_traces), seed, epoch)
                continue
            # Whole packs only: what the stage has no room for stays in the epoch and is packed again with the next cut.
            if batch_size is None:
                taken = _shuffled(best_fit(lengths, max_tokens, usable), seed, epoch)[: end - len(plan)]
                plan += taken
                used = {index for pack in taken for index in pack}
            else:
                # Examples that do not fill a batch before the epoch ends go into the first batch of the next epoch.
                used = usable[: (end - len(plan)) * batch_size - len(started)]
                stream = started + used
                num_whole = len(stream) // batch_size * batch_size
                plan += [stream[i : i + batch_size] for i in range(0, num_whole, batch_size)]
                started = stream[num_whole:]
            gone = {index - offset for index in used}
            remaining = [trace for trace in remaining if trace not in gone]
    return plan


def _shuffled(items: Sequence[ItemT], seed: int, epoch: int) -> list[ItemT]:
    shuffled = list(items)
    # A generator per epoch: an epoch's order does not depend on how many were drawn before, so a resumed run has it
    # too.
    random.Random(f"{seed}:{epoch}").shuffle(shuffled)
    return shuffled
