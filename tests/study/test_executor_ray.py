import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from leadspan.errors import RunError
from leadspan.study.study import run_study
from studies import toy_study

ray = pytest.importorskip("ray")
QUIET = Console(quiet=True)


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """Address of a Ray cluster of two nodes of one core each, on this machine."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # 15 by default, with which trials starve beside other tests. Ray reads the name as it is spelt here.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_study_on_two_ray_nodes(tmp_path: Path, two_nodes: str) -> None:
    executor = {"kind": "ray", "address": two_nodes, "cpus_per_trial": 1}
    cuts = [{"kind": "full"}, {"kind": "lead", "p": 0.01}]
    changes = {"axes": {"cut": cuts}, "store": {"codec": {"kind": "top_k", "k": 9}}}
    study, place = toy_study(tmp_path, executor=executor, **changes)
    record = run_study(study, place, QUIET)
    states = {trial.name: trial.state for trial in record.trials}
    assert states == {"full": "done", "lead 0.01": "failed"}
    assert [capture.state for capture in record.captures] == ["done"]
    assert "leaves no weighted position" in record.trials[-1].message
    too_much = study.model_copy(update={"executor": study.executor.model_copy(update={"cpus_per_trial": 2})})
    message = r"a trial is to have 2 CPUs on one node, and no node of the cluster has them \(1 CPUs, 0 GPUs; 1 CPUs, 0"
    with pytest.raises(RunError, match=message):
        run_study(too_much, place, QUIET)
