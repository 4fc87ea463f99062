"""Studies of small real runs."""

import json
from pathlib import Path
from typing import Any

from leadspan.settings import validate
from leadspan.study.settings import Study
from recipes import toy_recipe, write_recipe

EVALUATION = {"sampling": {"max_new_tokens": 4, "temperature": 0}}


def toy_study(directory: Path, steps: int = 2, **changes: Any) -> tuple[Study, Path]:
    """A study of runs of a few steps, and the place of its file; `changes` are settings of the study."""
    recipe = toy_recipe(directory, steps=steps, evaluation={"tasks": [toy_task(directory)], **EVALUATION})
    write_recipe(recipe, directory / "recipe.yaml")
    values = {
        "name": "toy",
        "output": str(directory / "study"),
        "recipe": "recipe.yaml",
        "axes": {"cut": [{"kind": "full"}, {"kind": "lead", "p": 0.5}]},
        "seeds": [0],
        **changes,
    }
    return validate(Study, values, "toy study"), directory / "study.yaml"


def toy_task(directory: Path) -> dict[str, str]:
    path = directory / "task.jsonl"
    rows = [{"problem": f"add {i} to itself", "answer": str(2 * i)} for i in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "toy", "path": str(path), "grader": "exact"}
