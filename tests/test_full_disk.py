"""A disk that is full, in every command that writes: one error that says what is there, and work that goes on."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from benchmarks.hold_process import Ended, run
from safetensors import SafetensorError

from leadspan.cli import main
from leadspan.errors import RunError
from leadspan.files import full_disk_reported, write_atomically
from leadspan.results import RunResult, load_run, save_run
from leadspan.status import StatusHandler, report_status
from recipes import toy_recipe, without_times, write_recipe

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}


def one_error(ended: Ended) -> str:
    assert ended.code == 2 and ended.is_clean, ended.said
    (error,) = [line for line in ended.said.splitlines() if line.startswith("leadspan ")]
    assert "cannot be written" in error and "GB are free" in error
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "x/y"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("I/O error: File too large (os error 27)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3: ..."),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 147392 vs 147284"),
        RuntimeError("basic_ios::clear: iostream error"),
    ],
)
def test_what_libraries_make_of_a_full_disk_is_one_error(tmp_path: Path, error: Exception) -> None:
    message = "GB are free there, and about 5 GB are needed in all"
    with pytest.raises(RunError, match=message), full_disk_reported(tmp_path / "run", lambda: 5 * 10**9):
        try:
            raise error
        except Exception as cause:
            raise ValueError("of a library that wraps it") from cause


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="os error 2 of another kind"), full_disk_reported(tmp_path):
        raise ValueError("os error 2 of another kind")


def test_a_full_disk_in_a_thread_of_a_library_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> None:
        raise error

    shown: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: shown.append(str(ended.exc_value)))
    with full_disk_reported(tmp_path):
        for error in (OSError(errno.ENOSPC, "No space left on device"), ValueError("of another kind")):
            thread = threading.Thread(target=fail, args=[error])
            thread.start()
            thread.join()
    assert shown == ["of another kind"]


def test_a_failed_write_names_its_file_and_leaves_none(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"large.*mine\.txt"):
            write_atomically(tmp_path / "mine.txt", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not os.listdir(tmp_path)
    with pytest.raises(OSError, match=r"'/proc/mine\.txt'"):  # not the staged file
        write_atomically(Path("/proc/mine.txt"), "x")


def test_a_write_that_is_broken_off_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):  # as a signal would, between opening and renaming
        write_atomically(tmp_path / "mine.txt", 7)  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "all of it")
    assert os.read(reader, 100) == b"all of it" and pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]
    os.close(reader)


@pytest.mark.slow
def test_report_and_world(tmp_path: Path, study: list[RunResult]) -> None:
    for trial in study:
        save_run(trial, tmp_path / "runs" / trial.name)
    page = tmp_path / "page.html"
    assert str(page) in one_error(
        run(tmp_path, ["report", str(tmp_path / "runs"), "--output", str(page)], max_bytes=20_000)
    )
    assert not page.exists()
    world = Path(__file__).parents[1] / "recipes" / "world_derive_and_verify_cpu.yaml"
    error = one_error(run(tmp_path, ["world", str(world), f"output={tmp_path / 'world'}"], max_bytes=20_000))
    assert error.startswith(f"leadspan world: {tmp_path / 'world'}")


@pytest.mark.slow
def test_a_run_that_found_the_disk_full_resumes_to_the_same(tmp_path: Path) -> None:
    """At sizes that end it in the data, in the weights, in the optimiser's moments."""
    task = tmp_path / "task.jsonl"
    task.write_text(json.dumps({"problem": "add 1 to itself", "answer": "2"}) + "\n")
    evaluation = {"tasks": [{"name": "toy", "path": str(task)}], "sampling": {"max_new_tokens": 8, "temperature": 0}}
    path = write_recipe(toy_recipe(tmp_path, checkpoint_every=2, evaluation=evaluation), tmp_path / "r.yaml")
    once = tmp_path / "once"
    assert main(["distill", str(path), f"output={once}"]) == 0
    for num_bytes in (6_000, 60_000, 150_000, 400_000):
        twice, cache = tmp_path / f"twice-{num_bytes}", tmp_path / f"other-{num_bytes}"
        arguments = ["distill", str(path), f"output={twice}", f"data.cache_dir={cache}"]
        ended = run(tmp_path, arguments, max_bytes=num_bytes)
        if ended.code:
            assert twice.name in one_error(ended) or cache.name in ended.said
            assert main([*arguments, "--resume"]) == 0
        assert without_times(twice) == without_times(once)
        of_twice, of_once = load_run(twice), load_run(once)
        assert [(e.weights_hash, e.correct) for e in of_twice.evaluations] == [
            (e.weights_hash, e.correct) for e in of_once.evaluations
        ]


@pytest.mark.parametrize("path, said", [(".", "--json = '.': is a directory"), ("a\0b", "U+0000")])
def test_a_path_that_names_no_file_is_one_error(path: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--claim", "0.91", "--json", path]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_nobody_reads_or_that_is_full_is_no_traceback() -> None:
    command = [sys.executable, "-m", "leadspan"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*command, "recipes"], stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        assert ended.returncode == 2 and "cannot be written (No space left" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        assert subprocess.run([*command, "plan", "no.yaml"], stderr=full, env=ENVIRONMENT).returncode == 2
    read, write = os.pipe()
    os.close(read)
    for arguments in (["recipes"], ["schema", "recipe"]):
        ended = subprocess.run([*command, *arguments], stdout=write, stderr=subprocess.PIPE, env=ENVIRONMENT)
        assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is of Linux")
def test_a_disk_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "from_scratch_teacher.yaml").symlink_to("/proc/self/mem")  # whose first bytes cannot be read
    assert main(["recipes", "from_scratch_teacher", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("leadspan recipes: Input/output error: a disk fails, or ")


def test_the_work_goes_on_when_the_terminal_has_closed() -> None:
    def closed(text: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with StatusHandler(closed):
        report_status("training")
