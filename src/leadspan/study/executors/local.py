"""Trials on this machine, each in its own process, several at a time.

In its own process a trial has its own peak memory, and a crash does not affect the others. The processes are forked
from a server that has torch and Transformers loaded and nothing else, so that starting one costs no import. They end
with the process that started them, however that ends.
"""

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from leadspan.errors import LeadspanError, RunError
from leadspan.processes import EXIT_CODE, Terminated, end_data_workers, end_with_parent, fork_server, listening
from leadspan.settings import dump_yaml
from leadspan.status import StatusHandler, report_status
from leadspan.study.record import Event
from leadspan.study.settings import LocalExecutor
from leadspan.study.trials import Trial
from leadspan.text import plain

RANKS_LOG = "ranks.log"


@dataclass(frozen=True, slots=True)
class Slot:
    """The share of the machine that a trial may use: CPU threads of each of its ranks, and `CUDA_VISIBLE_DEVICES`.

    None leaves threads, or GPUs, as they are.
    """

    threads: int | None = None
    gpus: str | None = None
    ranks: int = 1


def run_local(trials: Sequence[Trial], executor: LocalExecutor) -> Generator[Event, None, None]:
    """Run trials on this machine, in order, and yield what happens to them.

    Closing the iterator ends running trials in good order: trainings finish their step and write a checkpoint. A second
    interrupt meanwhile kills them.
    """
    waiting = deque(range(len(trials)))
    free = slots(executor)
    running: dict[Connection, tuple[int, Slot, BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and free:
                number, slot = waiting.popleft(), free.pop(0)
                # Forked from a server with torch loaded: starting costs no import, and CUDA is not initialised yet.
                context = fork_server(["leadspan.pipeline.run"])
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work_in_process, args=(trials[number], slot, sender))
                process.start()
                sender.close()
                running[receiver] = number, slot, process
                yield Event(number, "started")
            # A pipe that closes without `failed` is ready too: its process has ended or was killed.
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                number, slot, process = running[receiver]
                try:
                    kind, text = receiver.recv()
                except (EOFError, OSError):
                    kind, text = "done", ""
                if kind != "said":
                    process.join()
                    # A process that is killed sends nothing: its exit code is all that there is.
                    if kind == "done" and process.exitcode:
                        kind = "failed"
                        text = f"its process ended with exit code {process.exitcode} (-9: killed, often for memory)"
                    del running[receiver]
                    free.append(slot)
                    receiver.close()
                yield Event(number, kind, text)
    finally:
        _end([process for _, _, process in running.values()])


def _end(processes: Sequence[BaseProcess]) -> None:
    """Signal processes to end, and wait for them; not by SIGTERM, which they may have received already."""
    try:
        for process in processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(process.pid, signal.SIGUSR1)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
            process.join()


def slots(executor: LocalExecutor) -> list[Slot]:
    """One slot per concurrent trial, with its share of the machine.

    Raises:
        RunError: There are fewer GPUs than the slots need.
    """
    number, each, ranks = executor.trials_at_once, executor.gpus_per_trial, executor.ranks_per_trial
    threads = executor.threads_per_trial
    if threads is None and number * ranks > 1:
        # Not every system says which cores a process may use.
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = num_cores // number
    # torchrun gives a rank one thread unless it is told.
    threads = None if threads is None else max(1, threads // ranks)
    # GPUs are not shared out: every trial sees all of them.
    if each is None:
        return [Slot(threads, None, ranks)] * number
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [device for device in (visible or "").split(",") if device]
    if each and visible is None:
        import torch

        devices = [str(number) for number in range(torch.cuda.device_count())]
    if each * number > len(devices):
        raise RunError(
            f"executor: {number} trials at once with {each} GPUs each need {number * each}, and {len(devices)} are "
            "visible here; lower trials_at_once or gpus_per_trial"
        )
    devices_of = [",".join(devices[i * each : (i + 1) * each]) for i in range(number)]
    return [Slot(threads, gpus, ranks) for gpus in devices_of]


def run_in_process(trial: Trial, num_ranks: int = 1) -> None:
    """Run one trial in this process, resuming from its last checkpoint or its last whole shard."""
    from leadspan.pipeline.run import run, run_untrained

    if trial.store is not None:
        from leadspan.study.shared_stores import capture_shared

        if num_ranks == 1:
            capture_shared(trial.store)
            return
        file = trial.store.directory / "needs.json"
        report_status(f"capturing on {num_ranks} ranks, see {file.with_name(RANKS_LOG)}")
        arguments = ["-m", "leadspan.study.shared_stores", str(file)]
        _run_ranks(file, trial.store.model_dump_json(indent=1), num_ranks, arguments)
    elif trial.task == "evaluate":
        run_untrained(trial.recipe)
    elif num_ranks > 1:
        file = trial.recipe.output / "trial.yaml"
        report_status(f"training on {num_ranks} ranks, see {file.with_name(RANKS_LOG)}")
        _run_ranks(file, dump_yaml(trial.recipe), num_ranks, ["-m", "leadspan", "distill", str(file), "--resume"])
    else:
        run(trial.recipe, resume=True)


def _run_ranks(file: Path, content: str, num_ranks: int, arguments: list[str]) -> None:
    """Write a file and run `torchrun ...` on it, with a log in the same directory; it ends when this process does.

    Raises:
        RunError: It failed; with the message of its first rank, or the end of its log.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    log = file.with_name(RANKS_LOG)
    file.write_text(content, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    with log.open("w") as opened:
        # A log on disk, not a pipe: a pipe that nobody reads fills up and stops the ranks.
        # PR_SET_PDEATHSIG (Linux): the system sends torchrun SIGTERM when the process that started it ends.
        ranks = subprocess.Popen(
            [*command, *arguments],
            stdout=opened,
            stderr=subprocess.STDOUT,
            preexec_fn=(lambda: ctypes.CDLL(None).prctl(1, signal.SIGTERM)) if sys.platform == "linux" else None,
        )
        try:
            ranks.wait()
        except BaseException:  # the ranks end in good order before this process does
            ranks.terminate()
            ranks.wait()
            raise
    if ranks.returncode:
        # A rank writes its fault as one line, and indented ones below it; what has no such line ends in a traceback.
        lines = log.read_text(errors="replace").splitlines()
        starts = (i for i, line in enumerate(lines) if line.startswith(("leadspan distill: ", "leadspan capture: ")))
        start = next(starts, None)
        if start is None:
            raise RunError(
                "\n".join(lines[-20:]) or f"torchrun ended with exit code {ranks.returncode}, and said nothing"
            )
        more = itertools.takewhile(lambda line: line.startswith("  "), lines[start + 1 :])
        raise RunError("\n".join([lines[start], *more]))


def explained(error: BaseException, directory: Path) -> str:
    """One message for the failure of a trial; a traceback only where the error is not one of leadspan's own."""
    if isinstance(error, LeadspanError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or directory}: {error.strerror}"
    else:
        text = "".join(traceback.format_exception(error))
    return plain(text)


def _work_in_process(trial: Trial, slot: Slot, sender: Connection) -> None:
    # Nothing tells a child on every system that its parent has died, so a thread waits for it: a trial that outlives
    # its study would write into the directory of its successor.
    threading.Thread(target=end_with_parent, daemon=True).start()
    # As in a process of its own. Locks of a fork server's children have names, which a kill would leave behind.
    multiprocessing.set_start_method("fork", force=True)
    gc.freeze()  # the Trainer asks for whole collections: of what the server has imported they would take half a second
    if slot.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpus
    if slot.threads is not None:
        import torch

        # Tokenizers (Rayon), BLAS (OMP) and torch each have a pool of their own.
        os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(slot.threads)
        torch.set_num_threads(slot.threads)
    try:
        with listening(), StatusHandler(lambda text: sender.send(("said", text))):
            run_in_process(trial, slot.ranks)
    except Terminated:
        end_data_workers()
        sys.exit(EXIT_CODE)
    except BaseException as error:
        sender.send(("failed", explained(error, trial.recipe.output)))
    finally:
        sender.close()
