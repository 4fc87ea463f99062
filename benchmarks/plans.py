"""What `plan_time` and `plan_memory` share: a recipe on real traces, and runs in processes of their own."""

import itertools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.traces import trace_source
from leadspan.errors import LeadspanError, RunError
from leadspan.recipe import Recipe
from leadspan.results import Prediction, RunResult, load_run
from leadspan.settings import validate
from leadspan.status import report_status
from leadspan.study.executors.local import run_local
from leadspan.study.settings import LocalExecutor
from leadspan.study.trials import Trial
from leadspan.training.result import TrainResult

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 4096


def write_tokenizer(directory: Path) -> Path:
    """A byte-level tokenizer of 4,096 entries, trained on the traces, so that the head does not hide the layers."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with Path(trace_source("deepseek_r1").path).open(encoding="utf-8") as lines:
        backend.train_from_iterator(itertools.islice(lines, 200), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(str(directory / "tokenizer"))
    return directory / "tokenizer"


def model(hidden_size: int, num_layers: int) -> dict[str, Any]:
    """A Qwen3 student or teacher with random weights."""
    config = {
        "model_type": "qwen3",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": hidden_size // 64,
        "head_dim": 32,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    return {"kind": "random_init", "config": config, "seed": hidden_size}


def recipe(directory: Path, tokenizer: Path, name: str, **settings: Any) -> Recipe:
    """A recipe on DeepSeek-R1 traces; sections given replace those here."""
    values: dict[str, Any] = {
        "name": name,
        "output": str(directory / name.replace(" ", "-")),
        "tokenizer": str(tokenizer),
        "data": {
            "train": {"path": trace_source("deepseek_r1").path},
            "validation": {"kind": "none"},
            "max_refused_share": 1,
            "cache_dir": str(directory / "cache"),
        },
    }
    data = values["data"] | settings.pop("data", {})
    return validate(Recipe, {**values, **settings, "data": data}, name)


def run_trial(recipe: Recipe) -> RunResult:
    """Run one recipe in its own process.

    Raises:
        RunError: The trial failed; with its message, or its traceback when that is a defect of leadspan.
    """
    for event in run_local([Trial(recipe)], LocalExecutor()):
        if event.kind == "said":
            report_status(event.text)
        elif event.kind == "failed":
            raise RunError(f"{recipe.name}: {event.text}")
    return load_run(recipe.output)


def ran(recipe: Recipe) -> tuple[Prediction, TrainResult]:
    """Run a recipe in a process of its own; what was predicted and what was measured."""
    try:
        result = run_trial(recipe)
    except LeadspanError as error:
        raise RuntimeError(f"{recipe.name}: {error}") from error
    assert result.prediction is not None and result.train is not None, json.dumps(result.label)
    return result.prediction, result.train
