"""Answers from a model: batched generation with Transformers, every sample with its own random stream.

The parts that engines share (requests, samples, the budget of the window, stops, loops) are here too.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
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
from transformers.generation.utils import GenerateDecoderOnlyOutput

from leadspan.errors import EvaluationError
from leadspan.evaluation.settings import SamplingSettings
from leadspan.models.heads import tokens_at
from leadspan.status import report_detail

LOOP_TOKENS, LOOP_REPEATS = 30, 10
"""A sample loops when some run of that many tokens occurs in it that often."""

PORTION = 64
"""Tokens after which rows that have ended leave a batch: few enough that little is computed for rows that are over,
enough that starting `generate` again (some milliseconds) does not count."""

# Transformers 5.24 has given the argument and the output another name, and warns of the earlier one.
_CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"


@dataclass(frozen=True, slots=True)
class Request:
    """One sample to draw."""

    prompt: str  # with the generation header
    key: str  # problem and sample number; seeds the sample's random stream together with the settings' seed
    begun: tuple[int, ...] = ()  # token ids of the answer that is continued; they count as new tokens


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated text."""

    text: str  # special tokens kept, the end-of-turn token left out
    num_tokens: int  # the end-of-turn token included
    finish_reason: Literal["stop", "length"]  # an end-of-turn token; the cap or the window
    loops: bool  # whether a run of `LOOP_TOKENS` tokens occurs `LOOP_REPEATS` times or more


Generate = Callable[[Sequence[Request]], Iterator[dict[int, Sample]]]
"""Draws requests; yields finished samples, by the index of their request, as they come."""


def seed_of(key: str, seed: int) -> int:
    """Seed of one sample's random stream, 63 bits: generators take signed 64-bit seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") >> 1


def prompts_and_caps(
    tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], window: int | None, most: int
) -> tuple[list[list[int]], list[int]]:
    """Token ids of each request, with those of an answer that is continued, and the new tokens that may still be drawn.

    These are `most` minus those begun, or what fits the window.

    Raises:
        EvaluationError: A prompt leaves no room for a new token; prompts are never cut.
    """
    prompts = [[*encode(tokenizer, request.prompt), *request.begun] for request in requests]
    for request, prompt in zip(requests, prompts, strict=True):
        if window is not None and len(prompt) >= window:
            raise EvaluationError(
                f"problem {request.key}: its prompt has {len(prompt)} tokens and the model's window {window}; "
                "prompts are never cut, so leave the problem out or take a model with a longer window"
                if not request.begun
                else f"problem {request.key}: prompt and closed thinking have {len(prompt)} tokens and the model's "
                f"window {window}, so that none is left for an answer; lower sampling.thinking_budget"
            )
    caps = [most - len(request.begun) for request in requests]
    if window is not None:
        caps = [min(cap, window - len(prompt)) for cap, prompt in zip(caps, prompts, strict=True)]
    return prompts, caps


def to_sample(tokenizer: PreTrainedTokenizerBase, new_ids: Sequence[int], stop_token_ids: Sequence[int]) -> Sample:
    """New token ids up to the first that ends the turn, as a sample."""
    stops = set(stop_token_ids)
    end = next((i for i, token in enumerate(new_ids) if token in stops), None)
    before_stop = list(new_ids if end is None else new_ids[:end])
    # Special tokens stay: the tags of thinking may be among them.
    text = cast(str, tokenizer.decode(before_stop, skip_special_tokens=False))
    num_tokens = len(before_stop) if end is None else end + 1
    return Sample(text, num_tokens, "length" if end is None else "stop", loop_end(before_stop) is not None)


def loop_end(ids: Sequence[int]) -> int | None:
    """Number of tokens after which some run of `LOOP_TOKENS` tokens has occurred `LOOP_REPEATS` times; None if never.

    The usual criterion of repeated n-grams, overlaps counted; the two numbers are a choice of this project. Runs are
    compared by a polynomial hash modulo 2^64.
    """
    num_runs = len(ids) - LOOP_TOKENS + 1
    if num_runs < LOOP_REPEATS:
        return None
    tokens = np.asarray(ids, dtype=np.uint64) + np.uint64(1)
    hashes = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(LOOP_TOKENS):  # the multiplier is Knuth's for 64-bit congruential generators (MMIX)
        hashes = hashes * np.uint64(6364136223846793005) + tokens[offset : offset + num_runs]
    order = np.argsort(hashes, kind="stable")  # equal runs together, each group in the order of the text
    # Two entries that are LOOP_REPEATS - 1 apart in this order and equal enclose as many equal runs.
    earlier, later = order[: 1 - LOOP_REPEATS], order[LOOP_REPEATS - 1 :]
    last_repeats = later[hashes[earlier] == hashes[later]]
    return int(last_repeats.min()) + LOOP_TOKENS if len(last_repeats) else None


def window_of(config: PreTrainedConfig) -> int | None:
    """Positions of a model, where its config states them."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class SeededSampling(LogitsProcessor):
    """Turns greedy choice into sampling: the token under a uniform share of each row's cumulative distribution.

    Each row has its own generator, so what a sample says does not depend on its batch.

    Source: inverse transform sampling, Devroye, Non-Uniform Random Variate Generation, 1986, section III.2.
    """

    def __init__(
        self,
        keys: Sequence[str],
        settings: SamplingSettings,
        device: torch.device,
        log_probs: list[list[float]] | None = None,
    ):
        # In float32 a division by less ends in infinities, and their difference in no number; this is greedy already.
        self.temperature = max(settings.temperature, 1e-30)
        self.log_probs = log_probs
        self.filters: list[LogitsProcessor] = []
        # Temperature, then top_k, then top_p: the order of Transformers.
        if settings.top_k is not None:
            self.filters.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self.filters.append(TopPLogitsWarper(settings.top_p))
        self.generators = [torch.Generator(device).manual_seed(seed_of(key, settings.seed)) for key in keys]
        self.rows = list(range(len(keys)))  # those of the batch, which rows leave when they have ended

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Of each row of scores `[rows, V]` a 1 at the token drawn, at temperature and after filters, else 0."""
        scores = scores.float()
        if self.temperature != 1:  # whole vocabularies: a division by 1 is a tenth of a draw
            scores = scores / self.temperature
        for keep in self.filters:
            scores = keep(cast(Any, None), cast(Any, scores))
        masses = (scores - scores.amax(-1, keepdim=True)).exp_()
        # One number a row: as many as there are tokens, as Gumbel noise takes, cost more than the model where it is
        # small and its vocabulary large.
        generators = [self.generators[row] for row in self.rows]
        shares = [torch.rand(1, dtype=torch.float64, device=g.device, generator=g) for g in generators]
        chosen = tokens_at(masses, torch.stack(shares))
        if self.log_probs is not None:
            for row, value in zip(self.rows, scores.log_softmax(-1).gather(1, chosen).tolist(), strict=True):
                self.log_probs[row] += value
        return masses.zero_().scatter_(1, chosen, 1.0)


@dataclass
class UsableScores(LogitsProcessor):
    """Leaves out the rows that pad an output head beyond the tokenizer's tokens; refuses a model that computes NaN."""

    num_tokens: int | None  # of the tokenizer; None keeps all rows
    is_checked: bool = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[rows, num_tokens]`."""
        # Once in a batch: a look at every step would wait for the device.
        if not self.is_checked and scores.isnan().any():
            raise EvaluationError(
                "the model's logits are not numbers, so its weights are damaged or overflow; take other weights, or "
                "sample in float32 (sampling.precision)"
            )
        self.is_checked = True
        return scores[:, : self.num_tokens]


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    settings: SamplingSettings,
    requests: Sequence[Request],
) -> Iterator[dict[int, Sample]]:
    """Draw one sample per request from a model with Transformers' own attention, in batches of similar length.

    Raises:
        EvaluationError: A prompt leaves no room for a new token in the model's window; nothing has been drawn. Or the
            model computes NaN.
    """
    prompts, caps = prompts_and_caps(tokenizer, requests, window_of(model.config), settings.max_new_tokens)
    for indices in batches_of_like_length(prompts, settings.batch_size):
        keys = [requests[i].key for i in indices]
        batch_caps = [caps[i] for i in indices]
        drawn = draw(model, [prompts[i] for i in indices], batch_caps, keys, stop_token_ids, settings)
        yield {i: to_sample(tokenizer, ids[: caps[i]], stop_token_ids) for i, ids in zip(indices, drawn, strict=True)}


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it is: templates bring their special tokens along."""
    return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def draw(
    model: PreTrainedModel,
    prompts: list[list[int]],
    caps: list[int],
    keys: list[str],
    stop_token_ids: Sequence[int],
    settings: SamplingSettings,
    num_tokens: int | None = None,
    log_probs: list[list[float]] | None = None,
) -> list[list[int]]:
    """New token ids of each row, up to its cap or beyond; tokens after a stop token have no meaning.

    Every `PORTION` tokens, rows that have ended leave the batch, and the cache continues without them.

    Args:
        model: A model with Transformers' own attention; its generation config is replaced.
        prompts: Token ids.
        caps: Most new tokens of each row.
        keys: Key of each row's random stream.
        stop_token_ids: Tokens that end a turn.
        settings: Sampling.
        num_tokens: Draw among the first `num_tokens` token ids only; among all rows of the head when None.
        log_probs: One list per row, to which the log-probability of each drawn token is appended.
    """
    pad, stops = stop_token_ids[0], set(stop_token_ids)  # any id may pad: padded positions are masked
    rows_of_ids = [torch.tensor(prompt, dtype=torch.long, device=model.device) for prompt in prompts]
    ids = pad_sequence(rows_of_ids, batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence(list(map(torch.ones_like, rows_of_ids)), batch_first=True, padding_side="left")
    sampling = SeededSampling(keys, settings, model.device, log_probs) if settings.temperature > 0 else None
    processors = LogitsProcessorList([UsableScores(num_tokens), *([] if sampling is None else [sampling])])
    new: list[list[int]] = [[] for _ in prompts]
    rows, cache, portion, start = list(range(len(prompts))), None, PORTION, time.perf_counter()
    # The model's own too: else unset fields would come from the one shipped with the weights.
    model.generation_config = config = GenerationConfig(
        do_sample=False, eos_token_id=[*stops], pad_token_id=pad, use_cache=True, return_dict_in_generate=True
    )
    while rows:
        most = max(caps[row] - len(new[row]) for row in rows)
        if window := window_of(model.config):  # of the longest row: a model with learned positions has none beyond it
            most = min(most, max(1, window - max(len(prompts[row]) + len(new[row]) for row in rows)))
        config.max_new_tokens = min(portion, most)
        output = cast(Any, model).generate(
            ids, attention_mask=mask, generation_config=config, logits_processor=processors, **{_CACHE: cache}
        )
        drawn = output.sequences[:, ids.shape[1] :]
        for row, tokens in zip(rows, drawn.tolist(), strict=True):
            new[row] += tokens
        speed = sum(map(len, new)) / (time.perf_counter() - start)
        report_detail(f"{max(map(len, new)):,} tokens, {len(rows)} of {len(new)} unfinished, {speed:,.0f} tokens/s")
        going = [i for i, row in enumerate(rows) if len(new[row]) < caps[row] and stops.isdisjoint(new[row])]
        ids, mask = output.sequences[going], torch.cat([mask, torch.ones_like(drawn)], dim=1)[going]
        cache = getattr(output, _CACHE)
        if cache is None:  # a purely recurrent model keeps its state to itself: draw the rest in one go
            portion = settings.max_new_tokens
        elif len(going) < len(rows):
            cache.reorder_cache(torch.tensor(going, dtype=torch.long, device=model.device))
        rows = [rows[i] for i in going]
        if sampling is not None:
            sampling.rows = rows
    return new


def batches_of_like_length(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches of prompts of similar length, shortest first."""
    # Rows of one length need no padding, which costs time and memory.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
