r"""Answers as text and as maths: finding the one a text commits itself to, and comparing it with the gold.

`decide` rests on Math-Verify, which knows numbers, fractions, intervals, sets, matrices, equations and most
units. What it gets wrong is settled here, by rule:

- Text equal to the gold (LaTeX spacing and `\text{}` aside) is right, without any algebra.
- A gold made of words (`\text{(C)}`, `Evelyn`: all of it in a `\text{}`, or bare with three letters in a row)
  is compared as text, case folded: Math-Verify reads `east` as a product of letters, equal to `seat`. A gold
  that it cannot read as maths at all is compared as text too.
- `12^{th}` is 12, `9 boys` is 9, `1e-3` is 0.001, and the other rules of `spelling`; where just one side has a percent
  sign, 17.5 and 17.5% are equal.
- Units count where both sides state one that `quantities` knows: 5 km is not 5 cm.
- Numbers that Math-Verify compares at limited precision, and calls equal, must pass `quantities.contradict` too.
- Numerals that state different bases (`11_7`, `11_8`) differ; Math-Verify drops the base.
"""

import re
from fractions import Fraction
from typing import Any, Literal

from leadspan.evaluation.quantities import contradict, units_differ
from leadspan.evaluation.spelling import in_digits, respell

Outcome = Literal["right", "wrong", "no_answer", "unparsed", "timeout"]

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;: ()\[\]]|\\?\$|~")
_WORDS = re.compile(r"\(?[^\W\d_](?:[^\W\d_]|[ ,.'&-])*\)?")
_BARE_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\W\d_](?:[^\W\d_]| )*")
_NUMERAL = re.compile(r"(\d[0-9A-F]*)_\{?(\d+)\}?")


def text_after_thinking(text: str) -> str:
    """What follows the last closing think tag; all of the text where there is none."""
    return text.rpartition("</think>")[2]


def thinks_to_the_end(text: str) -> bool:
    """Whether thinking was opened in the text, for the first time or again, and not closed after that."""
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

    >>> last_boxed(r"first \boxed{1}, then \boxed{\frac{1}{2}}, and \boxed{\{3")
    '\\frac{1}{2}'
    """
    opened: list[tuple[int, bool]] = []
    last: tuple[int, int] | None = None
    for mark in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if mark[0].startswith("\\boxed") or mark[0] == "{":
            opened.append((mark.end(), mark[0] != "{"))
        elif mark[0] == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = (start, mark.start())
    return None if last is None else text[last[0] : last[1]]


def has_box(text: str) -> bool:
    r"""Whether a `\boxed{}` with content stands behind the thinking."""
    return bool((last_boxed(text_after_thinking(text)) or "").strip())


def bare_gold(gold: str) -> str:
    r"""The gold without surrounding white space, dollar signs or a `\boxed{}`."""
    box = last_boxed(gold)
    return (gold if box is None else box).strip().strip("$").strip()


def plain_text(text: str) -> str:
    """Text without LaTeX spacing, text wrappers and white space that separates no two words."""
    text = _WRAPPER.sub(r"\1", text.replace("\\!", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    words = " ".join(_SPACING.sub(" ", text).split())
    return re.sub(r" ?([^\w ]) ?", r"\1", words).rstrip(".")


def normalise(answer: str) -> str:
    r"""One spelling for answers that are plainly the same, for counting votes; quick, without any algebra.

    Numbers, number words behind digits, fractions and decimals become a reduced fraction; LaTeX spacing, text wrappers,
    `x =`, ordinals, thousands
    separators and letter case go. What only algebra can equate stays apart.

    >>> normalise(r"x = \frac{2}{4}"), normalise("0.50"), normalise("1{,}000"), normalise(r"\text{East}")
    ('1/2', '1/2', '1000', 'east')
    """
    plain = plain_text(respell(answer))
    plain = re.sub(r"^[A-Za-z]=", "", plain)
    plain = re.sub(r"\{,\}", ",", plain)
    number = plain.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", plain) else plain
    number = re.sub(r"^(-?)\\frac\{?(\d+)\}?\{?(\d+)\}?$", r"\1\2/\3", number)
    if re.fullmatch(r"-?(?:\d{1,300}/0*[1-9]\d{0,299}|\d{1,300}(?:\.\d{1,300})?|\.\d{1,300})", number):
        return str(Fraction(number))
    return plain.casefold()


def decide(candidate: str, gold: str) -> Outcome:
    r"""Compare the answer that Math-Verify finds in a text with the gold.

    Source: Math-Verify 0.9, `parse` and `verify`, its own timers off; plus the rules of this module.

    Args:
        candidate: The text; one answer alone is given as `\boxed{answer}`.
        gold: The right answer, as `bare_gold` returns it.

    Returns:
        `no_answer` when nothing is found, `unparsed` when what is found is neither maths nor equal to the
        gold as text. There is no time limit here.

    Raises:
        MemoryError: The comparison needs more memory than the process may have.
        RecursionError: The expressions are nested too deeply.
    """
    found = _parse(respell(candidate))
    if not found:
        return "no_answer"
    gold_with_unit, gold = in_digits(plain_text(gold)), respell(gold)
    answer = next((part for part in found if isinstance(part, str)), "")
    box = last_boxed(candidate)
    if units_differ(in_digits(plain_text(answer if box is None else box)), gold_with_unit):
        return "wrong"
    spellings = [answer] if box is None else [answer, respell(box)]
    if any(plain_text(spelling) == plain_text(gold) != "" for spelling in spellings):
        return "right"
    if is_words(gold):
        return _either(any(_fold_words(spelling) == _fold_words(gold) for spelling in spellings))
    numeral, gold_numeral = (_NUMERAL.fullmatch(plain_text(text)) for text in (answer, gold))
    if numeral and gold_numeral:
        return _either(numeral.groups() == gold_numeral.groups())
    values, gold_values = _values(found), _values(_parse(f"\\boxed{{{gold}}}"))
    if gold_values and not values:
        return "unparsed"
    return _either(_equal(values, gold_values) or _equal_but_percent(answer, gold))


def _either(is_right: bool) -> Outcome:
    return "right" if is_right else "wrong"


def _parse(text: str) -> list[Any]:
    """Sympy objects (untyped) and, last, the text they were read from; that text alone if it is no maths."""
    from math_verify import parse  # sympy takes a second to import; only workers pay for it

    try:
        return parse(text, parsing_timeout=0, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy raises all kinds, for example on a number of more than 4300 digits
        return [text]


def _values(found: list[Any]) -> list[Any]:
    """What was read as maths; an undefined value such as 1/0 is none."""
    import sympy

    undefined = (sympy.nan, sympy.zoo)
    return [part for part in found if not isinstance(part, str) and part not in undefined]


def _equal(values: list[Any], gold_values: list[Any]) -> bool:
    from math_verify import verify

    try:
        return any(
            verify([gold], [value], timeout_seconds=0, allow_set_relation_comp=True, raise_on_error=True)
            and not contradict(gold, value)
            for gold in gold_values
            for value in values
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # sympy raises all kinds where two things cannot be compared
        return False


def _equal_but_percent(answer: str, gold: str) -> bool:
    if ("%" in answer) == ("%" in gold):
        return False
    bare = [re.sub(r"\\?%", "", text) for text in (answer, gold)]
    values, gold_values = (_values(_parse(f"\\boxed{{{text}}}")) for text in bare)
    return _equal(values, gold_values)


def is_words(gold: str) -> bool:
    """Whether a gold is made of words, so that it is compared as text."""
    text = _WRAPPER.fullmatch(gold)
    return bool(_WORDS.fullmatch(text[1].strip()) if text else _BARE_WORDS.fullmatch(plain_text(gold)))


def _fold_words(text: str) -> str:
    return plain_text(text).strip("()").casefold()
