"""Questions of evaluation tasks that occur among the prompts: shared n-grams of words, counted by question.

Source: n-grams of 13 words as in Brown et al., arXiv 2005.14165, appendix C; a question with fewer words is searched
for as a whole, and one with fewer than five not at all. Words are compared without case and punctuation; a letter of a
script without spaces counts as two thirds of a word, so 13 words are 20 Chinese characters. Only prompts are searched,
since a trace is trained on with its question or not at all.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from leadspan.audit.findings import MOST_EXAMPLES, Contamination, SharedQuestion
from leadspan.audit.overlap import WORD, phrases, thirds_of_words
from leadspan.data.questions import FEWEST_WORDS, words
from leadspan.evaluation.settings import TaskSettings
from leadspan.evaluation.tasks import load_task

_SHOWN_CHARS = 80

Question = tuple[int, int]
"""Number of the task, number of its problem."""


@dataclass(frozen=True)
class TaskIndex:
    """The n-grams of all tasks.

    Attributes:
        names: Tasks.
        problems: Problem ids and texts of each task.
        grams: By length in thirds of a word, n-gram to the questions that have it.
        sizes: Distinct n-grams of each question; 0 for one that is too short.
        ngram_words: Words of an n-gram.
    """

    names: tuple[str, ...]
    problems: tuple[tuple[tuple[str, str], ...], ...]
    grams: Mapping[int, Mapping[str, tuple[Question, ...]]]
    sizes: Mapping[Question, int]
    ngram_words: int


@dataclass
class _Best:
    share: float = 0.0
    place: str = ""
    traces: set[int] = field(default_factory=set)


def index_tasks(tasks: Sequence[TaskSettings], ngram_words: int) -> TaskIndex:
    """Read tasks and index the n-grams of their questions, instructions left out.

    Raises:
        DataError: A task cannot be read.
    """
    # An instruction is common to all questions of a task, and would be found in many prompts.
    loaded = [load_task(task.model_copy(update={"instruction": ""})) for task in tasks]
    grams: defaultdict[int, defaultdict[str, list[Question]]] = defaultdict(lambda: defaultdict(list))
    sizes: dict[Question, int] = {}
    for t, problems in enumerate(loaded):
        for q, problem in enumerate(problems):
            tokens = words(problem.text)
            # A question shorter than an n-gram is searched for as a whole.
            size = min(WORD * ngram_words, thirds_of_words(tokens))
            task_phrases = set(phrases(tokens, size)) if size >= WORD * FEWEST_WORDS else set()
            sizes[t, q] = len(task_phrases)
            for gram in task_phrases:
                grams[size][gram].append((t, q))
    return TaskIndex(
        names=tuple(task.name for task in tasks),
        problems=tuple(tuple((p.problem_id, p.text) for p in problems) for problems in loaded),
        grams={
            size: {gram: tuple(questions) for gram, questions in of_size.items()} for size, of_size in grams.items()
        },
        sizes=sizes,
        ngram_words=ngram_words,
    )


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
    """One record per task, from the questions that each trace shares.

    Args:
        index: The tasks.
        shared: Result of `shared_with` for each trace.
        locations: File and line of each trace.
    """
    # Of each question the trace that shares most with it, and all traces that share anything.
    best: defaultdict[Question, _Best] = defaultdict(_Best)
    for i, shares_of_trace in enumerate(shared):
        for question, share in shares_of_trace.items():
            best[question].traces.add(i)
            if share > best[question].share:
                best[question].share, best[question].place = share, locations[i]
    records: list[Contamination] = []
    for t, (name, problems) in enumerate(zip(index.names, index.problems, strict=True)):
        of_task = sorted((q for q in best if q[0] == t), key=lambda question: -best[question].share)
        examples = [
            SharedQuestion(
                problem_id=problems[q][0], start=problems[q][1][:_SHOWN_CHARS],
                place=best[t, q].place, share=best[t, q].share,
            )
            for _, q in of_task[:MOST_EXAMPLES]
        ]  # fmt: skip
        record = Contamination(
            task=name,
            num_questions=len(problems),
            num_too_short=sum(not index.sizes[t, q] for q in range(len(problems))),
            num_shared=len(of_task),
            num_traces=len({i for question in of_task for i in best[question].traces}),
            ngram_words=index.ngram_words,
            examples=examples,
        )
        records.append(record)
    return records
