"""The teacher's side of a batch: nothing, a live teacher, or a store. Each packs examples and gives their targets."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import Batch, pack
from leadspan.teacher.live import live_targets
from leadspan.teacher.store import TargetStore
from leadspan.teacher.targets import Targets

_STORED = "stored_targets"


class NoTeacher:
    """Cross-entropy only.

    Attributes:
        collator: Packs examples into a batch; runs in the processes that load data.
    """

    collator: Callable[[Sequence[Example]], Batch] = staticmethod(pack)

    def targets(self, batch: Batch) -> Targets | None:
        """None."""
        return None


class LiveTeacher(NoTeacher):
    """A frozen teacher that runs beside the student."""

    def __init__(self, model: torch.nn.Module):
        self._model = cast(PreTrainedModel, model)

    def targets(self, batch: Batch) -> Targets:
        """The teacher's hidden states and head."""
        return live_targets(self._model, batch)


class StoredTeacher(NoTeacher):
    """A store: its rows travel with the batch; the teacher's head, where there is one, is loaded once."""

    def __init__(self, store: TargetStore, device: torch.device):
        head = store.load_head()
        self._store, self._head = store, None if head is None else head.to(device)
        self.collator = functools.partial(pack_with_targets, store)

    def targets(self, batch: Batch) -> Targets:
        """Take the stored targets out of the batch."""
        return self._store.targets(cast(dict[str, Any], batch).pop(_STORED), self._head)


def pack_with_targets(store: TargetStore, examples: Sequence[Example]) -> Batch:
    """Pack examples, with what is stored of their weighted positions under a key of its own."""
    batch = cast(dict[str, Any], pack(examples))
    batch[_STORED] = store.collate(examples)
    return cast(Batch, batch)
