"""Answers from a model: batched generation with Transformers, every sample on a random stream of its own."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopPLogitsWarper,
)

from leadspan.errors import EvaluationError
from leadspan.evaluation.config import SamplingSettings


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw.

    Attributes:
        prompt: Prompt text with the generation header.
        key: Seeds the sample's random stream together with the settings' seed.
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
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]


class SeededSampling(LogitsProcessor):
    """Turns greedy choice into sampling, row by row: the argmax of `log-probability + Gumbel noise` is a draw.

    Each row has its own generator, so what a sample says does not depend on its batch.

    Source: Gumbel-max trick, Maddison et al., arXiv 1411.0030, section 2.
    """

    def __init__(self, keys: Sequence[str], settings: SamplingSettings, device: torch.device):
        self.temperature = settings.temperature
        self.nucleus = TopPLogitsWarper(settings.top_p) if settings.top_p < 1 else None
        self.generators = []
        for key in keys:
            seed = int.from_bytes(_digest(f"{settings.seed}:{key}")[:8], "big") >> 1
            self.generators.append(torch.Generator(device).manual_seed(seed))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[rows, V]` at temperature, inside the nucleus, with noise."""
        scores = scores.float() / self.temperature
        if self.nucleus is not None:
            scores = self.nucleus(cast(Any, input_ids), cast(Any, scores))
        noise = torch.stack(
            [
                torch.empty(scores.shape[1], device=scores.device).exponential_(generator=generator)
                for generator in self.generators
            ]
        )
        return scores - noise.log()


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    stop_token_ids: Sequence[int],
    settings: SamplingSettings,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Sample]:
    """Draw one sample per request, in the order of the requests.

    Args:
        model: A model with Transformers' own attention.
        tokenizer: Its tokenizer.
        requests: What to draw.
        stop_token_ids: Tokens that end a turn.
        settings: Sampling.
        on_progress: Called with the number of finished samples after each batch.

    Raises:
        EvaluationError: A prompt leaves no room for a new token in the model's window.
    """
    encoded = tokenizer([r.prompt for r in requests], add_special_tokens=False)["input_ids"]
    window: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompts = cast(list[list[int]], encoded)
    _check_window(prompts, window)
    samples: list[Sample | None] = [None] * len(requests)
    done = 0
    for indices in _batches(prompts, settings.batch_size):
        caps = [min(settings.max_new_tokens, (window or math.inf) - len(prompts[i])) for i in indices]
        keys = [requests[i].key for i in indices]
        longest = int(max(caps))
        drawn = _generate_batch(model, [prompts[i] for i in indices], keys, stop_token_ids, longest, settings)
        for index, cap, new_ids in zip(indices, caps, drawn, strict=True):
            samples[index] = _sample(tokenizer, new_ids[: int(cap)], stop_token_ids)
        done += len(indices)
        on_progress(done)
    return cast(list[Sample], samples)


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


def _sample(tokenizer: PreTrainedTokenizerBase, new_ids: list[int], stop_token_ids: Sequence[int]) -> Sample:
    stops = set(stop_token_ids)
    end = next((i for i, token in enumerate(new_ids) if token in stops), None)
    kept = new_ids if end is None else new_ids[:end]
    text = cast(str, tokenizer.decode(kept, skip_special_tokens=False))
    return Sample(text, len(new_ids) if end is None else end + 1, "length" if end is None else "stop")


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of prompts of like length, shortest first."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _check_window(prompts: Sequence[Sequence[int]], window: int | None) -> None:
    for number, prompt in enumerate(prompts):
        if window is not None and len(prompt) >= window:
            raise EvaluationError(
                f"request {number}: its prompt has {len(prompt)} tokens and the model's window {window}; "
                "prompts are never cut, so leave the problem out or take a model with a longer window"
            )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
