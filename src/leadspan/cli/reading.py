"""Recipes, models and runs as commands read them: validated, and the files they name looked for, before large imports.

Functions import what they need, so that `leadspan --help` and a mistyped path are answered at once.
"""

import argparse
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leadspan.data.settings import Rendering
    from leadspan.evaluation.settings import SamplingSettings
    from leadspan.evaluation.subject import Subject
    from leadspan.models.settings import Pretrained
    from leadspan.recipe import Part, Recipe
    from leadspan.results import RunResult


def add_recipe(
    parser: argparse.ArgumentParser,
    meaning: str = "YAML recipe",
    of: str = "the recipe's",
    metavar: str | None = None,
) -> None:
    """Add the arguments of a file of settings and of `key.sub=value` overrides of it."""
    parser.add_argument("recipe", type=Path, metavar=metavar, help=meaning)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help=f"settings that replace {of}")


def read_recipe(
    options: argparse.Namespace, required: "Sequence[Part] | None" = None, must_answer: bool = True
) -> "Recipe":
    """The recipe of `options.recipe` and `options.overrides`.

    Args:
        options: Of a command that takes a recipe.
        required: Sections that the command reads; all of them when absent.
        must_answer: Whether a name of the Hub is refused when the Hub cannot be reached.

    Raises:
        SettingsError: A setting breaks a rule, or names something that does not exist or is not installed; names every
            fault.
    """
    from leadspan.errors import SettingsError
    from leadspan.yaml_text import read_yaml_mapping

    # A mistyped path, and the file of another command, are reported before the slow import of the settings.
    values = read_yaml_mapping(options.recipe)
    # A study names a recipe where a recipe names a student.
    if "recipe" in values and "student" not in values:
        raise SettingsError(f"{options.recipe}: is a study; run it with `leadspan study {options.recipe}`")
    from leadspan.recipe import Part, load_recipe
    from leadspan.sources import source_faults
    from leadspan.training.settings import tracker_faults

    checked: Sequence[Part] = typing.get_args(Part) if required is None else required

    def not_there(recipe: "Recipe", is_faulty: Callable[[str], bool]) -> Iterator[str]:
        yield from source_faults((s for s in recipe.sources(checked) if not is_faulty(s.key)), must_answer)
        if required is None and not is_faulty("training.report_to"):
            yield from tracker_faults(recipe.training)

    return load_recipe(options.recipe, options.overrides, not_there)


@dataclass(frozen=True)
class ReadModel:
    """A model that answers prompts.

    Attributes:
        name: As the user gave it.
        model: Its weights.
        tokenizer: Its tokenizer.
        rendering: How its prompts are rendered: as in the run that trained it, if there was one.
        run: The run that trained it, or None.
    """

    name: str
    model: "Pretrained"
    tokenizer: "Pretrained"
    rendering: "Rendering"
    run: "RunResult | None"

    def open(self, settings: "SamplingSettings") -> "Subject":
        """Load it."""
        from leadspan.evaluation.subject import open_subject

        return open_subject(self.model, self.tokenizer, self.rendering, settings)


def read_model(name: str, rendering: object = None) -> ReadModel:
    """A run's student, or a model by directory or Hub name.

    Args:
        name: What the user gave.
        rendering: Settings of the rendering that replace the run's.

    Raises:
        SettingsError: Neither exists.
    """
    from leadspan.data.settings import Rendering
    from leadspan.models.settings import Pretrained
    from leadspan.results import RUN_FILE, load_run
    from leadspan.settings import validate
    from leadspan.sources import Source, check_sources

    directory = Path(name)
    run = load_run(directory) if (directory / RUN_FILE).exists() else None
    recipe = run.recipe if run else None
    values: dict[str, Any] = recipe.data.rendering.model_dump(mode="json") if recipe else {}
    values |= rendering if isinstance(rendering, dict) else {}
    model = student_of(run, directory) if run else validate(Pretrained, {"path": name}, "model")
    tokenizer = model
    # A trained student has its tokenizer in its directory; a run that only evaluated may have used another one.
    if recipe is not None and recipe.tokenizer is not None and not (run and run.train):
        tokenizer = Pretrained(path=recipe.tokenizer)
    # Model and tokenizer mostly have one path: one fault is enough.
    names = dict.fromkeys(("MODEL", pretrained.path) for pretrained in (model, tokenizer))
    check_sources([Source(key, path, "model") for key, path in names], name)
    return ReadModel(name, model, tokenizer, validate(Rendering, values, "rendering"), run)


def student_of(run: "RunResult", directory: Path) -> "Pretrained":
    """The student that a run trained; for a run without training, the model that it evaluated."""
    from leadspan.models.settings import Pretrained
    from leadspan.training.result import STUDENT_DIR

    # Nothing was trained here: the weights are where the run read them.
    if run.train is None and isinstance(run.start, Pretrained) and not (directory / STUDENT_DIR).exists():
        return run.start
    return Pretrained(path=str(directory / STUDENT_DIR))
