"""vLLM as the engine of a capture: the likeliest tokens of every prompt position, by `prompt_logprobs`.

vLLM returns log-probabilities of the `k` likeliest tokens and of the prompt's own next token, at temperature 1, and
nothing of the rest of the distribution: entropy and the normalisers of other temperatures cannot be stored.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from leadspan.data.examples import Example
from leadspan.errors import SettingsError, TargetsError
from leadspan.models.config import Pretrained
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.config import Precision, TopK
from leadspan.teacher.entries import pack_entries


class Logprob(Protocol):
    """What vLLM says of one token (`vllm.logprobs.Logprob`)."""

    logprob: float
    rank: int | None


PromptLogprobs = Sequence[Mapping[int, Logprob] | None]
"""`RequestOutput.prompt_logprobs`: None for the first token, then for each token of the prompt a mapping from token id
to log-probability of the `k` likeliest and of the token itself."""


class VllmEngine:
    """Runs a teacher under vLLM over packs of sequences."""

    def __init__(self, teacher: Pretrained, codec: TopK, max_tokens: int):
        """Start the engine.

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
            max_logprobs=codec.k,
            max_model_len=max_tokens + 1,
            enable_prefix_caching=False,  # a cached prefix has no prompt log-probabilities
        )
        self._options = SamplingParams(max_tokens=1, prompt_logprobs=codec.k, detokenize=False)

    def __call__(self, sequences: Sequence[Example]) -> list[Arrays]:
        """The stored columns of every sequence."""
        prompts = [{"prompt_token_ids": example.input_ids.tolist()} for example in sequences]
        outputs = self._model.generate(prompts, self._options, use_tqdm=False)
        return [
            rows_of(output.prompt_logprobs, example.input_ids, self.codec.k, self.codec.precision)
            for output, example in zip(outputs, sequences, strict=True)
        ]


def rows_of(prompt_logprobs: PromptLogprobs, input_ids: np.ndarray, k: int, precision: Precision) -> Arrays:
    """The stored columns of one sequence from vLLM's answer.

    Args:
        prompt_logprobs: vLLM's answer; entry `t` is about token `t` given those before it.
        input_ids: The sequence, [T].
        k: Tokens asked for.
        precision: Of the entries.

    Returns:
        Columns of `T - 1` positions: entries by falling log-probability, the outside mass, the data token's
        log-probability.

    Raises:
        TargetsError: The answer is of another length, lacks the data's token, or has fewer than `k` tokens.
    """
    if prompt_logprobs is None or len(prompt_logprobs) != len(input_ids):
        found = "none" if prompt_logprobs is None else len(prompt_logprobs)
        raise TargetsError(f"vllm returned {found} prompt log-probabilities for {len(input_ids)} tokens")
    ids, log_probs = np.empty((len(input_ids) - 1, k), np.int64), np.empty((len(input_ids) - 1, k), np.float32)
    own = np.empty(len(input_ids) - 1, np.float32)
    for t, (answer, token) in enumerate(zip(prompt_logprobs[1:], input_ids[1:].tolist(), strict=True)):
        likeliest = sorted(answer.items(), key=lambda item: -item[1].logprob)[:k] if answer else []
        if len(likeliest) < k or answer is None or token not in answer:
            has = "with" if answer and token in answer else "without"
            raise TargetsError(
                f"vllm returned {len(likeliest)} of {k} tokens at position {t}, {has} the data's token {token}; "
                "lower capture.codec.k"
            )
        ids[t] = [token_id for token_id, _ in likeliest]
        log_probs[t] = [min(0.0, entry.logprob) for _, entry in likeliest]
        own[t] = answer[token].logprob
    outside = np.clip(1.0 - np.exp(log_probs.astype(np.float64)).sum(1), 0.0, 1.0)
    columns: dict[str, Any] = pack_entries(ids.reshape(-1), log_probs.reshape(-1), precision)
    return columns | {"outside": outside.astype(np.float32), "label_log_prob": own}
