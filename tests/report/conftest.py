import html
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from leadspan.pipeline.run import run
from leadspan.report.content import Report, build_report
from leadspan.report.inputs import ReportInputs, read_inputs
from leadspan.report.write import write_report
from leadspan.results import RunResult, save_run
from recipes import toy_recipe
from studies import EVALUATION, toy_task

FULL = {"kind": "full"}


class Page:
    """A written page, and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.own = re.sub(r'<script type="application/gzip".*?</script>', "", self.source, flags=re.DOTALL)
        bare = re.sub(r"<(script|style)\b.*?</\1>", " ", self.own, flags=re.DOTALL)
        self.text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).replace("\xa0", " ").split())

    @property
    def data(self) -> dict[str, Any]:
        found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', self.source, re.DOTALL)
        assert found
        return json.loads(found[1])


def stored(runs: Sequence[RunResult], folder: Path) -> ReportInputs:
    """The runs written to directories and read again."""
    paths = [folder / f"run-{number}" for number in range(len(runs))]
    for found, path in zip(runs, paths, strict=True):
        save_run(found, path)
    return read_inputs(paths)


@pytest.fixture
def gathered_of(tmp_path: Path) -> Callable[[Sequence[RunResult]], ReportInputs]:
    return lambda runs: stored(runs, tmp_path / "runs")


@pytest.fixture
def report_of(gathered_of: Callable[..., ReportInputs]) -> Callable[..., Report]:
    def make(runs: Sequence[RunResult], **options: Any) -> Report:
        return build_report(gathered_of(runs), **options)

    return make


@pytest.fixture
def page_of(report_of: Callable[..., Report], tmp_path: Path) -> Callable[..., Page]:
    def make(runs: Sequence[RunResult], **options: Any) -> Page:
        (path,) = write_report(report_of(runs, **options), tmp_path / "new" / "report.html")
        return Page(path)

    return make


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run directories of real small runs: uncut and cut, two seeds each, validated and evaluated."""
    folder = tmp_path_factory.mktemp("real")
    evaluation = {"tasks": [toy_task(folder)], **EVALUATION}
    directories: list[Path] = []
    for seed in (0, 1):
        for name, cut in (("full", FULL), ("lead", {"kind": "lead", "p": 0.6})):
            recipe = toy_recipe(
                folder / "inputs", steps=4, name=f"{name}-{seed}", seed=seed, cut=cut, evaluation=evaluation,
                output=str(folder / f"{name}-{seed}"),
            )  # fmt: skip
            run(recipe)
            directories.append(recipe.output)
    return directories
