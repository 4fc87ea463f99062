"""Which prompts ask the same question, whatever stands around it: all its traces go to one side of a split.

Questions are compared by words: case, punctuation, white space and the delimiters of LaTeX do not count, numbers do.
Left out are sentences that many prompts have in common, such as instructions and worked examples. Of what is left, a
question that another prompt contains as a whole is the same.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from unicodedata import name, normalize

import numpy as np
import pyarrow as pa
from datasets import Dataset

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
_SHARES = (0.0, 0.5, 1.0)
"""Places of the run of words by which a question is looked up: the begin, unless many begin so; middle; end."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product modulo 2^64 loses no bit; 2^64 by the golden ratio
_ROWS_AT_ONCE = 1_000
_PAIRS_AT_ONCE = 1 << 20
"""Pairs of a run and a question that begins with it: texts of one word have one of each for any other."""


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


def same_questions(rows: Dataset) -> np.ndarray:
    """Of each row the first row of the lowest id among those that ask the same question, int32, shape [rows].

    Rows have a `question_id`, 16 hexadecimal digits, and a `question`, which `folded_sentences` wrote. Held are hashes
    of 64 bits, not texts, so that a million questions take 0.1 GB. Two questions of one hash, which are 3e-8 to be
    expected among a million, would be in one group.
    """
    ids = np.fromiter((int(i, 16) for block in column_blocks(rows, "question_id") for i in block), dtype=np.uint64)
    ids, first_rows, question_of = np.unique(ids, return_index=True, return_inverse=True)
    # Questions are numbered in the order of the rows, so that a file is read from its begin to its end.
    order = np.argsort(first_rows).astype(np.int32)
    ids, first_rows = ids[order], first_rows[order].astype(np.int32)
    question_of = np.argsort(order).astype(np.int32)[question_of]
    questions, number = rows.select(first_rows), len(first_rows)
    del order
    sentences = array("q")
    for texts in column_blocks(questions, "question"):
        for text in texts:
            sentences.extend(map(hash, set(text.split("\n"))))
    hashes = np.frombuffer(sentences, dtype=np.int64)
    hashes.sort()
    is_common = hashes[_COMMON - 1 :] == hashes[: 1 - _COMMON]
    common = set(hashes[_COMMON - 1 :][is_common].tolist())
    del sentences, hashes, is_common
    keys, lengths, runs = np.empty(number, np.int64), np.empty(number, np.int32), np.empty(number, np.uint64)
    for start, block in _word_blocks(questions, common):
        end = start + len(block.cores)
        # A text without words is like no other.
        keys[start:end] = [hash(tuple(core) or i) for i, core in enumerate(block.cores, start)]
        lengths[start:end], runs[start:end] = np.diff(block.starts), block.indexed_runs(0.0)
    _, firsts, core_of = np.unique(keys, return_index=True, return_inverse=True)
    # A core has the number of its first question.
    firsts = firsts.astype(np.int32)
    core_of = firsts[core_of]
    index = _index(questions, common, lengths, runs, np.sort(firsts[lengths[firsts] >= FEWEST_WORDS]))
    del runs, firsts
    groups = _united(_word_blocks(questions, common), index, lengths, keys, core_of)[core_of]
    del index, keys, lengths
    _split_crowded(groups, questions)
    # Of each question the one of the lowest id in its group.
    lowest = np.full(len(ids), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, groups, ids)
    (firsts,) = np.nonzero(lowest[groups] == ids)
    first_of_group = np.empty(len(ids), dtype=np.int32)
    first_of_group[groups[firsts]] = firsts
    return first_rows[first_of_group[groups]][question_of]


def column_blocks(rows: Dataset, column: str) -> Iterator[list[Any]]:
    """A column, some rows at a time."""
    for block in rows.select_columns(column).with_format("arrow").iter(_ROWS_AT_ONCE):
        yield cast(pa.Table, block)[column].to_pylist()


@dataclass(frozen=True)
class _Words:
    """Some questions without the sentences that many prompts have, and their words one after the other.

    Attributes:
        cores: Words of each question.
        hashes: Hashes of all words, uint64, shape [words].
        starts: Where each question begins in them, and the end of the last one, shape [questions + 1].
    """

    cores: list[Sequence[str]]
    hashes: np.ndarray
    starts: np.ndarray

    def runs(self, size: int) -> np.ndarray:
        """Polynomial hashes modulo 2^64 of all runs of `size` words, of those across a border too."""
        total = np.zeros(max(0, len(self.hashes) - size + 1), dtype=np.uint64)
        for i in range(size):
            total = total * _FACTOR + self.hashes[i : i + len(total)]
        return total

    def indexed_runs(self, share: float) -> np.ndarray:
        """The run by which each question is looked up at a share of its length, shape [questions]; 0 for short ones."""
        lengths = np.diff(self.starts)
        chosen = np.zeros(len(lengths), dtype=np.uint64)
        for size in range(FEWEST_WORDS, _INDEXED_WORDS + 1):
            (which,) = np.nonzero(np.minimum(lengths, _INDEXED_WORDS) == size)
            chosen[which] = self.runs(size)[self.starts[which] + _offsets(lengths[which], share)]
        return chosen


def _word_blocks(questions: Dataset, common: Container[int]) -> Iterator[tuple[int, _Words]]:
    """Number of the first question, and the words, of some questions at a time."""
    start = 0
    for texts in column_blocks(questions, "question"):
        cores: list[Sequence[str]] = []
        for text in texts:
            rest = " ".join(part for part in text.split("\n") if hash(part) not in common).split()
            # All of it, where too little would be left.
            cores.append(rest if len(rest) >= FEWEST_WORDS else text.split())
        hashes = np.fromiter((hash(word) for core in cores for word in core), dtype=np.int64)
        yield start, _Words(cores, hashes.view(np.uint64), np.cumsum([0, *map(len, cores)]))
        start += len(texts)


def _offsets(lengths: np.ndarray, share: float) -> np.ndarray:
    """Where the indexed run begins in questions of these lengths."""
    return (share * np.maximum(0, lengths - _INDEXED_WORDS)).astype(np.int32)


class _Index(NamedTuple):
    """Questions by a run of their words: at the begin, if few begin so, else in the middle or at the end.

    Attributes:
        runs: Hashes of the runs in ascending order, shape [entries].
        cores: The question of each run, shape [entries].
        offsets: Where in it the run begins, shape [entries].
    """

    runs: np.ndarray
    cores: np.ndarray
    offsets: np.ndarray


def _index(
    questions: Dataset, common: Container[int], lengths: np.ndarray, runs: np.ndarray, cores: np.ndarray
) -> _Index:
    """Index cores, in ascending order, by their first runs, which are given, or by later ones."""
    index = _Index(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int32))
    runs = runs[cores]
    for share in _SHARES:
        if share > 0:
            crowded = _word_blocks(questions.select(cores), common)
            runs = np.concatenate([block.indexed_runs(share) for _, block in crowded])
        order = np.argsort(runs)
        runs, cores = runs[order], cores[order]
        del order
        # How many equal each run among these and those already indexed; both are in ascending order.
        _, counts = np.unique(runs, return_counts=True)
        num_alike = np.repeat(counts, counts)
        num_alike += np.searchsorted(index.runs, runs, "right") - np.searchsorted(index.runs, runs, "left")
        fits = num_alike <= _BUCKET
        entries = _Index(runs[fits], cores[fits], _offsets(lengths[cores[fits]], share))
        if len(index.runs):
            index = _Index(*map(np.concatenate, zip(index, entries, strict=True)))
            order = np.argsort(index.runs)
            entries = _Index(*(column[order] for column in index))
        index = entries
        cores = np.sort(cores[~fits])
        if not len(cores):
            break
    return index


def _united(
    blocks: Iterable[tuple[int, _Words]], index: _Index, lengths: np.ndarray, keys: np.ndarray, core_of: np.ndarray
) -> np.ndarray:
    """The group of each core, int32: a core and another one that contains all of it in a row are in one."""
    holders: defaultdict[int, set[int]] = defaultdict(set)
    sizes = np.unique(np.minimum(lengths[index.cores], _INDEXED_WORDS)).tolist()
    for first, block in blocks:
        question_at = np.repeat(np.arange(len(block.cores)), np.diff(block.starts))
        for size in sizes:
            runs = block.runs(size)
            low, high = (np.searchsorted(index.runs, runs, side) for side in ("left", "right"))
            (matching,) = np.nonzero(high > low)
            counts = (high - low)[matching]
            for part in np.array_split(np.arange(len(matching)), 1 + counts.sum() // _PAIRS_AT_ONCE):
                # Every entry of the index that begins like a run of this part, one after the other.
                ends = np.cumsum(counts[part])
                entries = np.repeat(low[matching[part]] - ends + counts[part], counts[part]) + np.arange(
                    ends[-1:].sum()
                )
                at = np.repeat(matching[part], counts[part])
                inner, start, question = index.cores[entries], at - index.offsets[entries], question_at[at]
                fits = (start >= block.starts[question]) & (start + lengths[inner] <= block.starts[question + 1])
                fits &= inner != core_of[first + question]
                start -= block.starts[question]
                for core, begin, number in zip(
                    *(values[fits].tolist() for values in (inner, start, question)), strict=True
                ):
                    words = block.cores[number][begin : begin + int(lengths[core])]
                    if len(holders[core]) < _MOST_WORDINGS and hash(tuple(words)) == keys[core]:
                        holders[core].add(int(core_of[first + number]))
    parents: dict[int, int] = {}

    def root(core: int) -> int:
        while (parent := parents.get(core, core)) != core:
            parents[core] = core = parents.get(parent, parent)
        return core

    for core, of_core in holders.items():
        if len(of_core) < _MOST_WORDINGS:
            for holder in of_core:
                parents[root(core)] = root(holder)
    groups = np.arange(len(lengths), dtype=np.int32)
    for core in parents:
        groups[core] = root(core)
    return groups


def _split_crowded(groups: np.ndarray, questions: Dataset) -> None:
    """Let a group of too many wordings count by wording, in place: each by the number of its first question."""
    (members,) = np.nonzero(np.bincount(groups)[groups] > _MOST_WORDINGS)
    if not len(members):
        return
    blocks = column_blocks(questions.select(members), "question")
    texts = (text.replace("\n", " ") for block in blocks for text in block)
    wordings = np.fromiter((hash(text or i) for i, text in enumerate(texts)), dtype=np.int64)
    order = np.lexsort((wordings, groups[members]))
    members, wordings, of_members = members[order], wordings[order], groups[members[order]]
    is_new = np.append(True, (np.diff(of_members) != 0) | (np.diff(wordings) != 0))
    is_crowded = np.bincount(of_members[is_new], minlength=len(groups)) > _MOST_WORDINGS
    first_of_wording = members[is_new][np.cumsum(is_new) - 1]
    groups[members] = np.where(is_crowded[of_members], first_of_wording, of_members)
