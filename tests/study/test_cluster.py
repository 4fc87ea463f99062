import os
from pathlib import Path

import pytest
from rich.console import Console

from leadspan.errors import RunError
from leadspan.study.study import run_study
from studies import toy_study

ray = pytest.importorskip("ray")


@pytest.mark.slow
def test_a_study_on_two_ray_workers(tmp_path: Path) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        executor = {"kind": "ray", "cpus_per_trial": 1}
        cuts = [{"kind": "full"}, {"kind": "lead", "p": 0.5}, {"kind": "lead", "p": 0.01}]
        changes = {"axes": {"cut": cuts}, "controls": ["base"], "store": {"codec": {"kind": "top_k", "k": 9}}}
        study, place = toy_study(tmp_path, executor=executor, **changes)
        record = run_study(study, place, Console(quiet=True))
        states = {trial.name: trial.state for trial in record.trials}
        assert states == {"base": "done", "full": "done", "lead 0.5": "done", "lead 0.01": "failed"}
        assert [capture.state for capture in record.captures] == ["done"]
        assert "leaves no weighted position" in record.trials[-1].message
        again = run_study(study, place, Console(quiet=True))
        assert [trial.fingerprint for trial in again.of_state("done")] == [
            trial.fingerprint for trial in record.of_state("done")
        ]
        too_much = study.model_copy(update={"executor": study.executor.model_copy(update={"cpus_per_trial": 3})})
        with pytest.raises(RunError, match=r"a trial is to have 3 CPUs, and the cluster has 2 in all"):
            run_study(too_much, place, Console(quiet=True))
    finally:
        ray.shutdown()
