"""What commands share: their arguments; recipes, models and tasks read before large imports; tables and figures.

Functions import what they need, so that `leadspan --help` and a mistyped path are answered at once.
"""

import argparse
import atexit
import contextlib
import gc
import importlib
import json
import os
import shlex
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.errors import CacheError, DataError, SettingsError, TargetsError
from leadspan.files import write_atomically
from leadspan.processes import interrupt_kept
from leadspan.sources import Source, check_sources, output_fault, source_faults
from leadspan.text import print_plain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from leadspan.data.settings import Rendering
    from leadspan.evaluation.settings import SamplingSettings, TaskSettings
    from leadspan.evaluation.subject import Subject
    from leadspan.models.settings import Pretrained
    from leadspan.recipe import Part, Recipe
    from leadspan.results import RunResult
    from leadspan.status import PlainConsole
    from leadspan.tables import Block

STANDARD_OUTPUT = "-"
Run = Callable[[argparse.Namespace], None]
Argument = tuple[tuple[str, ...], dict[str, Any]]
"""Names and options of an argument, as `ArgumentParser.add_argument` takes them."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its line in the help, its arguments, and what it does."""

    summary: str
    arguments: tuple[Argument, ...]
    run: Run


REGISTERED: dict[str, Command] = {}
"""Commands by name, as their modules are imported."""


def command(*arguments: Argument) -> Callable[[Run], Run]:
    """Make a function the command of its name; its docstring is the line in the help."""

    def register(run: Run) -> Run:
        REGISTERED[run.__name__] = Command(" ".join((run.__doc__ or "").split()), arguments, run)
        return run

    return register


def argument(*names: str, **options: Any) -> Argument:  # Any: as argparse has them
    """An argument of a command."""
    return names, options


JSON = argument("--json", type=Path, metavar="FILE", help="write the figures as JSON; - is standard output")
"""The option that writes the printed figures as JSON."""


def setting(what: str, name: str = "overrides") -> Argument:
    """The option that changes settings of a command without a recipe; `name` is its attribute of the options."""
    return argument("--set", dest=name, action="append", default=[], metavar="key=value", help=what)


def local_or_hub(*names: str, **options: Any) -> Argument:  # Any: as argparse has them
    """An argument that names a local path or something on the Hub."""
    return argument(*names, type=os.path.expanduser, **options)


def recipe_file(
    meaning: str = "YAML recipe", of: str = "the recipe's", metavar: str | None = None
) -> tuple[Argument, Argument]:
    """The arguments of a file of settings and of `key.sub=value` overrides of it."""
    overrides = {"nargs": "*", "default": [], "metavar": "key.sub=value", "help": f"settings that replace {of}"}
    return argument("recipe", type=Path, metavar=metavar, help=meaning), argument("overrides", **overrides)


def check_kind(path: Path, kind: str) -> None:
    """Refuse a file of settings that is not a `recipe`, `study` or `world` as asked; names the command for its kind."""
    from leadspan.yaml_text import read_yaml_mapping

    keys = read_yaml_mapping(path).keys()
    by_key = {"student": "recipe", "recipe": "study", "sets": "world"}  # of keys that only one kind has, the first
    written = next((of for key, of in by_key.items() if key in keys), kind)
    if written != kind:
        run = shlex.join(["leadspan", "distill" if written == "recipe" else written, str(path)])
        name = "; a study names it in `recipe:` (docs/study.md)" if (written, kind) == ("recipe", "study") else ""
        raise SettingsError(f"{path}: is a {written}, not a {kind}; run it with `{run}`{name}")


def read_recipe(
    options: argparse.Namespace, required: "Sequence[Part] | None" = None, must_answer: bool = True
) -> "Recipe":
    """The recipe of `options.recipe` and `options.overrides`; the command reads its `required` parts, or all.

    With `must_answer` a name of the Hub is refused when the Hub cannot be reached. The error names every setting that
    breaks a rule, or names something that does not exist or is not installed.
    """
    # A mistyped path, and the file of another command, are reported before the slow import of the settings.
    check_kind(options.recipe, "recipe")
    from leadspan.recipe import Part, load_recipe
    from leadspan.traces.read import check_layout
    from leadspan.training.settings import tracker_faults

    checked: Sequence[Part] = typing.get_args(Part) if required is None else required

    def not_there(recipe: "Recipe", is_faulty: Callable[[str], bool]) -> Iterator[str]:
        absent = source_faults((s for s in recipe.sources(checked) if not is_faulty(s.key)), must_answer)
        yield from absent
        validation = recipe.data.validation
        held_out = validation.source if validation.kind == "source" else None
        for key, source in (("data.train", recipe.data.train), ("data.validation.source", held_out)):
            if "data" in checked and not absent and not is_faulty("data") and source is not None:
                try:
                    check_layout(source)  # looks at some of its records
                except DataError as error:
                    yield f"{key}: {error}"
        if "targets" in checked and not absent and not is_faulty("targets") and recipe.store_path is not None:
            from leadspan.teacher.manifest import read_joined

            try:
                read_joined(recipe.store_path)
            except (CacheError, TargetsError) as error:
                yield f"targets: {error}"
        if required is None and not is_faulty("training.report_to"):
            yield from tracker_faults(recipe.training)
        if required is None and not is_faulty("output") and (fault := output_fault("output", recipe.output)):
            yield fault

    return load_recipe(options.recipe, options.overrides, not_there)


def check_tasks(key: str, tasks: "Sequence[TaskSettings]") -> None:
    """Refuse tasks whose problems cannot be read; `key` is the option or argument that names them."""
    from leadspan.evaluation.settings import BENCHMARKS

    lines: list[str] = []
    for task in tasks:
        if task.generated is not None:
            continue
        is_of_hub = task.benchmark is not None and task.path == BENCHMARKS[task.benchmark]["path"]
        faults = source_faults([Source(key, task.path, "dataset")], known_names=() if is_of_hub else tuple(BENCHMARKS))
        remedy = f"; for a local file of its problems write {task.benchmark}=FILE" if is_of_hub else ""
        lines += [f"{line}{remedy}" for line in faults]
    if lines:
        raise SettingsError("\n  ".join([f"{len(lines)} task{'s' if len(lines) > 1 else ''} cannot be read", *lines]))


@dataclass(frozen=True)
class ReadModel:
    """A model by the name that the user gave it; its prompts are rendered as in the run that trained it, if any did."""

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
    """A run's student, or a model by directory or Hub name; `rendering` has settings that replace the run's."""
    from leadspan.data.settings import Rendering
    from leadspan.models.settings import Pretrained, pretrained_at
    from leadspan.results import RUN_FILE, load_run
    from leadspan.settings import validate

    directory = Path(name)
    if directory.is_file() and directory.suffix != ".gguf":
        raise SettingsError(
            f"MODEL = {name!r}: is a file; the model comes first: a run, a model directory or a Hub name"
        )
    run = load_run(directory) if (directory / RUN_FILE).exists() else None
    recipe = run.recipe if run else None
    values: dict[str, Any] = recipe.data.rendering.model_dump(mode="json") if recipe else {}
    if not isinstance(rendering, dict | None):
        raise SettingsError(f"rendering = {rendering!r}: settings are a mapping; write rendering.KEY=VALUE")
    values |= rendering or {}
    model = student_of(run, directory) if run else pretrained_at(name)
    if not run and directory.is_dir() and model.gguf_file is None and not (directory / "config.json").exists():
        raise SettingsError(
            f"MODEL = {name!r}: holds no {RUN_FILE} of a finished run, no config.json of a model and no GGUF file; "
            "give a run, a model directory or a Hub name"
        )
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


@contextlib.contextmanager
def status_line(stage: str | None = None) -> Iterator[None]:
    """Show on standard error what is being done; under torchrun every rank runs the command, and the first shows it."""
    from leadspan.status import PlainConsole, StatusLine, report_status

    with StatusLine(PlainConsole(stderr=True, quiet=os.environ.get("RANK", "0") != "0")):
        if stage is not None:
            report_status(stage)
        yield


def load_libraries(*modules: str) -> None:
    """Import torch, Transformers and `modules`, which takes seconds, and say so; only once the input is valid.

    What is imported stays, so the garbage collector leaves it alone: a fifth of the time of the imports, and half a
    second of each whole collection that the Trainer asks for.
    """
    if sys.flags.optimize > 1:
        raise SettingsError("python -OO, or PYTHONOPTIMIZE=2: Transformers needs docstrings; use -O, or leave it out")
    # Freezing later would keep models that are no longer used.
    is_first = "transformers.generation" not in sys.modules
    with status_line("loading libraries"), interrupt_kept():
        gc.disable()
        try:
            for module in ("torch", "transformers.generation"):
                importlib.import_module(module)
            if os.environ.get("WANDB_MODE") == "offline":
                # Transformers then prints a line on standard output, which may be for JSON alone.
                with contextlib.redirect_stdout(sys.stderr):
                    importlib.import_module("transformers.integrations.integration_utils")
            for module in modules:
                importlib.import_module(module)
        finally:
            gc.enable()
        if is_first:
            gc.freeze()
            atexit.register(gc.unfreeze)  # or nanobind reports what it finds alive when the process ends


def console_beside(json_path: Path | None) -> "PlainConsole":
    """The console for tables: standard output, or standard error where the JSON goes to standard output."""
    from leadspan.status import PlainConsole

    # What reads the JSON must get nothing else.
    return PlainConsole(stderr=str(json_path) == STANDARD_OUTPUT)


def show(
    parts: "Iterable[Block | RenderableType]", values: Any, json_path: Path | None, long_lines: bool = False
) -> None:  # Any: plain values
    """Print tables and text; with a path, write plain values as JSON to that file, or to standard output for `-`.

    With `long_lines` text is not wrapped, so that a path in it stays whole.
    """
    from leadspan.tables import Block, print_block

    console = console_beside(json_path)
    for part in parts:
        if isinstance(part, Block):
            print_block(part, console)
        else:
            console.print(part, highlight=False, soft_wrap=long_lines and isinstance(part, str))
    # Not by `print_plain`: the JSON holds texts as they are, for programs.
    text = json.dumps(values, indent=1) + "\n"
    if str(json_path) == STANDARD_OUTPUT:
        sys.stdout.write(text)
    elif json_path is not None:
        write_atomically(json_path, text)
        print_plain(f"figures: {json_path}")
