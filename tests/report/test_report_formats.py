import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from leadspan.cli import main
from leadspan.recipe import Recipe
from leadspan.report.content import Report
from leadspan.report.figures import draw_figures
from leadspan.report.write import report_text, write_report
from leadspan.results import RunResult
from leadspan.tables import Block, markdown_table

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def test_markdown_has_the_answer_and_whole_tables(study: list[RunResult], report_of: Callable[..., Report]) -> None:
    text = report_text(report_of(study), "md")
    assert "| lead 0.5 | 38 [32, 44] % | 53 [48, 58] % | 50 [" in text
    assert "| 50 % (5 s) | 50 % (100 B) | 50 % (200 FLOP) | 50 % (500) |" in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({line.replace(r"\|", "").count("|") for line in table.splitlines()}) == 1


def test_markdown_cells_cannot_break_a_table() -> None:
    table = markdown_table(Block("", ("a", "b"), (("x|y\nz", "<b>"),)))
    assert table.splitlines()[2] == r"| x\|y z | &lt;b&gt; |"
    # Of `\\|` a reader of Markdown would take the bar for the end of a cell.
    assert markdown_table(Block("", ("a", "b"), ((r"x\|y", r"\{"),))).splitlines()[2] == r"| x\\\|y | \\{ |"


@pytest.mark.parametrize(
    ("title", "line"),
    [("1. Study", r"# 1\. Study"), ("12) Runs", r"# 12\) Runs"), ("- x", r"# \- x"), ("1.5", "# 1.5")],
)
def test_a_title_that_looks_like_a_list_is_a_title(
    study: list[RunResult], report_of: Callable[..., Report], title: str, line: str
) -> None:
    assert report_text(report_of(study, title=title), "md").splitlines()[0] == line


def test_json_is_the_whole_report(study: list[RunResult], report_of: Callable[..., Report], tmp_path: Path) -> None:
    report = report_of(study)
    (path,) = write_report(report, tmp_path / "report.json", "json")
    assert Report.model_validate_json(path.read_text()).model_dump_json() == report.model_dump_json()
    values = json.loads(path.read_text())
    lead = values["tasks"][0]["rows"][3]
    assert (lead["label"], lead["accuracy"]["value"], lead["costs"]["flops"]["of_full"]) == ("lead 0.5", 0.375, 0.5)
    assert values["runs"]["lead 0.5"]["recipe"]["cut"] == {"kind": "lead", "p": 0.5, "stop": "none", "align": "token"}


def test_every_key_of_the_json_is_documented() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", DOCS.read_text().split("### JSON")[1], re.MULTILINE))
    assert told == set(Report.model_fields)
    recipes = Recipe.model_json_schema()["$defs"].keys() | {"Recipe"}  # docs/settings.md has these
    parts = Report.model_json_schema()["$defs"]
    described = [part for name, part in parts.items() if "properties" in part and name not in recipes]
    undescribed = [
        f"{part['title']}.{name}"
        for part in described
        for name, field in part["properties"].items()
        if "description" not in field
    ]
    assert undescribed == []


@pytest.mark.slow
def test_png_figures_are_drawn_and_none_is_empty(real_runs: list[Path], tmp_path: Path) -> None:
    assert main(["report", *map(str, real_runs), "--format", "png", "--output", str(tmp_path / "figures")]) == 0
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert [f"frontier-toy-{cost}.png" for cost in ("flops", "memory", "time", "tokens")] == names[-6:-2]
    assert "divergence-by-place-validation-set.png" in names and "cost-flops.png" in names
    for name in names:
        with Image.open(tmp_path / "figures" / name) as image:
            assert image.width > 800 and len(image.convert("RGB").getcolors(1 << 24) or []) > 10, name


def test_a_figure_replaces_a_whole_file(
    study: list[RunResult], report_of: Callable[..., Report], tmp_path: Path
) -> None:
    (tmp_path / "earlier").write_text("earlier")
    (tmp_path / "rates-toy.png").hardlink_to(tmp_path / "earlier")
    assert tmp_path / "rates-toy.png" in draw_figures(report_of(study), tmp_path)
    assert (tmp_path / "earlier").read_text() == "earlier"  # it was not written into


def test_tasks_whose_names_differ_in_case_have_figures_of_their_own(
    study: list[RunResult], report_of: Callable[..., Report], tmp_path: Path
) -> None:
    report = report_of(study)
    (task,) = report.tasks
    paths = draw_figures(
        report.model_copy(update={"tasks": [task, task.model_copy(update={"task": task.task.upper()})]}), tmp_path
    )
    assert len({path.name.casefold() for path in paths}) == len(paths)
    assert sum(path.name.startswith("rates-") for path in paths) == 2
    captions: dict[str, str] = {}
    for path in paths:
        with Image.open(path) as image:
            captions[path.stem] = image.info["Description"]
    # Each names its own task; costs and curves are of none.
    assert sorted("TOY, " in text for name, text in captions.items() if name.startswith("rates-")) == [False, True]
    assert sorted("toy, " in text for name, text in captions.items() if name.startswith("rates-")) == [False, True]
    assert captions["cost-flops"].startswith("Measured on cpu, 1 rank")


def test_a_figure_is_as_high_as_its_legend(
    make_run: Callable[..., RunResult], report_of: Callable[..., Report], tmp_path: Path
) -> None:
    runs = [make_run("full", 30, {"kind": "full"})]
    runs += [make_run(f"lead {n}", n, {"kind": "lead", "p": n / 50}, cost=0.2 + n / 50) for n in range(1, 40)]
    paths = draw_figures(report_of(runs), tmp_path)
    with Image.open(next(path for path in paths if path.stem == "frontier-toy-time")) as image:
        assert image.height > 200 * 40 * 8 * 1.2 / 72  # 40 lines of 8 points at 200 dots an inch


@pytest.mark.slow
def test_without_matplotlib_png_says_what_to_install(study: list[RunResult], tmp_path: Path) -> None:
    """In a process that finds no matplotlib: all else of the report works without it."""
    from leadspan.results import save_run

    save_run(study[2], tmp_path / "run")
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from leadspan.cli import main\n"
        f"runs, out = {str(tmp_path / 'run')!r}, {str(tmp_path / 'out')!r}\n"
        "print([main(['report', runs, '--format', kind, '--output', out + '.' + kind]) for kind in ('md', 'png')])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[0, 2]", "[]"]
    assert "leadspan report: --format png needs matplotlib: pip install 'leadspan[figures]'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--target", "1.5"], "--target 1.5: must be a share above 0 and at most 1", id="target"),
        pytest.param(["--samples", "-1"], "--samples -1: must be 0 or more", id="samples"),
        pytest.param(["--audit", "none.json"], "none.json: not found", id="audit"),
        pytest.param(["--cost", "money"], "cost money: not known for every run", id="cost"),
    ],
)
def test_bad_options_are_told_in_one_message(
    study: list[RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    from leadspan.results import save_run

    save_run(study[2], tmp_path / "run")
    output = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "run"), "--output", str(output), *arguments]) == 2
    assert message in capsys.readouterr().err and not output.exists()
