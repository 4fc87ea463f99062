"""Continuous batching against batch after batch, both Transformers, on samples of very different lengths.

A random Qwen3-architecture model whose samples end by chance, so that most are short and some run into the cap. Both
sides draw the same samples from the same streams; the benchmark checks that. On a GPU the model is larger.
"""

import statistics

import torch

from benchmarks.record import Figure, Outcome, RecordError, Spread
from benchmarks.timing import alternate, paired_ratio
from leadspan.evaluation import continuous, sampling
from leadspan.evaluation.config import SamplingSettings
from leadspan.evaluation.sampling import Request, Sample
from leadspan.models.config import RandomInit
from leadspan.models.loading import load_model

NUM_REQUESTS = 64
BATCH = 16
CAP = 320
STOPS = 5
"""Ids of 500 that end a sample: one in a hundred tokens, by chance."""


class Ids:
    """Stands for a tokenizer: a prompt is written as its ids, and samples are compared by theirs."""

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids))


def run() -> Outcome:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(device)
    prompts = [" ".join(str(STOPS + (i * j) % 400) for j in range(1, 20 + i % 30)) for i in range(NUM_REQUESTS)]
    requests = [Request(prompt, f"p{i}:0") for i, prompt in enumerate(prompts)]
    settings = SamplingSettings(temperature=1.0, top_p=1.0, max_new_tokens=CAP, batch_size=BATCH)
    found: dict[str, list[Sample]] = {}

    def side(name: str, generate):
        def draw() -> None:
            drawn: dict[int, Sample] = {}
            for batch in generate(model, Ids(), list(range(STOPS)), settings, requests):
                drawn |= batch
            found[name] = [drawn[i] for i in range(len(requests))]

        return draw

    sides = {"continuous": side("continuous", continuous.generate), "batches": side("batches", sampling.generate)}
    seconds = alternate(sides, rounds=3)
    same = sum(a == b for a, b in zip(found["continuous"], found["batches"], strict=True))
    if device.type == "cpu" and same < NUM_REQUESTS:
        raise RecordError(f"only {same} of {NUM_REQUESTS} samples agree, so the two sides did different work")
    lengths = [sample.num_tokens for sample in found["batches"]]
    return Outcome(
        method="the same requests, alternating; median over rounds of the ratio of wall times; start and stop included",
        settings={"requests": NUM_REQUESTS, "batch": BATCH, "cap": CAP, "layers": model.config.num_hidden_layers},
        sides={name: Spread.of(values) for name, values in seconds.items()},
        figures=[
            Figure("time, continuous against batches", paired_ratio(seconds["continuous"], seconds["batches"])),
            Figure("share of samples that are the same", same / NUM_REQUESTS),
            Figure("mean length of a sample", statistics.mean(lengths), unit="tokens"),
            Figure("longest sample", max(lengths), unit="tokens"),
        ],
        gpu=torch.cuda.get_device_name() if device.type == "cuda" else None,
    )


def _model(device: torch.device):
    width, layers = (2048, 16) if device.type == "cuda" else (256, 4)
    config = {
        "model_type": "qwen3",
        "vocab_size": 500,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 128,
        "head_dim": 64,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_model(RandomInit(config=config), dtype, for_training=False).to(device).eval()
