r"""Where a chain of thought states a given value, rather than merely contains it.

A value is stated where it is a result: after `=`, after `is`, `gives`, `leaves` and the like, in a `\boxed{}`, in a
sentence that concludes (`So 41 would be the answer`). It is not stated where it is an input: in a restated question, as
a factor or a term, as the number of a step or of a list item, after `if` or `suppose`. A value that the question itself
names needs more than `is`: a computation before it, or words that conclude.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from leadspan.answers.numbers import Number, numbers, small_number_words

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
    r"matches|interesting)\b|\Z",
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
    """The features of a question that the rules use.

    Attributes:
        values: The numbers it names.
        variable: The one variable whose value it asks for, or None.
    """

    values: frozenset[Fraction]
    variable: str | None = None

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
    statements = _graded(cot, numbers(cot), value, question)
    if not statements and value not in question.values:
        statements = _graded(cot, small_number_words(cot), value, question)
    if question.variable is not None:
        for number in (number for number in numbers(cot) if number.value == value):
            sentence = _SENTENCE_END.split(cot[max(0, number.start - _REACH) : number.start])[-1]
            # A value that the question names too needs a computation.
            is_new = value not in question.values or _COMPUTED.search(sentence)
            is_given = _given_to(cot, number) == question.variable and _is_result(cot, number)
            if is_given and is_new and not _is_supposed(sentence):
                return number
        statements = [statement for statement in statements if _given_to(cot, statement[0]) is None] or statements
    firm = [number for number, grade in statements if grade > _WEAK]
    if value.denominator != 1 and firm:  # a fraction hardly ever comes up by accident
        return firm[0]
    resting = next((n for n, grade in statements if grade == _BOXED_GRADE or _comes_to_rest(cot, n)), None)
    if resting is not None:
        return _first_of_passage(cot, resting, firm)
    return firm[0] if firm else None


def _given_to(cot: str, number: Number) -> str | None:
    """The variable at the head of the equations that end in a number: `x` in `x = 3 + 4 = 7`."""
    head = _GIVEN_TO.search(cot[max(0, number.start - _REACH) : number.start])
    return None if head is None else head[1]


def _graded(cot: str, candidates: Iterator[Number], value: Fraction, question: Question) -> list[tuple[Number, int]]:
    same = (n for n in candidates if n.value == value and not (n.is_quotient and value.denominator == 1))
    return [(number, grade) for number in same if (grade := _grade(cot, number, question))]


def _first_of_passage(cot: str, resting: Number, firm: list[Number]) -> Number:
    """The earliest firm statement of the value with no other result between it and the resting one."""
    for earlier in firm:
        between = cot[earlier.end : resting.start]
        if earlier.start < resting.start and len(between) < _AHEAD:
            other_results = (n for n in numbers(between) if n.value != resting.value and _is_result(between, n))
            if next(other_results, None) is None:
                return earlier
    return resting


def _comes_to_rest(cot: str, number: Number) -> bool:
    """Whether a check, a conclusion or the end follows a result before another result does."""
    after = cot[number.end : number.end + _AHEAD]
    next_result = next((n for n in numbers(after) if n.value != number.value and _is_result(after, n)), None)
    # The end of the text is a rest too.
    rest = _RESTS.search(after)
    return next_result is None or (rest is not None and rest.start() < next_result.start)


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
    sentence = _SENTENCE_END.split(before)[-1]
    if _is_supposed(sentence):
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


def _is_supposed(sentence: str) -> bool:
    supposed = _SUPPOSES.search(sentence)
    return supposed is not None and not _CONSEQUENCE.search(supposed[0])
