r"""LaTeX without what only sets it: Unicode as commands, no formatting, and the literal form of a formula.

Literal forms that are equal mean the same; those that differ may still be equal.
"""

import re
import unicodedata

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi "
    "pi rho sigma tau upsilon phi chi psi omega"
)
COMMANDS = {
    **dict(zip("αβγδεζηθικλμνξπρστυφχψω", _GREEK.split(), strict=True)),
    **{"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi"},
    **{"Ψ": "Psi", "Ω": "Omega", "ϕ": "varphi", "ϵ": "epsilon", "ℏ": "hbar"},
    **{"∞": "infty", "∪": "cup", "∩": "cap", "≤": "le", "⩽": "le", "≥": "ge", "⩾": "ge", "≠": "neq", "∈": "in"},
    **{"±": "pm", "∓": "mp", "×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "≈": "approx", "∅": "emptyset"},
    **{"⌀": "emptyset", "…": "ldots", "⋯": "ldots", "∖": "setminus", "ℝ": "mathbb{R}", "∨": "lor", "∧": "land"},
    **{"⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "⟨": "langle", "⟩": "rangle", "∠": "angle"},
}
"""Characters and the LaTeX commands for them."""
_PLAIN = {
    **{"。": ".", "、": ",", "\u066b": ".", "\u066c": ",", "\u066a": "%"},  # of Chinese and Arabic
    **{"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-"},
    **{"÷": "/", "∕": "/", "⁄": "/", "′": "'", "’": "'", "‘": "'", "″": "''", "“": '"', "”": '"', "∣": "|"},
    **{"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2007": " ", "\u2002": " ", "\u2003": " ", "\u3000": " "},
    **{"\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "", "℃": "°C", "℉": "°F", "º": "°", "˚": "°"},
}
_TABLE = str.maketrans(_PLAIN | {char: f"\\{command} " for char, command in COMMANDS.items()})
_SCRIPTS = tuple(
    (mark, str.maketrans(letters, plain), re.compile(f"[{re.escape(letters)}]+"))
    for mark, letters, plain in (("^", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni"), ("_", "₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-"))
)
# A root sign with its argument in brackets, in braces, or of one number or letter.
_ROOT = re.compile(r"√\s*+(?:\(([^()]*+)\)|\{([^{}]*+)\}|(\d++(?:\.\d++)?|[A-Za-z]|\\[A-Za-z]++))")
# Characters that are fractions, such as one half.
_SLASH = re.compile("(.*)\u2044(.*)")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215f\u2189]")
# Digits of other scripts.
_DIGIT = re.compile(r"(?![0-9])\d")
# Full-width characters and mathematical alphabets.
_COMPATIBLE = re.compile("[\uff01-\uff5e\U0001d400-\U0001d7ff]")


def in_latex(text: str) -> str:
    r"""A text with the characters of Unicode spelt as LaTeX commands, roots and scripts included.

    >>> in_latex("√(5) π"), in_latex("2½"), in_latex("x²")
    ('\\sqrt{5} \\pi ', '2\\frac{1}{2}', 'x^2')
    """
    if text.isascii():
        return text
    text = _COMPATIBLE.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    # NFKC spells one half as a 1, a fraction slash and a 2.
    text = _VULGAR.sub(lambda m: _SLASH.sub(r"\\frac{\1}{\2}", unicodedata.normalize("NFKC", m[0])), text)
    text = _DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text.translate(_TABLE))
    for mark, table, pattern in _SCRIPTS:
        # One character needs no braces.
        text = pattern.sub(
            lambda m, mark=mark, table=table: mark + (t if len(t := m[0].translate(table)) == 1 else f"{{{t}}}"), text
        )
    return _ROOT.sub(lambda match: f"\\sqrt{{{next(group for group in match.groups() if group is not None)}}}", text)


# Commands that set words upright.
_TEXT = "text|textrm|textnormal|textup|mbox|mathrm|operatorname|textsf|texttt|hbox|rm"
# Commands that change only how their argument looks.
_FONT = (
    "textbf|textit|mathbf|mathbb|boldsymbol|bm|mathsf|mathtt|mathit|mathnormal|underline|emph|fbox|boxed|mathop|"
    "ensuremath|underbrace|overbrace|bf|it|pmb|bold|cancel|framebox|Large|large|small|mathcal"
)
_ARGUMENT = r"\{(?:[^{}]|\{[^{}]*+\})*+\}"
_COMMAND = re.compile(
    rf"\\(?:(?P<text>{_TEXT})|(?P<font>{_FONT})|(?:textcolor|colorbox)\*?\s*+{_ARGUMENT})\*?\s*+\{{"
    rf"|(?P<colour>\\color\*?\s*+{_ARGUMENT})"
)
_TWO_LETTERS = re.compile(r"[A-Za-z]{2}")
# The argument of a unit vector.
_VECTORS = re.compile(r"\s*+(?:\\?[ijk](?:math)?)\s*+\}")
# The argument of a set of numbers.
_SETS = re.compile(r"\s*+[A-Z]\s*+\}")
_NUMERIC = re.compile(r"[-+\s\d.,/:%()]+")


def unwrap_commands(text: str) -> str:
    r"""The text without formatting commands, and with `\text{}` for every command that sets words upright.

    The hats and bold letters of unit vectors, and the letters of sets of numbers, stay.

    >>> unwrap_commands(r"\boldsymbol{\frac{1}{2}}"), unwrap_commands(r"\textcolor{blue}{13}\mathrm{ cm}")
    ('\\frac{1}{2}', '13\\text{ cm}')
    """
    # Position of the closing brace by that of the opening one; escaped braces do not count.
    opened, closing = list[int](), dict[int, int]()
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}" and opened:
            closing[opened.pop()] = mark.start()
    # What stands instead of ranges of the text: of a command with its opening brace, and of its closing brace.
    dropped: list[tuple[int, int, str]] = []
    for command in _COMMAND.finditer(text):
        start, at = command.span()
        if command["colour"]:
            dropped.append((start, at, " "))
            continue
        end = closing.get(at - 1)
        if end is None or (command["font"] and (_VECTORS if command["font"] != "mathbb" else _SETS).match(text, at)):
            continue
        is_words = command["font"] in ("textbf", "textit", "emph") and _TWO_LETTERS.search(text, at, end)
        if is_words or (command["text"] and not _NUMERIC.fullmatch(text, at, end)):
            dropped.append((start, at, "\\text{"))
        else:
            dropped += [(start, at, ""), (end, end + 1, "")]
    pieces, at = [], 0
    for start, end, instead in sorted(dropped):
        if start >= at:
            pieces += [text[at:start], instead]
            at = end
    return "".join([*pieces, text[at:]])


# Degrees directly behind a number.
DEGREES = re.compile(r"(?<!\s)\s*+(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree|\bdegrees?\b)")
# Marks that change neither value nor structure of an expression.
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|quad|qquad|times|cdot|big|Big|bigg|Bigg)(?![A-Za-z])|"
    r"\\[,;:! ()\[\]]|[$~*]|(?<!\\)\s"
)
_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|vec|operatorname|boldsymbol|bm)\s*\{([^{}]*)\}")
# What `as_latex` respells, and what `literal` respells besides.
_RESPELT = (
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\\frac(\d)(\d)"), r"\\frac{\1}{\2}"),
    (
        re.compile(r"(?<!\\)\bsqrt\(([^()]*)\)|√\s*(\w+)|\\sqrt\s*(\d)"),
        lambda m: f"\\sqrt{{{m[1] or m[2] or m[3] or ''}}}",
    ),
)  # fmt: skip
_RESPELT_IN_LITERALS = (
    (re.compile(r"\\(?:le|ge)q(?![a-z])"), lambda m: m[0][:-1]),
    (re.compile(r"((?<![\w}\\])\w+|\\[a-z]+)/(\w+)(?![\w{])"), r"\\frac{\1}{\2}"),
)  # fmt: skip
_SINGLE = re.compile(r"(?<=[\^_])\{(\w)\}")
_MATRIX = re.compile(r"\\(?:begin|end)\{\w+\}")
# Commands that need no space before a letter, longest first; then any command; then single letters.
_NAMES = re.compile(
    r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|arctan|arcsin|arccos|infty|"
    + "|".join(map(re.escape, sorted(set(COMMANDS.values()), key=len, reverse=True)))
    + r")|\\[A-Za-z]+|[A-Za-z]"
)
# Commands by which two spellings of one expression may differ.
_SHAPE_ONLY = frozenset((r"\frac", r"\le", r"\ge", r"\in", r"\cup", r"\pm", r"\times", r"\cdot"))


def literal(text: str) -> str:
    r"""The literal form of an expression.

    >>> literal(r"\left( \dfrac{3}{2}, -13 \right)."), literal("√5"), literal("4 π G")
    ('(\\frac{3}{2},-13)', '\\sqrt{5}', '4\\piG')
    """
    text = _DROPPED.sub("", DEGREES.sub("", _WRAPPER.sub(r"\1", as_latex(text))))
    for pattern, spelling in _RESPELT_IN_LITERALS:
        text = pattern.sub(spelling, text)
    text = text.replace(r"\{", "{").replace(r"\}", "}")
    return _SINGLE.sub(r"\1", text).rstrip(".,;:?!")


def as_latex(text: str) -> str:
    r"""A text with its Unicode letters, operators and roots spelt as commands.

    >>> as_latex("√(5) π")
    '\\sqrt{5} \\pi '
    """
    text = in_latex(text)
    for pattern, spelling in _RESPELT:
        text = pattern.sub(spelling, text)
    return text


def names(text: str) -> frozenset[str]:
    """The letters and commands of a literal form that carry meaning: equal expressions mostly share them."""
    return frozenset(_NAMES.findall(_MATRIX.sub("", text))) - _SHAPE_ONLY
