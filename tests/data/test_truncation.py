import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from leadspan.data.supervision import Supervision, lay_out
from leadspan.data.truncation import (
    AnyPolicy,
    Budget,
    Endpoints,
    Full,
    Lead,
    LeadAnswer,
    LeadCot,
    Middle,
    Mix,
    Policy,
    PostConclusion,
    RandomWindow,
    Schedule,
    Sections,
    Tail,
    cut_example,
    equal_window,
)
from leadspan.data.truncation.policy import STATES_NO_ANSWER, CutCounts, drop_warning, of_stages, stop_warning
from leadspan.errors import SettingsError
from leadspan.settings import Settings, validate

# 4 prompt, 10 chain of thought (closing tag from 12), 6 answer with the end-of-turn token at 18
SECTIONS = Sections(prompt_end=4, think_end=12, cot_end=14, num_tokens=20, stop=18, steps=(7, 10))


class _Holder(Settings):
    cut: AnyPolicy


@pytest.mark.parametrize(
    ("policy", "spans"),
    [
        pytest.param(Full(), ((0, 20),), id="full"),
        pytest.param(Lead(p=0.5), ((0, 10),), id="lead keeps floor(p T)"),
        pytest.param(Lead(p=0.47), ((0, 9),), id="lead rounds down"),
        pytest.param(Lead(p=0.01), ((0, 1),), id="lead keeps at least one"),
        pytest.param(Lead(p=0.45, align="step"), ((0, 7),), id="lead back to a step"),
        pytest.param(Lead(p=0.3, align="step"), ((0, 4),), id="lead inside the first step keeps the prompt"),
        pytest.param(Lead(p=0.6, align="step"), ((0, 12),), id="lead that ends with the last step keeps it"),
        pytest.param(Lead(p=0.65, align="step"), ((0, 12),), id="lead inside the closing tag keeps the last step"),
        pytest.param(Lead(p=0.55, align="step"), ((0, 10),), id="lead inside the last step goes back to its border"),
        pytest.param(Lead(p=0.7, align="step"), ((0, 14),), id="lead that ends with the closing tag keeps it"),
        pytest.param(Lead(p=0.8, align="step"), ((0, 16),), id="lead in the answer is not aligned"),
        pytest.param(LeadAnswer(num_tokens=8, align="step"), ((0, 20),), id="lead_answer of all steps is whole"),
        pytest.param(LeadCot(p=0.5), ((0, 9),), id="lead_cot"),
        pytest.param(LeadCot(p=1.0), ((0, 14),), id="lead_cot whole ends with the closing tag"),
        pytest.param(LeadAnswer(p=0.5), ((0, 9), (12, 20)), id="lead_answer keeps the closing tag"),
        pytest.param(LeadAnswer(p=1.0), ((0, 20),), id="lead_answer whole"),
        pytest.param(LeadAnswer(num_tokens=3), ((0, 7), (12, 20)), id="lead_answer by tokens"),
        pytest.param(LeadAnswer(num_tokens=99), ((0, 20),), id="lead_answer by more tokens than there are"),
        pytest.param(Budget(num_tokens=6), ((0, 6),), id="budget"),
        pytest.param(Budget(num_tokens=60), ((0, 20),), id="budget beyond the end"),
        pytest.param(Tail(p=0.5, keep_prompt=False), ((10, 20),), id="tail loses the prompt"),
        pytest.param(Tail(p=0.5), ((0, 4), (14, 20)), id="tail with prompt is as long as lead"),
        pytest.param(Tail(p=0.1), ((0, 4),), id="tail shorter than the prompt"),
        pytest.param(Middle(p=0.5, keep_prompt=False), ((5, 15),), id="middle loses the prompt"),
        pytest.param(Middle(p=0.5), ((0, 4), (9, 15)), id="middle with prompt is as long as lead"),
        pytest.param(Endpoints(num_steps=(1, 1)), ((0, 7), (10, 20)), id="endpoints drop the middle step"),
        pytest.param(Endpoints(num_steps=(1, 2)), ((0, 20),), id="endpoints that meet keep everything"),
        pytest.param(Endpoints(num_steps=(9, 9)), ((0, 20),), id="endpoints of more steps than there are"),
        pytest.param(Endpoints(p=0.6), ((0, 7), (10, 20)), id="endpoints by share: 3 of 3 and 2 of 3 tokens fit"),
        pytest.param(Endpoints(p=0.1), ((0, 7), (10, 20)), id="endpoints keep at least a step at either end"),
        pytest.param(Endpoints(p=0.9), ((0, 20),), id="endpoints: the end gets what the beginning leaves, 3 + 5 of 9"),
        pytest.param(Endpoints(p=1.0), ((0, 20),), id="endpoints whole"),
        pytest.param(Schedule(policy=Lead(), start=0.25, end=0.6), ((0, 12),), id="schedule: all kept at any stage"),
    ],
)
def test_spans(policy: Policy, spans: tuple[tuple[int, int], ...]) -> None:
    assert cut_example(policy, SECTIONS, "id", seed=0).spans == spans


@pytest.mark.parametrize(
    ("ending", "spans", "stop"),
    [
        pytest.param("answer", ((0, 10), (12, 20)), False, id="with the answer"),
        pytest.param("none", ((0, 10),), False, id="nothing after it"),
        pytest.param("append_eos", ((0, 10),), True, id="with a stop"),
    ],
)
def test_post_conclusion_ends_with_the_step_of_the_answer(ending: str, spans: object, stop: bool) -> None:
    policy = validate(_Holder, {"cut": {"kind": "post_conclusion", "ending": ending}}, "here").cut
    for token in (7, 9):  # anywhere in the second step
        cut = cut_example(policy, replace(SECTIONS, first_answer=token), "id", 0)
        assert cut.spans == spans and cut.append_stop == stop and cut.dropped is None
    in_last_step = cut_example(policy, replace(SECTIONS, first_answer=11), "id", 0).spans
    assert in_last_step == (((0, 20),) if ending == "answer" else ((0, 12),))


def test_post_conclusion_without_a_known_answer() -> None:
    cut = cut_example(PostConclusion(), SECTIONS, "id", 0)
    assert cut.spans == () and cut.dropped == "the chain of thought states no known answer"
    assert cut_example(PostConclusion(if_absent="whole"), SECTIONS, "id", 0).spans == ((0, 20),)


def test_a_schedule_goes_from_start_to_end_in_equal_steps() -> None:
    up = Schedule(policy=Lead(stop="append_eos"), start=0.25, end=1.0, num_stages=4)
    assert [cut_example(stage, SECTIONS, "id", 0).spans for stage in up.stages] == [
        ((0, 5),), ((0, 10),), ((0, 15),), ((0, 20),)
    ]  # fmt: skip
    assert [cut_example(stage, SECTIONS, "id", 0).append_stop for stage in up.stages] == [True, True, True, False]
    down = Schedule(policy=Mix(policy=Lead(), whole_share=0.25), start=0.75, end=0.5, num_stages=2)
    assert [stage.label for stage in down.stages] == ["mix 0.75 lead 0.75", "mix 0.75 lead 0.5"]
    assert (up.label, down.label) == ("schedule lead 0.25-1", "schedule mix 0.75 lead 0.75-0.5")


def test_a_stage_keeps_as_many_tokens_as_the_policy_of_its_label() -> None:
    middle = Schedule(policy=Lead(), start=0.1, end=0.7, num_stages=3).stages[1]  # (0.1 + 0.7) / 2 < 0.4 in binary
    assert middle == Lead(p=0.4) and cut_example(middle, SECTIONS, "id", 0).spans == ((0, 8),)


def test_appended_stop_only_where_it_was_cut() -> None:
    assert cut_example(Lead(p=0.5, stop="append_eos"), SECTIONS, "id", 0).append_stop
    assert not cut_example(Lead(p=1.0, stop="append_eos"), SECTIONS, "id", 0).append_stop
    assert not cut_example(Lead(p=0.5), SECTIONS, "id", 0).append_stop


def test_masked_think_end_only_where_the_cot_was_cut() -> None:
    assert cut_example(LeadAnswer(p=0.5, stop="mask_think_end"), SECTIONS, "id", 0).unweighted == (12, 14)
    assert cut_example(LeadAnswer(p=1.0, stop="mask_think_end"), SECTIONS, "id", 0).unweighted is None


def test_random_window_is_as_long_as_lead_and_varies_by_example() -> None:
    cuts = {cut_example(RandomWindow(p=0.5), SECTIONS, str(i), seed=0).spans for i in range(60)}
    assert {sum(end - start for start, end in spans) for spans in cuts} == {10}
    assert len(cuts) == 5  # 6 of 10 tokens: 5 places
    assert cut_example(RandomWindow(p=0.5), SECTIONS, "7", 0) == cut_example(RandomWindow(p=0.5), SECTIONS, "7", 0)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("align", ["token", "step"])
def test_the_window_of_a_lead_is_as_long_as_its_chain_of_thought(align: Any, p: float) -> None:
    lead = Lead(p=p, align=align)
    ((_, end),) = cut_example(lead, SECTIONS, "id", 0).spans
    width = max(0, min(end, SECTIONS.cot_end) - SECTIONS.prompt_end)
    window = equal_window(lead)
    assert isinstance(window, RandomWindow)
    assert equal_window(Mix(policy=lead, whole_share=0.2)) == Mix(policy=window, whole_share=0.2)
    spans = cut_example(window, SECTIONS, "id", 0).spans
    assert sum(end - start for start, end in spans) == SECTIONS.prompt_end + width


def test_mix_keeps_the_stated_share_whole_whatever_the_order() -> None:
    mix = Mix(policy=Lead(p=0.5), whole_share=0.25)
    whole = [cut_example(mix, SECTIONS, str(i), seed=3).spans == ((0, 20),) for i in range(2000)]
    assert 0.22 < sum(whole) / 2000 < 0.28
    assert whole[::-1] == [cut_example(mix, SECTIONS, str(i), 3).spans == ((0, 20),) for i in reversed(range(2000))]


@st.composite
def sections(draw: st.DrawFn) -> Sections:
    prompt, opened, closing, answer = (draw(st.integers(1, 40)) for _ in range(4))
    think_end = prompt + opened
    cot_end = think_end + closing
    total = cot_end + answer
    steps = draw(st.lists(st.integers(prompt + 1, think_end), unique=True, max_size=5))
    stop = draw(st.integers(cot_end, total - 1))
    stated = draw(st.one_of(st.none(), st.integers(prompt, think_end - 1)))
    return Sections(prompt, think_end, cot_end, total, stop, tuple(sorted(steps)), stated)


proportions = st.floats(0.01, 1.0)
policies = st.one_of(
    st.just(Full()),
    st.builds(
        Lead,
        p=proportions,
        align=st.sampled_from(["token", "step"]),
        stop=st.sampled_from(["none", "append_eos"]),
    ),
    st.builds(LeadCot, p=proportions, align=st.sampled_from(["token", "step"])),
    st.builds(LeadAnswer, p=proportions, stop=st.sampled_from(["none", "mask_think_end"])),
    st.builds(Budget, num_tokens=st.integers(1, 200)),
    st.builds(Tail, p=proportions, keep_prompt=st.booleans()),
    st.builds(Middle, p=proportions, keep_prompt=st.booleans()),
    st.builds(RandomWindow, p=proportions),
    st.builds(Endpoints, p=proportions),
    st.builds(Endpoints, num_steps=st.tuples(st.integers(1, 4), st.integers(1, 4))),
    st.builds(PostConclusion, ending=st.sampled_from(["answer", "none", "append_eos"])),
    st.builds(
        Schedule, policy=st.builds(RandomWindow), start=st.just(0.2), end=st.floats(0.3, 1.0), num_stages=st.just(3)
    ),
    st.builds(Mix, policy=st.builds(Lead, p=proportions), whole_share=st.floats(0.05, 0.95)),
)
supervisions = st.builds(
    Supervision, prompt=st.sampled_from([0.0, 0.5]), cot=st.sampled_from([0.0, 1.0]), answer=st.just(1.0)
)


@given(policies, sections())
def test_spans_are_ascending_inside_and_disjoint(policy: Policy, borders: Sections) -> None:
    spans = policy.cut(borders, random.Random(0)).spans
    flat = [end for span in spans for end in span]
    assert flat == sorted(set(flat))
    assert all(0 <= start < end <= borders.num_tokens for start, end in spans)


@given(policies, sections(), supervisions)
def test_layout_keeps_kept_tokens_up_to_the_last_weighted_one(
    policy: Policy, borders: Sections, supervision: Supervision
) -> None:
    cut = policy.cut(borders, random.Random(0))
    layout = lay_out(borders, cut, supervision)
    tokens = [t for s in layout.segments for t in range(s.start, s.end)]
    kept = [t for start, end in cut.spans for t in range(start, end)]
    assert tokens == kept[: len(tokens)]

    def weight(token: int) -> float:
        if cut.unweighted and cut.unweighted[0] <= token < cut.unweighted[1]:
            return 0.0
        if token < borders.prompt_end:
            return supervision.prompt
        return supervision.cot if token < borders.cot_end else supervision.answer

    weights = [weight(t) for t in kept]
    assert [s.weight for s in layout.segments for _ in range(s.start, s.end)] == weights[: len(tokens)]
    stops = cut.append_stop and bool(kept) and kept[-1] >= borders.prompt_end
    assert layout.append_stop == (stops and layout.num_weighted > 0)
    expected = sum(w > 0 for w in weights[1:]) + stops
    assert layout.num_weighted == (expected if expected else 0)
    if layout.segments and not layout.append_stop:
        assert layout.segments[-1].weight > 0


@given(sections(), proportions)
def test_controls_are_no_longer_than_lead(borders: Sections, p: float) -> None:
    lead = Lead(p=p).cut(borders, random.Random(0)).spans[0][1]
    for policy in (Tail(p=p, keep_prompt=False), Middle(p=p, keep_prompt=False)):
        assert sum(end - start for start, end in policy.cut(borders, random.Random(0)).spans) == lead
    for policy in (Tail(p=p), Middle(p=p)):
        kept = sum(end - start for start, end in policy.cut(borders, random.Random(0)).spans)
        assert kept == max(lead, borders.prompt_end)


@given(policies)
def test_a_policy_is_its_own_settings(policy: Policy) -> None:
    adapter: TypeAdapter[Policy] = TypeAdapter(AnyPolicy)
    assert adapter.validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"kind": "lead", "p": 0}, r"cut.p = 0: Input should be greater than 0", id="p zero"),
        pytest.param({"kind": "lead", "p": 1.5}, r"cut.p = 1.5: .* less than or equal to 1", id="p above one"),
        pytest.param({"kind": "leed"}, r"cut.kind = 'leed': did you mean 'lead'", id="unknown kind"),
        pytest.param(
            {"kind": "lead", "q": 1},
            r"cut.q: unknown key; known keys: align, kind, p, stop",
            id="unknown key",
        ),
        pytest.param({"kind": "lead_answer"}, r"give exactly one of p, num_tokens, p_range", id="no amount"),
        pytest.param({"kind": "lead_answer", "p": 0.5, "num_tokens": 3}, r"given: p, num_tokens", id="two amounts"),
        pytest.param({"kind": "lead_answer", "p_range": [0.9, 0.1]}, r"must not exceed", id="range upside down"),
        pytest.param({"kind": "endpoints"}, r"give exactly one of p and num_steps", id="endpoints of no size"),
        pytest.param(
            {"kind": "schedule", "policy": {"kind": "lead"}, "start": 0.5, "end": 0.5},
            r"start and end are both 0.5, so nothing changes",
            id="schedule that stands still",
        ),
        pytest.param(
            {"kind": "schedule", "policy": {"kind": "lead_answer", "num_tokens": 9}, "start": 0.1, "end": 0.5},
            r"policy lead_answer has no p that could change; give it a p",
            id="schedule without p",
        ),
        pytest.param(
            {"kind": "schedule", "policy": {"kind": "lead"}, "start": 0.1, "end": 0.5, "num_stages": 100_000},
            r"cut.num_stages = 100000: Input should be less than or equal to 1000",
            id="schedule of more stages than steps",
        ),
        pytest.param({"kind": "mix", "policy": {"kind": "mix"}}, r"cut.policy.kind = 'mix'", id="mix of a mix"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate(_Holder, {"cut": values}, "recipe.yaml")


def test_cuts_of_which_hardly_an_example_shows_an_end_are_warned_of() -> None:
    def counts(num_kept: int, lost_stop: int) -> CutCounts:
        values = dict.fromkeys(("num_examples", "tokens_before", "tokens_after", "weighted_tokens"), 100)
        return CutCounts(num_kept=num_kept, lost_stop=lost_stop, **values)

    few = {"lead 0.5": counts(100, 100), "tail 0.5": counts(40, 39), "mix": counts(100, 95), "empty": counts(0, 0)}
    warning = stop_warning(few)
    assert warning.startswith("lead 0.5, tail 0.5: ") and "whole_share" in warning and "thinking_budget" in warning
    assert stop_warning({"mix": few["mix"]}) == ""


def test_cuts_that_drop_more_than_a_tenth_of_their_examples_are_warned_of_with_what_is_left() -> None:
    def counts(num_kept: int, **dropped: int) -> CutCounts:
        sizes = {"tokens_before": 9000, "tokens_after": 900, "weighted_tokens": 90}
        return CutCounts(num_examples=1000, num_kept=num_kept, dropped=dropped, **sizes)

    cuts = {"full": counts(1000), "lead 0.9": counts(900, short=100), "lead 0.25": counts(6, short=994)}
    warning = drop_warning(cuts)
    assert warning.startswith("lead 0.25 leaves 6 of 1,000 examples (994 x short).") and "lead_cot" in warning
    assert drop_warning({"lead 0.9": cuts["lead 0.9"]}) == ""
    assert "if_absent" not in drop_warning({**cuts, "few": counts(999, **{STATES_NO_ANSWER: 1})})


def test_the_worst_stage_of_a_schedule_is_warned_of_not_a_sum_of_stages() -> None:
    def counts(num_kept: int) -> CutCounts:
        sizes = {"tokens_before": 9000, "tokens_after": 900, "weighted_tokens": 90}
        dropped = {"short": 1000 - num_kept} if num_kept < 1000 else {}
        return CutCounts(num_examples=1000, num_kept=num_kept, dropped=dropped, **sizes)

    # In all 5 stages together 4,206 of 5,000 are left, and in 20 of the last kind beside them 24,206 of 25,000.
    stages = [counts(n) for n in (1000, 600, 606, 1000, 1000)]
    for more in (0, 20):
        together = of_stages([*stages, *[counts(1000)] * more])
        assert (together.num_examples, together.num_kept) == (1000 * (5 + more), 1000 * more + 4206)
        warning = drop_warning({"schedule": together})
        assert warning.startswith(f"schedule leaves 600 of 1,000 examples in stage 2 of {5 + more} (400 x short).")
    assert drop_warning({"schedule": of_stages([counts(900), counts(1000)])}) == ""
    assert of_stages([counts(5)]) == counts(5)


def test_a_cut_that_drops_traces_for_their_answers_is_not_told_to_keep_more_tokens() -> None:
    sizes = {"tokens_before": 90, "tokens_after": 9, "weighted_tokens": 9}
    cut = CutCounts(num_examples=10, num_kept=6, dropped={STATES_NO_ANSWER: 4}, **sizes)
    warning = drop_warning({"post_conclusion": cut})
    assert "cut.if_absent" in warning and "lead_cot" not in warning
    both = drop_warning({"post_conclusion": cut, "lead 0.1": cut.model_copy(update={"dropped": {"short": 4}})})
    assert "cut.if_absent" in both and "lead_cot" in both
