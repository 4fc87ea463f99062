from pathlib import Path

import pytest

from leadspan.costs.flops import FlopsByPart
from leadspan.errors import RunError
from leadspan.results import RunResult, load_run, save_run
from leadspan.training.result import TrainResult


def test_a_run_survives_a_round_trip(tmp_path: Path) -> None:
    result = RunResult(name="n", label="lead 0.5", seed=1, recipe=None, environment={"torch": "2"})
    save_run(result, tmp_path / "run")
    assert load_run(tmp_path / "run") == result


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not found; give a directory that a finished"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"name": 3}')
    with pytest.raises(RunError, match=r"run.json: holds no RunResult \(name"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["run", "samples"])
def test_damage_is_seen_whatever_the_directory_is_called(tmp_path: Path, name: str) -> None:
    path = save_run(RunResult(name="n", label="lead 0.5", seed=1, recipe=None, environment={}), tmp_path / name)
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(RunError, match="its digest differs"):
        load_run(path.parent)


def test_flops_add_up() -> None:
    assert FlopsByPart(student_body=1, teacher_head=2, recomputation=4).total == 7


def test_steady_seconds_replace_the_first_step_by_the_mean_of_the_others() -> None:
    known = {"num_examples": 1, "num_tokens": 1, "num_weighted_tokens": 1, "peak_memory_bytes": 1, "saved_step": 5}
    known |= {"flops": FlopsByPart(), "memory_source": "cuda allocator", "first_loss": 1, "final_loss": 1, "device": ""}
    train = TrainResult(num_steps=5, seconds=12.0, first_step_seconds=4.0, **known)
    assert train.steady_seconds == pytest.approx(10)  # 4 steps of 2 s, and a fifth
    assert train.model_copy(update={"num_steps": 1}).steady_seconds == 12
    assert train.model_copy(update={"first_step_seconds": None}).steady_seconds == 12
