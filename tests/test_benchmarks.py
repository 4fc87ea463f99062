import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import registry, table
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.gpu import harness
from benchmarks.gpu.setting import Setting, sizes_for
from benchmarks.record import Figure, Outcome, RecordError, Spread, Start, commit, record, start
from benchmarks.timing import alternate, paired_ratio

OUTCOME = Outcome(
    method="how",
    settings={"rounds": 3},
    sides={"ours": Spread.of([0.1, 0.2, 0.4])},
    figures=[
        Figure("share filled", 0.98, 0.97, "higher"),
        Figure("time ours / theirs", 0.8, 0.7),
        Figure("time", 0.2, unit="s"),
    ],
)
BEGUN = Start("0123456789ab", (0.5, 0.4, 0.3))


def test_registry_lists_every_benchmark():
    folder = Path(registry.__file__).parent
    with_run = {path.stem for path in folder.glob("*.py") if "def run() -> Outcome:" in path.read_text()}
    assert with_run == set(registry.NAMES)
    assert all(registry.summary(name) for name in registry.NAMES)


def test_spread_is_median_and_quartiles():
    spread = Spread.of([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.first_quartile, spread.median, spread.third_quartile) == (2.0, 3.0, 4.0)
    assert Spread.of([2.0]) == Spread("s", 2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize(
    ("figure", "reached"),
    [
        (Figure("a", 0.97, 0.97, "higher"), True),
        (Figure("a", 0.96, 0.97, "higher"), False),
        (Figure("a", 0.5, 0.5), True),
        (Figure("a", 0.6, 0.5), False),
        (Figure("a", 0.6), None),
    ],
)
def test_figure_knows_whether_its_target_is_reached(figure: Figure, reached: bool | None):
    assert figure.is_reached is reached


def test_alternate_runs_the_sides_in_turn_and_drops_the_warm_up():
    calls: list[str] = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert {side: len(values) for side, values in seconds.items()} == {"a": 2, "b": 2}


def test_paired_ratio_is_taken_within_rounds():
    assert paired_ratio([1.0, 10.0, 3.0], [2.0, 10.0, 4.0]) == 0.75


def test_nothing_is_recorded_outside_a_checkout(tmp_path: Path):
    with pytest.raises(RecordError, match="no commit can be read"):
        start(tmp_path)


def test_commit_is_the_head_and_marks_changed_sources(tmp_path: Path):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD")[:12]
    (tmp_path / "notes.md").write_text("not measured")
    assert commit(tmp_path) == head
    (tmp_path / "src" / "a.py").write_text("a = 2\n")
    assert commit(tmp_path) == f"{head}+"
    with pytest.raises(RecordError, match="not the root"):
        commit(tmp_path / "src")


def test_record_keeps_what_a_reader_needs(tmp_path: Path):
    path = record("packing", OUTCOME, BEGUN, tmp_path)
    stored = json.loads(path.read_text())
    assert path.name.startswith("packing-")
    assert stored["commit"] == "0123456789ab"
    assert stored["load_average"]["before"] == [0.5, 0.4, 0.3]
    assert stored["device"]["kind"] == "cpu"
    assert stored["device"]["cpu"] and stored["device"]["cores"]
    assert {"python", "torch", "transformers"} <= stored["versions"].keys()
    assert stored["sides"]["ours"]["median"] == 0.2
    assert [figure["is_reached"] for figure in stored["figures"]] == [True, False, None]


def test_table_shows_stored_results(tmp_path: Path):
    record("packing", OUTCOME, BEGUN, tmp_path)
    record("prepare", OUTCOME, BEGUN, tmp_path)
    page = table.render(tmp_path)
    assert page.index("## prepare") < page.index("## packing")
    assert "| share filled | 0.98 | >= 0.97 | yes |" in page
    assert "| time ours / theirs | 0.8 | <= 0.7 | no |" in page
    assert "| time | 0.2 s |  |  |" in page
    assert "| ours | 0.2 s | 0.15 to 0.3 s | 3 |" in page
    assert "commit 0123456789ab" in page


def test_table_of_no_results_is_refused(tmp_path: Path):
    with pytest.raises(RecordError, match="holds no records"):
        table.render(tmp_path)


def test_page_is_the_one_of_the_stored_results():
    assert table.PAGE.read_text() == table.render(table.RESULTS)


def test_a_part_that_takes_too_long_is_killed_with_its_children_and_one_that_fails_says_why(tmp_path: Path):
    mark = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(mark)!r}).touch(); time.sleep(0.05)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert harness.run_limited([sys.executable, "-c", parent], 1.5) == "killed after 2 s"
    mark.unlink()
    time.sleep(0.3)
    assert not mark.exists()
    assert harness.run_limited([sys.executable, "-c", "raise SystemExit('no such card')"], 30) == "failed: no such card"
    assert harness.run_limited([sys.executable, "-c", "pass"], 30) == "measured"


def test_page_names_what_a_run_on_a_gpu_did_not_measure(tmp_path: Path):
    ends = {"tests": "measured", "training": "killed after 70 s"}
    whole = replace(OUTCOME, details={"ends": ends}, sides={})
    part = replace(OUTCOME, details={"skipped": ["Liger: not installed"]})
    for name, outcome in (("gpu", whole), ("gpu/loss-2560", part)):
        record(name, outcome, BEGUN, tmp_path)
    page = table.render(tmp_path)
    assert page.index("## gpu\n") < page.index("## gpu/loss-2560\n")
    assert "Not measured: training: killed after 70 s." in page
    assert "Not measured: Liger: not installed." in page
    assert "tests: measured" not in page


@pytest.mark.parametrize(("gigabytes", "layers"), [(141, 36), (80, 18), (42.4, 6), (24, 12)])
def test_sizes_are_of_the_cards_memory(gigabytes: float, layers: int):
    assert sizes_for(int(gigabytes * 1e9), "card").student[1] == layers


def test_a_card_too_small_for_all_sizes_is_refused():
    with pytest.raises(RecordError, match="16 GB"):
        sizes_for(16_000_000_000, "card")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_and_exits_with_2(capsys: pytest.CaptureFixture[str]):
    assert benchmarks_main(["gpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_of_a_gpu_runs_tiny(tmp_path: Path):
    left_out = ("tests", "trl", "loss-2048", "loss-1024")  # pytest itself, a package of the benchmarks, and repeats
    setting = Setting.here(is_tiny=True)
    for name, part in registry.GPU_PARTS.items():
        if name in left_out:
            continue
        measure = getattr(importlib.import_module(f"benchmarks.gpu.{part.module}"), part.function)
        outcome = measure(setting, *part.arguments)
        assert record(f"gpu/{name}", outcome, BEGUN, tmp_path).exists()
        assert outcome.figures or outcome.sides, name
        assert registry.summary(f"gpu/{name}")
    page = table.render(tmp_path)
    assert "| lead 0.5: tokens a second |" in page
    assert "| hidden, full: time / SFT |" in page
