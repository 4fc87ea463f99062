"""Every block of README.md and docs/*.md is what it says: commands and settings that there are, and that run.

Models and data sets of the Hub have small local ones in their place, under the same names.
"""

import ast
import glob
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leadspan.cli import main, parse
from leadspan.evaluation.settings import BENCHMARKS
from leadspan.models.loading import load_model, save_student
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe, load_recipe
from leadspan.results import RunResult, save_run
from leadspan.settings import Settings, load_settings, validate
from leadspan.study.settings import Study
from leadspan.study.trials import conditions
from leadspan.worlds.files import WorldFiles
from leadspan.yaml_text import parse_yaml
from servers import serving
from toys import TEMPLATE, character_tokenizer, tiny, write_traces

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NO_CODE = ("text", "", "jinja")
NOT_RUN = {
    "make demo": "tests/test_demo.py runs the demo",
    "make test": "it is what runs this",
    "pip install .": "tests need an installed package",
    "leadspan push": "needs the Hub; tests/hub pushes to a server of its protocol",
    "leadspan chat": "it reads what is typed; tests/cli/test_asking.py types",
    "torchrun --nproc-per-node 8 -m leadspan distill recipes/paper_bespoke_stratos.yaml": "needs GPUs and the Hub",
}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    fence = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    for block in fence.finditer(text):
        yield Block(page, text.count("\n", 0, block.start()) + 1, block[1], block[2])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL, YAML, PYTHON = ([b for b in BLOCKS if b.language == language] for language in ("bash", "yaml", "python"))
RECIPE = next(block.text for block in YAML if "student:" in block.text)


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command, comments left out."""
    commands: list[list[str]] = []
    for line in block.text.splitlines():
        commands.append([])
        for word in shlex.split(line, comments=True):
            commands[-1].append(word.removesuffix(";"))
            if word.endswith(";"):
                commands.append([])
    return [command for command in commands if command]


def test_every_block_has_a_language_that_is_looked_at() -> None:
    assert {block.language for block in BLOCKS} <= {"bash", "yaml", "python", *NO_CODE}
    assert len(SHELL) >= 9 and len(YAML) >= 4 and len(PYTHON) >= 4
    written = [block for block in BLOCKS if block.page.name != "cli.md"]  # which is made from --help
    assert not [
        str(b) for b in written if b.language in NO_CODE and re.search(r"^leadspan \w+(?![\w:])", b.text, re.MULTILINE)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with README's recipe and the recipes of the repository."""
    for name in ("recipe.yaml", "mine.yaml"):  # the tutorial makes the second one
        (tmp_path / name).write_text(RECIPE)
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_and_their_settings_are_ones_that_there_are(block: Block, folder: Path) -> None:
    for words in commands_of(block):
        if words[0] == "torchrun":
            words = words[words.index("leadspan") :]
        if words[0] == "make":
            assert f"\n{words[1]}:" in (REPOSITORY / "Makefile").read_text()
            continue
        if words[0] in ("pip", "python"):
            continue
        assert words[0] == "leadspan", f"{block}: {words}"
        options = parse(words[1:])
        kinds: dict[str, type[Settings]] = {"study": Study, "world": WorldFiles}
        path = Path(getattr(options, "recipe", None) or getattr(options, "data", ""))
        if path.suffix == ".yaml":
            load_settings(kinds.get(words[1], Recipe), path, options.overrides)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_settings_are_ones_that_there_are(block: Block) -> None:
    values = parse_yaml(block.text, str(block))
    recipe = parse_yaml(RECIPE, "README.md")
    if "student" in values:
        validate(Recipe, values, str(block))
    elif "axes" in values or "store" in values:
        study = validate(Study, {"name": "s", "output": "o", "recipe": "r.yaml", **values}, str(block))
        assert len(conditions(study, recipe)) >= (10 if "axes" in values else 1)
    else:
        validate(Recipe, {**recipe, **values}, str(block))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_what_python_imports_and_overrides_is_there(block: Block, folder: Path) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names), str(block)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "leadspan":
            assert hasattr(importlib.import_module("leadspan"), node.attr), f"{block}: leadspan.{node.attr}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "leadspan.load_recipe":
            load_recipe(*map(ast.literal_eval, node.args))


def write_problems(name: str) -> None:
    """A problem in the place of a benchmark, in its layout."""
    known: dict[str, Any] = BENCHMARKS[name]
    row: dict[str, Any] = {"problem": "add 1 to itself", "answer": "2"}
    if name == "gpqa":
        wrong = {f"Incorrect Answer {i}": str(2 + i) for i in (1, 2, 3)}
        row = {"Question": "add 1 to itself", "Correct Answer": "2", **wrong}
    directory = Path(known["path"], known.get("subset") or "")
    directory.mkdir(parents=True)
    (directory / f"{known.get('split', 'test')}.jsonl").write_text(json.dumps(row))


def run_commands(block: Block) -> None:
    for words in commands_of(block):
        if next((reason for start, reason in NOT_RUN.items() if " ".join(words).startswith(start)), None):
            continue
        arguments = words[words.index("leadspan") + 1 :]
        expanded = [name for word in arguments for name in (sorted(glob.glob(word)) if "*" in word else [word])]
        assert main(expanded) == 0, f"{block}: {shlex.join(words)}"


def run_page(name: str, server: str = "") -> None:
    for block in blocks_of(next(page for page in PAGES if page.name == name)):
        block = replace(block, text=block.text.replace("http://localhost:8000", server))
        if block.language == "bash":
            run_commands(block)
        elif block.language == "python":
            exec(compile(block.text, str(block), "exec"), {})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Path]:
    """Where README's blocks have been run, with everything that they and the other pages name."""
    root = tmp_path_factory.mktemp("readme")
    (root / "shared").symlink_to(shared.parent)
    folder = root / "work"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LEADSPAN_CACHE", str(root / "cache"))
        (folder / "recipes").symlink_to(REPOSITORY / "recipes")
        (folder / "recipe.yaml").write_text(RECIPE)
        write_traces(folder / "traces.jsonl", 40)
        tokenizer = character_tokenizer()
        for seed, name in enumerate(("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-8B", "Qwen/Qwen3-4B", "MODEL")):
            model = load_model(tiny(seed=seed, max_position_embeddings=384), torch.float32)
            save_student(model, tokenizer, TEMPLATE, int(tokenizer.eos_token_id), folder / name)
        for name in ("aime24", "aime25", "math500", "gsm8k", "gpqa"):
            write_problems(name)
        problem = json.dumps({"problem": "add 1 to itself", "answer": "2"})
        (folder / "data").mkdir()
        for name in ("own.jsonl", "aime25.jsonl", "data/aime25.jsonl"):
            (folder / name).write_text(problem)
        yield folder


@pytest.mark.slow
def test_the_blocks_of_all_pages_run(workplace: Path, study: list[RunResult]) -> None:
    """README's first; runs that a page names and README does not make are made by hand."""
    runs = workplace / "runs"
    for run in study:
        save_run(run, runs / "study-derive-and-verify-cpu" / run.name)
    run_page("README.md")
    shutil.copytree(runs / "quarter", runs / "lead-0.5")
    for seed in (0, 1, 2):
        save_run(study[2], runs / f"full-{seed}")
        save_run(study[3], runs / f"lead-{seed}")
    for run in study:
        save_run(run, runs / "study" / run.name)
    with serving(
        load_model(Pretrained(path="Qwen/Qwen3-8B"), torch.float32, for_training=False), character_tokenizer()
    ) as server:
        for page in sorted({block.page.name for block in SHELL + PYTHON} - {"README.md"}):
            run_page(page, server.url)
