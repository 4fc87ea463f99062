"""What the benchmarks of the teacher store share: real traces under a small tokenizer, and recipes on them."""

import json
from pathlib import Path
from typing import Any

from benchmarks.traces import there
from leadspan.recipe import Recipe
from leadspan.settings import validate

VOCAB = 4096
_TEXTS = 150


def qwen3(hidden: int, layers: int, vocab: int, seed: int, **more: Any) -> dict[str, Any]:
    """A random model of the Qwen3 architecture."""
    config = {
        "model_type": "qwen3",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(2, hidden // 32),
        "num_key_value_heads": max(1, hidden // 64),
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        **more,
    }
    return {"kind": "random_init", "config": config, "seed": seed}


def write_tokenizer(directory: Path, vocab: int = VOCAB) -> tuple[Path, int]:
    """Qwen3's tokenizer and template with about `vocab` entries trained anew on the traces; its path and size."""
    from leadspan.models.reading import load_tokenizer

    lines = (there("traces/deepseek_r1.jsonl")).read_text(encoding="utf-8").splitlines()[:_TEXTS]
    texts = [f"{row['problem']}\n{row['cot']}\n{row['answer']}" for row in map(json.loads, lines)]
    tokenizer = load_tokenizer(str(there("tokenizer-qwen3"))).train_new_from_iterator(texts, vocab)
    tokenizer.save_pretrained(directory / "tokenizer")
    return directory / "tokenizer", max(tokenizer.get_vocab().values()) + 1


def recipe(directory: Path, tokenizer: Path, name: str, **changes: Any) -> Recipe:
    """A run on DeepSeek-R1's traces of at most 1,024 tokens."""
    training = {
        "batching": {"kind": "examples", "examples_per_step": 4, "examples_per_batch": 4},
        "learning_rate": 1e-3,
        "log_every": 10,
        "report_to": [],
        "keep": "last",
        **changes.pop("training", {}),
    }
    loss = {"compiled": False, **changes.pop("loss", {})}  # compiling takes longer than these runs
    values = {
        "name": name,
        "loss": loss,
        "output": str(directory / name),
        "tokenizer": str(tokenizer),
        "data": {
            "train": {"path": str(there("traces/deepseek_r1.jsonl")), "limit": 400},
            "validation": {"kind": "share", "share": 0.15},
            "max_tokens": 1024,
            "max_refused_share": 1,
            "cache_dir": str(directory / "cache"),
            "num_train": changes.pop("num_train", 48),
            "num_validation": changes.pop("num_validation", 4),
        },
        "training": training,
        **changes,
    }
    return validate(Recipe, values, name)
