"""Transformers as the engine of a capture: a packed forward pass, projected to the vocabulary chunk by chunk."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import on_device, pack
from leadspan.errors import ModelError
from leadspan.teacher.codecs import Arrays, encode
from leadspan.teacher.manifest import HeadEntry
from leadspan.teacher.settings import CaptureSettings, Codec, Hidden, Sampled
from leadspan.teacher.shards import PER_ENTRY, sequence_hash
from leadspan.teacher.targets import DenseTargets, live_targets, teacher_logits

_CPU_CHUNK_BYTES, _CUDA_CHUNK_TOKENS = 32 << 20, 2048
_CPU_SLAB_BYTES = 4 << 20  # of logits, so that every pass over them reads from the cache
# NumPy has no bfloat16: its bits travel as uint16.
_NUMPY_OF = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


class TransformersEngine:
    """Runs a frozen teacher over packs and encodes its distributions."""

    def __init__(self, teacher: PreTrainedModel, settings: CaptureSettings, num_tokens: int):
        """Take a teacher.

        Args:
            teacher: Frozen, on its device.
            settings: Codec, temperatures, chunk.
            num_tokens: The first rows of the head that the distribution is over.
        """
        self.teacher, self.settings, self.num_tokens = teacher, settings, num_tokens
        self.hidden_dtype = hidden_dtype(settings.codec, teacher.dtype)

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        batch = on_device(pack(sequences), self.teacher.device)
        targets = live_targets(self.teacher, batch)
        codec = self.settings.codec
        num_positions = [len(example.input_ids) - 1 for example in sequences]
        if isinstance(codec, Hidden):
            hidden = targets.hidden.to(self.hidden_dtype).reshape(-1).cpu()
            kind = _NUMPY_OF[hidden.dtype]
            array = hidden.view(torch.int16).numpy().view(kind) if kind is np.uint16 else hidden.numpy()
            return _split_rows({"hidden": array.copy()}, num_positions)
        labels, offsets = batch["labels"], uniform_offsets(sequences, codec)
        size = self.settings.chunk_tokens or default_chunk(targets.head)
        slabs: list[Arrays] = []
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            # Two levels: chunks keep the matrix product large, slabs keep the passes over its result in the cache.
            logits = teacher_logits(targets, rows, self.num_tokens)
            slab = len(logits) if logits.is_cuda else max(1, _CPU_SLAB_BYTES // (4 * self.num_tokens))
            for first in range(0, len(logits), slab):
                positions = slice(start + first, start + min(first + slab, len(logits)))
                drawn = None if offsets is None else offsets[positions]
                slab_logits = logits[first : first + slab]
                slabs.append(encode(slab_logits, labels[positions], codec, self.settings.temperatures, drawn))
        columns = {name: np.concatenate([part[name] for part in slabs]) for name in slabs[0]}
        return _split_rows(columns, num_positions)


def _split_rows(arrays: Arrays, num_positions: Sequence[int]) -> list[Arrays]:
    """Cut the columns of a pack, all positions one after the other, into those of its sequences."""
    ends = [0, *itertools.accumulate(num_positions)]
    sizes = arrays.get("num_entries")
    entry_ends = ends
    if sizes is not None:
        running = [0, *itertools.accumulate(sizes.tolist())]
        entry_ends = [running[end] for end in ends]
    rows: list[Arrays] = [{} for _ in num_positions]
    for name, values in arrays.items():
        by_entry = name in PER_ENTRY and sizes is not None
        # All other columns have the same number of values at every position.
        width = 1 if by_entry else len(values) // ends[-1]
        marks = entry_ends if by_entry else ends
        for row, (start, end) in zip(rows, itertools.pairwise(marks), strict=True):
            row[name] = values[start * width : end * width]
    return rows


def hidden_dtype(codec: Codec, teacher: torch.dtype) -> torch.dtype:
    """Type in which hidden states are stored."""
    if isinstance(codec, Hidden) and codec.dtype != "teacher":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[codec.dtype]
    return teacher


def head_file(targets: DenseTargets, num_tokens: int) -> tuple[bytes, HeadEntry]:
    """Content of the file of the teacher's head, and its entry in the manifest."""
    # The first rows only, as in the distribution: what follows them is padding of the vocabulary.
    content = save({"weight": targets.head.detach()[:num_tokens].cpu().contiguous()})
    entry = HeadEntry(sha256=hashlib.sha256(content).hexdigest(), scale=targets.scale, softcap=targets.softcap)
    return content, entry


def check_causal(teacher: PreTrainedModel, longest: int, name: str) -> None:
    """Refuse a teacher whose outputs on a prefix depend on how long the whole sequence is.

    Raises:
        ModelError: Its rotary frequencies change with the length, and a sequence is long enough for that.
    """
    config = teacher.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):  # or by layer type
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        # These types choose frequencies by the length of the whole sequence, so a prefix of the outputs is not the
        # output of the prefix.
        if rope.get("rope_type") in ("dynamic", "longrope") and longest > original:
            raise ModelError(
                f"teacher {name}: its {rope['rope_type']} position embedding changes with sequences longer than "
                f"{original} tokens (here up to {longest}), so the outputs of a prefix are not the prefix of the "
                f"outputs; set data.max_tokens: {original}, or train with targets: {{kind: live}}"
            )


def default_chunk(head: torch.Tensor) -> int:
    """Positions projected at a time."""
    # 4 bytes a logit; at least 16 rows, however large the vocabulary.
    return _CUDA_CHUNK_TOKENS if head.is_cuda else max(16, _CPU_CHUNK_BYTES // (4 * head.shape[0]))


def uniform_offsets(sequences: Sequence[Example], codec: object) -> torch.Tensor | None:
    """One uniform number per position, from the seed and the sequence alone: the same in any pack, on any rank."""
    if not isinstance(codec, Sampled):
        return None
    drawn = [
        # Seeded by the sequence itself: packs, ranks and resumes may order sequences in any way.
        np.random.default_rng([codec.seed, *np.frombuffer(sequence_hash(e.input_ids), dtype="<u4").tolist()]).random(
            len(e.input_ids) - 1
        )
        for e in sequences
    ]
    return torch.from_numpy(np.concatenate(drawn))
