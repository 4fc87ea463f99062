from leadspan.data.supervision import Supervision, lay_out
from leadspan.data.truncation import Lead, Sections, cut_example

SECTIONS = Sections(prompt_end=40, think_end=60, cot_end=61, num_tokens=80, stop=79)


def test_a_stop_is_never_appended_inside_the_question() -> None:
    for supervision in (Supervision(), Supervision(prompt=1)):
        cut = cut_example(Lead(p=0.25, stop="append_eos"), SECTIONS, "id", 0)
        assert not lay_out(SECTIONS, cut, supervision).append_stop
    cut = cut_example(Lead(p=0.6, stop="append_eos"), SECTIONS, "id", 0)
    layout = lay_out(SECTIONS, cut, Supervision())
    assert layout.append_stop and layout.num_tokens == 49 and layout.num_weighted == 9
