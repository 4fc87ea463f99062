"""Loops and repeated sentences in a chain of thought."""

import re

import numpy as np

from leadspan.audit.overlap import WORD, thirds_of_words
from leadspan.data.questions import words

LONGEST_PERIOD = 256
"""Longest period of a loop that is detected, in tokens."""
_SENTENCE = re.compile("[.!?\n\u3002\uff0e\uff01\uff1f]+")  # Chinese full stop and full-width marks among them
# Shorter sentences ("Wait.", "So x = 2.") occur more than once in sound traces.
_FEWEST_WORDS = 5


def has_loop(input_ids: np.ndarray, num_repeats: int, num_tokens: int) -> bool:
    """Whether the same run of tokens comes many times in a row.

    There is a period d for which ids[i] = ids[i + d] over a stretch long enough for `num_repeats` turns and for
    `num_tokens` tokens. Runs of one single token (blanks, rules) count like any other.

    Args:
        input_ids: Token ids, shape [T].
        num_repeats: Turns, at least 2.
        num_tokens: Tokens that all turns together must cover.
    """
    for period in range(1, min(LONGEST_PERIOD, len(input_ids) // num_repeats) + 1):
        # A loop of n tokens with period d has n - d positions at which ids[i] = ids[i + d].
        needed = max(period * num_repeats, num_tokens) - period
        if needed > len(input_ids) - period:
            continue
        differs = np.flatnonzero(input_ids[period:] != input_ids[:-period])
        # Runs without a difference lie between neighbouring differences, and before the first and after the last one.
        gaps = np.diff(differs, prepend=-1, append=len(input_ids) - period) - 1
        if gaps.max() >= needed:
            return True
    return False


def repeated_share(cot: str) -> float:
    """Share of the sentences of at least five words that occurred before in the same text; 0 where there are none."""
    sentences = (" ".join(part.split()).casefold() for part in _SENTENCE.split(cot))
    lengths = ((part, max(WORD * part.count(" ") + WORD, thirds_of_words(words(part)))) for part in sentences)
    sentences = [part for part, thirds in lengths if thirds >= WORD * _FEWEST_WORDS]
    return 1 - len(set(sentences)) / len(sentences) if sentences else 0.0
