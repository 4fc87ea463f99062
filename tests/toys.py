"""Small real parts for tests: a character tokenizer with a chat template, Qwen3 models from config, traces, rows."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from leadspan.data.examples import Examples
from leadspan.data.prepare import prepare
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings, NoValidation, Rendering
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.models.settings import RandomInit
from leadspan.traces.settings import TraceSource

SPECIALS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>"]
ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n.,?!=+-*;:'()\\{}"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_COT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def character_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *ALPHABET])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


VOCAB = len(SPECIALS) + len(ALPHABET)


def tiny(hidden: int = 32, layers: int = 2, vocab: int = VOCAB, seed: int = 0, **more: object) -> RandomInit:
    config = {
        "model_type": "qwen3",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        **more,
    }
    return RandomInit(config=config, seed=seed)


def write_traces(path: Path, number: int = 12) -> Path:
    """Traces whose sections all have different lengths."""
    with path.open("w") as file:
        for i in range(number):
            cot = "\n\n".join(f"step {j}: {i} + {j} = {i + j}" for j in range(2 + i % 4))
            row = {
                "prompt": f"add {i} to itself{'!' * (i % 3)}",
                "cot": cot,
                "answer": f"it is {2 * i}.",
                "gold": str(2 * i),
            }
            file.write(json.dumps(row) + "\n")
    return path


def toy_examples(
    directory: Path,
    policy: Policy | None = None,
    supervision: Supervision | None = None,
    number: int = 12,
    seed: int = 0,
) -> tuple[Examples, Renderer]:
    renderer = Renderer(character_tokenizer(), Rendering())
    path = write_traces(directory / "traces.jsonl", number)
    settings = DataSettings(train=TraceSource(path=str(path)), validation=NoValidation(), cache_dir=directory / "cache")
    rows = prepare(settings.train, renderer, settings).rows
    examples = Examples(
        rows, policy or Full(), supervision or Supervision(), renderer.stop_token_id, seed, "training set"
    )
    return examples, renderer
