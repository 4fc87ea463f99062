"""The harness of `python -m benchmarks hold`: it sees what differs, and what does not hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.hold_cases import comparable

ROOT = Path(__file__).parents[1]
CASES = """
import os, random, sys
from pathlib import Path
from benchmarks import hold
from benchmarks.hold_cases import commands
from benchmarks.hold_process import Moment

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / "inputs").mkdir()
    import leadspan.pipeline.run
    pid = os.fork()
    if pid == 0:
        os._exit(hold._written(directory / "inputs"))
    assert os.waitpid(pid, 0)[1] == 0
    bench = hold.Bench(directory, commands(directory / "inputs"), random.Random(0))
    command = bench.known["distill"]
    bench.whole("distill")
    for moment in (Moment(after=0.7 * bench.seconds["distill"]), Moment(before=("os.rename run/run.json", 1))):
        assert hold._is_killed_and_held(bench, "distill", command, moment), bench.faults
    directory = bench.case()
    bench.known["distill"] = hold.Command(command.arguments, (*command.again, "training.steps=6"), command.result)
    assert not bench.is_held("distill", directory, "other steps")
"""


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
    script = tmp_path / "cases.py"
    script.write_text(CASES)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
