"""Recipes of small real runs."""

import json
from pathlib import Path
from typing import Any

from leadspan.recipe import Recipe
from leadspan.settings import dump_yaml, validate
from toys import character_tokenizer, tiny, write_traces


def toy_recipe(directory: Path, **changes: Any) -> Recipe:
    """A run of 6 steps of 8 examples; `changes` replace whole sections, or keys of `training`."""
    directory.mkdir(parents=True, exist_ok=True)
    character_tokenizer().save_pretrained(directory / "tokenizer")
    write_traces(directory / "traces.jsonl", 40)
    training = {
        "steps": 6,
        "batching": {"kind": "examples", "examples_per_step": 8, "examples_per_batch": 4},
        "learning_rate": 1e-2,
        "log_every": 1,
        "report_to": [],
    }
    values = {
        "name": "toy",
        "output": str(directory / "run"),
        "tokenizer": str(directory / "tokenizer"),
        "data": {
            "train": {"path": str(directory / "traces.jsonl")},
            "validation": {"kind": "share", "share": 0.2},
            "cache_dir": str(directory / "cache"),
        },
        "student": tiny(seed=1).model_dump(),
        "teacher": tiny(hidden=48, seed=2).model_dump(),
        "cut": {"kind": "lead", "p": 0.7},
        **{key: value for key, value in changes.items() if key in Recipe.model_fields},
        "training": training | {key: value for key, value in changes.items() if key not in Recipe.model_fields},
    }
    return validate(Recipe, values, "toy")


def write_recipe(recipe: Recipe, path: Path) -> Path:
    path.write_text(dump_yaml(recipe))
    return path


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_times(directory: Path) -> list[dict[str, float]]:
    """The log lines of a run, but for what a clock has measured."""
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in metrics(directory)]
