"""Everything that an audit needs of a single trace."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leadspan.answers.boxes import last_boxed
from leadspan.answers.numbers import as_number, literal, numbers
from leadspan.audit.contamination import Question, TaskIndex, shared_with
from leadspan.audit.duplicates import signature
from leadspan.audit.locate import Located, Locator, question_of
from leadspan.audit.overlap import shared_numbers, shared_words
from leadspan.audit.repetition import has_loop, repeated_share
from leadspan.audit.settings import AuditSettings
from leadspan.data.sections import Rendered, Renderer
from leadspan.traces.records import Refusal, Trace


@dataclass(frozen=True, slots=True)
class Examined:
    """The findings of one trace.

    Attributes:
        located: Its location, its sections, and where it states its answer or may do so.
        numbers: Distinct numbers of the prompt, and those that the chain of thought repeats.
        words: Distinct content words of the prompt, and those that the chain of thought repeats.
        answer_stands: Whether its own final answer occurs in the chain of thought; None where it has none in a box.
        has_loop: Whether the chain of thought loops.
        repeated_sentences: Share of its sentences that repeat an earlier one.
        signature: MinHash values of chain of thought and answer.
        shared: Questions of tasks that share n-grams with the prompt.
        gold_fault: Why the record has no reference answer, where it has a column for it.
    """

    located: Located
    numbers: tuple[int, int]
    words: tuple[int, int]
    answer_stands: bool | None
    has_loop: bool
    repeated_sentences: float
    signature: np.ndarray
    shared: dict[Question, float]
    gold_fault: str


@dataclass(frozen=True)
class Examiner:
    """Examines traces, with the renderer, the settings and the tasks of an audit."""

    renderer: Renderer
    settings: AuditSettings
    tasks: TaskIndex

    def examine(self, batch: Sequence[Trace | Refusal]) -> list[Examined | Refusal]:
        """Render, tokenise and examine a batch; refusals come first."""
        located, refused = Locator(self.renderer).locate(batch)
        return [*refused, *itertools.starmap(self._examine, located)]

    def _examine(self, trace: Trace, rendered: Rendered, located: Located) -> Examined | Refusal:
        # Training leaves the same traces aside for their length.
        sections, limits = rendered.sections, self.settings
        if sections.num_tokens < limits.data.min_tokens:
            return Refusal(
                f"shorter than {limits.data.min_tokens} tokens", f"{sections.num_tokens} tokens", trace.place
            )
        if limits.data.max_tokens is not None and sections.num_tokens > limits.data.max_tokens:
            return Refusal(f"longer than {limits.data.max_tokens} tokens", f"{sections.num_tokens} tokens", trace.place)
        prompt, cot_ids = question_of(trace), rendered.input_ids[sections.prompt_end : sections.cot_end]
        # Its last box, or an answer that is one number.
        stated = (last_boxed(trace.answer) or "").strip()
        if not stated and as_number(trace.answer) is not None:
            stated = trace.answer
        value = as_number(stated)  # by value: 1,000 counts as 1000
        if value is not None:
            answer_stands = any(number.value == value for number in numbers(trace.cot))
        else:
            answer_stands = literal(stated).casefold() in literal(trace.cot).casefold() if stated else None
        return Examined(
            located=located,
            numbers=shared_numbers(prompt, trace.cot),
            words=shared_words(prompt, trace.cot),
            answer_stands=answer_stands,
            has_loop=has_loop(cot_ids, limits.loop_repeats, limits.loop_tokens),
            repeated_sentences=repeated_share(trace.cot),
            # Without the prompt: answers of one question that differ are no duplicates.
            signature=signature(f"{trace.cot}\n{trace.answer}"),
            shared=shared_with("\n".join(message["content"] for message in trace.messages), self.tasks),
            gold_fault=trace.gold_fault,
        )
