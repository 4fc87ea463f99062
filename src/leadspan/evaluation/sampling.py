"""Answers from a model: batched generation with Transformers, every sample on a random stream of its own.

What engines have in common (requests, samples, the budget of the window, stops, loops) stands here too.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from leadspan.errors import EvaluationError
from leadspan.evaluation.config import SamplingSettings

LOOP_TOKENS, LOOP_REPEATS = 30, 10
"""A sample loops when some run of that many tokens occurs in it that often."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw.

    Attributes:
        prompt: Prompt text with the generation header.
        key: Problem and sample number; seeds the sample's random stream together with the settings' seed.
    """

    prompt: str
    key: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated text.

    Attributes:
        text: New text, special tokens kept, the end-of-turn token left out.
        num_tokens: New tokens, the end-of-turn token included.
        finish_reason: `stop`: an end-of-turn token; `length`: the cap or the window.
        loops: Whether a run of `LOOP_TOKENS` tokens occurs `LOOP_REPEATS` times or more.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    loops: bool


Generate = Callable[[Sequence[Request]], Iterator[dict[int, Sample]]]
"""Draws requests; yields finished samples, by place of their request, as they come."""


def seed_of(key: str, seed: int) -> int:
    """Seed of one sample's random stream, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") >> 1


def budgets(requests: Sequence[Request], prompts: Sequence[Sequence[int]], window: int | None, most: int) -> list[int]:
    """New tokens each request may have: `most`, or what the window leaves beside the prompt.

    Args:
        requests: The requests, for messages.
        prompts: Their token ids.
        window: Positions of the model, where it has a limit.
        most: Cap on new tokens.

    Raises:
        EvaluationError: A prompt leaves no room for a new token; prompts are never cut.
    """
    for request, prompt in zip(requests, prompts, strict=True):
        if window is not None and len(prompt) >= window:
            raise EvaluationError(
                f"problem {request.key}: its prompt has {len(prompt)} tokens and the model's window {window}; "
                "prompts are never cut, so leave the problem out or take a model with a longer window"
            )
    return [most if window is None else min(most, window - len(prompt)) for prompt in prompts]


def to_sample(tokenizer: PreTrainedTokenizerBase, new_ids: Sequence[int], stop_token_ids: Sequence[int]) -> Sample:
    """New token ids up to the first that ends the turn, as a sample."""
    stops = set(stop_token_ids)
    end = next((i for i, token in enumerate(new_ids) if token in stops), None)
    kept = list(new_ids if end is None else new_ids[:end])
    text = cast(str, tokenizer.decode(kept, skip_special_tokens=False))
    num_tokens = len(kept) if end is None else end + 1
    return Sample(text, num_tokens, "length" if end is None else "stop", is_loop(kept))


def is_loop(ids: Sequence[int]) -> bool:
    """Whether some run of `LOOP_TOKENS` tokens occurs `LOOP_REPEATS` times or more, overlaps counted.

    The criterion of repeated n-grams for loops of reasoning models; the two numbers are this tool's own. Runs are
    compared by a polynomial hash modulo 2^64.
    """
    num_runs = len(ids) - LOOP_TOKENS + 1
    if num_runs < LOOP_REPEATS:
        return False
    tokens = np.asarray(ids, dtype=np.uint64) + np.uint64(1)
    hashes = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(LOOP_TOKENS):
        hashes = hashes * np.uint64(6364136223846793005) + tokens[offset : offset + num_runs]
    return bool(np.unique(hashes, return_counts=True)[1].max() >= LOOP_REPEATS)


def window_of(config: PreTrainedConfig) -> int | None:
    """Positions a model has, where its config tells."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class SeededSampling(LogitsProcessor):
    """Turns greedy choice into sampling, row by row: the argmax of `log-probability + Gumbel noise` is a draw.

    Each row has its own generator, so what a sample says does not depend on its batch.

    Source: Gumbel-max trick, Maddison et al., arXiv 1411.0030, section 2.
    """

    def __init__(self, keys: Sequence[str], settings: SamplingSettings, device: torch.device):
        self.temperature = settings.temperature
        self.filters: list[LogitsProcessor] = []
        if settings.top_k is not None:
            self.filters.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self.filters.append(TopPLogitsWarper(settings.top_p))
        self.generators = [torch.Generator(device).manual_seed(seed_of(key, settings.seed)) for key in keys]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[rows, V]` of all samples, see `draw`."""
        return self.draw(scores, range(len(self.generators)))

    def draw(self, scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Scores `[rows, V]` at temperature, among the kept tokens, with the noise of these samples' streams."""
        scores = scores.float() / self.temperature
        for keep in self.filters:
            scores = keep(cast(Any, None), cast(Any, scores))
        noise = torch.stack(
            [
                torch.empty(scores.shape[1], device=scores.device).exponential_(generator=self.generators[row])
                for row in rows
            ]
        )
        return scores - noise.log()


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    settings: SamplingSettings,
    requests: Sequence[Request],
) -> Iterator[dict[int, Sample]]:
    """Draw one sample per request, batch by batch, prompts of like length together.

    Args:
        model: A model with Transformers' own attention.
        tokenizer: Its tokenizer.
        stop_token_ids: Tokens that end a turn.
        settings: Sampling.
        requests: What to draw.

    Raises:
        EvaluationError: A prompt leaves no room for a new token in the model's window; nothing has been drawn.
    """
    prompts = encode(tokenizer, requests)
    caps = budgets(requests, prompts, window_of(model.config), settings.max_new_tokens)
    for indices in _batches(prompts, settings.batch_size):
        keys = [requests[i].key for i in indices]
        longest = max(caps[i] for i in indices)
        drawn = _generate_batch(model, [prompts[i] for i in indices], keys, stop_token_ids, longest, settings)
        yield {i: to_sample(tokenizer, ids[: caps[i]], stop_token_ids) for i, ids in zip(indices, drawn, strict=True)}


def encode(tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]) -> list[list[int]]:
    """Token ids of the prompts; templates bring their special tokens along."""
    if not requests:
        return []
    return cast(list[list[int]], tokenizer([r.prompt for r in requests], add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    keys: list[str],
    stop_token_ids: Sequence[int],
    cap: int,
    settings: SamplingSettings,
) -> list[list[int]]:
    device, longest = model.device, max(len(prompt) for prompt in prompts)
    pad = stop_token_ids[0]
    input_ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    processors = LogitsProcessorList()
    if settings.temperature > 0:
        processors.append(SeededSampling(keys, settings, device))
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=cap,
        eos_token_id=list(stop_token_ids),
        pad_token_id=pad,
        use_cache=True,
    )
    model.generation_config = config  # else unset fields would come from the one shipped with the weights
    output = cast(Any, model).generate(
        input_ids, attention_mask=mask, generation_config=config, logits_processor=processors
    )
    return cast(torch.Tensor, output)[:, longest:].tolist()


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of prompts of like length, shortest first."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
