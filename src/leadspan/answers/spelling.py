r"""Answers in one spelling: LaTeX without its formatting (`latex`), then a table of rules; numbers in words among them.

Each rule of the table has its source and an example, which a test checks. Rules are applied in the order of the table.
Sources: Math-Verify 0.9 and its issues (`MV`), the golds of MATH, OlympiadBench and Minerva, reports to other graders,
and answers of models to these benchmarks (`answers`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from leadspan.answers.latex import in_latex, unwrap_commands

SMALL_NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
CARDINALS = {
    **{word: number for number, word in enumerate(SMALL_NUMBERS)},
    "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
"""Numbers of one word."""
MULTIPLES = {"dozen": "12", "hundred": "1e2", "thousand": "1e3", "million": "1e6", "billion": "1e9", "trillion": "1e12"}
LETTERS = {"k": 1000, "K": 1000, "M": 10**6, "B": 10**9}
"""Multiples by the letters for them."""
BASES = {word: base for base, word in enumerate(SMALL_NUMBERS) if base > 1} | {"sixteen": 16}
"""Bases by the words for them."""
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "hundredth": 100,
}  # fmt: skip
_SMALL = "|".join(SMALL_NUMBERS[1:])
# `third` alone is an ordinal, and not a part.
WORDS = (
    rf"^(?:\\text\{{ ?)?(?i:(?:(?P<tens>[a-z]+ty)[- ])?(?P<ones>{'|'.join(CARDINALS)})"
    rf"|(?P<half>half)|(?P<count>an?|{_SMALL})[- ](?P<part>{'|'.join(_PARTS)})s?)(?: ?\}})?$"
)
"""A text that is a number from zero to ninety-nine in words, or a part such as `two thirds`."""


def in_digits(match: re.Match[str]) -> str:
    """The number that a match of `WORDS` says; the text itself where it says none, as `twenty twelve`."""
    if match["half"]:
        return r"\frac{1}{2}"
    if match["part"]:
        return f"\\frac{{{CARDINALS.get(match['count'].lower(), 1)}}}{{{_PARTS[match['part'].lower()]}}}"
    tens, ones = CARDINALS.get((match["tens"] or "zero").lower(), 0), CARDINALS[match["ones"].lower()]
    return match[0] if match["tens"] and not (tens and 0 < ones < 10) else str(tens + ones)


def amount(match: re.Match[str]) -> str:
    """An amount of money with the letter of a multiple, such as 1.2M, in full."""
    number = Decimal(match[2]) * LETTERS[match[3]]
    return f"{number.normalize():f}\\text{{ {match[1]}}}"


def written_out(match: re.Match[str]) -> str:
    """Digits and a multiple behind them, such as `5 million`, as one number."""
    integer, decimals, text, word, text_ends = match.groups()
    number = Decimal(re.sub(r"[{},]", "", integer) + (decimals or "")) * Decimal(MULTIPLES[word.lower()])
    return f"{number:f}{'' if text_ends else text or ''}"


def _fraction(integer: str, fixed: str, period: str) -> str:
    value = Fraction(int(integer + fixed), 10 ** len(fixed))
    value += Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def repeated(match: re.Match[str]) -> str:
    r"""The fraction of a repeating decimal: 0.1\overline{6} or 0.1(6) is 1/6."""
    period = match["period"] or match["bracketed"]
    if not period:  # 0.\dot{1}4285\dot{7}
        period = f"{match['first']}{match['between']}{match['last']}" if match["last"] else match["first"]
    return _fraction(match["whole"], match["fixed"], period)


def continued(match: re.Match[str]) -> str:
    """The fraction of a decimal that goes on: `0.333...` repeats the shortest period its last digits show twice."""
    decimals = match["decimals"]
    for length in range(1, len(decimals) // 2 + 1):
        period = decimals[-length:]
        if decimals.endswith(period * (3 if length == 1 else 2)):
            start = len(decimals) - length
            while start >= length and decimals[start - length : start] == period:
                start -= length
            return _fraction(match["whole"], decimals[:start], period)
    return match[0]


def mixed(match: re.Match[str]) -> str:
    """A whole number and a fraction behind it as their sum; the text itself where the fraction is not below 1."""
    integer, above, below = match["whole"], match["above"], match["below"]
    if int(above) >= int(below) and int(above):
        return match[0]
    return f"({integer}+\\frac{{{above}}}{{{below}}})"


_ORDINAL_END = r"(?:st|nd|rd|th)"
_SPACE = r"(?:\s|~|\\[ ,;:!]|\\q?quad(?![A-Za-z]))"
_GROUP_SEPARATOR = r"(?:,\\[!,] ?|\{,\}(?:\\!)?|\\[,;:! ]|~| )"
# Commands that mark a vector.
_HAT = r"\\(?:mathbf|boldsymbol|bm|vec|hat|textbf|widehat)"
_NOT_IN_WORD = r"(?<![A-Za-z\\])"


@dataclass(frozen=True, slots=True)
class Rule:
    """A spelling that `re.sub` rewrites; where it was seen; an example, and what that becomes after all rules."""

    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    source: str
    example: str
    becomes: str


def _rule(
    pattern: str, replacement: str | Callable[[re.Match[str]], str], source: str, example: str, becomes: str
) -> Rule:
    return Rule(re.compile(pattern), replacement, source, example, becomes)


RULES: tuple[Rule, ...] = (
    _rule(r"\\\\(?=[a-zA-Z])(?!(?:[^\\]|\\[^e]|\\e[^n])*+\\end)", r"\\", "MV normalize_latex", r"\\frac{1}{2}",
          r"\frac{1}{2}"),
    _rule(r"^\\text\{ ?[Yy]es ?[,.]? ?\}[,.]?(?=.)|^[Yy]es, ", "", "Minerva answers", r"\text{Yes, }n=4", "n=4"),
    _rule(r"^\\text\{ ?(?:for )?(?:all|any|every)(?: real(?: numbers?)?)? ?\}(?=[A-Za-z ]*(?:\\[lg]e|[<>]))", "",
          "answers", r"\text{all } n>2", "n>2"),
    _rule(r"^\\begin\{cases\}((?:(?!&|\\text).)+?)(?:\\\\\s*+)?\\end\{cases\}$", lambda m: m[1].replace(r"\\", ","),
          "answers", r"\begin{cases} x=1 \\ y=2 \end{cases}", "x=1 , y=2"),
    _rule(r"^(?:\\text\{ ?)?[Aa]ll real(?: number)?s except ?\}? *(-?[\d/.]++(?:,? (?:and )?-?[\d/.]++)*)$",
          lambda m: f"\\mathbb{{R}}\\setminus\\{{{m[1].replace(' and', ',')}\\}}", "answers",
          "all real numbers except 3", r"\mathbb{R}\setminus\{3\}"),
    _rule(r"^\*\*(.+)\*\*$|^\*([^*]+)\*$|^`([^`]+)`$|^\"([^\"]+)\"$|^'([^']+)'$",
          lambda m: m[m.lastindex or 0], "answers", "**13**", "13"),
    _rule(r"^\(?(?:[aA]|i)\)\s++(\S.*?)[,;]?\s++\(?(?:[bB]|ii)\)\s++(\S.*?)(?:[,;]?\s++\(?(?:[cC]|iii)\)\s++(\S.*?))?$",
          lambda m: f"({', '.join(filter(None, m.groups()))})", "answers", "(a) 3 (b) 4", "(3, 4)"),
    _rule(r"^(?:an?|the) (?=\d)", "", "answers", "a 15\\% discount", r"15\% discount"),
    _rule(r"(?<=\d)( ?h(?:ours?|rs?)? ?\d++ ?)m$", r"\1min", "answers", "5h 30m", "5h 30min"),
    _rule(r"^(?:\\text\{ ?)?\([A-E]\)[.:]?(?: ?\}|\\?[ ~])(?=.)", "", "AMC answers", r"\textbf{(C) }12", "12"),
    _rule(WORDS, in_digits, "answers", r"\text{Twenty-one}", "21"),
    _rule(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?", "", "MATH golds", r"\left( 1, 2 \right)", "( 1, 2 )"),
    _rule(r"\\(?:[lr]vert|vert|mid)(?![A-Za-z])|\\\|", "|", "OlympiadBench golds", r"\lvert x\rvert", "| x|"),
    _rule(r"\\(?:displaystyle|textstyle|limits|small|large|Large|normalsize|strut|null|checkmark|square|blacksquare"
          r"|scriptstyle|LARGE|[hH]uge|footnotesize|boldmath|bf|rm|it|cal|tiny|noindent)(?![A-Za-z])|\\(?:hspace|vspace|phantom|mathstrut|label|tag)\*?"
          r"\{[^{}]*+\}", " ", "MV#37", r"13\hspace{1em}", "13"),
    _rule(r"\\(?:[dtcs]|nice)frac(?![A-Za-z])", r"\\frac", "MATH golds", r"\dfrac{1}{2}", r"\frac{1}{2}"),
    _rule(r"(?<=[\d.]) ?\\text\{ ?([eE]) ?\}(?=[-+]?\d)", r"\1", "answers", r"3\text{e}8", r"3\times 10^{8}"),
    _rule(r"\\text\{[^{}]*\^\{-?\d\}(?:[^{}]|\^\{-?\d\})*\}",
          lambda m: re.sub(r"\^(\{-?\d\})", r"}^\1\\text{", m[0]).replace("\\text{}", ""), "answers",
          r"9.8\mathrm{ m/s^{2}}", r"9.8\text{ m/s}^{2}"),
    _rule(r"^(\d++)\s*+'\s*+(\d++(?:\.\d++)?)\s*+(?:''|\")$", r"\1\\text{ feet }\2\\text{ inches}", "answers", "5'6\"",
          r"5\text{ feet }6\text{ inches}"),
    _rule(r"\\text\{([^{}]*\d[^{}]*)\}", r" \1 ", "MV#37", r"\text{7 apples}", "7 apples"),
    # numbers
    _rule(r"\\num\s*+\{([^{}]*+)\}", r"\1", "siunitx", r"\num{5e3}", r"5\times 10^{3}"),
    _rule(rf"(?<![\d.,])\d{{1,3}}{_GROUP_SEPARATOR}\d{{3}}(?:(?:{_GROUP_SEPARATOR}|,)\d{{3}})*+(?![\d/])",
          lambda m: re.sub(r"\D", "", m[0]), "opencompass#2647", r"9\,500", "9500"),
    _rule(r"(?<![\d.,])\d{1,3}(?:(?:\.\d{3}){2,4}+(?![\d.,'])|(?:'\d{3}){1,4}+(?![\d,']))",
          lambda m: re.sub(r"\D", "", m[0]), "answers", "1.234.567", "1234567"),
    _rule(r"(?<![\d.,(\[])(\d{1,3}(?:\.\d{3})++),(\d{1,2})(?![\d.,])",
          lambda m: f"{m[1].replace('.', '')}.{m[2]}", "answers", "1.234,56", "1234.56"),
    _rule(rf"(\d)\s*+\^?\s*+(?:\{{\s*+\\text\{{\s*+{_ORDINAL_END}\s*+\}}\s*+\}}|\\text\{{\s*+{_ORDINAL_END}\s*+\}}"
          rf"|\{{\s*+{_ORDINAL_END}\s*+\}}|{_ORDINAL_END}\b)", r"\1 ", "MATH golds", r"12^{\text{th}}", "12"),
    _rule(r"(?<![\d.])(?P<whole>\d++)\.(?P<fixed>\d*?)(?:\\(?:overline|bar)\{?(?P<period>\d++)\}?|\((?P<bracketed>\d++)\)"
          r"|\\dot\{?(?P<first>\d)\}?(?:(?P<between>\d*+)\\dot\{?(?P<last>\d)\}?)?)", repeated, "MV#35",
          r"0.1\overline{6}", r"\frac{1}{6}"),
    _rule(r"(?<![\d.])(?P<whole>\d++)\.(?P<decimals>\d{3,40}?)(?:\.\.\.|\\[lc]?dots)", continued, "answers",
          r"0.333\ldots", r"\frac{1}{3}"),
    _rule(r"(?<![\w.])(\d++(?:\.\d*+)?)[eE]([+-]?\d++)(?![\w.]*\d)", r"\1\\times 10^{\2}", "Minerva golds", "1.5e-3",
          r"1.5\times 10^{-3}"),
    _rule(r"(\d)\s*+(?:\*|x|\\cdot|\\times)\s*+10\s*+\^", r"\1\\times 10^", "answers", "3 x 10^8", r"3\times 10^8"),
    _rule(r"(?<=[\^_])(-?\d\d++|-\d)", r"{\1}", "answers", "10^-34", "10^{-34}"),
    # behind a function an order of derivation
    _rule(r"(?<![fghy])\^\s*+\(([^()]*+(?:\([^()]*+\)[^()]*+)*+)\)", r"^{\1}", "answers", "2^(n-1)", "2^{n-1}"),
    _rule(r"^<([^<>=,]++,[^<>=]++)>$", r"\\langle \1\\rangle", "answers", "<1,2>", r"\langle 1,2\rangle"),
    _rule(r"(?<=\d)\.(?=\s*+(?:[-+/*^)\]},;]|\\|$))", "", "Minerva golds", "-1./3", "-1/3"),
    _rule(r"(?<![\d.\w])(?=\.\d)", "0", "answers", "-.5", "-0.5"),
    _rule(
          rf"(?<![\w.,/^}}])(\d{{1,3}}(?:(?:,|\{{,\}})\d{{3}}){{1,4}}|\d{{1,15}})(\.\d{{1,9}})?{_SPACE}*+(\\text\{{)?{_SPACE}*+"
          rf"((?i:{'|'.join(MULTIPLES)}))(?i:s?)\b(?(3)(\s*+\}})?)", written_out, "GSM8K answers", "5 million km",
          "5000000 km"),
    _rule(r"\\frac\s*+(\{[^{}]*+\}|\\[A-Za-z]++|\w)\s*+(\{[^{}]*+\}|\\[A-Za-z]++|\w)",
          lambda m: f"\\frac{{{m[1].strip('{} ')}}}{{{m[2].strip('{} ')}}}", "MATH golds", r"\frac\pi2",
          r"\frac{\pi}{2}"),
    _rule(rf"(?<![\w.}}])(?P<whole>\d++){_SPACE}++"
          r"(?P<above>\d++)\s*+/\s*+(?P<below>\d++)(?![\d/.])", mixed, "MV#34", "2 1/2", r"(2+\frac{1}{2})"),
    _rule(r"(?<![\w.}])(?P<whole>\d++)(?:\s|\\[,;! ]|~)*+\\frac\{(?P<above>\d++)\}"
          r"\{(?P<below>\d++)\}", mixed, "MATH golds", r"2\frac{1}{2}", r"(2+\frac{1}{2})"),
    # a fraction before a factor: a slope is one half, and not one over 2x
    _rule(r"(?<![\w.}/^)\\])(\d++)/(\d++)(?=\s*+(?:[A-Za-z]|\\(?!end)[a-z]))", r"\\frac{\1}{\2}", "answers", "1/2x+3",
          r"\frac{1}{2}x+3"),
    _rule(r"\(?\b(\d[0-9A-F]*+)\)?\s*+_\s*+\{?\s*+(?:\\text\{)?\s*+(" + "|".join(BASES) + r")\s*+\}*+",
          lambda m: f"{m[1]}_{{{BASES[m[2]]}}}", "MATH golds", r"101_{\text{two}}", "101_{2}"),
    _rule(r"\((\d[0-9A-F]*+)\)\s*+_\s*+\{?(\d++)\}?", r"\1_{\2}", "MATH golds", "(101)_2", "101_{2}"),
    _rule(r"^0([xbo])([0-9A-Fa-f]++)$", lambda m: f"{m[2]}_{{{ {'x': 16, 'b': 2, 'o': 8}[m[1]] }}}", "answers",
          "0b101", "101_{2}"),
    # money, percent, degrees and other units
    _rule(
          r"(?:\bUS)?\\\$(?![A-Za-z])|\\text\s*+\{\s*+(?:USD|\\\$)\s*+\}|\bUSD\b|^\$(?=\s*+\d[^$]*$)",
          r"\\currency{dollars}", "GSM8K and MATH golds", r"\$18", r"18\text{ dollars}"),
    _rule(r"^([^$]*\s)\$(?=\d[^$]*$)", r"\1\\currency{dollars}", "GSM8K answers", "She has $18",
          r"She has 18\text{ dollars}"),
    _rule(r"\\text\s*+\{\s*+€\s*+\}|€|\\euro(?![A-Za-z])(?:\{\})?|\bEUR\b",
          r"\\currency{euros}", "answers", "€5", r"5\text{ euros}"),
    _rule(r"£|\\pounds(?![A-Za-z])|\bGBP\b", r"\\currency{pounds}", "answers", "£5", r"5\text{ pounds}"),
    _rule(r"\\text\{\s*+¢\s*+\}|¢|\\cent(?![A-Za-z])", r"\\text{ cents}", "GSM8K answers", "15¢", r"15\text{ cents}"),
    _rule(r"[¥₹₩₽]|\\textdollar(?![A-Za-z])|\\text\{ ?Rs\.? ?\}|\bRs\b\.?", " ", "answers", "₹5", "5"),
    _rule(r"\\currency\{(\w++)\}\s*+(-?\d++(?:\.\d++)?)([kKMB])(?![A-Za-z])", amount, "answers", r"\$1.2M",
          r"1200000\text{ dollars}"),
    _rule(r"\\currency\{(\w++)\}\s*+(-?[\d,]++(?:\.\d++)?(?:\\text\{ ?\1\})?)(?:\s*+\b(?:dollars?|euros?|pounds?)\b)?",
          r"\2\\text{ \1}", "GSM8K golds", r"\$1,000 dollars", r"1,000\text{ dollars}"),
    _rule(r"\\currency\{(\w++)\}", r"\\text{ \1}", "answers", r"5\$", r"5\text{ dollars}"),
    _rule(r"(?<!\\)\$|\\[()\[\]](?=\s*+(?:[-\w\\(\[.]|$))", " ", "OlympiadBench golds", "$69$,$84$", "69 , 84"),
    # no multiples, bounds or negations
    _rule(r"(?<=[\d}])\s*+((?![^$]*[万亿億兆千百十以未超过過余餘多几上下内外或和至到不非负負割成折半双雙打对對倍])[\u4e00-\u9fff]{1,4})$",
          r"\\text{ \1}", "answers", "42元", r"42\text{ 元}"),
    _rule(r"\\text\{\s*+(?:per ?cent|percentage|pct)\s*+\}|(?<=\d)\s*+(?i:per ?cent|percentage|pct)\b|(?<!\\)%",
          r"\\%", "MV parser", "12 percent", r"12\%"),
    _rule(r"\^\s*+\{?\s*+\\(?:circ|degree)(?![A-Za-z])\s*+\}?|\\degree(?![A-Za-z])|°|\\text\{\s*+deg(?:ree)?s?\s*+\}"
          r"|(?<=\d)\s*+\bdeg(?:ree)?s?\b", r"\\deg ", "MATH golds", r"30^\circ", r"30\deg"),
    _rule(r"\\deg\s*+(?:\\text\{\s*+)?([CF])\b\}?", r"\\text{ deg\1}", "GSM8K answers", r"18 °C", r"18 \text{ degC}"),
    _rule(r"\\frac\{\s*+\\text\{([^{}]*+)\}\s*+\}\{\s*+\\text\{([^{}]*+)\}\s*+\}", r"\\text{\1}/\\text{\2}", "answers",
          r"60\,\frac{\text{miles}}{\text{hour}}", r"60 \text{miles}/\text{hour}"),
    _rule(r"\\(?:SI|qty)\s*+\{([^{}]*+)\}\s*+\{([^{}]*+)\}", r"\1\\text{ \2}", "answers", r"\SI{5}{cm}",
          r"5\text{ cm}"),
    _rule(r"(?<=[\d}\s,])(?:\\text\{[\s~]*+)?[LMR](?:\s*+\})?\s*+_\s*+\{?\s*+\\odot\s*+\}?$", r"\\text{ solar}",
          "Minerva answers", r"2.75\,M_\odot", r"2.75 \text{ solar}"),
    _rule(r"\\ang\s*+\{([^{};]*+)\}", r"\1\\deg ", "siunitx", r"\ang{30}", r"30\deg"),
    _rule(r"\\(?:unit|si)\s*+\{([^{}]*+)\}", r"\\text{ \1}", "answers", r"5\unit{cm}", r"5\text{ cm}"),
    # functions and operators
    _rule(rf"{_NOT_IN_WORD}(?:np|numpy|math|sympy)\.log(\d*+)(?=\()", lambda m: f"\\log_{{{m[1]}}}" if m[1] else r"\ln",
          "Minerva golds", "np.log(5)", r"\ln(5)"),
    _rule(rf"{_NOT_IN_WORD}(?:np|numpy|math|sympy)\.(?=[a-z])", "", "Minerva golds", "np.arcsin(10/13)",
          r"\arcsin(10/13)"),
    _rule(rf"{_NOT_IN_WORD}a(sin|cos|tan)(?=\s*+\()", r"arc\1", "Minerva golds", "np.atan(2)", r"\arctan(2)"),
    _rule(r"\\text\{\s*+(arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|log|ln|exp|gcd|lcm|sinh|cosh|tanh"
          r"|(?:max|min)(?=\s*+\}\s*+(?:[({_]|\\\{)))\s*+\}", r"\\\1 ", "answers", r"\text{sin} x", r"\sin x"),
    _rule(
          rf"{_NOT_IN_WORD}(arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|sinh|cosh|tanh"
          r"|alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|omega|phi|rho)(?=\s*+[({{\d]|\b)"
          r"(?![A-Za-z])", r"\\\1", "answers", "sqrt(2)", r"\sqrt{2}"),
    _rule(r"\*\*", "^", "Minerva golds", "x**2", "x^2"),
    _rule(r"\*", r"\\cdot ", "Minerva golds", "2*x", r"2\cdot x"),
    _rule(r"\\sqrt\s*+\(([^()]*+)\)", r"\\sqrt{\1}", "MV#41", r"4\sqrt(2)", r"4\sqrt{2}"),
    _rule(r"\\sqrt\s*+(\d|[A-Za-z](?![A-Za-z]))", r"\\sqrt{\1}", "MATH golds", r"\sqrt2", r"\sqrt{2}"),
    _rule(r"(\d++|[A-Za-z]|\([^()]*+\))\s*+!\s*+\^", r"(\1!)^", "answers", "n!^2", "(n!)^2"),
    _rule(r"\\(max|min|gcd|lcm)\s*+\\\{([^{}\\]*+)\\\}", r"\\\1(\2)", "answers", r"\max\{a,b\}", r"\max(a,b)"),
    _rule(r"\\mathbb\{R\}\s*+\^\s*+(?:\{\s*+\+\s*+\}|\+)", r"(0,\\infty)", "answers", r"\mathbb{R}^+", r"(0,\infty)"),
    _rule(r"\\sqrt\s*+\[(\d*[13579])\]\s*+\{\s*+-\s*+([^{}+-]++)\}", r"(-\\sqrt[\1]{\2})", "answers", r"\sqrt[3]{-8}",
          r"(-\sqrt[3]{8})"),
    _rule(r"(\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|log|ln))\s*+\^\s*+(\d)", r"\1^{\2}", "answers",
          r"\sin^2 30^\circ", r"\sin^{2} 30\deg"),
    _rule(r"\\log\s*+_\s*+(\d++|[A-Za-z])(?=[\s(\\])", r"\\log_{\1}", "MATH answers", r"\log_2 8", r"\log_{2} 8"),
    _rule(r"\{\s*+(\w++)\s*+\\choose\s*+(\w++)\s*+\}", r"\\binom{\1}{\2}", "MATH", r"{5 \choose 2}", r"\binom{5}{2}"),
    _rule(r"\\lg(?![A-Za-z])", r"\\log_{10}", "answers", r"\lg 100", r"\log_{10} 100"),
    _rule(r"\\text\{\s*+cis\s*+\}|(?<![A-Za-z\\])cis\b", r"\\cis ", "MATH answers", r"2\text{cis} 60", r"2\cis 60"),
    _rule(r"(?:\{\s*\}|^)\s*+[_^]\s*+\{?(\d++|\w)\}?\s*+C\s*+_\s*+\{?(\d++|\w)\}?|(?<![A-Za-z_^])C\((\d++),\s*+(\d++)\)",
          lambda m: f"\\binom{{{m[1] or m[3]}}}{{{m[2] or m[4]}}}", "answers", "C(10,3)", r"\binom{10}{3}"),
    _rule(r"(?<![A-Za-z_^])P\((\d++),\s*+(\d++)\)", r"\\frac{\1!}{(\1-\2)!}", "answers", "P(5,2)",
          r"\frac{5!}{(5-2)!}"),
    _rule(rf"{_HAT}\s*+\{{?\s*+(?:\\([ij])math|([ijk]))\s*+\}}?", r"\\hat{\1\2}", "MATH answers", r"2\mathbf{i}",
          r"2\hat{i}"),
    _rule(r"\\(?:leq|leqslant|le)(?![A-Za-z])|<=", r"\\le ", "answers", r"x\leq 2", r"x\le 2"),
    _rule(r"\\(?:geq|geqslant|ge)(?![A-Za-z])|>=", r"\\ge ", "answers", r"x\geq 2", r"x\ge 2"),
    _rule(r"\\lt(?![A-Za-z])", "<", "answers", r"x\lt 2", "x< 2"),
    _rule(r"\\gt(?![A-Za-z])", ">", "answers", r"x\gt 2", "x> 2"),
    _rule(r"\\ne(?![A-Za-z])", r"\\neq ", "answers", r"x\ne 2", r"x\neq 2"),
    _rule(r"\\(?:varnothing|O)(?![A-Za-z])", r"\\emptyset ", "MATH answers", r"\varnothing", r"\emptyset"),
    _rule(r"\\var(epsilon|phi|theta|rho|sigma)(?![A-Za-z])", r"\\\1", "answers", r"\varphi", r"\phi"),
    _rule(r"\\(?:cdots|dots|dotsc|dotsb)(?![A-Za-z])|\.\.\.", r"\\ldots ", "OlympiadBench golds", r"1,2,\dots,9",
          r"1,2,\ldots ,9"),
    _rule(r"\\lor(?![A-Za-z])|\\vee(?![A-Za-z])", r"\\text{ or }", "answers", r"x=1\lor x=2", r"x=1\text{ or } x=2"),
    _rule(r"(\d)\s*+(?:\\text\{\s*+)?\b(?:to|in|out of)\b(?:\s*+\})?\s*+(\d)", r"\1:\2", "answers", r"1\text{ to }2",
          "1:2"),
    # what is left at the edges
    _rule(r"(?<!\\)\\[,;:! ]|\\q?quad(?![A-Za-z])|~", " ", "answers", r"6 - 5\,i", "6 - 5 i"),
    _rule(r"\\\\?\s*$", "", "answers", r"12 \\", "12"),
    _rule(r"(?:^|(?<=\\cup)|(?<=\\cup ))\s*+\]([^\]\[(){},]++,[^\]\[(){},]++)(?=[\]\[)])", r" (\1", "answers", "]2,3]",
          "(2,3]"),
    _rule(r"([\[(][^\]\[(){},]++,[^\]\[(){},]++)\[(?=\s*+(?:$|\\cup|\\cap))", r"\1)", "answers", "[2,3[", "[2,3)"),
    _rule(r"^\s*+(?:\\(?:approx|sim|therefore)(?![A-Za-z])|=)\s*+", "", "answers", r"\approx 13", "13"),
    _rule(r"[\s.,;:?]+$", "", "MV#37", "13;", "13"),
)  # fmt: skip
"""The rules in the order in which they are applied."""


def respell(text: str) -> str:
    r"""The text with the spellings of this module rewritten.

    >>> respell("12th grade"), respell("2.5 million dollars"), respell("½"), respell(r"\textbf{13}.")
    ('12 grade', '2500000 dollars', '\\frac{1}{2}', '13')
    """
    text = unwrap_commands(" ".join(in_latex(text).split()))
    for rule in RULES:
        text = rule.pattern.sub(rule.replacement, text)
    return " ".join(text.split())
