r"""A number or formula with the text after it: a unit, or words that do not change its value."""

import itertools
import re
from dataclasses import replace
from functools import cache
from typing import Any

import sympy
from sympy.physics import units as sympy_units
from sympy.physics.units import convert_to

from leadspan.answers.formulas import Quantity, UnreadableError, read_formula
from leadspan.answers.spelling import CARDINALS, LETTERS

# A factor of a unit: its name and its power, in words, digits or braces.
_FACTOR = re.compile(
    r"(?P<over>/|\bper\b)|(?:(?P<before>square|sq|cubic|cu)\.? )?(?P<name>[^\W\d_]+)"
    r"(?:\s*+\^\s*+\{?\s*+(?P<power>-?\d)\s*+\}?|(?P<digit>[23])\b| (?P<after>squared|cubed)\b)?"
)
_BASE_UNITS = [
    getattr(sympy_units, name)
    for name in ("meter", "kilogram", "second", "ampere", "mole", "candela", "kelvin", "radian")
]
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# Units by names that sympy does not know, or reads as another unit: a factor, where it is not 1, and another unit. One
# that sympy does not know either stands for itself.
_MORE_UNITS = {
    **{f"{prefix}{symbol}": f"{factor} {unit}"
       for prefix, factor in (("m", "1/1000"), ("k", "1000"), ("M", "1000000"), ("G", "1000000000"))
       for symbol, unit in (("J", "joule"), ("N", "newton"), ("W", "watt"), ("Pa", "pascal"), ("Hz", "hertz"),
                            ("A", "ampere"), ("V", "volt"), ("eV", "electronvolt"), ("cal", "cal"))},
    "metre": "meter", "centimetre": "centimeter", "kilometre": "kilometer", "millimetre": "millimeter",
    "kilometer": "kilometer", "litre": "liter", "ml": "milliliter", "mL": "milliliter", "l": "liter", "L": "liter",
    "in": "inch", "mi": "mile", "yd": "yard", "mm": "1/1000 meter", "nm": "1/1000000000 meter",
    "gram": "gram", "milligram": "milligram", "kilo": "kilogram", "kg": "kilogram", "gm": "gram",
    "lb": "pound", "ounce": "45359237/1600000000 kilogram", "oz": "45359237/1600000000 kilogram", "ton": "ton",
    "ms": "1/1000 second", "sec": "second", "min": "minute", "hr": "hour", "week": "604800 second",
    "fortnight": "1209600 second", "month": "month", "year": "12 month", "yr": "12 month", "decade": "120 month",
    "century": "1200 month", "amp": "ampere", "mol": "mole", "hertz": "hertz", "Hz": "hertz", "eV": "electronvolt",
    "hPa": "100 pascal", "cal": "cal", "Wh": "3600 joule", "kWh": "3600000 joule", "deg": "degree", "degC": "degC",
    "degF": "degF", "mph": "1397/3125 meter/second", "kph": "5/18 meter/second", "kmh": "5/18 meter/second",
    "kmph": "5/18 meter/second", "acre": "acre", "gallon": "gallon", "quart": "1/4 gallon", "pint": "1/8 gallon",
    "cup": "1/16 gallon", "dollar": "dollar", "buck": "dollar", "cent": "1/100 dollar", "euro": "euro",
}  # fmt: skip
# Abbreviations of two letters or more that are units without `\text` too; `ab` or `cd` are products.
_GLUED = frozenset((
    "km", "cm", "mm", "nm", "dm", "mi", "ft", "yd", "kg", "mg", "lb", "lbs", "oz", "ml", "mL", "kJ", "kN", "kW", "MW",
    "kPa", "Pa", "Hz", "kHz", "MHz", "GHz", "kV", "mV", "mA", "eV", "keV", "MeV", "GeV", "ms", "mph", "kph", "kmh",
    "hr", "hrs", "min", "mins", "sec", "secs", "mol", "kcal", "in", "mJ", "MJ", "GJ", "Wh", "mW", "GW", "ns",
    "nF", "pF", "kB", "MB", "GB", "TB", "dB",
))  # fmt: skip
# Units of one letter; they count only behind a space and a number, where the other answer is a number alone.
_LETTERS = frozenset("mgshLNJWVAKCFl")


def unit_of(spelled: str) -> Any:
    r"""A product of powers of SI base units and others (sympy), None where a name is unknown.

    >>> unit_of("km/h") == unit_of("kilometers per hour"), unit_of("apples") is None
    (True, True)
    """
    text = re.sub(r"\\(?:deg|circ)", " deg ", re.sub(r"\\cdot|[·*()]", " ", spelled)).replace("\\", " ")
    if re.sub(r"[\s.]", "", _FACTOR.sub("", text)):
        return None
    product, sign = sympy.Integer(1), 1
    for factor in _FACTOR.finditer(text):
        if factor["over"]:
            sign = -1
            continue
        quantity = _named(factor["name"])
        if quantity is None:
            return None
        power = factor["power"] or factor["digit"] or _POWERS.get(factor["before"] or factor["after"], 1)
        product *= quantity ** (sign * int(power))
    return product if product != 1 else None


def ratio_of(unit: Any, target: Any) -> Any:
    """How many target units one unit is, exactly; None where they measure different things."""
    ratio = sympy.nsimplify(convert_to(unit / target, _BASE_UNITS)).subs(sympy_units.radian, 1)
    return None if ratio.has(sympy_units.Quantity) else ratio


@cache
def _named(name: str) -> Any:
    """The sympy quantity of a name or symbol, None where there is none."""
    for spelling in (name, name.removesuffix("s"), name.removesuffix("es"), name.removesuffix("ies") + "y"):
        if spelling in _MORE_UNITS:
            factor, _, base = _MORE_UNITS[spelling].rpartition(" ")
            quantities = [getattr(sympy_units, part, None) or sympy_units.Quantity(part) for part in base.split("/")]
            return sympy.Rational(factor or 1) * quantities[0] / (quantities[1] if len(quantities) > 1 else 1)
    unit = None if name == "percent" else getattr(sympy_units, name, None)
    return unit if isinstance(unit, sympy_units.Quantity) else None


# Words that may not stand around a number without changing what it says.
_CHANGES_VALUE = re.compile(
    rf"(?i:\b(?:(?:dozen|hundred|thousand|million|billion|trillion|{'|'.join(list(CARDINALS)[1:])}|half|halves|third|quarter|fourth|fifth"
    r"|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth|billionth)s?|percent|sqrt|root|sin|cos|tan|cot"
    r"|csc|log|exp|plus|minus|mod|modulo|times|divided|multiplied|factorial|infinity|alpha|beta|gamma|delta|epsilon"
    r"|theta|lambda|sigma|phi|omega|pi|or|and|not|nor|no|none|than|least|most|between|negative|positive|under|above"
    r"|below|over|except|without|from|until|unless|never|twice|double|triple|base|greater|less|fewer|otherwise|if"
    r"|up|raised|power|choose|undefined|impossible|zero|inverse|reciprocal|(?:square|cube) of|wrong|incorrect|false"
    r"|invalid|cannot|extraneous|rejected|excluded|(?:is|does|are|was)n)\b)"
)
_WORD = r"[^\W\d_]"
_UNIT_WORD = rf"\\text\s*+\{{[^{{}}]*+\}}|\\deg(?![A-Za-z])|(?<![\\A-Za-z]){_WORD}{{2,}}\.?"
_EXPONENT = r"(?:\s*+\^\s*+\{?\s*+-?\d\s*+\}?|\s++(?:squared|cubed)\b)?"
# Everything that may follow a value as its unit, to the end of the text.
_TAIL = re.compile(
    rf"(?:\s|/|\\cdot(?![A-Za-z])|(?:{_UNIT_WORD}){_EXPONENT}|(?<=/){_WORD}(?![A-Za-z]){_EXPONENT}"
    rf"|(?<= )a (?={_WORD}{{2}})|(?<=\s)\(\s*+(?:{_WORD}{{2,}}\s*+)++\))++$"
)
# Where a unit may begin behind a value.
_START = re.compile(rf"{_UNIT_WORD}|(?<=[\s\d])/(?=\s*+(?:\\text|[A-Za-z]{{2}}))|(?<=\s)\((?=\s*+{_WORD}{{2}})")
# A number with one letter behind it: a multiple without a space, a unit with one.
_LETTER_TAIL = re.compile(
    rf"(?P<value>-?\d++(?:\.\d++)?(?:\s*+\\times 10\^(?:\{{-?\d++\}}|\d))?|-?\\frac\{{\d++\}}\{{\d++\}})\.?"
    rf"(?:(?P<multiple>[kKMB])$|\s++(?P<unit>{_WORD}(?![A-Za-z])(?:\s*+(?:/|\\cdot)\s*+{_WORD}{{1,3}}(?![A-Za-z]))?{_EXPONENT})$)"
)
# Behind these an angle in degrees belongs to the argument.
_FUNCTION = re.compile(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|cis)(?![A-Za-z])")
# A number with its unit, one of several in a compound.
_PARTS = re.compile(
    r"(-?\d++(?:\.\d++)?|-?\d*+\s*+\\frac\{\d++\}\{\d++\})\s*+(\\text\s*+\{[^{}]*+\}|[A-Za-z]{2,}\.?|\\deg|[hmsgLl](?![A-Za-z]))"
)
_BETWEEN = re.compile(r"\s*+(?:,|and\b|\\text\s*+\{\s*+(?:,|and|,\s*+and)\s*+\})?\s*+")
_NUMBER = re.compile(
    r"(?<![\w.])-?(?:\d++(?:\.\d++)?(?:/\d++)?|\(\d++\+\\frac\{\d++\}\{\d++\}\)|\\frac\{-?\d++\}\{\d++\})"
)
# Words, punctuation and text commands, without any maths.
_SENTENCE = re.compile(rf"(?:{_WORD}{{2,}}|(?<!\S)[aAI](?!\S)|[\s,.:;()'!-]|\\text\s*+\{{[^{{}}]*+\}}|\\%)*+")
# Words of two letters; any others are products of letters.
_SHORT_WORDS = frozenset((
    "of", "to", "in", "is", "it", "at", "on", "by", "he", "we", "me", "my", "as", "an", "be", "so", "us", "am", "do",
    "go", "if",
))  # fmt: skip


def read_quantity(text: str) -> Quantity:
    r"""A formula, a quantity, or words around one number.

    Raises:
        UnreadableError: It is none of these, or its words may change the number.

    >>> read_quantity(r"5\text{ km}").value, read_quantity("9 boys").value, read_quantity("Janet makes 18").value
    (5, 9, 18)
    """
    is_percent = bool(re.search(r"\\%\s*+$", text))
    bare = re.sub(r"\s*+\\%\s*+$", "", text) if is_percent else text
    for reader in (_compound, _with_unit, _sentence_or_formula):
        try:
            quantity = reader(bare)
        except UnreadableError:
            continue
        return replace(quantity, is_percent=is_percent or quantity.is_percent)
    raise UnreadableError(text)


def letter_readings(text: str) -> list[Quantity]:
    """Readings of a number whose last letter is a unit or a multiple: `5 m`, `70k`."""
    match = _LETTER_TAIL.fullmatch(text)
    if match is None:
        return []
    value, has_decimal = read_formula(match["value"])
    if match["multiple"]:
        return [Quantity(value * sympy.Integer(LETTERS[match["multiple"]]), has_decimal)]
    if re.findall(_WORD + "+", match["unit"])[0] not in _LETTERS:
        return []
    unit = unit_of(match["unit"])
    return [Quantity(value, has_decimal, () if unit is None else (unit,))]


def _sentence_or_formula(text: str) -> Quantity:
    """The one number of a few words, none of which changes it, else a formula: to it a word is a product of letters."""
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) != 1 or len(text) > 300:
        return Quantity(*read_formula(text))
    before, after = text[: numbers[0].start()], text[numbers[0].end() :]
    words = re.sub(r"\\text\s*+\{([^{}]*+)\}", r" \1 ", f"{before} {after}")
    if (
        re.search(r"\b(?:squared|cubed)\b", words)
        or not (_SENTENCE.fullmatch(before) and _SENTENCE.fullmatch(after))
        or _CHANGES_VALUE.search(words)
        or (after and after[0].isalpha())
        or not (bare := re.findall(rf"{_WORD}{{2,}}", words))
        or not all(map(_is_word, bare))
    ):
        return Quantity(*read_formula(text))
    value, has_decimal = read_formula(numbers[0][0])
    unit = unit_of(re.sub(r"\\text\s*+\{([^{}]*+)\}", r"\1", after).strip(" ."))
    units = () if unit is None else (unit,)
    return Quantity(value, has_decimal, units, "\\%" in after, "" if units else _folded(words))


def _with_unit(text: str) -> Quantity:
    for start in _START.finditer(text):
        value, tail = text[: start.start()].rstrip(), text[start.start() :]
        if not value or not _TAIL.match(text, start.start()):
            continue
        words = re.sub(r"\\text\s*+\{([^{}]*+)\}", r" \1 ", tail)
        changes_value = (
            _CHANGES_VALUE.search(words)
            or re.match(r"\s*+(?:squared|cubed)\b", words)
            or ("\\deg" in tail and _FUNCTION.search(value))
        )
        # Words must be no letters of a product: with a space before them they are words, without one known units.
        bare = re.findall(rf"(?<![\\A-Za-z]){_WORD}{{2,}}", re.sub(r"\\text\s*+\{[^{}]*+\}|\\deg", " ", tail))
        if not text[start.start() - 1].isspace() and bare and tail.startswith(bare[0]):
            is_unit = bare[0] in _GLUED or (len(bare[0]) > 3 and unit_of(bare[0]) is not None)
        else:
            is_unit = all(map(_is_word, bare))
        if changes_value or not is_unit:
            raise UnreadableError(text)
        value = re.sub(r"\\cdot\s*+$|(?<=\d)\s++an?$", "", value)
        unit = unit_of(words.strip().removesuffix("."))
        units = () if unit is None else (unit,)
        return replace(_sentence_or_formula(value), units=units, words="" if units else _folded(words))
    raise UnreadableError(text)


def _folded(words: str) -> str:
    """Words without case, marks and the ends of plurals."""
    return " ".join(word.removesuffix("s") for word in re.findall(rf"{_WORD}+", words.casefold()))


def _is_word(word: str) -> bool:
    if len(word) == 2:
        return word in _GLUED or word in _SHORT_WORDS or word in _POWERS
    codes = [ord(char) for char in word.lower()]
    return any(after - before != 1 for before, after in itertools.pairwise(codes))  # abc, xyz are products


def _compound(text: str) -> Quantity:
    """Several quantities of one kind one after the other: 5 feet 6 inches."""
    matches = list(_PARTS.finditer(text))
    if len(matches) < 2 or not all(map(_BETWEEN.fullmatch, _PARTS.split(text)[::3])):
        raise UnreadableError(text)
    units = [
        unit_of(re.sub(r"\\text\s*+\{\s*+([^{}]*?)[\s,]*(?:\band)?\s*\}", r"\1", part[2]).rstrip("."))
        for part in matches
    ]
    if any(unit is None for unit in units):
        raise UnreadableError(text)
    ratios = [ratio_of(unit, units[0]) for unit in units]
    values = [read_formula(part[1]) for part in matches]
    if any(ratio is None for ratio in ratios):
        raise UnreadableError(text)
    first, *further = (value * ratio for (value, _), ratio in zip(values, ratios, strict=True))
    # The sign of -5 feet 6 inches holds for all of it.
    total = sum(further, first) if first >= 0 else first - sum(map(abs, further))
    return Quantity(total, any(has_decimal for _, has_decimal in values), tuple(units))
