"""Sampling in evaluation against plain batched `generate`, on samples of very different lengths.

A random Qwen3-architecture model whose samples end by chance, so that most are short and some run into the cap. Both
sides draw the same requests in the same batches, prompts of like length together; plain `generate` draws from torch's
global generator, so that its samples are others of the same distribution, and tokens a second are compared. Further,
thoughts of half of the cap are closed and answers of a quarter of it drawn behind them, as a budget of thinking does,
against samples of as many tokens in one piece; few of either end before. On a GPU the model is larger.
"""

import statistics
import time
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from transformers import GenerationConfig, PreTrainedModel

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.steps import device_and_gpu
from benchmarks.timing import paired_ratio
from leadspan.data.settings import Rendering
from leadspan.evaluation import sampling
from leadspan.evaluation.sampling import Request, Sample
from leadspan.evaluation.settings import SamplingSettings
from leadspan.evaluation.subject import StoredSample, ThinkingBudget
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit

BATCH = 16
STOPS = 5
"""Ids of 500 that end a sample: one in a hundred tokens, by chance."""
CLOSING = (496, 497, 498, 499)
"""Ids that close a thought."""


class Ids:
    """Stands for a tokenizer: a prompt is written as its ids."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def run() -> Outcome:
    device, gpu = device_and_gpu()
    return measured(random_model(device, *((256, 4) if gpu is None else (2048, 16))), 64, 320, 3, gpu)


def measured(model: PreTrainedModel, num_requests: int, cap: int, num_rounds: int, gpu: str | None) -> Outcome:
    """Both sides in turn over some requests, samples of at most `cap` tokens."""
    prompts = [" ".join(str(STOPS + (i * j) % 400) for j in range(1, 20 + i % 30)) for i in range(num_requests)]
    rates: dict[str, list[float]] = {name: [] for name in ("leadspan", "plain generate", "made to answer", "as many")}
    lengths: list[int] = []
    plain = [Request(prompt, f"p{i}:0") for i, prompt in enumerate(prompts)]
    thought, answer = cap // 2, cap // 4
    for round_number in range(num_rounds):
        # At least one token of a thought is cut, so that every sample that has not ended is made to answer.
        sides = {
            "leadspan": lambda seed=round_number: _ours(model, plain, cap, seed, range(STOPS)),
            "plain generate": lambda seed=round_number: _plain(model, prompts, cap, seed),
            "made to answer": lambda seed=round_number: _made_to_answer(model, plain, thought, answer, seed),
            "as many": lambda seed=round_number: _ours(model, plain, thought + answer, seed, range(1)),
        }
        for name, draw in sides.items():
            start = time.perf_counter()
            drawn = draw()
            rates[name].append(sum(drawn) / (time.perf_counter() - start))
            lengths += drawn if name == "leadspan" else []
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"requests": num_requests, "batch": BATCH, "cap": cap, "layers": model.config.num_hidden_layers},
        sides={name: Spread.of(values, "tokens/s") for name, values in rates.items()},
        figures=[
            Figure(
                "tokens a second against plain generate", _ratio(rates, "leadspan", "plain generate"), 1.0, "higher"
            ),
            Figure(
                "tokens a second, made to answer / plain", _ratio(rates, "made to answer", "as many"), 0.9, "higher"
            ),
            Figure("mean length of a sample", statistics.mean(lengths), unit="tokens"),
            Figure("longest sample", max(lengths), unit="tokens"),
        ],
        gpu=gpu,
    )


def _ratio(rates: dict[str, list[float]], above: str, below: str) -> float:
    return paired_ratio(rates[above], rates[below])


def _made_to_answer(model: PreTrainedModel, requests: list[Request], thought: int, answer: int, seed: int) -> list[int]:
    """Tokens drawn of thoughts that are closed after so many, and of the answers behind them."""
    samples = _drawn(model, requests, thought + 1, seed, range(1))
    renderer = SimpleNamespace(tokenizer=Ids(), rendering=Rendering())
    budget = ThinkingBudget(thought, CLOSING, renderer)  # pyright: ignore[reportArgumentType]  # see `Ids`
    closed = budget.requests(
        StoredSample(f"p{i}", 0, request.prompt, sample, thinking_closed=False, seconds=0.0)
        for i, (request, sample) in enumerate(zip(requests, samples, strict=True))
        if sample.num_tokens > thought
    )
    behind = thought + len(CLOSING)
    answers = _drawn(model, list(closed.values()), behind + answer, seed, range(1))
    return [*(s.num_tokens for s in samples), *(s.num_tokens for s in answers)]


def _ours(model: PreTrainedModel, requests: list[Request], cap: int, seed: int, ends: Sequence[int]) -> list[int]:
    return [sample.num_tokens for sample in _drawn(model, requests, cap, seed, ends)]


def _drawn(model: PreTrainedModel, requests: list[Request], cap: int, seed: int, ends: Sequence[int]) -> list[Sample]:
    settings = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=cap, batch_size=BATCH, seed=seed)
    batches = sampling.generate(model, Ids(), list(ends), settings, requests)  # pyright: ignore[reportArgumentType]  # see `Ids`
    return [sample for batch in batches for sample in batch.values()]


@torch.inference_mode()
def _plain(model: PreTrainedModel, prompts: list[str], cap: int, seed: int) -> list[int]:
    """Tokens drawn by `generate` up to the first stop of each row, batch by batch."""
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=cap,
        eos_token_id=list(range(STOPS)),
        pad_token_id=0,
        return_dict_in_generate=False,
    )
    torch.manual_seed(seed)
    rows = sorted(([int(word) for word in prompt.split()] for prompt in prompts), key=len)
    lengths: list[int] = []
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=model.device)
        new = model.generate(ids, attention_mask=mask, generation_config=config)[:, longest:]
        is_stop = new < STOPS
        lengths += (is_stop.cumsum(1) - is_stop.int() == 0).sum(1).tolist()
    return lengths


def random_model(device: torch.device, width: int, layers: int) -> PreTrainedModel:
    """A random Qwen3 of 500 tokens, whose samples end by chance."""
    config = {
        "model_type": "qwen3",
        "vocab_size": 500,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, width // 64),
        "num_key_value_heads": max(1, width // 128),
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_model(RandomInit(config=config), dtype, for_training=False).to(device).eval()
