"""The audit of a trace source: its contents, what each cut would remove, and where a cut would start to hurt."""

import itertools
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from leadspan.answers.boxes import last_boxed
from leadspan.answers.latex import literal
from leadspan.answers.numbers import as_number, numbers
from leadspan.audit import overlap
from leadspan.audit.findings import MOST_EXAMPLES, AuditResult, Entailment, PolicyLoss, Repetition
from leadspan.audit.first_answers import BATCH, Answered, Located, Locator, distribution, question_of, settle, summarise
from leadspan.audit.settings import AuditSettings
from leadspan.data.examples import count_cuts
from leadspan.data.questions import words
from leadspan.data.sections import Renderer
from leadspan.data.supervision import lay_out
from leadspan.data.truncation import cut_example, with_ends
from leadspan.data.truncation.policy import CutCounts, of_stages
from leadspan.errors import DataError
from leadspan.models.reading import load_tokenizer
from leadspan.processes import in_batches
from leadspan.status import Progress, report_status
from leadspan.traces.read import read_traces
from leadspan.traces.records import UNCLOSED, Refusal, RefusalCounter, Trace


@dataclass(frozen=True, slots=True)
class Examined:
    """The findings of one trace."""

    located: Located
    repeated: tuple[tuple[int, int], tuple[int, int]]  # numbers of the prompt, and of them in its thinking; words
    answer_stands: bool | None  # whether its own final answer occurs in its chain of thought; None if in no box
    has_loop: bool
    repeated_sentences: float  # share of those that repeat an earlier one
    signature: np.ndarray  # MinHash values of chain of thought and answer
    shared: dict[overlap.Question, float]  # questions of tasks that share n-grams with the prompt
    gold_fault: str  # why the record has no reference answer, where it has a column for it


@dataclass(frozen=True)
class Examiner:
    """Examines traces, with the renderer, the settings and the tasks of an audit."""

    renderer: Renderer
    settings: AuditSettings
    tasks: overlap.TaskIndex

    def examine(self, batch: Sequence[Trace | Refusal]) -> list[Examined | Refusal]:
        """Render, tokenise and examine a batch; refusals come first."""
        located, refused = Locator(self.renderer).locate(batch)
        results: list[Examined | Refusal] = [*refused]
        low, high = self.settings.data.min_tokens, self.settings.data.max_tokens
        for trace, rendered, search in located:
            sections = rendered.sections
            # Training leaves the same traces aside for their length.
            if sections.num_tokens < low or (high is not None and sections.num_tokens > high):
                reason = f"shorter than {low} tokens" if sections.num_tokens < low else f"longer than {high} tokens"
                results.append(Refusal(reason, f"{sections.num_tokens} tokens", trace.place))
                continue
            cot_ids = rendered.input_ids[sections.prompt_end : sections.cot_end]
            # Its last box, or an answer that is one number.
            stated = (last_boxed(trace.answer) or "").strip()
            if not stated and as_number(trace.answer) is not None:
                stated = trace.answer
            examined = Examined(
                located=search,
                repeated=overlap.repeated_content(question_of(trace), trace.cot),
                answer_stands=_occurs(stated, trace.cot) if stated else None,
                has_loop=overlap.has_loop(cot_ids, self.settings.loop_repeats, self.settings.loop_tokens),
                repeated_sentences=overlap.repeated_share(trace.cot),
                # Without the prompt: answers of one question that differ are no duplicates.
                signature=overlap.signature(f"{trace.cot}\n{trace.answer}"),
                shared=overlap.shared_with("\n".join(message["content"] for message in trace.messages), self.tasks),
                gold_fault=trace.gold_fault,
            )
            results.append(examined)
        return results


def run_audit(settings: AuditSettings, num_workers: int = 1) -> AuditResult:
    """Audit the training source of the settings, in so many processes.

    Raises:
        DataError: The source or a task cannot be read, or no trace of it can be used.
        ModelError: The tokenizer cannot be read, or its template drops the chain of thought.
    """
    begun, source = time.perf_counter(), settings.data.train
    renderer = Renderer(load_tokenizer(settings.tokenizer, settings.revision), settings.data.rendering)
    examiner = Examiner(renderer, settings, overlap.index_tasks(settings.tasks, settings.ngram_words))
    counter, progress = RefusalCounter(), Progress(f"reading {source.path}", None, "records")
    traces: list[Examined] = []
    for item in itertools.chain.from_iterable(in_batches(examiner.examine, read_traces(source), BATCH, num_workers)):
        counter.add(item)
        progress.report(counter.num_read)
        if not isinstance(item, Refusal):
            traces.append(item)
    if not traces:
        counter.check(1.0, source.path)  # always raises: nothing usable is left
    # Training leaves lengths out of bounds aside without counting them as refused.
    only_length = ("shorter than ", "longer than ")
    unusable = Counter({reason: n for reason, n in counter.counts.items() if not reason.startswith(only_length)})
    stops_training = None
    try:
        RefusalCounter(counter.num_read, unusable, counter.examples).check(settings.data.max_refused_share, "")
    except DataError as error:
        stops_training = str(error).splitlines()[0].removeprefix(": ").rstrip(":")
    findings = _findings(examiner, counter, traces, num_workers)
    seconds = time.perf_counter() - begun
    return findings.model_copy(update={"stops_training": stops_training, "seconds": seconds})


def _findings(examiner: Examiner, counter: RefusalCounter, traces: Sequence[Examined], num_workers: int) -> AuditResult:
    """The figures over all traces, whose candidate answers are compared first."""
    settings = examiner.settings
    report_status("comparing answers")
    answered, num_undecided = settle([trace.located for trace in traces], num_workers, settings.item_seconds)
    report_status("looking for duplicates")
    locations, borders = [answer.place for answer in answered], [answer.sections for answer in answered]
    looping = [trace.located.trace.place for trace in traces if trace.has_loop]
    lengths: dict[str, list[float]] = {
        "prompt": [s.prompt_end for s in borders],
        "cot": [s.cot_end - s.prompt_end for s in borders],
        "answer": [s.num_tokens - s.cot_end for s in borders],
        "all": [s.num_tokens for s in borders],
    }
    # Shares of the numbers and of the content words of a prompt that its chain of thought repeats.
    pairs = zip(*(trace.repeated for trace in traces), strict=True)
    numbers_said, words_said = ([num_said / num for num, num_said in of_traces if num] for of_traces in pairs)
    stands = [t.answer_stands for t in traces if t.answer_stands is not None]
    return AuditResult(
        source=settings.data.train.path,
        tokenizer=examiner.renderer.name,
        num_read=counter.num_read,
        num_traces=len(traces),
        refused=dict(counter.counts),
        refusal_examples={reason: f"{r.place}: {r.detail}" for reason, r in counter.examples.items()},
        num_unclosed=counter.counts[UNCLOSED],
        tokens={name: summary for name, values in lengths.items() if (summary := distribution(values)) is not None},
        steps=distribution([len(s.steps) + 1 for s in borders]),
        num_without_steps=sum(not s.steps for s in borders),
        gold_faults=dict(Counter(trace.gold_fault for trace in traces if trace.gold_fault)),
        first_answers=summarise(answered, num_undecided, settings.seed),
        entailment=Entailment(
            prompt_numbers=fmean(numbers_said) if numbers_said else None,
            all_prompt_numbers=fmean(share == 1 for share in numbers_said) if numbers_said else None,
            prompt_words=fmean(words_said) if words_said else None,
            answer_stands=fmean(stands) if stands else None,
        ),
        policies=_policy_losses(settings, answered),
        repetition=Repetition(
            num_loops=len(looping),
            examples=looping[:MOST_EXAMPLES],
            repeated_sentences=fmean(trace.repeated_sentences for trace in traces),
        ),
        duplicates=overlap.find_duplicates(
            [answer.example_id for answer in answered],
            [answer.question_id for answer in answered],
            [trace.signature for trace in traces],
            locations,
            settings.near_duplicate,
        ),
        contamination=overlap.summarise(examiner.tasks, (trace.shared for trace in traces), locations),
    )


def _occurs(answer: str, cot: str) -> bool:
    """Whether an answer stands in a chain of thought: a number by its value, else as whole words or in its spelling."""
    value = as_number(answer)  # 1,000 counts as 1000
    if value is not None:
        return any(number.value == value for number in numbers(cot))
    form = literal(answer)
    if not (letters := form.strip("()")).isalpha():
        return form.casefold() in literal(cot).casefold()
    if len(letters) == 1:  # of a choice: `A` is no article
        return re.search(rf"\b{letters}\b", cot) is not None
    return f" {' '.join(words(answer))} " in f" {' '.join(words(cot))} "


def _policy_losses(settings: AuditSettings, traces: Sequence[Answered]) -> list[PolicyLoss]:
    recipe_cut = settings.cut
    of_recipe = [] if recipe_cut is None else [recipe_cut, *with_ends(recipe_cut)]
    borders = [trace.sections for trace in traces]
    losses: list[PolicyLoss] = []
    # Each once. Not by label: that leaves out settings such as `stop` and `align`.
    for policy in dict.fromkeys([*of_recipe, *settings.policies]):
        counts: list[CutCounts] = []
        for stage in policy.stages:
            cuts = [cut_example(stage, t.sections, t.example_id, settings.seed) for t in traces]
            layouts = [lay_out(*row, settings.supervision) for row in zip(borders, cuts, strict=True)]
            counts.append(count_cuts(borders, cuts, layouts))
        losses.append(PolicyLoss(label=policy.label, is_own=policy == recipe_cut, counts=of_stages(counts)))
    return losses
