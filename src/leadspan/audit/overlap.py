"""Text that occurs twice: what two texts share, loops in one, duplicates among many, questions of tasks in prompts.

Words are compared without case and punctuation. In scripts that set no spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese, Tibetan) every letter counts as a word; among n-grams as two thirds of one, so 13 words are 20
Chinese characters.

Source of the duplicates: Broder, On the resemblance and containment of documents (1997); shingles of five words (of
five letters in scripts without spaces) and a Jaccard similarity of 0.8 as in Lee et al., arXiv 2107.06499. Hashing and
look-up are datasketch's.

Source of the questions of tasks: n-grams of 13 words as in Brown et al., arXiv 2005.14165, appendix C; a question with
fewer words is searched for as a whole, and one with fewer than five not at all. Only prompts are searched: a trace
is trained on with its question or not at all.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from unicodedata import normalize

import numpy as np
from datasketch import MinHash, MinHashLSH

from leadspan.answers.numbers import numbers, small_number_words
from leadspan.audit.findings import MOST_EXAMPLES, Contamination, Duplicates, SharedQuestion
from leadspan.data.questions import FEWEST_WORDS, LETTER, UNSPACED, words
from leadspan.evaluation.settings import TaskSettings
from leadspan.evaluation.tasks import load_task

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
# Of plurals and verbs. Three letters must be left, so that `sing` and `bed` stay whole.
_ENDING = re.compile(r"(?<=...)(?:ing|ed|es|s)\Z")


def thirds_of_words(tokens: Sequence[str]) -> list[int]:
    """The length of each word in thirds of a word, so that texts of all scripts are measured alike."""
    return [_LETTER_THIRDS if LETTER.match(token) else WORD for token in tokens]


def phrases(tokens: Sequence[str], thirds: int) -> Iterator[str]:
    """From every word on, the shortest run of at least so many thirds of a word; in spaced scripts n-grams of words."""
    # Length of the text up to each word, in thirds of a word.
    ends = list(accumulate(thirds_of_words(tokens), initial=0))
    end = 0
    for start, before in enumerate(ends):
        while end < len(ends) and ends[end] - before < thirds:
            end += 1
        if end == len(ends):
            return
        yield " ".join(tokens[start:end])


def content_stems(text: str) -> set[str]:
    """The distinct words that carry meaning, without plural and verb endings; pairs of letters in unspaced scripts.

    >>> sorted(content_stems("How many eggs does she need for the cooking?"))
    ['cook', 'egg', 'need']
    """
    # Full-width letters count as the usual ones.
    text = normalize("NFKC", text).casefold()
    stems = {_ENDING.sub("", word) for word in _CONTENT.findall(text) if word not in _FUNCTION_WORDS}
    return stems.union(*(map("".join, pairwise(run)) for run in _RUN.findall(text)))


def repeated_content(prompt: str, cot: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many distinct numbers a prompt has, and how many the chain of thought repeats; the same of content words.

    Numbers are repeated in digits or in words.
    """
    asked, stems = {number.value for number in numbers(prompt)}, content_stems(prompt)
    # Without any in the prompt the chain of thought, which is long, need not be read.
    said = {number.value for number in (*numbers(cot), *small_number_words(cot))} if asked else set()
    said_stems = content_stems(cot) if stems else set[str]()
    return (len(asked), len(asked & said)), (len(stems), len(stems & said_stems))


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
    lengths = ((part, max(WORD * part.count(" ") + WORD, sum(thirds_of_words(words(part))))) for part in sentences)
    sentences = [part for part, thirds in lengths if thirds >= WORD * _FEWEST_WORDS]
    return 1 - len(set(sentences)) / len(sentences) if sentences else 0.0


# 128 permutations estimate a similarity to about 0.04 (standard error of a mean of 128 matches at 0.8).
NUM_PERM = 128
SHINGLE_WORDS = 5
_SCHEME = "affine32"
# Its permutations are drawn once, for all signatures.
_EMPTY = MinHash(num_perm=NUM_PERM, scheme=_SCHEME)


def signature(text: str) -> np.ndarray:
    """MinHash values of the word 5-grams of a text (of all its words where it has fewer), shape [128]."""
    tokens = words(text)
    size = min(SHINGLE_WORDS, max(1, len(tokens)))
    shingles = {" ".join(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}
    values = _EMPTY.copy()
    # Sorted, so that the order of a set does not matter.
    values.update_batch([shingle.encode() for shingle in sorted(shingles)])
    return values.hashvalues


def find_duplicates(
    example_ids: Sequence[str], questions: Sequence[str], signatures: Sequence[np.ndarray], locations: Sequence[str],
    threshold: float,
) -> Duplicates:  # fmt: skip
    """Count traces that repeat an earlier one; of a group of equals all but the first are counted.

    Args:
        example_ids: Hash of the token ids of each trace.
        questions: Hash of its question.
        signatures: Result of `signature` for its chain of thought and answer.
        locations: Its file and line.
        threshold: Estimated Jaccard similarity from which two are near duplicates.
    """
    # It returns candidates, more than enough: none of its tables fits a threshold of 1.
    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=NUM_PERM)
    hashes: list[MinHash] = []
    exact: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    num_exact = num_near = 0
    for i, example_id in enumerate(example_ids):
        minhash = MinHash(num_perm=NUM_PERM, hashvalues=signatures[i], permutations=_EMPTY.permutations, scheme=_SCHEME)
        hashes.append(minhash)
        # An exact copy is no near duplicate too, so it is neither looked up nor indexed.
        if example_id in exact:
            num_exact += 1
            pairs.append((locations[i], locations[exact[example_id]]))
            continue
        exact[example_id] = i
        # The estimated similarity decides; the first that is like it is enough, since all traces may be alike.
        candidates = sorted(int(str(key)) for key in index.query(minhash))
        earlier = next((key for key in candidates if minhash.jaccard(hashes[key]) >= threshold), None)
        if earlier is not None:
            num_near += 1
            pairs.append((locations[i], locations[earlier]))
        index.insert(str(i), minhash)
    return Duplicates(
        num_questions=len(set(questions)), num_exact=num_exact, num_near=num_near, threshold=threshold,
        examples=pairs[:MOST_EXAMPLES],
    )  # fmt: skip


# Characters of a question that is shown as an example.
_SHOWN_CHARS = 80

Question = tuple[int, int]
"""Number of the task, number of its problem."""


@dataclass(frozen=True)
class TaskIndex:
    """The n-grams of all tasks."""

    names: tuple[str, ...]  # of the tasks
    problems: tuple[tuple[tuple[str, str], ...], ...]  # ids and texts of each task's
    grams: Mapping[int, Mapping[str, Sequence[Question]]]  # by length in thirds of a word, n-gram to its questions
    sizes: Mapping[Question, int]  # distinct n-grams of each question; 0 for one that is too short
    ngram_words: int


def index_tasks(tasks: Sequence[TaskSettings], ngram_words: int) -> TaskIndex:
    """Read tasks and index the n-grams of their questions, instructions left out.

    Raises:
        DataError: A task cannot be read.
    """
    # An instruction is common to all questions of a task, and would be found in many prompts.
    loaded = [load_task(task.model_copy(update={"instruction": ""})) for task in tasks]
    grams: dict[int, dict[str, list[Question]]] = {}
    sizes: dict[Question, int] = {}
    for t, problems in enumerate(loaded):
        for q, problem in enumerate(problems):
            tokens = words(problem.text)
            # A question shorter than an n-gram is searched for as a whole.
            size = min(WORD * ngram_words, sum(thirds_of_words(tokens)))
            task_phrases = set(phrases(tokens, size)) if size >= WORD * FEWEST_WORDS else set()
            sizes[t, q] = len(task_phrases)
            for gram in task_phrases:
                grams.setdefault(size, {}).setdefault(gram, []).append((t, q))
    texts = tuple(tuple((p.problem_id, p.text) for p in problems) for problems in loaded)
    return TaskIndex(tuple(task.name for task in tasks), texts, grams, sizes, ngram_words)


def shared_with(prompt: str, index: TaskIndex) -> dict[Question, float]:
    """The questions that share n-grams with a prompt, and the share of each question's n-grams."""
    tokens = words(prompt)
    counts: defaultdict[Question, int] = defaultdict(int)
    for size, of_size in index.grams.items():
        for gram in set(phrases(tokens, size)):
            for question in of_size.get(gram, ()):
                counts[question] += 1
    return {question: count / index.sizes[question] for question, count in counts.items()}


def summarise(
    index: TaskIndex, shared: Iterable[Mapping[Question, float]], locations: Sequence[str]
) -> list[Contamination]:
    """One record per task, from `shared_with` of each trace; of each question the trace that shares most."""
    sharing: defaultdict[Question, dict[int, float]] = defaultdict(dict)
    for i, shares_of_trace in enumerate(shared):
        for question, share in shares_of_trace.items():
            sharing[question][i] = share
    records: list[Contamination] = []
    for t, (name, problems) in enumerate(zip(index.names, index.problems, strict=True)):
        # In the order of the task among equals, since n-grams are looked up in no certain order.
        of_task = sorted((q for q in sharing if q[0] == t), key=lambda q: (-max(sharing[q].values()), q))
        examples: list[SharedQuestion] = []
        for question in of_task[:MOST_EXAMPLES]:
            (problem_id, text), shares = problems[question[1]], sharing[question]
            nearest = max(shares, key=shares.__getitem__)
            start, place = text[:_SHOWN_CHARS], locations[nearest]
            example = SharedQuestion(problem_id=problem_id, start=start, place=place, share=shares[nearest])
            examples.append(example)
        record = Contamination(
            task=name,
            num_questions=len(problems),
            num_too_short=sum(not index.sizes[t, q] for q in range(len(problems))),
            num_shared=len(of_task),
            num_traces=len({i for question in of_task for i in sharing[question]}),
            ngram_words=index.ngram_words,
            examples=examples,
        )
        records.append(record)
    return records
