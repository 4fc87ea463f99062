"""Ending in good order on SIGTERM and Ctrl-C, and going on from there."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from benchmarks import hold_process

import batch_functions
from leadspan.errors import RunError
from leadspan.pipeline.run import run
from leadspan.processes import (
    Terminated,
    deferred,
    fork_server,
    in_batches,
    interrupt_kept,
    is_asked_to_end,
    listening,
)
from recipes import metrics, toy_recipe, without_times, write_recipe

SRC = str(Path(__file__).parents[2] / "src")


class _Deleted:
    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(1)


@pytest.mark.parametrize("reaction", ["swallows", "wraps", "leaves"])
def test_ctrl_c_in_code_that_swallows_or_wraps_it_is_raised(reaction: str) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell's &
    try:
        with pytest.raises(KeyboardInterrupt), interrupt_kept():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                if reaction == "wraps":
                    raise ValueError("a class could not be built") from None
                if reaction == "leaves":
                    raise
        with pytest.raises(KeyboardInterrupt), interrupt_kept():
            objects = [_Deleted(signal.SIGINT)]
            objects.clear()
            time.sleep(10)
            pytest.fail("the code went on")
        with pytest.raises(ValueError, match="of its own"), interrupt_kept():
            raise ValueError("of its own")
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_raises_at_once_or_where_it_is_deferred_at_the_end() -> None:
    with listening():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        assert is_asked_to_end()
    with listening():
        assert not is_asked_to_end()
        with pytest.raises(Terminated), deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert is_asked_to_end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_a_callback_or_an_import_is_not_lost(number: int) -> None:
    with listening(), pytest.raises(Terminated):
        objects = [_Deleted(number)]
        objects.clear()
        time.sleep(10)
        pytest.fail("the code went on")
    with listening(), pytest.raises(Terminated), interrupt_kept():
        try:
            os.kill(os.getpid(), number)
        except Terminated:
            raise ValueError("a class could not be built") from None


def test_a_terminal_that_closes_ends_a_process_in_order_unless_it_is_told_to_ignore_that() -> None:
    for number, ended in ((signal.SIG_DFL, pytest.raises(Terminated)), (signal.SIG_IGN, contextlib.nullcontext())):
        before = signal.signal(signal.SIGHUP, number)
        try:
            with listening(), ended, deferred():
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGHUP)
                assert is_asked_to_end() == (number == signal.SIG_DFL)
        finally:
            signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("module", ["signal", "difflib", "pathlib"])
def test_ctrl_c_while_the_program_is_read_ends_it_without_a_traceback(module: str) -> None:
    """From its first module on; even where an import, as some do, swallows the exception."""
    code = (
        "import builtins, os, runpy, sys, time\nread, sys.argv = builtins.__import__, ['leadspan', '--version']\n"
        "def interrupted(name, *rest, **named):\n"
        f"    if name == '{module}':\n"
        "        builtins.__import__ = read\n"
        "        if name == 'signal':\n            raise KeyboardInterrupt\n"
        "        try:\n            os.kill(os.getpid(), 2)\n            time.sleep(0.01)\n"
        "        except KeyboardInterrupt:\n            pass\n"
        "    return read(name, *rest, **named)\n"
        "builtins.__import__ = interrupted\nrunpy.run_module('leadspan', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_ctrl_c_while_the_program_ends_prints_no_traceback() -> None:
    code = (
        "import atexit, os, signal, sys, time\nfrom leadspan.__main__ import main\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.01)))\n"
        "sys.argv = ['leadspan', 'completion', 'bash']\nsys.exit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_second_sigterm_ends_the_process_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, time\nfrom leadspan.processes import deferred, listening\n"
        "with listening(), deferred():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('goes on still', flush=True)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (143, "goes on\n")


@pytest.mark.slow
def test_a_run_that_is_asked_to_end_finishes_its_step_and_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    changes = {"steps": 7, "checkpoint_every": 7, "log_every": 5, "num_workers": 1}
    whole = toy_recipe(tmp_path / "whole", **changes)
    run(whole)
    recipe = toy_recipe(tmp_path / "ended", **changes)
    with listening(), pytest.raises(Terminated, match="step 1 of 7 is in a checkpoint"), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        run(recipe)
    assert [line["step"] for line in metrics(recipe.output)] == [1]
    run(recipe, resume=True)
    assert without_times(recipe.output) == without_times(whole.output)
    ended, unbroken = ((r.output / "student" / "model.safetensors").read_bytes() for r in (recipe, whole))
    assert ended == unbroken


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGTERM, 143, "in a checkpoint"), (signal.SIGHUP, 143, "in a checkpoint"), (signal.SIGINT, 130, "")],
)
def test_signals_to_a_run_with_data_workers_and_all_its_processes(
    tmp_path: Path, number: signal.Signals, code: int, last: str
) -> None:
    recipe = toy_recipe(tmp_path, steps=4000, num_workers=2, checkpoint_every=1000)
    path = write_recipe(recipe, tmp_path / "recipe.yaml")
    started = time.monotonic()
    pid = hold_process.start(tmp_path, ["distill", str(path)])
    lines = recipe.output / "metrics.jsonl"
    while not lines.exists() or lines.read_bytes().count(b"\n") < 3:
        assert not hold_process.has_ended(pid) and time.monotonic() < started + 100
        time.sleep(0.02)
    os.killpg(pid, number)
    ended = hold_process.wait(pid, tmp_path, started)
    error = ended.said
    assert ended.code == code
    assert ended.is_clean and error.endswith(f"continue with: leadspan distill {path} --resume\n")
    assert last in error.splitlines()[-1] and len(error.splitlines()[-1]) < 400
    with pytest.raises(ProcessLookupError):  # nobody of its session is left
        os.killpg(pid, 0)


@pytest.mark.slow
def test_data_workers_do_not_outlive_an_interpreter_that_still_holds_their_loader() -> None:
    """As after Ctrl-C, when a traceback holds it: a worker takes the first SIGTERM for a scheduler's."""
    code = (
        "import atexit, sys, torch\nfrom torch.utils.data import DataLoader\n"
        "from leadspan.processes import end_data_workers, prepare_data_worker\n"
        "rows = iter(DataLoader(range(100), num_workers=1, worker_init_fn=prepare_data_worker))\nnext(rows)\n"
        "sys.modules['held'] = rows\nrows._shutdown_workers = lambda: None\n"
        "atexit.register(end_data_workers)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, timeout=100, capture_output=True)
    assert ended.returncode == 0


def test_a_fork_server_ends_with_its_process_although_it_still_imports() -> None:
    code = (
        "import multiprocessing.forkserver\nfrom leadspan.processes import fork_server\n"
        "fork_server(['torch'])\nprint(multiprocessing.forkserver._forkserver._forkserver_pid)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(ended.stdout), 0)


def test_a_fork_server_that_runs_already_has_what_is_asked_for_later() -> None:
    code = (
        "import sys\nfrom leadspan.processes import fork_server\n"
        "for module in ('sched', 'colorsys'):\n"
        '    work = \'import sys; sys.exit(len({"sched", "colorsys"} & sys.modules.keys()))\'\n'
        "    process = fork_server([module]).Process(target=exec, args=(work,))\n"
        "    process.start()\n    process.join()\n    print(process.exitcode)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    assert ended.stdout.split() == ["1", "2"] and not ended.stderr


def test_a_worker_that_the_system_kills_ends_the_work_and_is_not_waited_for() -> None:
    with pytest.raises(RunError, match=r"memory ran out; start fewer: data\.num_workers"):
        list(in_batches(batch_functions.killed_at_17, range(40), 2, 2))
    assert list(in_batches(batch_functions.killed_at_17, range(16), 3, 2)) == [3, 12, 21, 30, 39, 15]


def test_work_that_nobody_waits_for_ends_at_once() -> None:
    fork_server()
    before = set(psutil.Process().children(recursive=True))
    results = in_batches(batch_functions.slept, [0, 600, *[0] * 6], 1, 2)
    next(results)
    workers = set(psutil.Process().children(recursive=True)) - before
    results.close()
    _, alive = psutil.wait_procs(workers, timeout=100)
    assert workers and not alive


def test_workers_end_with_a_process_that_is_killed() -> None:
    code = (
        "import os, psutil, time\nfrom leadspan.processes import in_batches\n"
        "results = in_batches(sum, range(99), 1, 2)\nnext(results)\n"
        "print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": SRC}, capture_output=True, text=True)
    started = time.monotonic()
    while any(map(psutil.pid_exists, map(int, ended.stdout.split()))):
        assert time.monotonic() < started + 60
        time.sleep(0.05)
    assert len(ended.stdout.split()) >= 3  # the server and its workers
