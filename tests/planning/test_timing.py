import itertools
from pathlib import Path

import numpy as np
import pytest

from leadspan.costs.flops import FlopsByPart
from leadspan.costs.memory import MemoryByPart
from leadspan.errors import SettingsError
from leadspan.planning.timing import Calibration, StepWork, fit_memory, fit_rates, load_calibration

FLOPS = FlopsByPart(
    student_body=30,
    student_attention=6,
    student_head=9,
    teacher_body=10,
    teacher_attention=2,
    teacher_head=3,
    recomputation=12,
)


def work(tokens: int, batches: int = 2) -> StepWork:
    return StepWork(batches=batches, linear=1000 * tokens, attention=3 * tokens**2, head=400 * tokens)


def test_work_is_told_apart_by_what_it_passes() -> None:
    assert StepWork.of(FLOPS, 4) == StepWork(batches=4, linear=52, attention=8, head=12)


def test_rates_of_made_up_steps_are_found_again() -> None:
    steps = [work(tokens, batches) for tokens, batches in ((10, 1), (40, 1), (100, 2), (300, 4), (500, 3), (900, 4))]
    known = [0.02 + 0.005 * s.batches + 2e-9 * s.linear + 7e-9 * s.attention for s in steps]
    rates, error = fit_rates(steps, known)
    assert error < 1e-6
    predicted = Calibration(device="here", fingerprint="", num_steps=6, rates=rates, largest_error=error)
    unseen = [work(200, 2), work(700, 1)]
    expected = sum(0.02 + 0.005 * s.batches + 2e-9 * s.linear + 7e-9 * s.attention for s in unseen)
    assert predicted.seconds(unseen) == pytest.approx(expected, rel=1e-3)


def test_no_other_rates_have_a_smaller_absolute_error() -> None:
    draws = np.random.default_rng(0)
    steps = [work(int(tokens), int(batches)) for tokens, batches in draws.integers((10, 1), (900, 5), (12, 2))]
    seconds = [(0.02 + 2e-9 * s.linear) * noise for s, noise in zip(steps, draws.lognormal(0, 0.3, 12), strict=True)]
    rates, _ = fit_rates(steps, seconds)
    rows = np.array([(1, *step) for step in steps]) / np.array(seconds)[:, None]
    fitted = np.array([rates.get(term, 0.0) for term in ("step", "batch", "linear", "attention", "head")])
    least = np.abs(rows @ fitted - 1).sum()
    # The error is convex in the rates: where no small step along an axis or between two lowers it, none does by much.
    for first, second in itertools.product(range(5), repeat=2):
        for sign, share in itertools.product((-1, 1), (0.0, 0.5, 1.0)):
            moved = fitted + sign * 1e-3 * (share * np.eye(5)[first] / rows.mean(0)[first])
            moved -= sign * 1e-3 * (1 - share) * np.eye(5)[second] / rows.mean(0)[second]
            assert np.abs(rows @ np.maximum(moved, 0) - 1).sum() >= least - 1e-9


def test_no_rate_is_negative_whatever_the_noise() -> None:
    steps = [work(tokens) for tokens in (10, 100, 200, 400)]
    rates, _ = fit_rates(steps, [0.9, 0.5, 0.7, 0.6])
    assert rates and all(rate > 0 for rate in rates.values())


@pytest.mark.parametrize("unit", [1, 10**7, 10**10])
def test_a_peak_of_any_size_is_fitted(unit: int) -> None:
    offset, factor = fit_memory([100 * unit, 200 * unit, 400 * unit], [150 * unit, 270 * unit, 510 * unit])
    assert (offset, factor) == (pytest.approx(30 * unit), pytest.approx(1.2))


def test_a_calibration_that_is_not_there_names_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"rates.json: not found; write it with `leadspan plan --calibrate`"):
        load_calibration(tmp_path / "rates.json")
    assert load_calibration(None) is None


def test_memory_of_the_process_is_added_as_its_own_part() -> None:
    rates = Calibration(
        device="", fingerprint="", num_steps=1, rates={}, largest_error=0, memory_offset=30, memory_factor=1.2
    )
    found = rates.memory(MemoryByPart(weights=60, activations=40))
    assert (found.process, found.total) == (50, 150)
    lower = rates.model_copy(update={"memory_offset": 0, "memory_factor": 0.5})
    assert lower.memory(MemoryByPart(weights=60)).process == 0  # what is held is never less than the tensors


def test_peaks_that_did_not_grow_tell_nothing_of_memory() -> None:
    assert fit_memory([100, 200], [0, 0]) == (0.0, 1.0)
    assert fit_memory([100, 200, 300], [0, 500, 700]) == pytest.approx((100, 2))
    # Of one size alone: what the process adds stays, and the tensors grow.
    assert fit_memory([100, 200], [0, 500]) == (300, 1) and fit_memory([200, 200], [500, 520]) == (320, 1)
    assert fit_memory([200], [150]) == (0, 1)


def test_a_step_that_compiled_does_not_bend_the_rates() -> None:
    steps = [work(tokens) for tokens in (10, 50, 100, 200, 300, 400, 500)]
    seconds = [0.02 + 3e-9 * step.linear for step in steps]
    rates, largest = fit_rates(steps, [*seconds[:2], 5.0, *seconds[3:]])
    found = Calibration(device="", fingerprint="", num_steps=7, rates=rates, largest_error=largest)
    assert found.seconds(steps) == pytest.approx(sum(seconds), rel=0.01) and largest > 0.5


@pytest.mark.parametrize(
    ("offset", "factor", "limit", "room"),
    [(0, 1, 500, 500), (100, 1, 500, 400), (100, 2, 500, 200), (100, 0.5, 500, 500), (600, 1, 500, -100), (9, 0, 8, 0)],
)
def test_the_room_of_tensors_is_what_a_calibration_leaves(offset: float, factor: float, limit: int, room: int) -> None:
    values = {"device": "here", "fingerprint": "", "num_steps": 1, "rates": {}, "largest_error": 0}
    calibration = Calibration(memory_offset=offset, memory_factor=factor, **values)
    assert calibration.room(limit) == room
    if room > 0:
        assert (
            calibration.memory(MemoryByPart(weights=room)).total
            <= limit
            < (calibration.memory(MemoryByPart(weights=room + 3)).total)
        )
