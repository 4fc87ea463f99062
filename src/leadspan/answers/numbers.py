r"""The numbers of a text, and where a chain of thought states one of them, rather than merely contains it.

A number is an exact fraction: `64,800`, `\frac{13}{15}`, `137\frac{1}{2}`, `$12.50`, `1e-3`, `10\%` (which is 10 here)
and `90^\circ`.

A value is stated where it is a result: after `=`, after `is`, `gives`, `leaves` and the like, in a `\boxed{}`, in a
sentence that concludes (`So 41 would be the answer`). It is not stated where it is an input: in a restated question, as
a factor or a term, as the number of a step or of a list item, after `if` or `suppose`. A value that the question itself
names needs more than `is`: a computation before it, or words that conclude.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from leadspan.answers.boxes import bare_gold
from leadspan.answers.latex import DEGREES
from leadspan.answers.spelling import SMALL_NUMBERS

# Digits with separators of thousands in any LaTeX spelling, or without, and a decimal part.
_DIGITS = r"\d{1,3}(?:(?:,|\{,\}|,\\! ?|\\,|\\!)\d{3}){1,100}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_POWER_OF_TEN = (
    r"\s*+(?:\\times|\\cdot|×|·|\*|x)\s*+10\s*+\^\s*+\{?+\s*+(?P<power>[-−]?\d+)\s*+\}?"
    r"|[eE](?P<exponent>[-+−]?\d+)(?!\w|\.\d)"
)
_NUMBER = re.compile(
    rf"(?<![\w.\\^_])(?P<sign>[-−–])?(?:\\?\$|[£€]|\\text\{{\s*\\?\$\s*\}})?\s?"
    rf"(?:(?:(?P<whole>{_DIGITS})\s*+)?\\[dt]?frac\s*(?:\{{\s*(?P<above>-?\d+)\s*\}}\s*\{{\s*(?P<below>\d+)\s*\}}|"
    rf"(?P<one>\d)(?P<other>\d))"
    rf"|(?P<digits>{_DIGITS})(?:{_POWER_OF_TEN}|\s?/\s?(?P<divisor>\d+)(?!\d|\.\d)| and a (?P<part>half|quarter)\b)?)"
)
_WORD = re.compile(rf"\b(?:{'|'.join(SMALL_NUMBERS)})\b", re.IGNORECASE)
_SEPARATORS = re.compile(r"[{},\\!]")

# Possessive (`++`): with backtracking, a word could be split into words in exponentially many ways.
_UNITS = re.compile(
    r"(?:\s|\\[ ,;])*+(?:\\(?:text|mbox|textrm|mathrm|operatorname)\s*\{[^{}]*\}|[^\W\d_]{2,}+[. ]*+|\\?%|"
    r"°)++(?:\s*\^\s*\{?\d\}?)?\s*"
)
# A variable with its sign of equality or membership; something must follow.
_ASSIGNED = re.compile(r"\s*(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\(\w+\))?)\s*(?:=|\\in\b|∈)\s*(?=\S)")

# Characters of a numeral that is converted, and the largest power of ten: more would take seconds.
_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text: its value, and the range of characters it takes."""

    value: Fraction
    start: int
    end: int
    is_quotient: bool  # written `a/b`: a fraction, or a division that is still to be done


def numbers(text: str) -> Iterator[Number]:
    """The numerals of a text, in order; exponents, indices and parts of names do not count.

    >>> [str(n.value) for n in numbers("from 1,200 to -3.5, and x^2 of 16/27")]
    ['1200', '-7/2', '16/27']
    """
    for match in _NUMBER.finditer(text):
        value = _value_of(match)
        if value is not None:
            start, before = match.start(), text[max(0, match.start() - 12) : match.start()].rstrip()
            # A minus sign belongs to its number where no operand, hence no digit, bracket or lone letter, is before it.
            is_unary = not before or before[-1] in "=([{,:<>+*/$"
            is_unary = is_unary or bool(re.search(r"[^\W\d_]{2,}$", before) and text[start - 1].isspace())
            is_negative = match["sign"] is not None and is_unary
            if not is_negative:
                # Behind signs, white space and currency: its first digit, or the backslash of its fraction.
                digits = [match.start(group) for group in ("whole", "digits") if match[group] is not None]
                start = digits[0] if digits else text.index("\\", match.end() - len(match[0].lstrip("-−–$ \t\n£€")))
            yield Number(-value if is_negative else value, start, match.end(), match["divisor"] is not None)


def small_number_words(text: str) -> Iterator[Number]:
    """The numbers from zero to twelve that are written as words."""
    for match in _WORD.finditer(text):
        yield Number(Fraction(SMALL_NUMBERS.index(match[0].lower())), match.start(), match.end(), False)


def as_number(answer: str) -> Fraction | None:
    r"""The value of an answer that is one number with or without a unit, else nothing.

    >>> as_number(r"15\mbox{ cm}^2"), as_number("x = 0.5"), as_number("$1,200"), as_number("3 or 4")
    (Fraction(15, 1), Fraction(1, 2), Fraction(1200, 1), None)
    """
    text = DEGREES.sub("", unassigned(answer)).strip().rstrip(".")
    match = _NUMBER.match(text.strip("+ "))
    if match is None:
        return None
    rest = text.strip("+ ")[match.end() :]
    if rest.strip() and not _UNITS.fullmatch(rest):
        return None
    value = _value_of(match)
    return -value if value is not None and match["sign"] else value


def unassigned(answer: str) -> str:
    """An answer without the variable that it is assigned to: `x = 5` becomes `5`."""
    bare = bare_gold(answer)
    match = _ASSIGNED.match(bare)
    return bare[match.end() :] if match and "=" not in bare[match.end() :] else bare


def _value_of(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _LONGEST:
        return None
    if match["digits"] is not None:
        value = Fraction(_SEPARATORS.sub("", match["digits"]))
        power = match["power"] or match["exponent"]
        if power is not None:
            size = int(power.replace("−", "-"))
            return value * Fraction(10) ** size if abs(size) <= 400 else None
        if match["part"] is not None:
            return value + Fraction(1, 2 if match["part"] == "half" else 4)
        if match["divisor"] is None:
            return value
        return value / int(match["divisor"]) if int(match["divisor"]) else None
    above, below = match["above"] or match["one"], match["below"] or match["other"]
    if not int(below):
        return None
    whole = Fraction(_SEPARATORS.sub("", match["whole"] or "0"))
    return whole + Fraction(int(above), int(below))


# Delimiters between a relation and its number.
_OPENERS = r"(?:\s|\*\*|\\\(|\\\[|\\boxed\s*\{|\\text\{|[$£€({~:]|\\\$|\\,|\\;|&)*"
# A relation right before a number.
_EQUALS = re.compile(rf"(?:=|≈|≡|\\approx|\\equiv|\\implies|\\Rightarrow|\\to|=>|⇒|→|➔)[-–—]?{_OPENERS}$")
# A box that begins right before a number.
_BOXED = re.compile(r"\\boxed\s*\{(?:\\text\s*\{)?[\s$\\]*$")
# Words that a result follows.
_VERBS = (
    r"is|are|was|be|being|equals?|equal(?:s|ing)? to|gives?|giving|gets?|getting|got|makes?|leaves?|leaving|"
    r"remains?|that's|it's|"
    r"there's|totals?|totall?ing|yields?|becomes?|costs?|earns?|pays?|spends?|needs?|has|have|had|takes?|"
    r"buys?|sells?|saves?|"
    r"receives?|owes?|weighs?|results? in|comes? (?:out )?to|comes? out as|adds up to|amounts? to|get back|"
    r"sum(?:s)? to|"
    r"(?:total|sum|answer|result|product|difference|value|number|average|change|profit|amount|maximum|"
    r"minimum) of|the answer|(?:comes?|goes|leads?|simplif\w+|reduces?|evaluates?|rounds?|add(?:s|ing)?|"
    r"brings?(?: \w+){0,3}|converts?|amount) to|becoming|means?|costing|received|find|found|finds"
)
_ADVERBS = (
    r"(?:indeed|just|exactly|about|approximately|only|actually|also|then|simply|roughly|around|still|"
    r"now|really|a total of|at least|at most|even|all|over|back|left with|another|an additional|\.\.\.|…|,)"
)
_VERB = re.compile(rf"(?:^|[^\w])(?:{_VERBS})(?:\s+{_ADVERBS})*\s*(?:\.\.\.|…|:|,)?{_OPENERS}$", re.IGNORECASE)
_CONCLUDES = re.compile(
    r"\b(?:so|therefore|thus|hence|then|meaning|means|which means|in total|altogether|answer|final)\b", re.IGNORECASE
)
_ANSWER = re.compile(r"\banswer\b|\bconclu", re.IGNORECASE)
# An assumption that reaches to the end of the text before a number.
_SUPPOSES = re.compile(
    r"\b(?:if|suppose|assum\w+|let's say|let us say|let me say|say|imagine|set|setting|for example|"
    r"for instance|e\.g\.|when|try|trying|whether|let (?!me\b|us\b))\b[^.;!?]*$",
    re.IGNORECASE,
)
# What lifts an assumption: something is concluded from it.
_CONSEQUENCE = re.compile(
    r"\b(?:then|so|therefore|would be|that would|gives|that means|we get|thus)\b|=>|⇒|→|\\implies", re.IGNORECASE
)
# Signs and words of a computation.
_COMPUTED = re.compile(
    r"[\d)}\]A-Za-z]\s*(?:[-+*/×÷·−–^]|\\times|\\cdot|\\div|\\binom|\\frac)\s*[\\($]*[\d({\[A-Za-z\\]|\\frac|"
    r"\\sqrt|√|\\binom|"
    r"\b(?:plus|minus|times|divided|multiplied|subtract\w*|add\w*|twice|half|of|mod|sum|difference|product|"
    r"square|count\w*|%|percent)\b|%",
    re.IGNORECASE,
)
# The number is the first operand of something that goes on.
_GOES_ON = re.compile(
    r"\s*(?:\\?[)}\]$]|\\text\{[^{}]*\}|\s)*"
    r"(?:(?:[-+*/×÷·−–^]|\\times|\\cdot|\\div|\\frac|\\sqrt|√)\s*[\\({$]*[\dA-Za-z\\({]|[(\[]\s*\d|"
    r"(?:times|plus|minus|divided|multiplied|groups? of|sets? of|more than|less than|fewer than|percent of|"
    r"% of|out of|of the|of them)\b)",
    re.IGNORECASE,
)
# The number is a coefficient or a part of a name.
_GLUED = re.compile(r"(?:\\?[A-Za-z_(^'!]|\{\w| ?\\(?:sqrt|pi|alpha|theta|sin|cos|log|ln|frac)| ?√| ?[xyπ]\b|:\d)")
_SENTENCE_END = re.compile(r"(?<![\d\s])[.!?](?=\s|$)|(?<=\d)[.!?](?=\s|$)|\n")
# Further items of a list behind a number.
_LISTED = re.compile(r"(?:\\?\$)?(?:\s?,\s?(?:and |or )?|\s(?:and|or)\s)(?:\\?\$)?[-−]?\d")
# The number is the last operand of something that began before it.
_OPERAND_BEFORE = re.compile(r"(?:[-+*/×÷·−^]|\\times|\\cdot|\\div)\s*[\\($£€]*\s*$")
_EQUATION = re.compile(rf"([^=≈⇒→,;:\n]*)=[-–—]?{_OPENERS}$")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z{])")
_CLAUSE_END = re.compile(r"(?:\s[^\W\d_]+)?\W*(?:[.?!]|\n|$)")
# A derivation rests where one of these follows its result.
_RESTS = re.compile(
    r"\b(?:wait|hold on|(?:double[- ])?check\w*|verif\w+|confirm\w*|make sure|alternatively|another way|"
    r"answer|final|question|problem|"
    r"right\?|correct|conclu\w+|summ\w+|recap|in total|altogether|yep|yes|that's it|seems|makes sense|fits|"
    r"matches|interesting|redo\w*|repeat the|reread\w*|(?:it|this|that) (?:again|once more)|to be sure|in the end|"
    r"backwards?|other way|(?:comes?|back) (?:back )?(?:to|at) the start|(?:right|which) numbers|the result is|"
    r"ends? (?:with|at)|in a row|one after the other)\b|\Z",
    re.IGNORECASE,
)
# The variable whose value is asked for.
_ASKED = re.compile(
    r"\b(?:value of|find|determine|compute|calculate|evaluate|solve for|what is)\s+(?:the (?:\w+ )?value of\s+)?"
    r"(?:(?:\\\(|\$)\s*(?P<formula>[A-Za-z])\s*(?:\\\)|\$)|(?P<bare>[A-Za-z])(?=[.,;?]|$))|"
    r"(?:^|[;,\s])(?P<last>[A-Za-z])\?\s*$",
    re.IGNORECASE,
)
# The variable at the head of the equations that end right here.
_GIVEN_TO = re.compile(
    r"(?:^|[,;:\n]|[.!?]\s|\b(?:so|then|thus|therefore|hence|and|is|have|get|that)\b)[\s$*\\(]*([A-Za-z])[\s$*\\)]*="
    r"(?![^\n]*(?:[,;:]|[.!?]\s|\b(?:so|then|thus|therefore|hence|and)\b))[^\n]*$",
    re.IGNORECASE,
)
# How firmly a number is stated.
_NOT_STATED, _WEAK, _FIRM, _BOXED_GRADE = range(4)
# Characters that a rule reads: before a number, right after it, ahead to the next result, and at the end of a chain of
# thought, where a mention of the value is a conclusion.
_REACH = 160
_NEAR = 60
_AHEAD = 400
_CLOSING = 200


@dataclass(frozen=True, slots=True)
class Question:
    """The features of a question that the rules use."""

    values: frozenset[Fraction]  # the numbers it names
    variable: str | None = None  # the one whose value it asks for

    @classmethod
    def of(cls, text: str) -> "Question":
        """Read a question."""
        values = frozenset(number.value for number in (*numbers(text), *small_number_words(text)))
        variables = {match["formula"] or match["bare"] or match["last"] for match in _ASKED.finditer(text)}
        return cls(values, variables.pop() if len(variables) == 1 else None)


def first_stated_number(cot: str, value: Fraction, question: Question) -> Number | None:
    """Where a chain of thought first states a number as a result that it rests with.

    Where the question asks for one variable, a value assigned to it is the answer, and one assigned to another variable
    is not. Otherwise the derivation rests where a check, a conclusion or the end follows before another result does.
    The remaining statements are intermediate results that happen to have the value; the first of them counts only where
    nothing else does. Numbers written as words count where there are none in digits.
    """
    statements: list[tuple[Number, int]] = []
    for candidates in (numbers(cot), small_number_words(cot)):
        same = (n for n in candidates if n.value == value and not (n.is_quotient and value.denominator == 1))
        statements = [(number, grade) for number in same if (grade := _grade(cot, number, question))]
        if statements or value in question.values:
            break
    if question.variable is not None:
        for number in (number for number in numbers(cot) if number.value == value):
            asserted = _asserted(cot[max(0, number.start - _REACH) : number.start])
            # A value that the question names too needs a computation.
            is_new = asserted is not None and (value not in question.values or _COMPUTED.search(asserted))
            if is_new and _given_to(cot, number) == question.variable and _is_result(cot, number):
                return number
        statements = [statement for statement in statements if _given_to(cot, statement[0]) is None] or statements
    firm = [number for number, grade in statements if grade > _WEAK]
    if value.denominator != 1 and firm:  # a fraction hardly ever comes up by accident
        return firm[0]
    for resting, grade in statements:
        after = cot[resting.end : resting.end + _AHEAD]
        following, rest = _other_result(after, value), _RESTS.search(after)
        if grade != _BOXED_GRADE and following and (rest is None or rest.start() >= following.start):
            continue
        # The passage may have stated the value before, with no other result in between.
        for earlier in firm:
            between = cot[earlier.end : resting.start]
            if earlier.start < resting.start and len(between) < _AHEAD and not _other_result(between, value):
                return earlier
        return resting
    return firm[0] if firm else None


def _other_result(text: str, value: Fraction) -> Number | None:
    """The first result in a text that has another value."""
    others = (number for number in numbers(text) if number.value != value)
    return next((number for number in others if _is_result(text, number)), None)


def _given_to(cot: str, number: Number) -> str | None:
    """The variable at the head of the equations that end in a number: `x` in `x = 3 + 4 = 7`."""
    head = _GIVEN_TO.search(cot[max(0, number.start - _REACH) : number.start])
    return None if head is None else head[1]


def _is_result(text: str, number: Number) -> bool:
    before, after = text[max(0, number.start - _REACH) : number.start], text[number.end : number.end + _NEAR]
    if _GLUED.match(after) or _GOES_ON.match(after) or _OPERAND_BEFORE.search(before):
        return False
    return bool(_EQUALS.search(before) or _VERB.search(before))


def _grade(cot: str, number: Number, question: Question) -> int:
    """How firmly a number is stated: 0 for not at all."""
    before, after = cot[max(0, number.start - _REACH) : number.start], cot[number.end : number.end + _NEAR]
    if _BOXED.search(before):
        return _BOXED_GRADE
    if _GLUED.match(after) or _LISTED.match(after) or _GOES_ON.match(after) or _OPERAND_BEFORE.search(before):
        return _NOT_STATED
    sentence = _asserted(before)
    if sentence is None:
        return _NOT_STATED
    is_result = bool(_EQUALS.search(before) or _VERB.search(before))
    concludes = bool(_CONCLUDES.search(sentence))
    if number.value not in question.values:
        return _FIRM if is_result or concludes else _NOT_STATED
    if not is_result:
        return _FIRM if concludes and _ANSWER.search(after) else _NOT_STATED
    # An equation that is still to be solved, such as `0.99*M =`.
    equation = _EQUATION.search(sentence)
    if equation is not None and re.search(r"\d", equation[1]) and _VARIABLE.search(equation[1]):
        return _NOT_STATED
    if number.start > len(cot) - min(_CLOSING, len(cot) // 5) or _ANSWER.search(sentence):
        return _FIRM
    # Computed from at least one other number.
    if _COMPUTED.search(sentence) and any(n.value != number.value for n in numbers(sentence)):
        return _FIRM
    return _WEAK if concludes and _CLAUSE_END.match(after) else _NOT_STATED


def _asserted(before: str) -> str | None:
    """The last sentence of the text before a number; None where it only assumes the number."""
    sentence = _SENTENCE_END.split(before)[-1]
    supposed = _SUPPOSES.search(sentence)
    return None if supposed and not _CONSEQUENCE.search(supposed[0]) else sentence
