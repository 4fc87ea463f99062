"""Horizons, and what is in every step."""

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from leadspan.errors import SettingsError
from leadspan.rollout.rows import Course
from leadspan.rollout.settings import RolloutSettings
from leadspan.settings import validate


def settings(**values: Any) -> RolloutSettings:
    return validate(RolloutSettings, values, "rollout")


def horizons(horizon: dict[str, Any], num_steps: int, budget: int = 4096) -> list[int]:
    one = settings(horizon=horizon, max_new_tokens=budget).horizon
    return [one.at(step, num_steps, budget) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        ({"kind": "fixed", "tokens": 100}, [100] * 5),
        ({"kind": "fixed", "tokens": 1}, [1] * 5),
        ({"kind": "share", "share": 0.1}, [409] * 5),
        ({"kind": "share", "share": 0.0001}, [1] * 5),
        ({"kind": "share", "share": 1}, [4096] * 5),
        ({"kind": "linear", "start": 100, "end": 1000}, [256, 512, 768, 1000, 1000]),
        ({"kind": "linear", "start": 9, "end": 1, "multiple": 1}, [9, 7, 5, 3, 1]),
        ({"kind": "stairs", "start": 100, "rise": 50, "every": 2}, [100, 100, 150, 150, 200]),
        ({"kind": "stairs", "start": 4000, "rise": 50, "every": 1}, [4000, 4050, 4096, 4096, 4096]),
    ],
)
def test_horizons(horizon: dict[str, Any], expected: list[int]) -> None:
    assert horizons(horizon, 5) == expected


def test_a_share_is_exact() -> None:
    assert horizons({"kind": "share", "share": 0.29}, 1, budget=100) == [29]  # 0.29 * 100 is 28.999...


def test_one_step_is_the_first() -> None:
    assert horizons({"kind": "linear", "start": 100, "end": 900, "multiple": 100}, 1) == [100]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"horizon": {"kind": "fixed", "tokens": 300}}, "the horizon reaches 300 tokens and max_new_tokens is 200"),
        ({"horizon": {"kind": "linear", "start": 300, "end": 20}}, "the horizon reaches 300"),
        ({"horizon": {"kind": "linear", "start": 20, "end": 20}}, "nothing changes; take kind: fixed"),
        ({"horizon": {"kind": "adaptive", "start": 9, "least": 10}}, "least is 10 and start 9"),
        ({"horizon": {"kind": "adaptive", "start": 90, "low": 0.9}}, "low is 0.9 and high 0.8"),
        ({"horizon": {"kind": "share"}, "steps_per_draw": 2, "temperature": 0.7}, "taken at temperature 1"),
        ({"horizon": {"kind": "fixed", "tokens": 0}}, "greater than or equal to 1"),
        ({"horizon": {"kind": "share"}, "trace_share": 1}, "less than 1"),
        ({"horizon": {"kind": "share"}, "temperature": 0}, "greater than 0"),
    ],
)
def test_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(max_new_tokens=200, **values)


def test_an_adaptive_horizon_follows_the_overlaps_of_the_steps_before() -> None:
    horizon = {"kind": "adaptive", "start": 20, "least": 12, "change": 5, "low": 0.5, "high": 0.75}
    made = Course(settings(max_new_tokens=28, horizon=horizon), 7, [], 6, 12, seed=3)
    overlaps = [None, 0.74, 0.75, 1.0, 0.8, 0.5, 0.49, 0.0, 0.1, 0.2, 0.9]
    found = [made.step(number, overlaps[:number]).horizon for number in range(12)]
    assert found == [20, 20, 20, 25, 28, 28, 28, 23, 18, 13, 12, 17]
    assert made.step(5, [1.0] * 5).horizon == 28


def course(num_steps: int = 40, num_prompts: int = 7, per_step: int = 6, **values: Any) -> Course:
    given = settings(max_new_tokens=64, horizon={"kind": "fixed", "tokens": 8}, **values)
    return Course(given, num_prompts, list(range(100, 111)), per_step, num_steps, seed=3)


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_shares_are_exact_over_the_run_and_every_step_is_full(share: float, samples: int) -> None:
    made = course(trace_share=share, whole_share=share, samples_per_prompt=samples)
    steps = [made.step(number) for number in range(40)]
    assert all(len(step.turns) + len(step.traces) == 6 for step in steps)
    traces = sum(len(step.traces) for step in steps)
    assert traces == int(Fraction(str(share)) * 240 / samples) * samples
    turns = [turn for step in steps for turn in step.turns]
    assert sum(turn.is_whole for turn in turns) == int(Fraction(str(share)) * len(turns))
    assert {(turn.is_whole, turn.cap) for turn in turns} <= {(False, 8), (True, 64)}


def test_a_cold_start_has_traces_alone_and_what_follows_is_as_without_it() -> None:
    horizon = {"kind": "linear", "start": 2, "end": 20, "multiple": 1}
    given = settings(max_new_tokens=64, horizon=horizon, trace_share=0.25, cold_start={"steps": 3})
    made = Course(given, 7, list(range(100, 111)), 6, 10, seed=3)
    plain = Course(given.model_copy(update={"cold_start": None}), 7, list(range(100, 111)), 6, 7, seed=3)
    steps = [made.step(number) for number in range(10)]
    assert [(len(step.turns), len(step.traces)) for step in steps[:3]] == [(0, 6)] * 3
    assert [step.turns for step in steps[3:]] == [plain.step(number).turns for number in range(7)]
    assert [step.horizon for step in steps] == [2, 2, 2, 2, 5, 8, 11, 14, 17, 20]
    traces = [trace for step in steps for trace in step.traces]
    assert len(traces) == 18 + int(0.25 * 42) and Counter(traces[:22]) == dict.fromkeys(range(100, 111), 2)


def test_prompts_and_traces_come_once_a_pass_in_another_order_each() -> None:
    made = course(trace_share=0.5)
    turns = [turn.prompt for number in range(14) for turn in made.step(number).turns]
    passes = [turns[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len(set(map(tuple, passes))) > 1
    traces = [trace for number in range(11) for trace in made.step(number).traces]
    assert Counter(traces) == dict.fromkeys(range(100, 111), 3)


def test_samples_of_a_prompt_stand_together() -> None:
    turns = course(samples_per_prompt=3).step(5).turns
    assert [turn.sample for turn in turns] == [0, 1, 2, 0, 1, 2]
    assert [len({turn.prompt for turn in turns[i : i + 3]}) for i in (0, 3)] == [1, 1]


def test_a_prompt_that_comes_twice_in_a_step_has_other_samples() -> None:
    made = course(num_prompts=7, per_step=6, samples_per_prompt=1)  # two passes meet in the second step
    for step in (made.step(number) for number in range(40)):
        assert len({(turn.prompt, turn.sample) for turn in step.turns}) == 6
    few = course(num_prompts=2, samples_per_prompt=2).step(0).turns
    assert [turn.sample for turn in few] == [0, 1, 0, 1, 2, 3]  # both prompts, and one of them again


def test_a_step_is_what_it_is_whichever_was_asked_for_before() -> None:
    one, other = course(trace_share=0.3, whole_share=0.2), course(trace_share=0.3, whole_share=0.2)
    forwards = [one.step(number) for number in range(40)]
    assert [other.step(number) for number in reversed(range(40))] == forwards[::-1]
