"""Where the steps of a chain of thought begin: after a delimiter, whatever line ends and trailing blanks it has."""

import re
from functools import cache

_LINE_END = r"(?>\r\n|[\n\r\x85\u2028\u2029])"  # atomic: \r\n is never two line ends
_NO_SPACE = re.compile(r"\S")


def step_starts(text: str, start: int, end: int, delimiter: str) -> tuple[int, ...]:
    r"""First character of every step after the first in a chain of thought, the part `[start, end)` of a text.

    A line end in the delimiter stands for one of any system, and for blanks before it.

    >>> step_starts("a\r\n \r\nb\n\n\nc\n", 0, 11, "\n\n")
    (6, 10)
    """
    starts: list[int] = []
    pattern = _pattern(delimiter)
    while border := pattern.search(text, start, end):
        step = _NO_SPACE.search(text, border.end(), end)
        if step is None:
            break
        start = step.start()
        starts.append(start)
    return tuple(starts)


@cache
def _pattern(delimiter: str) -> re.Pattern[str]:
    lines = [re.escape(line) for line in re.split(_LINE_END, delimiter)]
    # Blanks are allowed before a line end that follows another one: before the first they are not looked at, since a
    # search would begin anew at each of them.
    blanks = r"[^\S\n\r\x85\u2028\u2029]*"
    return re.compile(_LINE_END.join(lines[:2]) + "".join(f"{blanks}{_LINE_END}{line}" for line in lines[2:]))
