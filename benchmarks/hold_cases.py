"""What `hold` holds under kills: small commands, their inputs, and what of a result must be the same."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.store_world import qwen3

_MEASURED = frozenset(
    (
        *("seconds", "step_seconds", "first_step_seconds", "typical_seconds", "peak_memory_bytes", "mfu"),
        *("energy_joules", "checksum", "digest", "environment", "versions", "recipe", "study"),
    )
)
"""What clocks and meters say, and where things lie; a checksum is over these."""
_EVALUATION = {"sampling": {"max_new_tokens": 6, "samples_per_problem": 2, "batch_size": 4}}


@dataclass(frozen=True)
class Command:
    """One command that an interruption must not change.

    Attributes:
        arguments: Of the command line; paths start in the case's directory.
        again: The arguments that go on.
        result: What it writes.
    """

    arguments: tuple[str, ...]
    again: tuple[str, ...]
    result: str


def _same(*arguments: str, result: str) -> Command:
    return Command(arguments, arguments, result)


def commands(inputs: Path) -> dict[str, Command]:
    """The commands by name, on inputs that `write_inputs` has written."""
    distill = ("distill", str(inputs / "recipe.yaml"))
    lora = (*distill, "training.lora={r: 4, alpha: 8}")
    return {
        "capture": _same("capture", str(inputs / "capture.yaml"), result="store"),
        "distill": Command(distill, (*distill, "--resume"), "run"),
        "distill LoRA": Command(lora, (*lora, "--resume"), "run"),
        "evaluate": _same(*_evaluate(inputs), "--output", "evaluated", result="evaluated"),
        "study": _same("study", str(inputs / "study.yaml"), "output=study", result="study"),
        "study with store": _same("study", str(inputs / "stored.yaml"), "output=study", result="study"),
    }


def _evaluate(inputs: Path) -> tuple[str, ...]:
    """Evaluate a model on more problems, so that there are moments between its batches."""
    settings = ("sampling.max_new_tokens=12", "sampling.batch_size=4", "sampling.samples_per_problem=4")
    sets = [word for setting in (*settings, "tasks.0.grader=exact") for word in ("--set", setting)]
    return ("evaluate", str(inputs / "model"), str(inputs / "world" / "short_test.jsonl"), *sets)


def write_inputs(directory: Path) -> None:
    """A world, a model, recipes and studies; loads torch."""
    import torch

    from leadspan.models.loading import load_model
    from leadspan.models.reading import load_tokenizer
    from leadspan.models.settings import RandomInit
    from leadspan.settings import validate
    from leadspan.worlds.files import WorldFiles, write_world

    world = {"world": {"kind": "derive_and_verify"}, "num_traces": 48, "num_problems": 6}
    write_world(validate(WorldFiles, {"output": str(directory / "world"), "sets": {"short": world}}, "hold"))
    tokenizer = load_tokenizer(str(directory / "world" / "tokenizer"))
    vocab = len(tokenizer)
    model = RandomInit(config=qwen3(32, 1, vocab, 3)["config"], seed=3)
    load_model(model, torch.float32).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    recipe = _recipe(directory, vocab)
    capture = recipe | {"capture": {"path": "store", "codec": {"kind": "top_k", "k": 4}, "positions_per_shard": 1024}}
    _write(directory / "recipe.yaml", recipe)
    _write(directory / "capture.yaml", capture)
    study: dict[str, Any] = {
        "name": "hold",
        "output": "study",
        "recipe": "recipe.yaml",
        "axes": {"cut": [{"kind": "full"}, {"kind": "lead", "p": 0.5}]},
        "seeds": [0],
    }
    _write(directory / "study.yaml", study)
    _write(directory / "stored.yaml", study | {"store": {"codec": {"kind": "top_k", "k": 4}}})


def _recipe(directory: Path, vocab: int) -> dict[str, Any]:
    task = {"name": "short", "path": str(directory / "world" / "short_test.jsonl"), "grader": "exact"}
    return {
        "name": "hold",
        "output": "run",
        "tokenizer": str(directory / "world" / "tokenizer"),
        "data": {
            "train": {"path": str(directory / "world" / "short.jsonl")},
            "validation": {"kind": "share", "share": 0.2},
            "cache_dir": "cache",
        },
        "student": qwen3(32, 1, vocab, 1),
        "teacher": qwen3(32, 2, vocab, 2),
        "loss": {"compiled": False},
        "training": {
            "steps": 12,
            "batching": {"kind": "examples", "examples_per_step": 4, "examples_per_batch": 2},
            "learning_rate": 1e-2,
            "num_validations": 2,
            "checkpoint_every": 3,
            "log_every": 2,
            "report_to": [],
        },
        "plan": {"break_point_seconds": 0},
        "evaluation": {"tasks": [task], **_EVALUATION},
    }


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML


def comparable(directory: Path) -> dict[str, Any]:
    """What must be the same of a result, by file: all but what clocks and meters say."""
    kept: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_file() and not _is_left_out(name):
            kept[name] = _content(path)
    return kept


def _is_left_out(name: str) -> bool:
    parts = Path(name).parts
    of_a_way = "checkpoints" in parts or any(".damaged" in part or part.startswith(".") for part in parts)
    return of_a_way or parts[-1] in ("recipe.yaml", "digests.json", "ranks.log", "identity.json", "README.md")


def _content(path: Path) -> Any:
    if path.suffix == ".json" and path.name in ("run.json", "study.json", "manifest.json"):
        return _stripped(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [_stripped(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _stripped(one)
            for key, one in value.items()
            if key not in _MEASURED and not key.startswith("speed/") and key != "kl_lost"
        }
    return [_stripped(one) for one in value] if isinstance(value, list) else value
