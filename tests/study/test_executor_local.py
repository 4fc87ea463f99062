import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmarks.plans import run_trial

from leadspan.errors import RunError
from leadspan.results import load_run
from leadspan.status import StatusHandler
from leadspan.study.executors.local import Slot, run_in_process, run_local, slots
from leadspan.study.settings import LocalExecutor
from leadspan.study.trials import Trial
from recipes import toy_recipe


@pytest.mark.slow
def test_trials_run_apart_and_a_failed_one_says_why(tmp_path: Path) -> None:
    good = toy_recipe(tmp_path / "good", steps=2)
    bad = toy_recipe(tmp_path / "bad", steps=2, cut={"kind": "lead", "p": 0.01})
    said: list[str] = []
    with pytest.raises(RunError, match="leaves no weighted position"):
        run_trial(bad)
    with StatusHandler(said.append):
        result = run_trial(good)
    assert "loading models" in said and any(text.startswith("training: 1/2 steps") for text in said)
    assert result.label == "lead 0.7" and result.train is not None and result.train.peak_memory_bytes > 0


@pytest.mark.slow
def test_a_crash_is_told_with_its_place(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, steps=2)
    recipe.output.parent.mkdir(exist_ok=True)
    recipe.output.write_text("a file where the run directory should be")
    with pytest.raises(RunError, match=r"toy: "):
        run_trial(recipe)


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        pytest.param({}, [Slot(None, None)], id="one at a time has everything"),
        pytest.param({"trials_at_once": 2, "threads_per_trial": 3}, [Slot(3, None)] * 2, id="threads"),
        pytest.param(
            {"trials_at_once": 2, "threads_per_trial": 1, "gpus_per_trial": 2, "ranks_per_trial": 2},
            [Slot(1, "4,5", 2), Slot(1, "6,7", 2)],
            id="GPUs of its own",
        ),
        pytest.param({"gpus_per_trial": 0}, [Slot(None, "")], id="no GPU"),
        pytest.param({"ranks_per_trial": 4, "threads_per_trial": 8}, [Slot(2, None, 4)], id="threads of ranks"),
        pytest.param({"trials_at_once": 2, "ranks_per_trial": 2}, [Slot(3, None, 2)] * 2, id="of 12 cores"),
        pytest.param({"ranks_per_trial": 3}, [Slot(4, None, 3)], id="all cores for the ranks of one"),
    ],
)
def test_resources_are_shared_out(
    executor: dict[str, int], expected: list[Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert slots(LocalExecutor(**executor)) == expected
    # macOS has no such call.
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert slots(LocalExecutor(**executor)) == expected


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RunError, match="2 trials at once with 1 GPUs each need 2, and 1 are visible here"):
        slots(LocalExecutor(trials_at_once=2, gpus_per_trial=1))


def test_ranks_that_say_nothing_on_a_system_without_prctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "leadspan.study.executors.local"
    monkeypatch.setattr(f"{here}.sys", SimpleNamespace(platform="darwin", executable="false"))
    monkeypatch.setattr(f"{here}.ctypes", SimpleNamespace(CDLL=lambda name: object()))
    with pytest.raises(RunError, match="torchrun ended with exit code 1, and said nothing"):
        run_in_process(Trial(toy_recipe(tmp_path, steps=2)), num_ranks=2)


@pytest.mark.slow
def test_a_trial_on_two_ranks(tmp_path: Path) -> None:
    good, bad = (toy_recipe(tmp_path / name, steps=2) for name in ("good", "bad"))
    (tmp_path / "bad" / "traces.jsonl").write_text("")  # which its ranks say at once
    executor = LocalExecutor(ranks_per_trial=2, threads_per_trial=1)
    events = [event for event in run_local([Trial(good), Trial(bad)], executor) if event.kind in ("done", "failed")]
    assert [(event.trial, event.kind) for event in events] == [(0, "done"), (1, "failed")]
    first, second = events[1].text.splitlines()
    assert first.endswith("trial.yaml: 1 invalid setting")
    assert second.startswith(f"  data.train: {tmp_path / 'bad' / 'traces.jsonl'}: holds no records")
    trained = load_run(good.output).train
    assert trained is not None and trained.device.startswith("2 x cpu")
