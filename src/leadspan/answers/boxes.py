r"""The part of a text that is its answer: behind the thinking, in the `\boxed{}` that it commits itself to."""

import re
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter

from leadspan.answers.spelling import respell

# A box with its opening brace or its bare content, any other escaped character, or a brace.
_BOX = re.compile(
    r"(?<!\\)\\++(?:boxed|fbox|framebox)\s*+(?:\{|(?P<bare>\d++(?:\.\d++)?|[A-Za-z](?![A-Za-z])))|\\.|[{}]", re.DOTALL
)
# Text between the boxes of a list: separators, names of variables, and labels of parts such as `(b)`.
_BETWEEN = re.compile(
    r"(?:\\(?:quad|qquad)(?![A-Za-z])|\\text\s*+\{\s*+(?:and|or)?\s*+\}|\b(?:and|or)\b"
    r"|(?<![A-Za-z])[A-Za-z](?:_\{?\w++\}?)?\s*+(?:=|\\in(?![A-Za-z]))"
    r"|(?:\b[Pp]art\s*+\(?|\(|(?<![^\s*]))(?:[a-h]|i{1,3}|iv|v|[1-9])(?:\)|\.(?=\s)|(?=[*:]))"
    r"(?:[*:\s]*+[A-Za-z ]{0,30}\b(?:is|are|equals)\b)?"
    r"|[\s$,;.:&*()\[\]\\-])*+"
)
# The label of a second or later part, such as `(b)`: its answer may repeat that of an earlier part.
_LABEL = re.compile(r"(?:[b-h]|ii|iii|iv|v|[2-9])(?:\)|\.\s|[*:])")
# The command of the following box, at the end of the text between two contents.
_COMMAND = re.compile(r"\\+(?:boxed|fbox|framebox)\s*+\{?$")
# Delimiters at either end; not the dollar sign of an amount, nor a full stop without delimiters.
_DOLLARS = re.compile(r"^\$(?!\d[^$]*$)|(?<!\\)\$$|(?<=\$)\s*\.$")
# Characters of a gold that may have delimiters around it.
_LONGEST_GOLD = 2_000
# Characters between two boxes of one list. Source: `extract_boxed_content` of latex2sympy2_extended 1.11.
_FURTHEST = 70
LONGEST = 20_000
"""Characters at the end of a text in which Math-Verify looks for an answer."""
# A box that does not close, or has lost its backslash or its braces.
_BROKEN_BOX = re.compile(r"\\?\b(?:f|frame)?box(?:ed)?+\s*+[\[{(]?\s*+([^\[\](){}\n]{1,200})")
# What a text calls its answer, to the end of the line.
_STATED = re.compile(
    r"(?:\b(?i:answer|result)\b|答案[是为]?)(?i: (?:is|was|equals|to be|(?:would|must|will|should) be))?+"
    r"(?i: indeed| thus| simply| just| not [^\s,]{1,40},? but)?+[ \t]*+[:：]?+[ \t*]*+(?P<stated>[^\n]{1,200})"
)
# An answer between tags, as prompts of R1-Zero ask for it.
_TAGGED = re.compile(r"<answer>\s*+([^<>]{1,200}?)\s*+</answer>")
# Where a stated answer ends: at a full stop that is no decimal point, or before a reason.
_END = re.compile(
    r"。|(?<=[^\d\s])[.!?](?=\s|$)|(?<=\d)[.!?](?=\s|$)|\s(?:because|since|which|I hope)\b|,? (?:and )?not (?=\d)"
)
# What an answer is not, right behind it.
_NOT_THAT = re.compile(r"\A[\s*$,]*+(?:and )?not [^.\n]*+(?:\.\d+)?+")


def text_after_thinking(text: str) -> str:
    """The text after the last closing think tag; all of it where there is none."""
    return text.rpartition("</think>")[2]


def thinks_to_the_end(text: str) -> bool:
    """Whether the last `<think>` of the text is never closed."""
    return text.rfind("<think>") > text.rfind("</think>")


def is_thinking_closed(text: str, prompt: str, think_open: str, think_close: str) -> bool:
    """Whether the thinking that prompt or text opened last was closed, or none was opened."""
    if think_open not in text and prompt.rstrip().endswith(think_open):
        return think_close in text
    return text.rfind(think_close) >= text.rfind(think_open)


def with_usual_tags(text: str, is_closed: bool, think_open: str, think_close: str) -> str:
    """The text with `<think>` and `</think>`, the first also where the prompt opened what the text never closed."""
    text = text.replace(think_open, "<think>").replace(think_close, "</think>")
    return text if is_closed or thinks_to_the_end(text) else f"<think>{text}"


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces close (escaped braces are no braces).

    `\fbox`, `\framebox` and a box without braces around one number or letter count too. A box without content counts
    only where no other has any.

    >>> last_boxed(r"first \boxed{1}, then \boxed{\frac{1}{2}}, and \boxed{\{3")
    '\\frac{1}{2}'
    >>> last_boxed(r"It is \boxed 5. I put it within \boxed{}.")
    '5'
    """
    boxes = _boxes(text)
    filled = [box for box in boxes if text[box].strip()]
    return text[(filled or boxes)[-1]] if boxes else None


def committed_boxes(text: str) -> str | None:
    r"""The content of the last box, with that of the boxes before it where nothing but separators is in between.

    >>> committed_boxes(r"x = \boxed{3} and y = \boxed{4}"), committed_boxes(r"\boxed{6}, or rather \boxed{5}")
    ('3, 4', '5')
    >>> committed_boxes(r"(a) \boxed{6} (b) The sum is \boxed{7}")
    '6, 7'
    """
    boxes = [box for box in _boxes(text) if text[box].strip()]
    if not boxes:
        return last_boxed(text)
    run = [boxes.pop()]
    # Backwards from the last box: what comes before a correction ("or rather") is no part of the answer.
    while boxes and boxes[-1].stop <= run[0].start <= boxes[-1].stop + _FURTHEST:
        gap = _COMMAND.sub("", text[boxes[-1].stop : run[0].start]).removeprefix("}")
        if not _BETWEEN.fullmatch(gap):
            break
        run.insert(0, boxes.pop())
    contents = [text[box].strip() for box in run]
    if not any(_LABEL.search(text, box.stop, following.start) for box, following in pairwise(run)):
        # Without labels the same answers again are a repetition: a text may state all of them twice.
        num = len(contents)
        sizes = (size for size in range(1, num) if num % size == 0 and contents == contents[:size] * (num // size))
        contents = contents[: next(sizes, num)]
    return ", ".join(contents)


def _boxes(text: str) -> list[slice]:
    """Ranges of the contents of boxes, in the order in which they begin."""
    # Every brace is counted, not only those of boxes: `\frac{1}{2}` inside a box must not close it.
    opened: list[tuple[int, bool]] = []
    boxes: list[slice] = []
    for mark in _BOX.finditer(text):
        if mark["bare"]:
            boxes.append(slice(*mark.span("bare")))
        elif mark[0].endswith("{") and mark[0] != r"\{":
            opened.append((mark.end(), mark[0] != "{"))
        elif mark[0] == "}" and opened:
            start, is_box = opened.pop()
            if is_box:
                boxes.append(slice(start, mark.start()))
    return sorted(boxes, key=attrgetter("start"))


def has_box(text: str) -> bool:
    r"""Whether a `\boxed{}` with content stands behind the thinking."""
    return bool((last_boxed(text_after_thinking(text)) or "").strip())


def bare_gold(gold: str) -> str:
    r"""The gold without surrounding white space, a `\boxed{}`, or dollar signs and a full stop around all of it.

    >>> bare_gold("$(1,2)$."), bare_gold(r"\boxed{5}"), bare_gold("$69$,$84$"), bare_gold(r"\$5")
    ('(1,2)', '5', '69$,$84', '\\$5')
    """
    box = last_boxed(gold)
    text = (gold if box is None else box).strip()
    while len(text) < _LONGEST_GOLD and (bare := _DOLLARS.sub("", text).strip()) != text:
        text = bare
    return text


def stated_answers(text: str) -> Iterator[str]:
    """Candidates outside boxes: a box that does not close, `<answer>` tags, what it calls its answer, Math-Verify's.

    What a text calls its answer comes before Math-Verify's finds only where no number follows it.

    >>> next(stated_answers("First 4. So the answer is five."))
    'five'
    """
    pieces, at = list[str](), 0
    for box in _boxes(text):
        # Boxes within a box go with it.
        if box.start >= at:
            pieces.append(text[at : box.start])
            at = box.stop
    text = "".join([*pieces, text[at:]])[-LONGEST:]
    for marked in (_BROKEN_BOX.findall(text), _TAGGED.findall(text)):
        yield from map(str.strip, marked[-1:])
    statements = list(_STATED.finditer(text))
    answer = _END.split(statements[-1]["stated"])[0].strip(" *$:") if statements else ""
    # A number behind the statement may be a correction of it.
    behind = text[statements[-1].start("stated") + len(answer) :] if statements else ""
    is_last = bool(answer) and not re.search(r"\d", _NOT_THAT.sub("", behind))
    if is_last:
        yield answer
    from math_verify import parse  # sympy takes a second to import; only workers pay for it

    try:
        extracted = parse(text, parsing_timeout=0, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy raises all kinds, for example on a number of more than 4300 digits
        extracted = []
    yield from (respell(part) for part in extracted if isinstance(part, str))
    if answer and not is_last:
        yield answer
