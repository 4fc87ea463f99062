"""A small world both sides of `gkd_step` can be given: made-up traces of running sums, a tokenizer trained on such
traces, and two random models of the Qwen3 architecture. Nothing is downloaded.
"""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from leadspan.models.settings import RandomInit

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def tokenised_traces(
    tokenizer: PreTrainedTokenizerFast, number: int, seed: int, max_tokens: int
) -> Iterator[tuple[str, list[int], int]]:
    """Prompt text, token ids (the first `max_tokens`), and how many of them are prompt."""
    for question, reply in questions_and_replies(number, seed, max_tokens // 12):
        prompt = f"{_turn('user', question)}<|im_start|>assistant\n"
        ids = _ids(tokenizer, _turn("user", question) + _turn("assistant", reply))
        yield prompt, ids[:max_tokens], len(_ids(tokenizer, prompt))


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` entries, trained on 400 traces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((text for trace in questions_and_replies(400, 123, 60) for text in trace), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def tiny_model(hidden_size: int, num_layers: int, vocab_size: int, seed: int) -> RandomInit:
    """Weights larger than usual at the start, so that the KL of two untrained models is not near 0."""
    config = {
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": max(2, hidden_size // 32),
        "num_key_value_heads": max(1, hidden_size // 64),
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
    }
    return RandomInit(config=config, seed=seed)


def questions_and_replies(number: int, seed: int, max_steps: int) -> Iterator[tuple[str, str]]:
    """Question and reply: numbers are added one by one, each step in words."""
    draw = random.Random(seed).randint
    for _ in range(number):
        terms = [draw(1, 999) for _ in range(draw(max_steps // 2, max_steps))]
        total, steps = 0, []
        for place, term in enumerate(terms, start=1):
            steps.append(f"Step {place}: add {term} to {total}, which gives {total + term}.")
            total += term
        question = f"Compute {' + '.join(map(str, terms[:8]))} and so on."
        thought = "\n".join(steps)
        yield question, f"<think>\n{thought}\n</think>\n\nThe answer is {total}."


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
