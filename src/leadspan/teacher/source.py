"""Sources of the teacher's targets in training: a live teacher, a store of its targets, a server, or none.

A source can be asked what it serves and what it costs before anything is loaded. Training then calls `load` and
`prepare` once, and `targets` on every batch that `collator` made.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import fsdp2_prepare_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from leadspan.costs.flops import ModelShape, head_only
from leadspan.costs.memory import ActivationBytes
from leadspan.data.examples import Example, Examples
from leadspan.data.packing import Batch, pack
from leadspan.data.sections import Renderer
from leadspan.errors import TargetsError
from leadspan.models.activations import activation_bytes
from leadspan.models.heads import head_of
from leadspan.models.loading import load_model, weights_id
from leadspan.models.reading import check_vocabulary, load_own_tokenizer
from leadspan.models.settings import ModelSettings
from leadspan.models.shapes import shape_from, shape_of
from leadspan.teacher.manifest import check_same, read_joined
from leadspan.teacher.server import PromptLogprobs, Servers, read_support
from leadspan.teacher.settings import AnyTeacher, Hidden, KeptTargets, Served
from leadspan.teacher.store import TargetStore
from leadspan.teacher.targets import SparseTargets, Targets, freeze, live_targets

logger = logging.getLogger(__name__)


class TeacherSource:
    """The teacher's side of training, the same to the trainer whether the teacher is live, stored, served or absent.

    Each kind of teacher overrides what it has; what it leaves out does nothing, as it is without a teacher.
    """

    end_ids: tuple[int, ...] = ()
    """Tokens that are one outcome in the divergence; set before any target is asked for."""

    kept_targets: KeptTargets | None = None
    """What is kept of each distribution, which limits the losses it serves; None where nothing is stored."""

    def shape(self) -> ModelShape | None:
        """Shape of the part that computes in training: a live teacher, or the head applied to stored hidden states.

        Raises:
            ModelError: The config of a live teacher cannot be read.
        """
        return None

    def activations(self, use_bf16: bool) -> ActivationBytes | None:
        """Memory of its forward pass, in bfloat16 or float32; None where there is none.

        Raises:
            ModelError: A live teacher cannot be traced.
        """
        return None

    def check_origin(self, renderer: Renderer, teacher: AnyTeacher | None) -> None:
        """Check that the targets belong to a run's tokenizer, template and, where the recipe names one, teacher.

        Raises:
            TargetsError: Names each of them that differs.
        """

    def check_serves(self, examples: Examples, indices: Sequence[int]) -> None:
        """Check that there are targets for some examples.

        Raises:
            TargetsError: One of them is not served.
            CacheError: The row that serves one of them is damaged.
        """

    def check_window(self, num_tokens: int, remedy: str) -> None:
        """Check that a sequence of so many tokens, not made yet, can be scored; `remedy` is for the error.

        Raises:
            TargetsError: It is too long for a server.
        """

    def load(self, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load what training needs of it; a live teacher's weights have the type, and its token ids are the data's.

        Raises:
            ModelError: The teacher cannot be loaded, or its vocabulary is not the data's.
            CacheError: The stored head is missing or damaged.
        """

    def shared_tokens(self, student_rows: int, tokenizer_size: int) -> int | None:
        """How many tokens the heads of teacher and student are compared on; None for all rows of the student's head.

        Raises:
            TargetsError: The heads are padded differently, and the stored distributions include the padding.
        """
        return None

    def prepare(self, accelerator: Accelerator) -> None:
        """Put what was loaded where training runs, sharded among the ranks if the student is."""

    @property
    def collator(self) -> Callable[[Sequence[Example]], Batch]:
        """Packs examples into a batch; runs in the processes that load data."""
        return pack

    def ask_ahead(self, batches: Sequence[Batch]) -> None:
        """Start fetching the targets of the batches of a step, where they come from another machine."""

    def targets(self, batch: Batch) -> Targets | None:
        """What the student imitates at the weighted positions of a batch; None where there is no teacher."""
        return None


class NoTeacher(TeacherSource):
    """A recipe without a teacher: cross-entropy only."""


@dataclass(eq=False)
class LiveTeacher(TeacherSource):
    """A frozen teacher that runs in the training process on the same packed rows as the student.

    Attributes:
        settings: Where it comes from.
        model: The frozen model; where it is given, `load` need not be called.
    """

    settings: ModelSettings
    model: PreTrainedModel | None = None

    def shape(self) -> ModelShape | None:
        """All of the model; from its config alone while it is not loaded."""
        return shape_from(self.settings) if self.model is None else shape_of(self.model)

    def activations(self, use_bf16: bool) -> ActivationBytes | None:
        """Of the forward pass up to the final hidden states, traced without weights."""
        return activation_bytes(self.settings, use_bf16, None)

    def load(self, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load and freeze the model, and compare its vocabulary with the data's."""
        self.model = freeze(load_model(self.settings, dtype, is_frozen=True))
        # Checked after loading: only the head says how many tokens the model scores.
        num_rows = head_of(self.model).weight.shape[0]
        check_vocabulary(tokenizer, "teacher", load_own_tokenizer(self.settings), num_rows)

    def shared_tokens(self, student_rows: int, tokenizer_size: int) -> int | None:
        """The tokenizer's tokens, where the two heads are padded differently."""
        shape = self.shape()
        return None if shape is None or shape.vocab_size == student_rows else tokenizer_size

    def prepare(self, accelerator: Accelerator) -> None:
        """Move the model, or shard it where the student is sharded; packed weights stay whole."""
        model = cast(torch.nn.Module, self.model)
        if accelerator.is_fsdp2 and not getattr(model, "is_quantized", False):
            # With FSDP `prepare_model` neither shards nor moves a model that is not trained.
            prepared = fsdp2_prepare_model(accelerator, model)
        else:
            prepared = accelerator.prepare_model(model, device_placement=True, evaluation_mode=True)
        self.model = cast(PreTrainedModel, prepared)

    def targets(self, batch: Batch) -> Targets | None:
        """The teacher's hidden states and head."""
        assert self.model is not None, "loaded before"
        return live_targets(self.model, batch)


class StoredTeacher(TeacherSource):
    """A store of targets: its rows come with each batch; the teacher's head, if it has one, is loaded once."""

    def __init__(self, directory: Path):
        """Read the manifest of a store.

        Raises:
            TargetsError: There is none, or its parts are not of one teacher, tokenizer, template and codec.
            CacheError: It is damaged.
        """
        self.manifest = read_joined(directory)
        self.kept_targets = self.manifest.kept_targets
        self._directory = directory
        self._head: torch.Tensor | None = None

    @functools.cached_property
    def store(self) -> TargetStore:
        """The store itself, mapped into memory when it is first needed."""
        return TargetStore(self._directory)

    def shape(self) -> ModelShape | None:
        """The head that is applied to stored hidden states; None for a sparse codec."""
        # Sparse targets hold probabilities already; hidden states need the head's weights and its products.
        if not isinstance(self.manifest.codec, Hidden):
            return None
        return head_only(self.manifest.hidden_size, self.manifest.num_tokens)

    def check_origin(self, renderer: Renderer, teacher: AnyTeacher | None) -> None:
        """Compare the manifest with tokenizer, template and teacher of the run."""
        expected = {"tokenizer_hash": renderer.tokenizer_hash, "template_hash": renderer.template_hash}
        if teacher is not None:
            expected["weights_hash"] = teacher.identity if isinstance(teacher, Served) else weights_id(teacher)
        where = f"{self._directory}, captured from {self.manifest.teacher}"
        check_same(self.manifest.model_dump(mode="json"), expected, where)

    def check_serves(self, examples: Examples, indices: Sequence[int]) -> None:
        """Look the examples up, and read the rows that serve them once."""
        for index in indices:
            self.store.find(examples[index])

    def load(self, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
        """Load the teacher's head of a `hidden` store, and log what the codec loses."""
        self._head = self.store.load_head()
        if self.manifest.kl_lost is not None:
            logger.info(
                "%s of %s loses %.3g nats of KL per position, against the student it was captured for",
                self.manifest.codec.label,
                self._directory,
                self.manifest.kl_lost,
            )

    def shared_tokens(self, student_rows: int, tokenizer_size: int) -> int | None:
        """All rows where the heads agree, else the tokenizer's, if the stored distributions allow that."""
        stored_tokens = self.manifest.num_tokens
        if stored_tokens == student_rows:
            return None
        # Hidden states give logits of any rows; sparse log-probabilities are normalised over those of the capture.
        if isinstance(self.manifest.codec, Hidden) or stored_tokens == tokenizer_size:
            return tokenizer_size
        raise TargetsError(
            f"{self._directory}: its distributions are over {stored_tokens} tokens, the student's head has "
            f"{student_rows} rows, the tokenizer {tokenizer_size} tokens; capture with capture.vocabulary: tokenizer "
            "(or codec hidden)"
        )

    def prepare(self, accelerator: Accelerator) -> None:
        """Move the head to the device; every rank has all of it."""
        if self._head is not None:
            self._head = self._head.to(accelerator.device)

    @property
    def collator(self) -> Callable[[Sequence[Example]], Batch]:
        """Packs examples with their stored rows; the head stays out of the processes that load data."""
        # A partial pickles, and the store in it pickles as its path: worker processes map the files themselves.
        return functools.partial(pack, stored=self.store.collate)

    def targets(self, batch: Batch) -> Targets | None:
        """The stored rows of the batch, with the head."""
        rows = batch["stored"]
        assert rows is not None, "packed by this source's collator"
        return self.store.targets(rows, self._head)


class RemoteTeacher(Servers, TeacherSource):
    """A teacher that runs on a server: `k` log-probabilities per position, requested batch by batch."""

    def __init__(self, settings: Served):
        super().__init__(settings)
        self.settings, self.kept_targets = settings, settings.kept_targets
        self._num_tokens = 0
        self._device = torch.device("cpu")
        self._pending: dict[tuple[str, bytes], Future[PromptLogprobs]] = {}

    def check_serves(self, examples: Examples, indices: Sequence[int]) -> None:
        """Look for the server of every example, and compare the longest with the window."""
        for name in {examples.teachers[i] for i in indices}:
            self.of(name)
        longest = max((examples.lengths[i] for i in indices), default=0)
        self.check_window(longest, "set data.max_tokens: {}")

    def shared_tokens(self, student_rows: int, tokenizer_size: int) -> int | None:
        """None, so all rows of the student's head: tokens outside the teacher's support are one outcome for both."""
        self._num_tokens = student_rows
        return None

    def prepare(self, accelerator: Accelerator) -> None:
        """Targets go where training runs."""
        self._device = accelerator.device

    def ask_ahead(self, batches: Sequence[Batch]) -> None:
        """Request the targets of later batches, so that the server works while the student does."""
        for batch in batches:
            for name, input_ids, _ in _sequences(batch):
                if (key := (name, input_ids.tobytes())) not in self._pending:
                    self._pending[key] = self.ask(name, input_ids, self.settings.k, self.end_ids)

    def targets(self, batch: Batch) -> Targets:
        """The likeliest tokens at the weighted positions of a batch, with the mass of all others.

        Where the tokens that end a turn are one outcome, those of them that the server names are in the support too.

        Raises:
            TargetsError: The server does not answer, or its answer is unusable.
        """
        k, ends, sequences = self.settings.k, self.end_ids, list(_sequences(batch))
        # Requested ahead in training; a validation asks for the first time here.
        futures = [
            self._pending.pop((name, ids.tobytes()), None) or self.ask(name, ids, k, ends) for name, ids, _ in sequences
        ]
        supports = [
            (read_support(future.result(), ids, k, self.of(name).name, "teacher.k", ends), positions)
            for future, (name, ids, positions) in zip(futures, sequences, strict=True)
        ]

        def joined(column: str) -> torch.Tensor:
            rows = np.concatenate([getattr(support, column)[positions] for support, positions in supports])
            return torch.from_numpy(rows).to(self._device)

        token_ids, log_probs = joined("token_ids"), joined("log_probs")
        # Tokens of the teacher's head that the student's head lacks join the tail.
        is_beyond, outside = token_ids >= self._num_tokens, joined("outside")
        outside += torch.where(is_beyond, log_probs.exp(), 0.0).sum(1)
        return SparseTargets(
            token_ids=torch.where(is_beyond, 0, token_ids),
            log_probs=torch.where(is_beyond, -torch.inf, log_probs),
            # The server returns log p and no logits, so the normaliser is that of log p: 0.
            logsumexp={1.0: torch.zeros_like(outside)},
            tail_mass={1.0: outside},
            label_log_probs=joined("label_log_probs"),
        )


def _sequences(batch: Batch) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each example with weighted positions: its teacher, its tokens to the last that is predicted, the positions."""
    input_ids, positions = batch["input_ids"][0].cpu().numpy(), batch["positions"].cpu().numpy()
    borders = np.searchsorted(positions, batch["borders"])
    for name, start, first, end in zip(batch["teachers"], batch["borders"], borders, borders[1:], strict=False):
        if first < end:
            weighted = positions[first:end] - start
            # Up to the token that the last weighted position predicts.
            yield name, input_ids[start : start + weighted[-1] + 2], weighted
