r"""Whether an answer has the same meaning as the gold.

- Text equal to the gold (LaTeX spacing and `\text{}` aside) is right, without any algebra.
- A gold made of words (`\text{(C)}`, `Evelyn`) is compared as words, case, article and plural aside.
- Numerals with a base, times of day and letters of choices are compared as such.
- All else is read as maths (`reading`) and compared (`comparing`). An answer is read whole or not at all, so a part of
  it is never taken for the whole.
- A gold that cannot be read is compared as text without spaces and braces.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Literal

from leadspan.answers.boxes import committed_boxes, last_boxed, stated_answers
from leadspan.answers.latex import in_latex, unwrap_commands
from leadspan.answers.numbers import as_number, unassigned
from leadspan.answers.spelling import BASES, respell

Outcome = Literal["right", "wrong", "no_answer", "unparsed", "timeout"]
_OUTCOMES: Mapping[bool, Outcome] = {True: "right", False: "wrong"}
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph)\s*+\{([^{}]*+)\}")
# Marks of LaTeX that set space or size, and dollar signs.
_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;: ()\[\]]|\\?\$|~")
# Words and nothing else, as they stand in a text command.
_WORDS = re.compile(r"\(?[^\W\d_](?:[^\W\d_]|[ ,.'&-])*+\)?")
# Outside a text command one word needs three letters: `ab` is a product.
_BARE_WORDS = re.compile(r"(?=[^\W\d_ ]*+(?: [^\W\d_]*+)*+$)(?=.*[^\W\d_]{3})[^\W\d_](?:[^\W\d_]| )*+")
# Before a word of two letters or more: `a b` may be a product.
_ARTICLE = re.compile(r"^(?:an?|the)\s++(?=\w\w)")
# The row of each word or symbol; each row means one thing, and is folded as `_fold` does.
_SYNONYMS = {
    word: row
    for row, words in enumerate((
        r"no solution|no real solution|no solution exist|no solutions exist|there is no solution"
        r"|there are no solution|none|empty set|the empty set|\emptyset|\{\}",
        "does not exist|dne|undefined|not defined|doesn't exist",
        r"infinity|\infty|infinite|infinitely many|infinitely many solution",
        r"all real number|all real|real number|\mathbb{R}|(-\infty,\infty)|the real number",
        "yes|true",
        "no|false",
    ))
    for word in words.split("|")
}  # fmt: skip
# A truth with a sentence behind it that does not take it back.
_TRUTH = re.compile(r"(yes|no)[,.;:](?!.*\b(?:yes|no|but|wait|not sure)\b)")
# Words that turn a number into another answer where each side has another one of a group.
_OPPOSITES = tuple(
    tuple(re.compile(rf"(?<![\\A-Za-z])(?:{words})", re.IGNORECASE) for words in pair)
    for pair in (
        ("left", "right"), ("north", "south"), ("east", "west"), ("before", "after"), ("older", "younger"),
        ("longer|taller|higher", "shorter|lower"), ("faster|early|earlier", "slower|late"), (r"odd\b", r"even\b"),
        ("minimum", "maximum"), ("heads", "tails"), ("(?<!counter-)(?<!anti-)clockwise", "(?:counter|anti)-?clockwise"),
        (r"increase|increasing|gain|profit|rise|rising|wins?\b", "decrease|decreasing|loss|lost|fall"),
    )
)  # fmt: skip
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))?\s*+(?:\\text\s*+\{)?\s*+(?P<half>[AaPp])\.?\s?[Mm]\.?\s*+\}?\.?"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = "(?:uary|ruary|ch|il|e|y|ust|t|tember|ober|ember)?"
# A date with the name of its month before or behind the day, or in digits from the year on.
_DATE = re.compile(
    rf"(?:(?P<before>{'|'.join(_MONTHS)}){_MONTH}\.? )?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?"
    rf"(?: (?:of )?(?P<behind>{'|'.join(_MONTHS)}){_MONTH}\.?)?(?:,? ?(?P<year>\d{{4}}))?"
    r"|(?P<iso_year>\d{4})-(?P<iso_month>\d\d)-(?P<iso_day>\d\d)"
)
# A clock of 24 hours.
_CLOCK = re.compile(r"(?P<hour>[01]?\d|2[0-3]):(?P<minute>[0-5]\d)")
# Sign, digits, digits behind the point, base; lengths are bounded, since conversion takes quadratic time.
_NUMERAL = re.compile(
    rf"(-?)([0-9a-z]{{1,400}}?)(?:\.([0-9a-z]{{1,400}}?))?(?:_(?:base)?|(?:in)?base)(\d{{1,2}}|{'|'.join(BASES)})",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\(?([A-J])\)?[.:]?")
# The letter of a choice before the choice itself, as in `(B) 12`.
_LABEL = re.compile(r"(?:\\text(?:bf)?\{ ?)?\((?P<letter>[A-J])\)[ .:~\\}]++(?=.)")
# The letter that an answer chooses, whatever it says about the choice behind it.
_CHOSEN = re.compile(
    r"(?:(?:the )?(?:option|choice|answer)(?: is)?:? *)?[(\[]?([A-Z])(?:[)\].:]|(?= -)|$)"
    r"(?!\d| *(?:or\b|and\b|[&/,])).*+",
    re.IGNORECASE | re.DOTALL,
)
_NAME_OF_POINTS = re.compile("[A-Z]{2,}")
# Three digits behind a comma would be a thousand.
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d{1,2}(?:\s*+(?:\\text\{[^{}]*\}|\\%))?)")
# Characters of an answer or a gold that is read as maths; longer ones are compared as text.
_LONGEST = 2_000
# Characters of a text that may be an answer as a whole.
_SHORT = 60


def decide(answer: str, gold: str) -> Outcome:
    r"""Compare one answer, as it stands in a box, with the gold, as `bare_gold` returns it.

    Returns:
        `unparsed` where the gold can be read and the answer cannot. There is no time limit here.

    Raises:
        MemoryError: The comparison needs more memory than the process may have.
        RecursionError: The expressions are nested too deeply.
    """
    letter = letter_of(gold)
    is_same_text = plain_text(answer) == plain_text(gold) != "" or compact(answer) == compact(gold) != ""
    if is_same_text or (letter is not None and chosen_letter(answer) == letter):
        return "right"
    if (is_same := _same_moment(answer, gold)) is not None:
        return _OUTCOMES[is_same]
    has_same_words = same_words(answer, gold)
    # A gold such as `five` is a number.
    if (is_words(gold) and not re.search(r"\d", respell(gold))) or (has_same_words and _fold(gold) in _SYNONYMS):
        return _OUTCOMES[has_same_words]
    labels = _LABEL.match(answer), _LABEL.match(gold)
    if labels[0] and labels[1] and labels[0]["letter"] != labels[1]["letter"]:
        return "wrong"
    for pair in _OPPOSITES:
        # Which words of the pair each side has.
        said = [{word for word in pair if word.search(text)} for text in (answer, gold)]
        if len(said[0]) == len(said[1]) == 1 and said[0] != said[1]:
            return "wrong"
    if max(len(answer), len(gold)) > _LONGEST:
        return "unparsed"
    spelled, gold_spelled = respell(answer), respell(gold)
    if spelled == gold_spelled != "" or compact(spelled) == compact(gold_spelled) != "":
        return "right"
    # AB and BA as products of letters would be equal; as names of points they were compared as text above.
    if _NAME_OF_POINTS.fullmatch(spelled) and _NAME_OF_POINTS.fullmatch(gold_spelled):
        return "wrong"
    gold_numeral, assigned = numeral(gold_spelled), unassigned(spelled)
    if gold_numeral:  # an answer may leave its base out
        return _OUTCOMES[(numeral(assigned) or numeral(f"{assigned.upper()}_{gold_numeral[1]}")) == gold_numeral]
    if numeral(spelled):
        answer_numeral = numeral(assigned)
        return _OUTCOMES[answer_numeral is not None and answer_numeral[0] == as_number(gold_spelled)]
    return _decide_as_maths(answer, gold, spelled)


def _decide_as_maths(answer: str, gold: str, spelled: str) -> Outcome:
    # sympy takes a second to import; only workers pay for it.
    from leadspan.answers.comparing import equal
    from leadspan.answers.formulas import Listing, Quantity, Value
    from leadspan.answers.quantities import letter_readings
    from leadspan.answers.reading import condition_of, readings

    gold_values = readings(gold)
    values: list[Value] = readings(answer)
    # `5 m` is a product where the other side has letters; against a number or a quantity it is five metres.
    units, gold_units = letter_readings(spelled), letter_readings(respell(gold))
    if any(quantity.units for quantity in (*values, *units) if isinstance(quantity, Quantity)):
        gold_values += gold_units
    if any(
        isinstance(value, Listing) or (isinstance(value, Quantity) and not value.value.free_symbols)
        for value in gold_values
    ):
        values += units
        if _DECIMAL_COMMA.fullmatch(spelled) and not any(isinstance(value, Listing) for value in gold_values):
            values += readings(_DECIMAL_COMMA.sub(r"\1.\2", spelled))
    if not values:
        return "unparsed" if gold_values else "wrong"
    (condition, is_one_case), (gold_condition, _) = condition_of(answer), condition_of(gold)
    if condition != gold_condition and condition and (gold_condition or is_one_case):
        return "wrong"
    return _OUTCOMES[any(equal(value, gold_value) for gold_value in gold_values for value in values)]


def can_read(gold: str) -> bool:
    """Whether answers can be compared with a gold otherwise than as text."""
    from leadspan.answers.reading import readings  # with sympy, as above

    return bool(
        is_words(gold) or _fold(gold) in _SYNONYMS or letter_of(gold) or time_of_day(gold)
        or (len(gold) <= _LONGEST and (numeral(respell(gold)) or readings(gold)))
    )  # fmt: skip


def decide_text(text: str, gold: str) -> Outcome:
    """Compare the answer that a text states, wherever it states it, with the gold, as `bare_gold` returns it.

    The content of its last boxes comes first, then what it calls its answer and what Math-Verify finds outside its
    boxes; the first that can be read decides.

    Returns:
        `no_answer` where nothing is found. See `decide` for the rest, and for errors.
    """
    boxes = [box for box in dict.fromkeys((committed_boxes(text), last_boxed(text))) if box and box.strip()]
    outcomes: list[Outcome] = [decide(box.strip(), gold) for box in boxes]
    # A short text may be nothing but its answer.
    whole = text.strip()
    if not boxes and len(whole) <= _SHORT and "\n" not in whole and decide(whole, gold) == "right":
        return "right"
    if "right" in outcomes:
        return "right"
    for stated in () if "wrong" in outcomes else stated_answers(text):
        outcomes.append(decide(stated, gold))
        if outcomes[-1] in ("right", "wrong"):
            return outcomes[-1]
    return outcomes[0] if outcomes else "no_answer"


def normalise(answer: str) -> str:
    r"""One spelling for answers that are plainly the same, for counting votes; quick, without any algebra.

    Numbers, number words behind digits, fractions and decimals become a reduced fraction; LaTeX spacing, text wrappers,
    `x =`, ordinals, thousands separators, bare units, brackets around a letter and letter case go. What only algebra
    can equate stays apart.

    >>> normalise(r"x = \frac{2}{4}"), normalise("0.50"), normalise("1{,}000"), normalise(r"\text{East}")
    ('1/2', '1/2', '1000', 'east')
    """
    if len(answer) > _LONGEST:
        return " ".join(answer.split()).casefold()
    if letter := letter_of(answer):
        return letter.casefold()
    plain = re.sub(r"^[A-Za-z]=", "", plain_text(respell(answer)))
    number = plain.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})++(?:\.\d+)?", plain) else plain
    number = re.sub(r"^(-?)\\frac\{?(\d+)\}?\{?(\d+)\}?$", r"\1\2/\3", number)
    if re.fullmatch(r"-?(?:\d{1,300}/0*[1-9]\d{0,299}|\d{1,300}(?:\.\d{1,300})?|\.\d{1,300})", number):
        return str(Fraction(number))
    return plain.casefold()


def plain_text(text: str) -> str:
    """Text without LaTeX spacing, text wrappers, and white space except between words."""
    text = _TEXT.sub(r"\1", text.replace("\\!", "").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    words = " ".join(_SPACING.sub(" ", text).split())
    return re.sub(r" ?([^\w ]) ?", r"\1", words).rstrip(".")


def compact(text: str) -> str:
    r"""Text without braces around one character, what `plain_text` drops, and white space except between digits.

    >>> compact(r"m_{\max } = n^{2}"), compact(r"\dfrac{1}{2} , x"), compact("2 1/2")
    ('m_{\\max}=n^2', '\\frac{1}{2},x', '2 1/2')
    """
    text = unwrap_commands(in_latex(text))
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])", "", plain_text(text))
    return re.sub(r"(?<=[\^_])\{(\w)\}", r"\1", re.sub(r"(?<!\d) | (?!\d)", "", text))


def is_words(gold: str) -> bool:
    """Whether a gold is made of words, so that it is compared as text."""
    text = _TEXT.fullmatch(gold)
    return bool(_WORDS.fullmatch(text[1].strip()) if text else _BARE_WORDS.fullmatch(plain_text(gold)))


def same_words(answer: str, gold: str) -> bool:
    """Whether two answers are the same words, in any order around `and`, or synonyms of a set, limit or truth."""
    folded = [_fold(text) for text in (answer, gold)]
    # `Yes, it is` says yes.
    if folded[1] in ("yes", "no") and (said := _TRUTH.match(folded[0])):
        folded[0] = said[1]
    pairs = [sorted(map(_fold, text.split(" and "))) for text in folded]
    return pairs[0] == pairs[1] or (folded[1] in _SYNONYMS and _SYNONYMS.get(folded[0]) == _SYNONYMS[folded[1]])


def _fold(text: str) -> str:
    text = text.replace(r"\varnothing", r"\emptyset").replace(r"\left", "").replace(r"\right", "")
    text = plain_text(unwrap_commands(in_latex(text))).strip(' "').rstrip(".!,;")
    text = text[1:-1] if re.fullmatch(r"\([\w ]+\)", text) else text
    folded = _ARTICLE.sub("", text if text.startswith("\\") else text.casefold())
    # The plural of a short word or of one in -ss is not formed by its last letter alone.
    return folded if len(folded) < 4 or folded.endswith("ss") else folded.removesuffix("s")


def _same_moment(answer: str, gold: str) -> bool | None:
    """Whether two times of day, or two dates, are the same; None where they are neither."""
    times, dates = (time_of_day(answer), time_of_day(gold)), (calendar_date(answer), calendar_date(gold))
    if None not in times:
        return times[0] == times[1]
    if dates[0] is None or dates[1] is None:
        return None
    years = {dates[0][2], dates[1][2]} - {None}  # either may leave it out
    return dates[0][:2] == dates[1][:2] and len(years) < 2


def time_of_day(text: str) -> tuple[int, int] | None:
    """Hour (of 24) and minute; None where the text states neither a half of the day nor an hour beyond twelve."""
    text = {"noon": "12 p.m.", "midnight": "12 a.m."}.get(_fold(text).removeprefix("12 "), text)
    text = " ".join(text.replace("{:}", ":").replace("\\,", " ").replace("\\ ", " ").replace("~", " ").split())
    match = _TIME.fullmatch(text)
    if match is None:
        clock = _CLOCK.fullmatch(text)
        return (int(clock["hour"]), int(clock["minute"])) if clock and int(clock["hour"]) > 12 else None
    hour = int(match["hour"]) % 12 + (12 if match["half"] in "Pp" else 0)
    return (hour, int(match["minute"] or 0)) if int(match["hour"]) <= 12 else None


def calendar_date(text: str) -> tuple[int, int, int | None] | None:
    """Month, day, and year where there is one; None where the text is no date or names no month.

    >>> calendar_date("March 15th, 2024"), calendar_date("15 Mar"), calendar_date("2024-03-15"), calendar_date("15")
    ((3, 15, 2024), (3, 15, None), (3, 15, 2024), None)
    """
    match = _DATE.fullmatch(plain_text(text).casefold())
    if match is None:
        return None
    if match["iso_year"]:
        return int(match["iso_month"]), int(match["iso_day"]), int(match["iso_year"])
    names = [name for name in (match["before"], match["behind"]) if name]
    year = int(match["year"]) if match["year"] else None
    return (_MONTHS.index(names[0]) + 1, int(match["day"]), year) if len(names) == 1 else None


def numeral(text: str) -> tuple[Fraction, int] | None:
    r"""The value and the base of a numeral that states its base and is nothing else; None where a digit is too large.

    A letter alone is a digit in base 16 only, since `A_{12}` is a point.

    >>> numeral("101_{2}"), numeral(r"FF_{\text{base }16}"), numeral("0.11 (base two)")
    ((Fraction(5, 1), 2), (Fraction(255, 1), 16), (Fraction(3, 4), 2))
    """
    match = _NUMERAL.fullmatch(re.sub(r"\\(?:text|overline|underline)(?![A-Za-z])|[\s{}(),~]", "", text))
    if match is None:
        return None
    sign, integer, fraction, base_text = match.groups()
    base = BASES.get(base_text.lower()) or int(base_text)
    is_name = integer.isalpha() and fraction is None and (base != 16 or not integer.isupper())
    if is_name or not 2 <= base <= 36:
        return None
    try:
        value = Fraction(int(integer + (fraction or ""), base), base ** len(fraction or ""))
    except ValueError:
        return None
    return (-value if sign else value), base


def letter_of(gold: str) -> str | None:
    r"""The letter of a gold that is one of the letters A to J, in brackets or not."""
    match = _LETTER.fullmatch(plain_text(gold))
    return None if match is None else match[1]


def chosen_letter(answer: str) -> str | None:
    r"""The letter of an answer that names a choice, with its text or without.

    >>> chosen_letter(r"\textbf{(B) }12"), chosen_letter("Option B"), chosen_letter("B - 12"), chosen_letter("Bx")
    ('B', 'B', 'B', None)
    """
    text = " ".join(_TEXT.sub(r" \1 ", unwrap_commands(in_latex(answer))).split())
    text = re.sub(r"^[*`$]+ ?| ?[*`$]+$| (?=[.:]$)", "", text)
    match = _CHOSEN.fullmatch(text)
    return match[1].upper() if match and (match[1].isupper() or len(text) == 1) else None
