r"""Answers with the characters of Unicode as LaTeX commands, and without commands that only format."""

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
    **{"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-"},
    **{"÷": "/", "∕": "/", "⁄": "/", "′": "'", "’": "'", "‘": "'", "″": "''", "“": '"', "”": '"', "∣": "|"},
    **{"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2007": " ", "\u2002": " ", "\u2003": " ", "\u3000": " "},
    **{"\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "", "℃": "°C", "℉": "°F", "º": "°", "˚": "°"},
}
_TABLE = str.maketrans(_PLAIN | {char: f"\\{command} " for char, command in COMMANDS.items()})
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))
_SCRIPTS = tuple(
    (mark, str.maketrans(table), re.compile(f"[{re.escape(''.join(table))}]+"))
    for mark, table in (("^", _RAISED), ("_", _LOWERED))
)
# A root sign with its argument in brackets, in braces, or of one number or letter.
_ROOT = re.compile(r"√\s*+(?:\(([^()]*+)\)|\{([^{}]*+)\}|(\d++(?:\.\d++)?|[A-Za-z]|\\[A-Za-z]++))")
# Characters that are fractions, such as one half.
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215f\u2189]")
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
    text = _VULGAR.sub(_vulgar_fraction, text).translate(_TABLE)
    for mark, table, pattern in _SCRIPTS:
        # One character needs no braces.
        text = pattern.sub(
            lambda m, mark=mark, table=table: mark + (t if len(t := m[0].translate(table)) == 1 else f"{{{t}}}"), text
        )
    return _ROOT.sub(lambda match: f"\\sqrt{{{next(group for group in match.groups() if group is not None)}}}", text)


def _vulgar_fraction(match: re.Match[str]) -> str:
    codes = unicodedata.decomposition(match[0]).split()[1:]
    above, _, below = "".join(chr(int(part, 16)) for part in codes).partition("\u2044")
    return f"\\frac{{{above}}}{{{below}}}"


# Commands that set words upright.
_TEXT = "text|textrm|textnormal|textup|mbox|mathrm|operatorname|textsf|texttt|hbox|rm"
# Commands that change only how their argument looks.
_FONT = (
    "textbf|textit|mathbf|mathbb|boldsymbol|bm|mathsf|mathtt|mathit|mathnormal|underline|emph|fbox|boxed|mathop|"
    "ensuremath|underbrace|overbrace|bf|it|pmb|bold|cancel|framebox|Large|large|small|mathcal"
)
_COMMAND = re.compile(
    rf"\\(?:(?P<text>{_TEXT})|(?P<font>{_FONT})|(?P<coloured>textcolor|colorbox)|(?P<colour>color))\*?\s*+\{{"
)
_NEXT_ARGUMENT = re.compile(r"\s*+\{")
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
    closing = _closing_braces(text)
    dropped: list[tuple[int, int, str]] = []
    at = 0
    while command := _COMMAND.search(text, at):
        at = command.end()
        end = closing.get(at - 1)
        if end is None:
            continue
        if command["coloured"]:
            again = _NEXT_ARGUMENT.match(text, end + 1)
            at, end = (again.end(), closing.get(again.end() - 1)) if again else (at, None)
            dropped += [] if end is None else [(command.start(), at, ""), (end, end + 1, "")]
        elif command["colour"]:
            dropped.append((command.start(), end + 1, " "))
        elif command["text"]:
            dropped += _changed(command, end, "" if _NUMERIC.fullmatch(text, at, end) else "\\text{")
        elif not (_VECTORS if command["font"] != "mathbb" else _SETS).match(text, at):
            is_words = command["font"] in ("textbf", "textit", "emph") and _TWO_LETTERS.search(text, at, end)
            dropped += _changed(command, end, "\\text{" if is_words else "")
    pieces, at = [], 0
    for start, end, instead in sorted(dropped):
        if start >= at:
            pieces += [text[at:start], instead]
            at = end
    return "".join([*pieces, text[at:]])


def _changed(command: re.Match[str], end: int, instead: str) -> list[tuple[int, int, str]]:
    """Another command or none for one, its closing brace kept or dropped."""
    return [(command.start(), command.end(), instead), *([] if instead else [(end, end + 1, "")])]


def _closing_braces(text: str) -> dict[int, int]:
    """Position of the closing brace by that of the opening one; escaped braces do not count."""
    opened, closing = list[int](), dict[int, int]()
    for mark in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if mark[0] == "{":
            opened.append(mark.start())
        elif mark[0] == "}" and opened:
            closing[opened.pop()] = mark.start()
    return closing
