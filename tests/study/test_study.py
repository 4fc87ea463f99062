import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from benchmarks import hold_process
from rich.console import Console

from leadspan.cli import main
from leadspan.errors import RunError, SettingsError
from leadspan.files import locked
from leadspan.report.frontier import build_frontiers
from leadspan.report.inputs import read_inputs
from leadspan.report.rows import measured_costs
from leadspan.settings import dump_yaml
from leadspan.study.record import load_study
from leadspan.study.study import plan_study, planned_record, run_study
from recipes import toy_recipe, write_recipe
from studies import EVALUATION, toy_study, toy_task

QUIET = Console(quiet=True)


def write_study(directory: Path, **changes: object) -> Path:
    study, place = toy_study(directory, **changes)
    place.write_text(dump_yaml(study))
    return place


def finished(directory: Path) -> dict[str, int]:
    """Complete run files by directory, with the time of their last change."""
    return {path.parent.name: path.stat().st_mtime_ns for path in directory.glob("study/trials/*/run.json")}


@pytest.mark.slow
def test_a_study_with_controls_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = write_study(tmp_path, controls=["cross_entropy", "base"], executor={"kind": "local", "trials_at_once": 2})
    assert main(["study", str(place), "--dry-run"]) == 0
    assert "0 of 5 done" in capsys.readouterr().out and not (tmp_path / "study").exists()
    assert main(["study", str(place)]) == 0
    assert "5 of 5 done" in capsys.readouterr().out
    record = load_study(tmp_path / "study")
    assert {(t.name, t.control, t.state) for t in record.trials} == {
        ("base", "base", "done"),
        ("full", None, "done"),
        ("lead 0.5", None, "done"),
        ("full, cross-entropy", "cross_entropy", "done"),
        ("lead 0.5, cross-entropy", "cross_entropy", "done"),
    }
    runs = read_inputs([tmp_path / "study"]).runs
    assert [run.name for run in runs] == [trial.name for trial in record.trials]
    base = runs[0]
    assert base.role == "base" and base.train is None and base.evaluations[0].num_problems == 3
    rows = {row.label: row for row in build_frontiers(runs)[0].rows}
    assert {label: row.control for label, row in rows.items() if row.control} == {
        "full, cross-entropy": "cross_entropy",
        "lead 0.5, cross-entropy": "cross_entropy",
    }
    assert rows["full"].is_reference and {row.reference for row in rows.values()} == {None, "full"}
    assert [(one.control, one.label) for one in rows["lead 0.5"].against_controls] == [
        ("cross_entropy", "lead 0.5, cross-entropy")
    ]
    ended = rows["full"].evaluations[0].terminated
    assert rows["full"].termination.value == sum(score for one in ended.values() for score in one) / 3
    capsys.readouterr()
    options = ["--target", "0.5", "--cost", "tokens", "--output", str(tmp_path / "r.html")]
    assert main(["report", str(tmp_path / "study"), *options]) == 0
    assert "No policy " in capsys.readouterr().out  # untrained in so few steps: nothing is kept
    assert main(["report", str(tmp_path / "study"), "--cost", "energy"]) == 2
    assert "cost energy: not known for every run" in capsys.readouterr().err
    assert "lead 0.5, cross-entropy" in (tmp_path / "r.html").read_text()
    before = finished(tmp_path)
    assert main(["study", str(place)]) == 0 and finished(tmp_path) == before


@pytest.mark.slow
def test_a_changed_study_makes_new_trials_and_keeps_the_others(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path)
    run_study(study, place, QUIET)
    before = finished(tmp_path)
    study, place = toy_study(tmp_path, axes={"cut": [{"kind": "full"}, {"kind": "lead", "p": 0.6}]})
    assert [trial.state for trial in run_study(study, place, QUIET).trials] == ["done", "done"]
    after = finished(tmp_path)
    assert before.items() < after.items() and len(after) == 3
    assert not list((tmp_path / "study").rglob("checkpoint-*"))  # of finished trials
    assert [run.label for run in read_inputs([study.output]).runs] == ["full", "lead 0.6"]
    # A price trains nothing anew, and reports use it.
    study, place = toy_study(tmp_path, axes=study.axes.model_dump(mode="json"), settings=["plan.price_per_hour=36000"])
    run_study(study, place, QUIET)
    assert finished(tmp_path) == after
    for run in read_inputs([study.output]).runs:
        assert run.train is not None and measured_costs(run)["money"] == pytest.approx(10 * run.train.seconds)


@pytest.mark.slow
def test_a_failed_trial_is_shown_stops_no_other_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = {"cut": [{"kind": "lead", "p": 0.01}, {"kind": "full"}, {"kind": "lead", "p": 0.5}]}
    place = write_study(tmp_path, axes=axes, settings=["training.keep_checkpoints=false"])
    study, _ = toy_study(tmp_path, axes=axes, settings=["training.keep_checkpoints=false"])
    (full_disk,) = [trial for trial in plan_study(study, place).trials if trial.recipe.name == "lead 0.5"]
    written = full_disk.recipe.output / "student" / "config.json"
    written.parent.mkdir(parents=True)
    written.symlink_to("/dev/full")
    (full_disk.recipe.output / "identity.json").touch()  # as a run that was killed has left it
    assert main(["study", str(place)]) == 2
    shown = capsys.readouterr()
    assert "failed: lead 0.01, seed 0: training set: lead 0.01 leaves no weighted position" in shown.out
    assert f"{full_disk.recipe.output.name}: cannot be written (No space left on device); " in shown.out
    assert "Traceback" not in shown.out
    assert "2 of 3 trials failed, lead 0.01, seed 0 first" in shown.err
    states = {trial.name: trial.state for trial in load_study(study.output).trials}
    assert states == {"lead 0.01": "failed", "full": "done", "lead 0.5": "failed"}
    assert main(["study", str(place), "--dry-run"]) == 0
    assert "failed: lead 0.01, seed 0" in capsys.readouterr().out
    written.unlink()  # there is space again
    assert main(["study", str(place), "keep_checkpoints=true"]) == 2
    assert load_study(study.output).trials[2].state == "done"
    with_checkpoints = [path.parent.parent.name for path in study.output.rglob("checkpoint-*")]
    assert set(with_checkpoints) == {full_disk.recipe.output.name}


@pytest.mark.slow
def test_a_killed_study_leaves_no_trial_behind_and_goes_on(tmp_path: Path) -> None:
    place = write_study(tmp_path, steps=40)
    pid = hold_process.start(tmp_path, ["study", str(place)])
    trials = tmp_path / "study" / "trials"
    while len(finished(tmp_path)) < 1 or not list(trials.glob("lead*/checkpoints/checkpoint-*/trainer_state.json")):
        assert not hold_process.has_ended(pid), "the study ended before it could be killed"
        time.sleep(0.02)
    (lead,) = trials.glob("lead*")
    children = _descendants(pid)
    os.kill(pid, signal.SIGKILL)
    hold_process.wait(pid, tmp_path, 0)
    while any(_is_alive(child) for child in children):
        time.sleep(0.02)
    lines = (lead / "metrics.jsonl").read_text().count("\n")
    assert not (lead / "run.json").exists() and lines < 40
    before = finished(tmp_path)
    record = run_study(*toy_study(tmp_path, steps=40), QUIET)
    assert [trial.state for trial in record.trials] == ["done", "done"]
    assert before.items() < finished(tmp_path).items()  # the complete one was not touched


@pytest.mark.slow
def test_a_killed_trial_is_a_failure_of_its_own(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path, steps=60)
    killed: list[int] = []

    class Killer(Console):
        """Kills the first trial as soon as it is started."""

        def print(self, *objects: object, **options: object) -> None:
            if not killed:
                killed.append(_trial_process())
                os.kill(killed[0], signal.SIGKILL)

    record = run_study(study, place, Killer())
    assert [trial.state for trial in record.trials] == ["failed", "done"]
    assert "exit code -9" in record.trials[0].message
    assert [trial.state for trial in run_study(study, place, QUIET).trials] == ["done", "done"]


@pytest.mark.slow
def test_runs_that_come_first(tmp_path: Path) -> None:
    made = toy_recipe(
        tmp_path,
        steps=1,
        name="the base",
        role="base",
        output=str(tmp_path / "base"),
        teacher=None,
        loss={"kl_weight": 0},
        cut={"kind": "full"},
        evaluation={"tasks": [toy_task(tmp_path)], **EVALUATION},
    )
    write_recipe(made, tmp_path / "base.yaml")
    student = f"student={{kind: pretrained, path: {tmp_path}/base/student}}"
    changes = {"before": ["base.yaml"], "settings": [student, "tokenizer=null"], "controls": ["equal_tokens"]}
    study, place = toy_study(tmp_path, **changes)
    planned = plan_study(study, place)
    assert planned.notes == ["equal_tokens: planned when the runs that come first are complete"]
    record = run_study(study, place, QUIET)
    assert [(t.name, t.state) for t in record.trials] == [
        ("the base", "done"), ("full", "done"), ("lead 0.5", "done"), ("lead 0.5, equal tokens", "done")
    ]  # fmt: skip
    assert not (made.output / "checkpoints").exists()
    (made.output / "checkpoints").mkdir()  # as of a run that the study has found there
    run_study(study, place, QUIET)
    assert (made.output / "checkpoints").exists()
    write_recipe(made.model_copy(update={"seed": 7}), tmp_path / "base.yaml")
    with pytest.raises(RunError, match=r"base: it holds a finished run of another recipe \(its seed differ\)"):
        run_study(study, place, QUIET)


def test_two_studies_in_one_directory_are_refused(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path)
    refused = pytest.raises(RunError, match=rf"another process \(id {os.getpid()}\) is running this study")
    with locked(study.output / ".lock", RunError), refused:
        run_study(study, place, QUIET)
    assert not study.output.exists()


def _trial_process() -> int:
    """The process of the running trial: the child of the fork server."""
    # The trial itself may have a child by now, which renders templates.
    found = [pid for pid in _descendants(os.getpid()) if _parent(_parent(pid)) == os.getpid()]
    assert len(found) == 1
    return found[0]


def _descendants(root: int) -> list[int]:
    parents = {int(path.name): _parent(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_study_needs_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path, needs={str(tmp_path / "world"): "leadspan world w.yaml"})
    with pytest.raises(SettingsError, match=r"world: missing; run `leadspan world w\.yaml` first"):
        plan_study(study, place)
    (tmp_path / "world").mkdir()
    assert len(plan_study(study, place).trials) == 2


@pytest.mark.slow
def test_a_moved_study_goes_on_where_it_was(tmp_path: Path) -> None:
    study, place = toy_study(tmp_path / "before")
    run_study(study, place, QUIET)
    shutil.move(tmp_path / "before", tmp_path / "after")
    moved, place = toy_study(tmp_path / "after")
    finished = sorted(moved.output.rglob("run.json"))
    times = [path.stat().st_mtime_ns for path in finished]
    shutil.rmtree(finished[0].parent)
    record = run_study(moved, place, QUIET)
    assert [trial.state for trial in record.trials] == ["done", "done"]
    assert sorted(moved.output.rglob("run.json")) == finished
    assert [path.stat().st_mtime_ns == time for path, time in zip(finished, times, strict=True)] == [False, True]
    with (tmp_path / "after" / "traces.jsonl").open("a") as file:
        file.write('{"prompt": "add 9 to 8", "cot": "9 + 8 = 17", "answer": "it is 17.", "gold": "17"}\n')
    assert [trial.state for trial in planned_record(moved, plan_study(moved, place)).trials] == ["waiting", "waiting"]
