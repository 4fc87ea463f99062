"""The harness of `python -m benchmarks hold`: it sees what differs, and what does not hold."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from benchmarks import hold, hold_process
from benchmarks.hold_cases import commands, comparable, write_inputs
from benchmarks.hold_process import Moment


def test_what_differs_is_seen_and_what_clocks_say_is_not(tmp_path: Path) -> None:
    run = {"name": "a", "train": {"seconds": 1.5, "final_loss": 0.25}, "environment": {"torch": "2"}}
    lines = [{"step": 1, "loss": 0.5, "speed/tokens_per_second": 10.0}]

    def written(directory: Path, **changes: object) -> dict[str, object]:
        directory.mkdir()
        (directory / "run.json").write_text(json.dumps(run | changes))
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return comparable(directory)

    first = written(tmp_path / "first")
    lines[0]["speed/tokens_per_second"] = 11.0
    assert written(tmp_path / "same", train={"seconds": 9.0, "final_loss": 0.25}) == first
    assert written(tmp_path / "other", train={"seconds": 1.5, "final_loss": 0.75}) != first
    lines *= 2
    assert written(tmp_path / "twice") != first


@pytest.mark.slow
def test_a_killed_run_is_held_and_another_run_is_not(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    bench = hold.Bench(tmp_path, commands(tmp_path), random.Random(0))
    bench.whole("distill")
    for moment in (Moment(after=0.7 * bench.seconds["distill"]), Moment(before=("os.rename run/run.json", 1))):
        directory = bench.case()
        hold_process.run(directory, bench.known["distill"].arguments, moment)
        assert bench.is_held("distill", directory, str(moment)), bench.faults
    command = bench.known["distill"]
    bench.known["distill"] = hold.Command(command.arguments, (*command.again, "training.steps=6"), command.result)
    assert not bench.is_held("distill", bench.case(), "other steps")


def fail_on_the_second_rank() -> None:
    if os.environ["RANK"] == "1":
        raise SystemExit(3)
    time.sleep(600)


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_failed_are_ended(tmp_path: Path) -> None:
    first, second = hold_process.run_ranks(tmp_path, fail_on_the_second_rank, 2, patience=0.2)
    assert (first.code, second.code) == (-signal.SIGKILL, 3)
