import os
import threading
from pathlib import Path

import pytest

from leadspan.errors import RunError
from leadspan.report.inputs import read_inputs
from leadspan.status import duration
from leadspan.study.record import (
    STUDY_FILE,
    State,
    StudyRecord,
    TrialRecord,
    headline,
    load_study,
    save_study,
    trials_block,
)
from made_runs import made_study


def trial(name: str, state: State, seconds: float | None = None, seed: int = 0, **more: str) -> TrialRecord:
    return TrialRecord(
        name=name, seed=seed, directory="t", fingerprint=f"{name}{seed}", state=state, seconds=seconds, **more
    )


def record(*trials: TrialRecord) -> StudyRecord:
    return StudyRecord(name="toy", study=made_study(), trials=list(trials))


@pytest.mark.parametrize(
    ("trials", "seconds"),
    [
        pytest.param([trial("full", "running"), trial("lead", "waiting")], None, id="nothing known yet"),
        pytest.param([trial("full", "done", 10), trial("full", "waiting", seed=1)], 10, id="as its condition took"),
        pytest.param(
            [trial("full", "done", 10), trial("lead", "done", 4), trial("tail", "running"), trial("lead", "waiting")],
            7 + 4,
            id="as all took on average",
        ),
        pytest.param(
            [trial("full", "done", 10), *(trial("full", "running", seed=i) for i in (1, 2)), trial("x", "waiting")],
            15,
            id="two at a time",
        ),
        pytest.param(
            [trial("teacher", "done", 900, control="before"), trial("full", "waiting")], None, id="not what comes first"
        ),
    ],
)
def test_time_left(trials: list[TrialRecord], seconds: float | None) -> None:
    shown = headline(record(*trials)).partition(", ")[2]
    assert shown == ("" if seconds is None else f"about {duration(seconds)} left")


def test_what_is_shown_names_every_condition_once() -> None:
    found = record(
        trial("full", "done", 200),
        trial("full", "failed", seed=1, message="out of memory"),
        trial("lead 0.5", "waiting"),
        trial("lead 0.5", "waiting", seed=1),
        trial("base", "waiting", control="base"),
    )
    assert headline(found) == "1 of 5 done, 1 failed, about 10 min left"
    (failed,) = found.of_state("failed")
    assert headline(found, {failed.title}) == "1 of 5 done, 1 failed, about 13 min left"  # 4 x 200 s
    assert trials_block(found).rows == (
        ("full", "0, 1", "", "", "1", "1", ""),
        ("lead 0.5", "0, 1", "", "", "", "", "2"),
        ("base", "", "base", "", "", "", "1"),
    )


def test_a_record_is_read_while_its_study_writes_it(tmp_path: Path) -> None:
    records = [record(trial("full", "done", 1)), record(trial("full", "done", 1), trial("lead", "running"))]
    has_read = threading.Event()
    save_study(records[0], tmp_path)

    def write() -> None:
        while not has_read.is_set():
            for each in records:
                save_study(each, tmp_path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {len(load_study(tmp_path).trials) for _ in range(300)} == {1, 2}
    finally:
        has_read.set()
        writer.join()


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    save_study(record(trial("full", "done", 1)), tmp_path)
    (tmp_path / f".study.json.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"study.json: cannot be written \(No space left on device\)"):
        save_study(record(trial("full", "done", 1), trial("lead", "running")), tmp_path)
    assert len(load_study(tmp_path).trials) == 1


def test_a_flipped_bit_is_told_wherever_it_is(tmp_path: Path) -> None:
    path = save_study(record(trial("full", "done", 1.5), trial("lead", "failed", message="no memory")), tmp_path)
    content = path.read_bytes()
    assert load_study(tmp_path).trials[1].message == "no memory"
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 2]) + content[position + 1 :])
        with pytest.raises(RunError, match=r"study\.json: (holds no StudyRecord|it was changed after it was written)"):
            load_study(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, r"study.json: not found", id="none"),
        pytest.param("{", r"holds no StudyRecord", id="broken"),
        pytest.param('{"name": "x"}', r"holds no StudyRecord \(study: Field required", id="another file"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / STUDY_FILE).write_text(text)
    with pytest.raises(RunError, match=message):
        load_study(tmp_path)


def test_a_report_on_a_study_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    save_study(record(trial("full", "failed"), trial("lead", "waiting")), tmp_path)
    with pytest.raises(RunError, match="none of the 2 trials of the study is complete"):
        read_inputs([tmp_path])


def test_a_report_on_a_study_whose_runs_are_gone_is_refused(tmp_path: Path) -> None:
    save_study(record(trial("full", "done"), trial("lead", "waiting")), tmp_path)
    with pytest.raises(RunError, match=r"t.run\.json: not found"):
        read_inputs([tmp_path])
