"""Overlap of two texts: numbers, content words, n-grams of words.

In scripts that set no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) every letter counts
as a word.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from unicodedata import normalize

from leadspan.answers.numbers import numbers, small_number_words
from leadspan.data.questions import LETTER, UNSPACED

# A run of letters of a script without spaces.
_RUN = re.compile(rf"(?:{LETTER.pattern})+")
# A word of a spaced script, of three letters or more.
_CONTENT = re.compile(rf"[^\W\d_{UNSPACED}]{{3,}}")
# Word of a spaced script and letter of an unspaced one, in thirds of a word: modern Chinese has 1.5 characters a word.
WORD, _LETTER_THIRDS = 3, 2
# Words of three letters or more that say nothing about a prompt's content.
_FUNCTION_TEXT = (
    "the and for are was were has have had how what which who whom whose when where why that this these those with "
    "without from into onto upon than then there their they them his her hers him she you your our ours its not but "
    "all any each every some such more most less least other another only own same too very can could will would "
    "shall should may might must does did done doing been being after before over under between among during about "
    "against again also both few many much per one two out off through because while until here just let"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_TEXT.split())
# Longer ones before those that they end with.
_ENDINGS = ("ing", "ed", "es", "s")


def thirds_of_words(tokens: Sequence[str]) -> int:
    """The length of a text in thirds of a word, so that texts of all scripts are measured alike."""
    return sum(map(_thirds, tokens))


def ngrams(tokens: Sequence[str], size: int) -> Iterator[str]:
    """The runs of `size` words, in order; none where there are fewer words."""
    return (" ".join(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def phrases(tokens: Sequence[str], thirds: int) -> Iterator[str]:
    """From every word on, the shortest run of at least so many thirds of a word; in spaced scripts n-grams of words."""
    # Length of the text up to each word, in thirds of a word.
    ends = list(accumulate(map(_thirds, tokens), initial=0))
    end = 0
    for start, before in enumerate(ends):
        while end < len(ends) and ends[end] - before < thirds:
            end += 1
        if end == len(ends):
            return
        yield " ".join(tokens[start:end])


def _thirds(token: str) -> int:
    return _LETTER_THIRDS if LETTER.match(token) else WORD


def content_stems(text: str) -> set[str]:
    """The distinct words that carry meaning, without plural and verb endings; pairs of letters in unspaced scripts.

    >>> sorted(content_stems("How many eggs does she need for the cooking?"))
    ['cook', 'egg', 'need']
    """
    # Full-width letters count as the usual ones.
    text = normalize("NFKC", text).casefold()
    stems = {_stem(word) for word in _CONTENT.findall(text) if word not in _FUNCTION_WORDS}
    return stems.union(*(map("".join, pairwise(run)) for run in _RUN.findall(text)))


def shared_numbers(prompt: str, cot: str) -> tuple[int, int]:
    """How many distinct numbers a prompt has, and how many the chain of thought repeats, in digits or in words."""
    in_prompt = {number.value for number in numbers(prompt)}
    # Without numbers in the prompt the chain of thought, which is long, need not be read.
    said = {number.value for number in (*numbers(cot), *small_number_words(cot))} if in_prompt else set()
    return len(in_prompt), len(in_prompt & said)


def shared_words(prompt: str, cot: str) -> tuple[int, int]:
    """How many distinct content words a prompt has, and how many of them the chain of thought repeats."""
    in_prompt = content_stems(prompt)
    return len(in_prompt), len(in_prompt & content_stems(cot)) if in_prompt else 0


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        # Three letters must be left, so that `sing` and `bed` stay whole.
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
