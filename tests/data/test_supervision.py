import pytest

from leadspan.data.settings import Rendering
from leadspan.data.supervision import ANSWER, COT, PROMPT, Layout, Layouts, Segment, Supervision, lay_out
from leadspan.data.truncation import Lead, Sections, cut_example
from leadspan.errors import SettingsError
from leadspan.settings import validate

SECTIONS = Sections(prompt_end=40, think_end=60, cot_end=61, num_tokens=80, stop=79)


def test_a_stop_is_never_appended_inside_the_question() -> None:
    for supervision in (Supervision(), Supervision(prompt=1)):
        cut = cut_example(Lead(p=0.25, stop="append_eos"), SECTIONS, "id", 0)
        assert not lay_out(SECTIONS, cut, supervision).append_stop
    cut = cut_example(Lead(p=0.6, stop="append_eos"), SECTIONS, "id", 0)
    layout = lay_out(SECTIONS, cut, Supervision())
    assert layout.append_stop and layout.num_tokens == 49 and layout.num_weighted == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cot": 1e39}, r"cot = 1e\+39: Input should be less than or equal to 1000000"),
        ({"cot": 1e-46, "answer": 0}, "cot = 1e-46: give 0, or 1e-06 and more"),
    ],
)
def test_weights_that_float32_has_not_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        validate(Supervision, values, "recipe")


def test_think_tags_differ() -> None:
    with pytest.raises(SettingsError, match="think_open and think_close are both 'X'; they must differ"):
        validate(Rendering, {"think_open": "X", "think_close": "X"}, "recipe")


def test_layouts_come_back_as_they_were_put_in() -> None:
    segments = (
        Segment(0, 3, PROMPT, 0.0),
        Segment(3, 7, COT, 1.0),
        Segment(9, 12, ANSWER, 0.1),
        Segment(3, 4, COT, 0.1),
    )
    layouts = [
        Layout(segments[:2], False),
        Layout(segments[:3], True),
        Layout((), False),
        Layout(segments[3:], True, 0.25),
        Layout(segments, False, 0.25),
    ]
    stored = Layouts()
    for layout in layouts:
        stored.append(layout)
    assert list(stored) == layouts and stored[-1] == layouts[-1]
    assert list(stored.lengths) == [layout.num_tokens for layout in layouts]
