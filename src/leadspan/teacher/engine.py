"""The engines of a capture: Transformers in this process, vLLM, and a served teacher.

Transformers runs a pack as one forward pass, projected to the vocabulary chunk by chunk. vLLM (an extra, imported when
it is started) and servers return log-probabilities of the `k` likeliest tokens and of the prompt's own next token, at
temperature 1, and nothing of the rest of the distribution: entropy and the normalisers of other temperatures cannot be
stored.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Example
from leadspan.data.packing import on_device, pack
from leadspan.data.sections import Renderer
from leadspan.errors import SettingsError, TargetsError
from leadspan.models.settings import Pretrained
from leadspan.teacher.codecs import Arrays, encode
from leadspan.teacher.server import Servers, read_support
from leadspan.teacher.settings import CaptureSettings, Codec, Hidden, Sampled, Served, TopK
from leadspan.teacher.shards import borders_of, sequence_hash
from leadspan.teacher.targets import live_targets, teacher_logits

_CPU_CHUNK_BYTES, _CUDA_CHUNK_TOKENS = 32 << 20, 2048
_CPU_SLAB_BYTES = 8 << 20  # of logits, so that every pass over them reads from the cache


@dataclass(frozen=True)
class TransformersEngine:
    """Runs a frozen teacher over packs and encodes its distributions.

    Attributes:
        teacher: Frozen, on its device.
        settings: Codec, temperatures, chunk.
        num_tokens: The first rows of the head that the distribution is over.
    """

    teacher: PreTrainedModel
    settings: CaptureSettings
    num_tokens: int

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        batch = on_device(pack(sequences), self.teacher.device)
        targets = live_targets(self.teacher, batch)
        codec = self.settings.codec
        if isinstance(codec, Hidden):
            hidden = targets.hidden.to(hidden_dtype(codec, self.teacher.dtype)).reshape(-1).cpu()
            # NumPy has no bfloat16: its bits travel as uint16.
            array = (hidden.view(torch.uint16) if hidden.dtype == torch.bfloat16 else hidden).numpy()
            columns = {"hidden": array.copy()}
        else:
            labels, offsets = batch["labels"], uniform_offsets(sequences, codec)
            size = self.settings.chunk_tokens or default_chunk(targets.head)
            slabs: list[Arrays] = []
            for start in range(0, len(labels), size):
                # Two levels: chunks keep the matrix product large, slabs keep the passes over its result in the cache.
                logits = teacher_logits(targets, slice(start, start + size), self.num_tokens)
                slab = len(logits) if logits.is_cuda else max(1, _CPU_SLAB_BYTES // (4 * self.num_tokens))
                for first in range(0, len(logits), slab):
                    positions = slice(start + first, start + min(first + slab, len(logits)))
                    drawn = None if offsets is None else offsets[positions]
                    slab_logits = logits[first : first + slab]
                    slabs.append(encode(slab_logits, labels[positions], codec, self.settings.temperatures, drawn))
            columns = {name: np.concatenate([part[name] for part in slabs]) for name in slabs[0]}
        # The columns of the pack, all positions one after the other, are cut into those of its sequences.
        ends = np.cumsum([0, *(len(example.input_ids) - 1 for example in sequences)])
        rows: list[Arrays] = [{} for _ in sequences]
        for name, values in columns.items():
            borders = borders_of(columns, name, ends[-1])[ends].tolist()
            for row, (start, end) in zip(rows, itertools.pairwise(borders), strict=True):
                row[name] = values[start:end]
        return rows


def hidden_dtype(codec: Codec, teacher: torch.dtype) -> torch.dtype:
    """Type in which hidden states are stored."""
    if isinstance(codec, Hidden) and codec.dtype != "teacher":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[codec.dtype]
    return teacher


def default_chunk(head: torch.Tensor) -> int:
    """Positions projected at a time."""
    # 4 bytes a logit; at least 16 rows, however large the vocabulary.
    return _CUDA_CHUNK_TOKENS if head.is_cuda else max(16, _CPU_CHUNK_BYTES // (4 * head.shape[0]))


def uniform_offsets(sequences: Sequence[Example], codec: object) -> torch.Tensor | None:
    """One uniform number per position, from the seed and the sequence alone: the same in any pack, on any rank."""
    if not isinstance(codec, Sampled):
        return None
    drawn = []
    for example in sequences:
        # Seeded by the sequence itself: packs, ranks and resumes may order sequences in any way.
        words = np.frombuffer(sequence_hash(example.input_ids), dtype="<u4").tolist()
        drawn.append(np.random.default_rng([codec.seed, *words]).random(len(example.input_ids) - 1))
    return torch.from_numpy(np.concatenate(drawn))


class VllmEngine:
    """Runs a teacher under vLLM over packs of sequences."""

    def __init__(self, teacher: Pretrained, codec: TopK, max_tokens: int, dtype: torch.dtype):
        """Start the engine, which computes in a type.

        Raises:
            SettingsError: vLLM is not installed.
        """
        try:
            from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # an extra
        except ImportError:
            raise SettingsError("capture.engine: vllm is not installed; pip install 'leadspan[vllm]'") from None
        self.codec = codec
        self._model = LLM(
            model=teacher.path,
            revision=teacher.revision,
            dtype=str(dtype).removeprefix("torch."),
            max_logprobs=codec.k,
            max_model_len=max_tokens + 1,
            enable_prefix_caching=False,  # a cached prefix has no prompt log-probabilities
        )
        # vLLM must generate at least one token; only the prompt's log-probabilities are used.
        self._options = SamplingParams(max_tokens=1, prompt_logprobs=codec.k, detokenize=False)

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        prompts = [{"prompt_token_ids": example.input_ids.tolist()} for example in sequences]
        outputs = self._model.generate(prompts, self._options, use_tqdm=False)
        supports = []
        for output, example in zip(outputs, sequences, strict=True):
            answer = output.prompt_logprobs and [
                entry and {token: top.logprob for token, top in entry.items()} for entry in output.prompt_logprobs
            ]
            supports.append(read_support(answer, example.input_ids, self.codec.k, "vllm", "capture.codec.k"))
        return [support.columns(self.codec.precision) for support in supports]


class ServedEngine(Servers):
    """Requests packs of sequences from a served teacher, for a capture."""

    def __init__(self, settings: Served, codec: TopK, num_tokens: int, renderer: Renderer, longest: int):
        """Compare the server with the data and the longest sequence; the distributions are over `num_tokens` tokens."""
        super().__init__(settings)
        self.codec, self.num_tokens = codec, num_tokens
        self.check_origin(renderer)
        self.check_window(longest, "let the longest sequence have {}: data.max_tokens, rollout.max_new_tokens")

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        # A teacher without a server ends the capture before any request waits for a thread.
        k, servers = self.codec.k, [self.of(example.teacher).name for example in sequences]
        # All requests go out before the first answer is read, so that the server can batch them.
        futures = [self.ask(example.teacher, example.input_ids, k) for example in sequences]
        rows = []
        for server, future, example in zip(servers, futures, sequences, strict=True):
            support = read_support(future.result(), example.input_ids, k, server, "capture.codec.k")
            highest = int(support.token_ids.max(initial=0))
            if highest >= self.num_tokens:
                raise TargetsError(
                    f"{server}: token {highest} is among the {k} likeliest, and the student's head has "
                    f"{self.num_tokens} rows; lower capture.codec.k, or train with the teacher live"
                )
            rows.append(support.columns(self.codec.precision))
        return rows
