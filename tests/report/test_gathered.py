import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leadspan.audit.findings import AuditResult
from leadspan.errors import RunError
from leadspan.report.content import build_report
from leadspan.report.inputs import named_runs, read_inputs
from leadspan.report.write import report_text
from leadspan.results import RunResult, load_run, save_run
from leadspan.study.record import StudyRecord, TrialRecord, save_study
from made_runs import made_study

MakeRun = Callable[..., RunResult]
EMPTY_AUDIT = {
    "source": "traces of the study", "tokenizer": "toy", "num_read": 10, "num_traces": 9,
    "refused": {"think tag missing": 1}, "refusal_examples": {"think tag missing": "traces.jsonl:3"}, "tokens": {},
    "first_answers": {"outcomes": {"found": 8, "not found": 1}, "gold_sources": {"record": 9}},
    "entailment": {
        "prompt_numbers": 0.5, "all_prompt_numbers": None, "prompt_words": None, "answer_stands": None
    },
    "policies": [], "repetition": {"num_loops": 0, "repeated_sentences": 0.25},
    "duplicates": {"num_questions": 9, "num_exact": 0, "num_near": 0, "threshold": 0.8},
}  # fmt: skip


def write_audit(path: Path) -> Path:
    path.write_text(AuditResult.model_validate(EMPTY_AUDIT).model_dump_json())
    return path


def trial(name: str, state: str, seed: int = 0, **more: str) -> TrialRecord:
    return TrialRecord(name=name, seed=seed, directory=name, fingerprint=name, state=state, **more)  # type: ignore[arg-type]


def test_a_study_stands_for_its_complete_trials_and_says_what_is_missing(make_run: MakeRun, tmp_path: Path) -> None:
    save_run(make_run("full", 30, {"kind": "full"}), tmp_path / "full")
    save_run(make_run("lead 0.5", 15), tmp_path / "lead")
    trials = [trial("full", "done"), trial("lead", "done", control="equal_tokens", note="seen twice")]
    trials += [
        trial("lead", "waiting", control="equal_tokens", seed=seed, note=f"seen {seed} times") for seed in (3, 4)
    ]
    trials += [trial("tail", "failed", message="out of memory"), trial("mix", "running"), trial("budget", "waiting")]
    save_study(StudyRecord(name="toy", study=made_study(), trials=trials, notes=["base: none"]), tmp_path)
    gathered = read_inputs([tmp_path])
    assert [(entry.label, entry.run.control, entry.directory.name) for entry in named_runs(gathered)] == [
        ("full", None, "full"), ("lead", "equal_tokens", "lead")
    ]  # fmt: skip
    # A trial that is named besides its study is the trial that the study recorded.
    for paths in ([tmp_path, tmp_path / "lead"], [tmp_path / "lead", tmp_path]):
        assert sorted(str(run.control) for run in read_inputs(paths).runs) == ["None", "equal_tokens"]
    (study,) = build_report(gathered).studies
    assert (len(study.trials), len(study.of_state("done")), study.notes) == (7, 2, ["base: none"])
    page = report_text(build_report(gathered), "html")
    assert (
        '<p class="note">lead: seen twice; seen 3 times; seen 4 times.</p>' in page
        and "slowed each other down" not in page
    )
    for cells in (
        ("tail, seed 0", "failed", "out of memory"),
        ("mix, seed 0", "running"),
        ("budget, seed 0", "waiting"),
    ):
        row = page[page.index(f">{cells[0]}</th>") :].split("</tr>")[0]
        assert all(cell in row for cell in cells)


def test_among_several_paths_those_without_runs_are_skipped_and_a_run_counts_once(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_run(make_run("full", 30, {"kind": "full"}), tmp_path / "full")
    (tmp_path / "worlds").mkdir()
    (tmp_path / "report.html").touch()
    monkeypatch.chdir(tmp_path)
    gathered = read_inputs([Path("full"), tmp_path / "full", Path("worlds"), Path("report.html")])
    assert [place.resolve() for place in gathered.directories] == [tmp_path / "full"] and len(gathered.runs) == 1
    assert gathered.skipped == (Path("worlds"), Path("report.html"))
    begun = TrialRecord(name="full", seed=0, directory="t", fingerprint="f", state="waiting")
    save_study(StudyRecord(name="begun", study=made_study(), trials=[begun]), tmp_path / "begun")
    gathered = read_inputs([Path("full"), Path("begun")])
    assert len(gathered.runs) == 1 and gathered.studies[0].name == "begun"
    with pytest.raises(RunError, match=r"worlds: no run\.json"):
        read_inputs([Path("worlds")])
    with pytest.raises(RunError, match=r"typo: no such directory"):
        read_inputs([Path("full"), Path("typo")])


def test_audits_are_found_beside_runs_and_taken_once(study: list[RunResult], tmp_path: Path) -> None:
    save_run(study[2], tmp_path / "full")
    beside, other = write_audit(tmp_path / "full" / "audit.json"), write_audit(tmp_path / "other.json")
    assert len(read_inputs([tmp_path]).audits) == 1
    gathered = read_inputs([tmp_path / "full"], [beside, other])
    assert len(gathered.audits) == 2
    page = report_text(build_report(gathered), "html")
    assert 'id="audit"' in page and "traces of the study, in tokens of toy" in page
    assert "sentences repeated within their trace" in page and "25.0\N{NO-BREAK SPACE}%" in page


def test_paths_may_be_texts_and_there_must_be_one(make_run: MakeRun, tmp_path: Path) -> None:
    save_run(make_run("full", 30, {"kind": "full"}), tmp_path / "full")
    assert load_run(str(tmp_path / "full")).name == read_inputs([str(tmp_path)]).runs[0].name
    with pytest.raises(RunError, match="no path was given"):
        read_inputs([])


def test_a_file_that_is_no_audit_is_refused(study: list[RunResult], tmp_path: Path) -> None:
    save_run(study[2], tmp_path)
    other = tmp_path / "run.json"
    with pytest.raises(RunError, match=r"run.json: holds no AuditResult .* write it with"):
        read_inputs([tmp_path], [other])


def test_a_run_named_twice_counts_once(study: list[RunResult], tmp_path: Path) -> None:
    save_run(study[2], tmp_path / "full")
    assert len(read_inputs([tmp_path, tmp_path / "full"]).runs) == 1
    assert json.loads((tmp_path / "full" / "run.json").read_text())["label"] == "full"
