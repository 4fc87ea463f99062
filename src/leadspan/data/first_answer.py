r"""Where a chain of thought first states the reference answer.

A statement is the answer, as an expression of its own, behind a word or sign that says "this is it": `=`, `is`, `are`,
`answer`, `gives`, `get`, `:`, or inside `\boxed{}`. A number that only occurs, as in the question restated, is none.
"""

import re

_SAYS = r"(?:=|:|\\boxed\{|\\approx|\b(?:is|are|be|equals?|answer|gives?|get|gets|got|makes?|yields?))"
_OPENS = r"[\s$*(\[{]*(?:\\[(\[]|\\text\{|\\mathrm\{)?[\s$*]*"
_CLOSES = r"(?![\w/^])(?!\s?[-+*\u00d7\u00b7^]\s?[\w(\\])(?![.,]\d)(?!\s*=)"


def first_statement(cot: str, gold: str | None) -> int | None:
    r"""Characters of the chain of thought through the first statement of the answer; None where there is none.

    >>> first_statement("18 eggs less 9 is 9. So she makes 9 * 2 = $18 every day. Check: 18.", "18")
    45

    Args:
        cot: The chain of thought.
        gold: The reference answer; None where the source has none.
    """
    answer = _bare(gold or "")
    if not answer:
        return None
    pattern = _pattern(answer)
    found = pattern.search(cot)
    return found.end() if found else None


def _bare(gold: str) -> str:
    r"""The answer without dollar signs, box, text command, grouping commas, final full stop, and decimal zeros.

    >>> _bare(r"\boxed{1,450.0}"), _bare(r"$\text{east}$")
    ('1450', 'east')
    """
    text = gold.strip().strip("$").strip()
    wrapped = re.fullmatch(r"\\(?:boxed|text|mathrm)\{(.*)\}", text, re.DOTALL)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", (wrapped.group(1) if wrapped else text).rstrip(".").strip())
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


def _pattern(answer: str) -> re.Pattern[str]:
    body = re.escape(answer)
    fraction = re.fullmatch(r"(-?)\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", answer)
    if fraction:
        sign, above, below = (re.escape(part) for part in fraction.groups())
        body = rf"{sign}(?:\\[dt]?frac\{{{above}\}}\{{{below}\}}|{above}\s?/\s?{below})"
    elif re.fullmatch(r"-?\d{4,}", answer):  # grouping commas may stand in the text
        digits = answer.lstrip("-")
        first = len(digits) % 3 or 3
        groups = [digits[:first], *re.findall(r"\d{3}", digits[first:])]
        body = "-" * answer.startswith("-") + r"(?:,|\\,|\{,\})?".join(groups)
    if re.fullmatch(r"-?\d+", answer):
        body += r"(?:\.0+(?!\d))?"
    return re.compile(_SAYS + _OPENS + body + _CLOSES, re.IGNORECASE)
