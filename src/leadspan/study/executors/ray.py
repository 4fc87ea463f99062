"""Trials as tasks of a Ray cluster: one worker process per trial, with the cores and GPUs that Ray assigns."""

import os
import socket
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leadspan.errors import RunError
from leadspan.status import StatusHandler
from leadspan.study.executors.local import explained, run_in_process
from leadspan.study.record import Event
from leadspan.study.settings import RayExecutor
from leadspan.study.trials import Trial

# As often as a status line changes.
_POLL_SECONDS = 0.2


def run_on_ray(trials: Sequence[Trial], executor: RayExecutor) -> Generator[Event, None, None]:
    """Run trials on a Ray cluster, in order as far as there is room, and yield what happens to them.

    Closing the iterator cancels running trials. A cluster that was started here is stopped at the end.

    Raises:
        RunError: Ray is not installed, the cluster cannot be reached, or it never has room for one trial.
    """
    # Ray sends usage statistics to its developers unless this is set.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise RunError("executor: ray is not installed; pip install 'leadspan[ray]', or executor.kind: local") from None
    owns_cluster = not ray.is_initialized()
    if owns_cluster:
        try:
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            options |= {"include_dashboard": False} if executor.address is None else {}
            ray.init(address=executor.address or "local", **options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise RunError(f"executor.address = {executor.address}: no Ray cluster answers there ({error})") from None
    try:
        # A trial that fits on no node is refused: Ray would wait forever for one.
        nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        resources = {"CPU": executor.cpus_per_trial, "GPU": executor.gpus_per_trial}
        if not any(all(node.get(name, 0) >= number for name, number in resources.items()) for node in nodes):
            request = ", ".join(f"{number:g} {name}s" for name, number in resources.items() if number)
            shown = "; ".join(", ".join(f"{node.get(name, 0):g} {name}s" for name in resources) for node in nodes)
            raise RunError(
                f"executor: a trial is to have {request} on one node, and no node of the cluster has them ({shown}); "
                "lower executor.cpus_per_trial or gpus_per_trial"
            )
        yield from _run(ray, trials, executor)
    finally:
        if owns_cluster:
            ray.shutdown()


def _run(ray: Any, trials: Sequence[Trial], executor: RayExecutor) -> Generator[Event, None, None]:
    from ray.util.queue import Queue

    # 0 CPUs: the queue's actor must not take a core from the trials.
    said = Queue(actor_options={"num_cpus": 0})
    # A worker per trial (`max_calls=1`) frees its memory; no retries, because the study itself tries again.
    task = ray.remote(num_cpus=executor.cpus_per_trial, num_gpus=executor.gpus_per_trial, max_calls=1, max_retries=0)(
        _work_on_node
    )
    # The working directory goes along, since recipes have relative paths.
    pending = {
        task.remote(number, trial, str(Path.cwd()), executor, said): number for number, trial in enumerate(trials)
    }
    try:
        while pending:
            ready, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
            yield from said.get_nowait_batch(said.qsize())  # of 0 it is an empty list
            for reference in ready:
                try:
                    failure = ray.get(reference)
                except ray.exceptions.WorkerCrashedError:
                    failure = "its process was killed, often for memory"
                except ray.exceptions.RayError as error:
                    failure = f"Ray: {error}"
                yield Event(pending.pop(reference), "done" if failure is None else "failed", failure or "")
    finally:
        # Ray does not stop tasks whose results nobody waits for.
        for reference in pending:
            ray.cancel(reference, force=True)
        said.shutdown(force=True)


def _work_on_node(number: int, trial: Trial, directory: str, executor: RayExecutor, said: Any) -> str | None:
    """The Ray task: runs one trial and returns why it failed, or None."""
    try:
        os.chdir(directory)
    except OSError as error:
        return f"{directory} on {socket.gethostname()}: {error.strerror}; all nodes must see the study's files"
    import torch

    # Ray reserves cores but does not bind a process to them.
    torch.set_num_threads(executor.cpus_per_trial)
    said.put(Event(number, "started"))
    try:
        with StatusHandler(lambda text: said.put_nowait(Event(number, "said", text))):
            run_in_process(trial, executor.ranks_per_trial)
    except BaseException as error:
        return explained(error, trial.recipe.output)
    return None
