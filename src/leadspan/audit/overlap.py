"""What two texts share: numbers, content words, n-grams of words."""

import re
from collections.abc import Iterator, Sequence

from leadspan.audit.values import numbers, small_number_words

_WORD = re.compile(r"[^\W_]+")
_CONTENT = re.compile(r"[^\W\d_]{3,}")
_FUNCTION_WORDS = frozenset(
    [
        "the",
        "and",
        "for",
        "are",
        "was",
        "were",
        "has",
        "have",
        "had",
        "how",
        "what",
        "which",
        "who",
        "whom",
        "whose",
        "when",
        "where",
        "why",
        "that",
        "this",
        "these",
        "those",
        "with",
        "without",
        "from",
        "into",
        "onto",
        "upon",
        "than",
        "then",
        "there",
        "their",
        "they",
        "them",
        "his",
        "her",
        "hers",
        "him",
        "she",
        "you",
        "your",
        "our",
        "ours",
        "its",
        "not",
        "but",
        "all",
        "any",
        "each",
        "every",
        "some",
        "such",
        "more",
        "most",
        "less",
        "least",
        "other",
        "another",
        "only",
        "own",
        "same",
        "too",
        "very",
        "can",
        "could",
        "will",
        "would",
        "shall",
        "should",
        "may",
        "might",
        "must",
        "does",
        "did",
        "done",
        "doing",
        "been",
        "being",
        "after",
        "before",
        "over",
        "under",
        "between",
        "among",
        "during",
        "about",
        "against",
        "again",
        "also",
        "both",
        "few",
        "many",
        "much",
        "per",
        "one",
        "two",
        "out",
        "off",
        "through",
        "because",
        "while",
        "until",
        "here",
        "just",
        "let",
    ]
)
_ENDINGS = ("ing", "ed", "es", "s")


def words(text: str) -> list[str]:
    """The words of a text, numbers included, folded to lower case.

    >>> words("How many eggs, 3 or 4?")
    ['how', 'many', 'eggs', '3', 'or', '4']
    """
    return _WORD.findall(text.casefold())


def ngrams(tokens: Sequence[str], size: int) -> Iterator[str]:
    """The runs of `size` words, in order; none where there are fewer words."""
    return (" ".join(tokens[i : i + size]) for i in range(len(tokens) - size + 1))


def content_stems(text: str) -> set[str]:
    """The distinct words that carry meaning, without plural and verb endings.

    >>> sorted(content_stems("How many eggs does she need for the cooking?"))
    ['cook', 'egg', 'need']
    """
    return {_stem(word) for word in _CONTENT.findall(text.casefold()) if word not in _FUNCTION_WORDS}


def shared_numbers(prompt: str, cot: str) -> tuple[int, int]:
    """How many distinct numbers a prompt has, and how many the chain of thought repeats, in digits or in words."""
    asked = {number.value for number in numbers(prompt)}
    said = {number.value for number in (*numbers(cot), *small_number_words(cot))} if asked else set()
    return len(asked), len(asked & said)


def shared_words(prompt: str, cot: str) -> tuple[int, int]:
    """How many distinct content words a prompt has, and how many of them the chain of thought repeats."""
    asked = content_stems(prompt)
    return len(asked), len(asked & content_stems(cot)) if asked else 0


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
