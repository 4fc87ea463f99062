"""Which prompts ask the same question, whatever stands around it: all its traces go to one side of a split.

Questions are compared by words: case, punctuation, white space and the delimiters of LaTeX do not count, numbers do.
Left out are sentences that many prompts have in common, such as instructions and worked examples. Of what is left, a
question that another prompt contains as a whole is the same.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from unicodedata import name, normalize

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan; Burmese; Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Chinese characters
)
"""Letters of scripts that set no spaces between words."""
LETTER = re.compile(rf"(?![\W_])[{UNSPACED}]")
_WORD = re.compile(rf"{LETTER.pattern}|[^\W_{UNSPACED}]+")
# Commands for layout and operators: what they set stays, and an operator is no word however it is written.
_LATEX = re.compile(
    r"\\(?:left|right|bigg?[lrm]?|[dtc]?frac|displaystyle|limits|text(?:bf|it|rm|tt)?|math(?:rm|bf|bb|it|sf|cal)|mbox"
    r"|operatorname|boldsymbol|bm|qquad|quad|sqrt|times|cdot|div|leq?|geq?|neq?|pm|approx|circ|infty|to|ldots|c?dots)"
    r"(?![a-z])|\\[,;:! ]"
)
_ABOVE_OR_BELOW = re.compile("(?=[\u00b9\u00b2\u00b3\u2070-\u2079\u2080-\u2089])|(?=[\u00bc-\u00be\u2150-\u215e])")
"""Borders before raised and lowered digits and fractions, which are numbers of their own."""
_BARE_FRACTION = re.compile(r"\\[dtc]?frac\s*+(\d)(\d)")
_GREEK = re.compile("(?<![^\\W\\d_])[\u03b1-\u03c9](?![^\\W\\d_])")
_GROUPS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_SENTENCE = re.compile(r"[\n\0。\uff1f\uff01\uff1b]|[.?!:;](?=\s|$)")
FEWEST_WORDS = 5
"""Words of a question that is looked for in other prompts; shorter ones occur in prompts by chance."""
_INDEXED_WORDS = 8
"""Words by which longer questions are looked up."""
_COMMON = 10
"""Prompts that make a sentence which they share an instruction or an example."""
_MOST_WORDINGS = 20
"""Prompts that ask one question at most: what more of them share is an example, or a phrase of generated prompts."""
_BUCKET = 50
"""Questions that are looked up by the same words; a longer list would make the search quadratic."""

Core = tuple[str, ...]
"""The words of a question, without what many prompts have in common."""


def words(text: str) -> list[str]:
    r"""The words of a text, numbers included, folded to lower case and to plain forms of its letters.

    >>> words("How many eggs, 3 or 4?"), words("x\uff1d3\u4e2a\u82f9")
    (['how', 'many', 'eggs', '3', 'or', '4'], ['x', '3', '个', '苹'])
    >>> words(r"\(\dfrac{1}{2}\) of $1{,}000$") == words("1/2 of 1000")
    True
    """
    text = normalize("NFKC", _ABOVE_OR_BELOW.sub(" ", text)).casefold()
    text = _GROUPS.sub("", _LATEX.sub(" ", _BARE_FRACTION.sub(r" \1 \2 ", text)))
    return _WORD.findall(_GREEK.sub(lambda letter: name(letter[0]).rpartition(" ")[2].casefold(), text))


def folded_sentences(text: str) -> str:
    """The words of a text, one sentence a line."""
    return "\n".join(filter(None, (" ".join(words(sentence)) for sentence in _SENTENCE.split(text))))


def same_questions(texts: Mapping[str, str]) -> dict[str, str]:
    """The questions of a source by groups that ask the same.

    Args:
        texts: Id of each question, and what the user asks, as `folded_sentences` writes it.

    Returns:
        Of each id the first id of its group in the order of the alphabet.
    """
    ids_of_core: defaultdict[Core, list[str]] = defaultdict(list)
    counts = Counter(sentence for text in texts.values() for sentence in set(text.split("\n")))
    for question, text in texts.items():
        # Without sentences that many prompts have, unless too little would be left.
        rest = " ".join(sentence for sentence in text.split("\n") if counts[sentence] < _COMMON).split()
        core = tuple(rest if len(rest) >= FEWEST_WORDS else text.split())
        ids_of_core[core or (question,)].append(question)
    first_of = {core: core for core in ids_of_core}

    def root(core: Core) -> Core:
        while first_of[core] != core:
            core = first_of[core] = first_of[first_of[core]]
        return core

    for core, holder in _contained(ids_of_core):
        first_of[root(core)] = root(holder)
    groups: defaultdict[Core, list[str]] = defaultdict(list)
    for core, ids in ids_of_core.items():
        groups[root(core)] += ids
    first_ids: dict[str, str] = {}
    for ids in groups.values():
        by_words: defaultdict[str, list[str]] = defaultdict(list)
        for question in ids:
            by_words[texts[question].replace("\n", " ") or question].append(question)
        for same in by_words.values() if len(by_words) > _MOST_WORDINGS else (ids,):
            first_ids |= dict.fromkeys(same, min(same))
    return first_ids


def _contained(cores: Iterable[Core]) -> Iterator[tuple[Core, Core]]:
    """Pairs of a question and another one that contains all of it in a row."""
    indexed = _index(core for core in cores if len(core) >= FEWEST_WORDS)
    sizes = {len(run) for run in indexed}
    pairs = {run[:2] for run in indexed}
    holders: defaultdict[Core, set[Core]] = defaultdict(set)
    for core in cores:
        # Most words begin no indexed run, which the first two of them show at little cost.
        for i in (i for i, pair in enumerate(pairwise(core)) if pair in pairs):
            for inner, offset in (entry for size in sizes for entry in indexed.get(core[i : i + size], ())):
                if i >= offset and inner != core and core[i - offset : i - offset + len(inner)] == inner:
                    holders[inner].add(core)
    for core, of_core in holders.items():
        if len(of_core) < _MOST_WORDINGS:
            yield from ((core, holder) for holder in of_core)


def _index(cores: Iterable[Core]) -> dict[Core, list[tuple[Core, int]]]:
    """Questions, and where in them the run of words stands by which they are found: at the begin, if few begin so."""
    indexed: dict[Core, list[tuple[Core, int]]] = {}
    for share in (0.0, 0.5, 1.0):
        buckets: defaultdict[Core, list[tuple[Core, int]]] = defaultdict(list)
        for core in cores:
            offset = int(share * max(0, len(core) - _INDEXED_WORDS))
            buckets[core[offset : offset + _INDEXED_WORDS]].append((core, offset))
        crowded: list[Core] = []
        for run, entries in buckets.items():
            if len(entries) + len(indexed.get(run, ())) <= _BUCKET:
                indexed.setdefault(run, []).extend(entries)
            else:
                crowded += (core for core, _ in entries)
        cores = crowded
    return indexed
