"""Files that are not what they should be: refused by name, and the rest of the report stands."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leadspan.cli import main
from leadspan.errors import RunError
from leadspan.files import unseal
from leadspan.report.content import build_report
from leadspan.report.inputs import ReportInputs, read_inputs
from leadspan.report.write import print_report, report_text
from leadspan.results import RunResult, save_run
from leadspan.status import PlainConsole
from leadspan.study.record import StudyRecord, TrialRecord, save_study
from made_runs import made_study

DEEP = "[" * 100_000
CASES = Path(__file__).parents[3] / "shared" / "cases" / "reliability" / "inputs" / "run"


def changed(path: tuple[str | int, ...], value: Any) -> Callable[[str], str]:
    """A change of one value of a run.json."""

    def change(text: str) -> str:
        whole = json.loads(text)
        node = whole
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        return json.dumps(whole)

    return change


EVALUATION = ("evaluations", 0)
DAMAGED: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[:300],
    "empty": lambda text: "",
    "deep": lambda text: DEEP,
    "another file": lambda text: '{"name": "x"}',
    "no number": changed(("train", "seconds"), "fast"),
    "below nothing": changed(("train", "num_tokens"), -1),
    "beyond floats": changed(("train", "peak_memory_bytes"), 10**400),
    "not finite": changed(("train", "final_loss"), float("inf")),
    "no step": changed(("train", "validation_loss"), {"last": 1.0}),
    "no share": changed((*EVALUATION, "termination_rate", "high"), 7),
    "no level": changed((*EVALUATION, "accuracy_strict", "level"), 1.0),
    "no score": changed((*EVALUATION, "correct", "p0"), [3]),
    "too many scores": changed((*EVALUATION, "correct", "p0"), [1, 1]),
    "too few problems": changed((*EVALUATION, "num_problems"), 39),
    "no problems": lambda text: changed((*EVALUATION, "num_problems"), 0)(changed((*EVALUATION, "correct"), {})(text)),
    "a task twice": lambda text: changed(("evaluations",), json.loads(text)["evaluations"] * 2)(text),
    "another version": changed(("schema_version",), 99),
}


@pytest.fixture
def runs_at(study: list[RunResult], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "runs" / run.label.replace(" ", "-") for run in study]
    for run, path in zip(study, paths, strict=True):
        save_run(run, path)
        unseal(path)  # else the digests would tell first
    return paths


def shown_everywhere(gathered: ReportInputs) -> str:
    """All renderings of a report; none may fail."""
    report = build_report(gathered)
    print_report(report, PlainConsole())
    return report_text(report, "html") + report_text(report, "md") + report.model_dump_json()


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_run_is_refused_by_name_and_the_rest_stands(runs_at: list[Path], name: str) -> None:
    file = runs_at[3] / "run.json"
    file.write_text(DAMAGED[name](file.read_text()))
    gathered = read_inputs([runs_at[0].parent])
    assert [run.label for run in gathered.runs] == ["base", "full", "teacher"]
    (reason,) = build_report(gathered).damaged
    assert reason.startswith(f"{file}: ") and len(reason) < 500
    text = shown_everywhere(gathered)
    assert text.count(str(file)) == 3
    with pytest.raises(RunError, match=r"lead-0\.5.run\.json: "):
        read_inputs([runs_at[3]])


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("is_sealed", [True, False])
def test_what_is_no_file_is_refused_at_once(
    runs_at: list[Path], study: list[RunResult], make: Callable[[Path], None], is_sealed: bool
) -> None:
    file = runs_at[3] / "run.json"
    if is_sealed:
        save_run(study[3], runs_at[3])
    file.unlink()
    make(file)
    (reason,) = read_inputs([runs_at[0].parent]).refused
    assert reason.startswith(f"{file}: ") and "is not a file" in reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "lines",
    [
        DEEP,
        '{"step": 1, "loss": 1.0, "divergence/cot": "x"}',
        '{"step": 1, "divergence/cot": true}',
        '{"step": "1", "divergence/cot": 1}',
        '{"step": 1e999, "divergence/cot": 1}',
        '{"step": 1, "divergence/cot": 1' + "0" * 400 + "}",
        '{"divergence/cot": 1}',
        "[]",
        "\x00",
        '{"step": 1, "divergence/cot": 1.0}\n{"step": 2, "diver',
        *(path.read_text() for path in sorted(CASES.glob("metrics*.jsonl"))),
    ],
)
def test_damaged_metrics_are_refused_by_name(runs_at: list[Path], lines: str) -> None:
    file = runs_at[2] / "metrics.jsonl"
    file.write_text(lines)
    gathered = read_inputs([runs_at[0].parent])
    report = build_report(gathered)
    assert report.curves == [] and len(report.damaged) == 1 and f"full: no curves: {file}:" in report.damaged[0]
    assert str(file) in shown_everywhere(gathered)


def test_a_damaged_study_is_refused_by_name_and_other_runs_stand(runs_at: list[Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.json").write_text('{"name": "toy"}')
    gathered = read_inputs([study, runs_at[0].parent])
    assert len(gathered.runs) == 4 and f"{study / 'study.json'}: " in gathered.refused[0]
    assert str(study) in shown_everywhere(gathered)
    with pytest.raises(RunError, match=r"study\.json: "):
        read_inputs([study])


def test_a_study_s_damaged_or_vanished_runs_are_refused_by_name(runs_at: list[Path]) -> None:
    folder = runs_at[0].parent
    names = [path.name for path in runs_at] + ["vanished", "a\0b"]
    trials = [TrialRecord(name=name, seed=0, directory=name, fingerprint=name, state="done") for name in names]
    save_study(StudyRecord(name="toy", study=made_study(), trials=trials), folder)
    (runs_at[3] / "run.json").write_text("{")
    gathered = read_inputs([folder])
    assert [run.label for run in gathered.runs] == ["teacher", "base", "full"]
    assert [name in reason for name, reason in zip(("lead-0.5", "vanished", "a\0b"), gathered.refused, strict=True)]
    # so the report does not say that all trials are complete
    states = [(trial.name, trial.state) for trial in gathered.studies[0].trials]
    assert states == list(zip(names, ("done", "done", "done", "waiting", "waiting", "waiting"), strict=True))


def test_a_damaged_audit_beside_the_runs_is_refused_by_name(runs_at: list[Path]) -> None:
    (runs_at[2] / "audit.json").write_text('{"source": 3}')
    gathered = read_inputs([runs_at[0].parent])
    assert gathered.audits == () and "audit.json: holds no AuditResult" in gathered.refused[0]


@pytest.mark.slow
def test_the_command_names_what_it_left_out(
    runs_at: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs_at[3] / "run.json").write_text("{")
    assert main(["report", str(runs_at[0].parent), "--output", str(tmp_path / "r.html")]) == 0
    assert "damaged, and left out: " in capsys.readouterr().err and (tmp_path / "r.html").exists()
    for path in runs_at:
        (path / "run.json").write_text("{")
    assert main(["report", str(runs_at[0].parent), "--output", str(tmp_path / "r2.html")]) == 2
    assert not (tmp_path / "r2.html").exists()
