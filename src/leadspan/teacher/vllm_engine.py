"""vLLM as the engine of a capture: the likeliest tokens of every prompt position, by `prompt_logprobs`.

vLLM returns log-probabilities of the `k` likeliest tokens and of the prompt's own next token, at temperature 1, and
nothing of the rest of the distribution: entropy and the normalisers of other temperatures cannot be stored.
"""

from collections.abc import Sequence

import torch

from leadspan.data.examples import Example
from leadspan.errors import SettingsError
from leadspan.models.settings import Pretrained
from leadspan.teacher.codecs import Arrays
from leadspan.teacher.server import read_support
from leadspan.teacher.settings import TopK


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
