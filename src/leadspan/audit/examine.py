"""One trace after the other: everything an audit needs of a single trace, in processes of their own where asked for."""

import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from leadspan.audit.config import AuditSettings
from leadspan.audit.contamination import Question, TaskIndex, shared_with
from leadspan.audit.duplicates import signature
from leadspan.audit.first_answer import Candidates, find_candidates, gold_of
from leadspan.audit.overlap import shared_numbers, shared_words
from leadspan.audit.repetition import has_loop, repeated_share
from leadspan.audit.values import as_number, literal, numbers
from leadspan.data.records import Refusal, Trace
from leadspan.data.sections import Rendered, RenderedText, Renderer
from leadspan.data.truncation import Sections
from leadspan.evaluation.answers import last_boxed

BATCH = 32
"""Traces rendered, tokenised and examined at a time."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What one trace contributes.

    Attributes:
        place: Where it stands.
        example_id: Hash of its token ids.
        question_id: Hash of its question.
        sections: Section borders.
        candidates: Where the chain of thought states, or may state, the answer.
        token_positions: Index of the token at which each candidate begins, in the whole sequence.
        numbers: Distinct numbers of the prompt, and those that the chain of thought repeats.
        words: Distinct content words of the prompt, and those that the chain of thought repeats.
        answer_stands: Whether its own final answer stands in the chain of thought; None where it has none in a box.
        has_loop: Whether the chain of thought loops.
        repeated_sentences: Share of its sentences that repeat an earlier one.
        signature: MinHash values of chain of thought and answer.
        shared: Questions of tasks that share n-grams with the prompt.
    """

    place: str
    example_id: str
    question_id: str
    sections: Sections
    candidates: Candidates
    token_positions: tuple[int, ...]
    numbers: tuple[int, int]
    words: tuple[int, int]
    answer_stands: bool | None
    has_loop: bool
    repeated_sentences: float
    signature: np.ndarray
    shared: dict[Question, float]


@dataclass(frozen=True)
class Examiner:
    """What examining needs beside the traces."""

    renderer: Renderer
    settings: AuditSettings
    tasks: TaskIndex

    def examine(self, batch: Sequence[Trace | Refusal]) -> list[Examined | Refusal]:
        """Render, tokenise and examine a batch; refusals come first."""
        refused: list[Examined | Refusal] = []
        usable: list[tuple[Trace, RenderedText]] = []
        for item in batch:
            text = item if isinstance(item, Refusal) else self.renderer.render(item)
            if isinstance(item, Trace) and isinstance(text, RenderedText):
                usable.append((item, text))
            else:
                assert isinstance(text, Refusal)
                refused.append(text)
        traces, texts = [trace for trace, _ in usable], [text for _, text in usable]
        starts = [_cot_start(text, self.renderer.rendering.think_open) for text in texts]
        found = [
            find_candidates(text.text[start : text.think_end].rstrip(), _prompt(trace), gold_of(trace))
            for trace, text, start in zip(traces, texts, starts, strict=True)
        ]
        marks = [[start + c.start for c in f.found] for start, f in zip(starts, found, strict=True)]
        tokens = self.renderer.tokenise_marked(texts, traces, marks)
        return refused + [
            self._one(trace, rendered, candidates, positions)
            for trace, (rendered, positions), candidates in zip(traces, tokens, found, strict=True)
        ]

    def _one(
        self, trace: Trace, rendered: Rendered, candidates: Candidates, positions: tuple[int, ...]
    ) -> Examined | Refusal:
        sections, limits = rendered.sections, self.settings
        if sections.num_tokens < limits.data.min_tokens:
            return Refusal(
                f"shorter than {limits.data.min_tokens} tokens", f"{sections.num_tokens} tokens", trace.place
            )
        if limits.data.max_tokens is not None and sections.num_tokens > limits.data.max_tokens:
            return Refusal(f"longer than {limits.data.max_tokens} tokens", f"{sections.num_tokens} tokens", trace.place)
        prompt, cot_ids = _prompt(trace), rendered.input_ids[sections.prompt_end : sections.cot_end]
        return Examined(
            place=trace.place,
            example_id=rendered.example_id,
            question_id=rendered.question_id,
            sections=sections,
            candidates=candidates,
            token_positions=positions,
            numbers=shared_numbers(prompt, trace.cot),
            words=shared_words(prompt, trace.cot),
            answer_stands=_answer_stands(trace),
            has_loop=has_loop(cot_ids, limits.loop_repeats, limits.loop_tokens),
            repeated_sentences=repeated_share(trace.cot),
            signature=signature(f"{trace.cot}\n{trace.answer}"),
            shared=shared_with(prompt, self.tasks),
        )


def examine_all(items: Iterable[Trace | Refusal], examiner: Examiner, num_workers: int) -> Iterator[Examined | Refusal]:
    """Examine every trace.

    Args:
        items: Traces and refusals, in the order of the source.
        examiner: Tokenizer, thresholds and tasks.
        num_workers: Processes; fewer traces than one batch for each are examined in this one.
    """
    batches = _batched(iter(items))
    first = list(itertools.islice(batches, num_workers))
    if num_workers == 1 or len(first) < num_workers:
        yield from itertools.chain.from_iterable(map(examiner.examine, itertools.chain(first, batches)))
        return
    context = multiprocessing.get_context("forkserver")
    with context.Pool(num_workers, initializer=_set_examiner, initargs=(examiner,)) as pool:
        while first:
            for result in pool.imap(_examine_in_worker, first):
                yield from result
            first = list(itertools.islice(batches, 8 * num_workers))  # bounded: imap would read the whole source


def _batched(items: Iterator[Trace | Refusal]) -> Iterator[list[Trace | Refusal]]:
    while batch := list(itertools.islice(items, BATCH)):
        yield batch


_worker_examiner: list[Examiner] = []


def _set_examiner(examiner: Examiner) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_examiner[:] = [examiner]


def _examine_in_worker(batch: list[Trace | Refusal]) -> list[Examined | Refusal]:
    return _worker_examiner[0].examine(batch)


def _prompt(trace: Trace) -> str:
    """The last thing the user said: the question."""
    return next(message["content"] for message in reversed(trace.messages) if message["role"] == "user")


def _cot_start(text: RenderedText, think_open: str) -> int:
    """Where the chain of thought begins in a rendered conversation, behind its tag and white space."""
    start = text.text.index(think_open, text.prompt_end) + len(think_open)
    inside = text.text[start : text.think_end]
    return start + len(inside) - len(inside.lstrip())


def _answer_stands(trace: Trace) -> bool | None:
    """Whether the trace's last box, or an answer that is one number, stands anywhere in the chain of thought."""
    own = (last_boxed(trace.answer) or "").strip() or (trace.answer if as_number(trace.answer) is not None else "")
    if not own:
        return None
    value = as_number(own)
    if value is not None:
        return any(number.value == value for number in numbers(trace.cot))
    return literal(own).casefold() in literal(trace.cot).casefold()
