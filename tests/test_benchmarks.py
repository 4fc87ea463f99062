import json
import subprocess
from pathlib import Path

import pytest
from benchmarks import registry, table
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
