import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from leadspan.data.supervision import Supervision, lay_out
from leadspan.data.truncation import (
    AnyPolicy,
    Budget,
    Full,
    Lead,
    LeadAnswer,
    LeadCot,
    Middle,
    Mix,
    Policy,
    RandomWindow,
    Sections,
    Tail,
    cut_example,
)
from leadspan.errors import SettingsError
from leadspan.settings import Settings, validate

# 4 prompt, 10 chain of thought (closing tag from 12), 6 answer with the end-of-turn token at 18
SECTIONS = Sections(prompt_end=4, think_end=12, cot_end=14, num_tokens=20, stop=18, steps=(7, 10))


@pytest.mark.parametrize(
    ("policy", "spans"),
    [
        pytest.param(Full(), ((0, 20),), id="full"),
        pytest.param(Lead(p=0.5), ((0, 10),), id="lead keeps floor(p T)"),
        pytest.param(Lead(p=0.47), ((0, 9),), id="lead rounds down"),
        pytest.param(Lead(p=0.01), ((0, 1),), id="lead keeps at least one"),
        pytest.param(Lead(p=0.45, align="step"), ((0, 7),), id="lead back to a step"),
        pytest.param(Lead(p=0.3, align="step"), ((0, 4),), id="lead inside the first step keeps the prompt"),
        pytest.param(Lead(p=0.8, align="step"), ((0, 16),), id="lead in the answer is not aligned"),
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
    ],
)
def test_spans(policy: Policy, spans: tuple[tuple[int, int], ...]) -> None:
    assert cut_example(policy, SECTIONS, "id", seed=0).spans == spans


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
    return Sections(prompt, think_end, cot_end, total, draw(st.integers(cot_end, total - 1)), tuple(sorted(steps)))


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
    stops = cut.append_stop and kept[-1] >= borders.prompt_end
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


class _Holder(Settings):
    cut: AnyPolicy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"kind": "lead", "p": 0}, r"cut.lead.p = 0: Input should be greater than 0", id="p zero"),
        pytest.param({"kind": "lead", "p": 1.5}, r"cut.lead.p = 1.5: .* less than or equal to 1", id="p above one"),
        pytest.param({"kind": "leed"}, r"cut = .*'leed'.*'lead'", id="unknown kind"),
        pytest.param(
            {"kind": "lead", "q": 1},
            r"cut.lead.q: unknown key; known keys: align, kind, p, stop",
            id="unknown key",
        ),
        pytest.param({"kind": "lead_answer"}, r"give exactly one of p, num_tokens, p_range", id="no amount"),
        pytest.param({"kind": "lead_answer", "p": 0.5, "num_tokens": 3}, r"given: p, num_tokens", id="two amounts"),
        pytest.param({"kind": "lead_answer", "p_range": [0.9, 0.1]}, r"must not exceed", id="range upside down"),
        pytest.param({"kind": "mix", "policy": {"kind": "mix"}}, r"cut.mix.policy = .*'mix'", id="mix of a mix"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate(_Holder, {"cut": values}, "recipe.yaml")
