"""Small real captures for the tests."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.ipc

from leadspan.pipeline.run import prepare_capture
from leadspan.recipe import Recipe
from leadspan.teacher.capture import run_capture
from leadspan.teacher.store import TargetStore
from recipes import toy_recipe

SHARDS = {"positions_per_shard": 800, "tokens_per_batch": 400}


def capture_recipe(directory: Path, **changes: Any) -> Recipe:
    """The toy recipe with a capture of several shards; `codec`, `cuts` and others go into its `capture` section."""
    names = ("codec", "cuts", "temperatures", "vocabulary", "engine", "path", *SHARDS)
    capture = {"path": str(directory / "store"), "codec": {"kind": "hidden"}, **SHARDS}
    capture |= {name: changes.pop(name) for name in names if name in changes}
    return toy_recipe(directory, capture=capture, **changes)


def captured(directory: Path, **changes: Any) -> tuple[Recipe, TargetStore]:
    recipe = capture_recipe(directory, **changes)
    run_capture(prepare_capture(recipe))
    assert recipe.capture.path is not None
    return recipe, TargetStore(recipe.capture.path)


def bytes_in_shards(directory: Path) -> int:
    """Keys, offsets and values of all rows, without what frames them in the files."""
    files = [pyarrow.ipc.open_file(str(shard)) for shard in directory.rglob("*.arrow")]
    return sum(file.get_batch(number).nbytes for file in files for number in range(file.num_record_batches))


def copy_of(store: TargetStore, to: Path) -> Path:
    return Path(shutil.copytree(store.directory, to))


def stored(recipe: Recipe, output: Path, path: Path | None = None) -> Recipe:
    """The recipe, trained from its store."""
    targets = {"kind": "store", "path": path or recipe.capture.path}
    return Recipe.model_validate(recipe.model_dump() | {"targets": targets, "output": output})
