from itertools import pairwise

import pytest

from leadspan.data.sections import step_starts

STEPS = ["I note the numbers.", "Then I add.", "That is 7.", "So: 7."]


def cut_at(text: str, delimiter: str = "\n\n") -> list[str]:
    starts = [0, *step_starts(text, 0, len(text), delimiter), len(text)]
    return [text[a:b].strip() for a, b in pairwise(starts)]


@pytest.mark.parametrize(
    "blank_line",
    [
        "\n\n",
        "\r\n\r\n",
        "\r\r",
        "\n \n",
        "\n \t\n",
        "\r\n\u3000\r\n",
        "\n\n\n\n",
        "  \n\n  ",
        "\u2029\u2029",
        "\n\r\n",
    ],
)
def test_blank_lines_are_steps_however_they_are_written(blank_line: str) -> None:
    assert cut_at(blank_line.join(STEPS)) == STEPS
    assert cut_at(blank_line + blank_line.join(STEPS) + blank_line)[1:] == STEPS


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "  \n"])
def test_single_line_ends_are_no_steps_unless_asked_for(line_end: str) -> None:
    text = line_end.join(STEPS)
    assert cut_at(text) == [text]
    assert cut_at(text, "\n") == STEPS


@pytest.mark.parametrize("rule", ["\n---\n", "\r\n--- \r\n", "\n--- \n\n"])
def test_other_delimiters_may_have_line_ends_in_them(rule: str) -> None:
    text = rule.join(STEPS)
    assert [text[at:].partition(rule)[0] for at in step_starts(text, 0, len(text), "\n---\n")] == STEPS[1:]
    assert cut_at("a. b (.) c", ".") == ["a.", "b (.", ") c"]


def test_only_the_part_asked_for_is_looked_at() -> None:
    text = "a\n\nb\n\nc\n\nd"
    assert step_starts(text, 3, 7, "\n\n") == (6,)
    assert step_starts(text, 0, 5, "\n\n") == (3,)


def test_long_blank_runs() -> None:
    """A search that begins anew at every blank takes hours."""
    text = "a" + " " * 500_000 + "\n" * 500_000 + " \n" * 500_000 + " " * 500_000 + "b"
    assert step_starts(text, 0, len(text), "\n\n") == (len(text) - 1,)
