"""Evaluation of one model on tasks: draw samples, store each, grade, and count the figures of a result.

An interrupted one resumes. `ask` draws answers to single questions, outside of any task.
"""

import importlib.util
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

import numpy as np

from leadspan.answers.boxes import has_box, is_thinking_closed, with_usual_tags
from leadspan.answers.equality import chosen_letter, normalise
from leadspan.answers.grading import GradeItem, MathGrader, Verdict, exact_grade, literal_grade
from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.data.templates import Message
from leadspan.errors import EvaluationError
from leadspan.evaluation.result import EvalResult, Marks
from leadspan.evaluation.sampling import Request, encode, loop_end, prompts_and_caps
from leadspan.evaluation.settings import EvaluationSettings, SamplingSettings, TaskSettings, Vllm
from leadspan.evaluation.subject import SUFFIX, Key, SampleFile, StoredSample, Subject, ThinkingBudget, open_subject
from leadspan.evaluation.tasks import Problem, choice_grade, load_task, task_prompts, warn_of_golds
from leadspan.evaluation.vllm_engine import VLLM_REMEDY
from leadspan.files import write_atomically
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.statistics.intervals import Interval, bootstrap_mean, bootstrap_share
from leadspan.status import Progress

logger = logging.getLogger(__name__)

MAJORITY_DRAWS = 500
"""Subsets of the samples from which maj@k is estimated, where k is less than their number."""
_GRADERS = {"exact": exact_grade, "choice": choice_grade, "literal": literal_grade}  # those that always end soon


def evaluate_model(
    model_settings: ModelSettings,
    tokenizer: Pretrained,
    rendering: Rendering,
    settings: EvaluationSettings,
    directory: Path,
) -> list[EvalResult]:
    """Evaluate one model on every task of the settings, with the chat template of a tokenizer.

    Samples are written below `samples/` of the directory, one line each; those of an interrupted evaluation are reused.

    Raises:
        ModelError: Model or tokenizer cannot be used.
        DataError: A task cannot be read.
        EvaluationError: A prompt does not fit the model's window, or the samples there belong to another evaluation.
    """
    numbers = {settings.sampling.samples_per_problem or task.samples_per_problem for task in settings.tasks}
    if settings.sampling.temperature == 0 and max(numbers, default=1) > 1:
        logger.warning(
            "sampling.temperature 0 draws the same answer every time: %d samples of a problem say no more than one "
            "(sampling.samples_per_problem=1)", max(numbers),
        )  # fmt: skip
    tasks = [(task, load_task(task)) for task in settings.tasks]
    for task, problems in tasks:
        warn_of_golds(task, problems)
    # After the tasks were read: a broken file is reported before a model is loaded.
    subject = open_subject(model_settings, tokenizer, rendering, settings.sampling)
    # Before the first task is drawn, since the last one may be refused.
    check_evaluation(settings, {task.name: problems for task, problems in tasks}, subject.renderer, subject.window)
    results: list[EvalResult] = []
    for task, problems in tasks:
        prompts = task_prompts(task.name, problems, subject.renderer, settings.system)
        requests = {
            (problem.problem_id, i): Request(prompt, f"{problem.problem_id}:{i}")
            for problem, prompt in zip(problems, prompts, strict=True)
            for i in range(settings.sampling.samples_per_problem or task.samples_per_problem)
        }
        golds = {problem.problem_id: problem.gold for problem in problems}
        path = directory / "samples" / f"{task.name}.jsonl"
        file = SampleFile(path, subject.weights_hash, subject.drawn_with, golds)
        samples = _draw(subject, requests, file)
        results.append(_grade_and_count(subject, task, problems, samples, file, settings))
        if subject.thinking_budget is None:
            continue
        continued = subject.thinking_budget.requests(samples)
        # Samples that closed their thinking themselves count in both results; their time counts in the first one only.
        as_it_is = {stored.key: replace(stored, seconds=0.0) for stored in samples if stored.key not in continued}
        path = path.with_name(f"{task.name}{SUFFIX}.jsonl")
        file = SampleFile(path, subject.weights_hash, subject.answered_with, golds)
        answered = _draw(subject, requests | continued, file, as_it_is)
        result = _grade_and_count(subject, task, problems, answered, file, settings)
        shares = {"answering": "made to answer", "closed_for_rate": len(continued) / len(answered)}
        results.append(result.model_copy(update={"task": task.name + SUFFIX, **shares}))
    return results


def ask(subject: Subject, conversations: Sequence[Sequence[Message]]) -> list[tuple[StoredSample, StoredSample | None]]:
    """Answers to conversations that end with a user's turn.

    Returns:
        For each conversation the drawn answer; and, where a thinking budget closed its thinking, the same thought with
        an answer, else None.

    Raises:
        EvaluationError: A prompt leaves no room for a new token in the model's window.
        TemplateRefusal: The chat template refuses a conversation.
    """
    prompts = [subject.renderer.prompt_text(messages) for messages in conversations]
    # The key names the question, so that two models, or the same one twice, draw with the same noise.
    asked = {(str(i), 0): Request(prompt, f"ask:{i}") for i, prompt in enumerate(prompts)}
    by_key = {sample.key: sample for batch in _drawn(subject, asked) for sample in batch}
    drawn = [by_key[key] for key in asked]  # batches come by length
    requests = {} if subject.thinking_budget is None else subject.thinking_budget.requests(drawn)
    closed = {sample.key: sample for batch in _drawn(subject, requests) for sample in batch}
    return [(sample, closed.get(sample.key)) for sample in drawn]


def check_evaluation(
    settings: EvaluationSettings, tasks: Mapping[str, Sequence[Problem]], renderer: PromptRenderer, window: int | None
) -> None:
    """Refuse, before a model is trained, problems that it cannot be given and settings with which it cannot answer.

    Raises:
        DataError: A problem cannot be rendered as it stands.
        EvaluationError: A prompt leaves no room for a new token in the model's window, or the budget of thinking none
            for an answer, or the engine is not installed.
    """
    sampling = settings.sampling
    # What an answer is preceded by at most: nothing, or thinking that was closed for it.
    begun: list[tuple[int, ...]] = [()]
    if sampling.thinking_budget is not None:
        budget = ThinkingBudget.of(sampling.thinking_budget, sampling.max_new_tokens, renderer)
        begun.append((*[0] * budget.num_tokens, *budget.closing))
    if isinstance(sampling.engine, Vllm) and importlib.util.find_spec("vllm") is None:
        raise EvaluationError(f"sampling.engine: vllm is not installed; {VLLM_REMEDY}")
    for name, problems in tasks.items():
        prompts = task_prompts(name, problems, renderer, settings.system)
        for ids in begun:
            pairs = zip(problems, prompts, strict=True)
            requests = [Request(prompt, problem.problem_id, ids) for problem, prompt in pairs]
            prompts_and_caps(renderer.tokenizer, requests, window, sampling.max_new_tokens)


def _grade_and_count(
    subject: Subject,
    task: TaskSettings,
    problems: Sequence[Problem],
    samples: Sequence[StoredSample],
    file: SampleFile,
    settings: EvaluationSettings,
) -> EvalResult:
    """Grade all samples, write them to their file with their verdicts, and count the figures of a result."""
    start, tags = time.perf_counter(), subject.renderer.rendering
    by_id, items = {problem.problem_id: problem for problem in problems}, list[GradeItem]()
    for stored in samples:
        text = with_usual_tags(stored.drawn.text, stored.thinking_closed, tags.think_open, tags.think_close)
        problem = by_id[stored.problem_id]
        gold = problem.entry if task.grader == "reasoning_gym" else problem.gold
        items.append(GradeItem(text, gold, stored.is_finished, problem.choices))
    if task.grader in _GRADERS:
        verdicts = [_GRADERS[task.grader](item) for item in items]
    else:
        # The parser and the verifiers may run for ever, so they run in processes that can be killed.
        with MathGrader(item_seconds=settings.item_seconds) as grader:
            verdicts = grader.grade(items) if task.grader == "math" else grader.grade_by_verifier(items)
    lines = (file.line(stored, verdict) for stored, verdict in zip(samples, verdicts, strict=True))
    write_atomically(file.path, "".join(lines))
    # A box counts only where the thinking was closed: before that it is no answer.
    graded = [
        Graded(sample, verdict, sample.thinking_closed and has_box(item.text))
        for sample, verdict, item in zip(samples, verdicts, items, strict=True)
    ]
    # Every problem has the same number of samples, in order.
    number = len(samples) // len(problems)
    by_problem = [graded[i : i + number] for i in range(0, len(graded), number)]
    sampling = settings.sampling.model_copy(update={"precision": subject.precision})
    result = evaluation_result(task, by_problem, sampling, subject.name, subject.weights_hash)
    seconds = sum(sample.seconds for sample in samples) + time.perf_counter() - start
    return result.model_copy(update={"seconds": seconds, "samples_file": f"samples/{file.path.name}"})


def _draw(
    subject: Subject,
    requests: Mapping[Key, Request],
    file: SampleFile,
    reused: Mapping[Key, StoredSample] = MappingProxyType({}),
) -> list[StoredSample]:
    """All samples, problem by problem: the reused ones, those of the file, and the missing ones, drawn and stored."""
    tags = subject.renderer.rendering
    samples = {
        # By the tags of now: they change no draw.
        key: replace(s, thinking_closed=is_thinking_closed(s.drawn.text, s.prompt, tags.think_open, tags.think_close))
        for key, s in file.read(requests).items()
    }
    if samples:
        logger.info("%s: resuming after %d of %d samples", file.path, len(samples), len(requests))
    samples |= reused
    missing = {key: request for key, request in requests.items() if key not in samples}
    progress = Progress("evaluating", len(requests), f"samples of {file.path.stem}", len(samples))
    progress.report(len(samples))
    for new in _drawn(subject, missing):
        file.append(new)
        samples |= {stored.key: stored for stored in new}
        progress.report(len(samples))
    if not samples.keys() >= requests.keys():
        raise EvaluationError(f"{file.path}: {len(requests) - len(samples)} samples were not drawn; evaluate again")
    return [samples[key] for key in requests]


def _drawn(subject: Subject, requests: Mapping[Key, Request]) -> Iterator[list[StoredSample]]:
    """The samples of requests, batch by batch, as they are stored: with the text that they continued."""
    tokenizer, tags = subject.renderer.tokenizer, subject.renderer.rendering
    keys, start = list(requests), time.perf_counter()
    for batch in subject.generate(list(requests.values())):
        # Samples of a batch are drawn together, so each gets an equal share of its time.
        seconds = (time.perf_counter() - start) / len(batch)
        samples: list[StoredSample] = []
        for i in sorted(batch):
            request, sample = requests[keys[i]], batch[i]
            # A continued sample is stored as one text, so that it is graded and counted like any other.
            if request.begun:
                text = f"{tokenizer.decode(list(request.begun), skip_special_tokens=False)}{sample.text}"
                loops = loop_end(encode(tokenizer, text)) is not None
                sample = replace(sample, text=text, num_tokens=len(request.begun) + sample.num_tokens, loops=loops)
            is_closed = is_thinking_closed(sample.text, request.prompt, tags.think_open, tags.think_close)
            samples.append(StoredSample(*keys[i], request.prompt, sample, is_closed, seconds))
        yield samples
        start = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Graded:
    """A sample with its verdict."""

    stored: StoredSample
    verdict: Verdict
    has_box: bool  # whether a box with content stands behind closed thinking, finished or not


def evaluation_result(
    task: TaskSettings, problems: Sequence[Sequence[Graded]], sampling: SamplingSettings, model: str, weights_hash: str
) -> EvalResult:
    """All figures of one model on one task, from the samples of each problem."""
    flat = [graded for drawn in problems for graded in drawn]
    drawings = [graded.stored.drawn for graded in flat]
    lengths = np.array([drawing.num_tokens for drawing in drawings])
    correct: Marks = {
        drawn[0].stored.problem_id: [1 if g.verdict.strict == "right" else 0 for g in drawn] for drawn in problems
    }
    terminated: Marks = {
        drawn[0].stored.problem_id: [1 if g.stored.drawn.finish_reason == "stop" else 0 for g in drawn]
        for drawn in problems
    }
    finished = [sum(graded.stored.is_finished for graded in drawn) for drawn in problems]
    return EvalResult(
        task=task.name,
        model=model,
        weights_hash=weights_hash,
        num_problems=len(problems),
        samples_per_problem=len(problems[0]),
        sampling=sampling.model_dump(mode="json"),
        accuracy_strict=bootstrap_mean(list(correct.values())),
        accuracy_flexible=bootstrap_mean([[int(g.verdict.flexible == "right") for g in drawn] for drawn in problems]),
        accuracy_finished=bootstrap_share([sum(scores) for scores in correct.values()], finished),
        pass_at=pass_at(list(correct.values())),
        majority_at=majority_at(problems, has_choices=task.grader == "choice"),
        termination_rate=bootstrap_mean(list(terminated.values())),
        cap_hit_rate=fmean(drawing.finish_reason == "length" for drawing in drawings),
        thinking_closed_rate=fmean(graded.stored.thinking_closed for graded in flat),
        loop_rate=fmean(drawing.loops for drawing in drawings),
        no_box_rate=None if task.grader == "exact" else fmean(not graded.has_box for graded in flat),
        tokens_mean=float(lengths.mean()),
        tokens_p50=float(np.percentile(lengths, 50)),
        tokens_p95=float(np.percentile(lengths, 95)),
        outcomes=dict(Counter(graded.verdict.strict for graded in flat)),
        correct=correct,
        terminated=terminated,
    )


def pass_at(correct: Sequence[Sequence[int]]) -> dict[str, Interval]:
    """pass@k for k = 1, 2, 4, ... and the number n of samples; empty where n is 1.

    The chance that k samples drawn without replacement hold a right one: the mean over problems of
    1 - C(n - c, k) / C(n, k), with c right samples of n. Intervals are over problems; drawing samples again would bias
    them, since a drawn-twice sample shows nothing new.

    **Source**: Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374, equation 1.
    """
    counts = [(len(scores), sum(scores)) for scores in correct]
    return {
        str(k): bootstrap_mean([[1 - comb(n - right, k) / comb(n, k)] for n, right in counts])
        for k in _numbers(counts[0][0])
    }


def majority_at(problems: Sequence[Sequence[Graded]], has_choices: bool = False) -> dict[str, Interval]:
    """maj@k for k = 2, 4, ... and the number of samples: how often the answer that most of k samples give is right.

    Answers count as the same when `normalise` writes them alike, or where there are choices when they name the same
    letter; the gold has no part in that. Samples without a strict
    answer have no vote, a tie counts by the share of the tied answers that are right, and k samples without any vote
    are wrong. For k below the number of samples it is the mean over `MAJORITY_DRAWS` subsets drawn from a fixed seed.
    Intervals are over problems.

    **Source**: Wang et al., Self-Consistency, arXiv 2203.11171, section 2.
    """
    numbers = [k for k in _numbers(len(problems[0])) if k > 1]
    scores: dict[int, list[list[float]]] = {k: [] for k in numbers}
    for drawn in problems:
        # The class of each sample's answer, -1 without one; and how right each class is.
        voting = [g.verdict.extracted if g.stored.is_finished else None for g in drawn]
        letters = [chosen_letter(answer) if answer and has_choices else None for answer in voting]
        answers = [
            letter or (normalise(answer) if answer else None) for letter, answer in zip(letters, voting, strict=True)
        ]
        class_of = {answer: number for number, answer in enumerate(dict.fromkeys(a for a in answers if a is not None))}
        classes = np.array([-1 if answer is None else class_of[answer] for answer in answers])
        is_right = np.array([graded.verdict.strict == "right" for graded in drawn], dtype=float)
        right = np.array([is_right[classes == number].mean() for number in range(len(class_of))])
        for k in numbers:
            # With all samples there is one subset, and nothing is drawn.
            subsets = classes[None]
            if k < len(classes):
                # Sorting random numbers gives a permutation per row; its first k entries are a subset without repeats.
                order = np.random.default_rng(0).random((MAJORITY_DRAWS, len(classes))).argsort(axis=1)
                subsets = classes[order[:, :k]]
            counts = (subsets[:, :, None] == np.arange(len(right))).sum(axis=1)
            most = counts.max(axis=1, keepdims=True, initial=0)
            wins = (counts == most) & (most > 0)
            # Tied classes share the outcome; a subset without any vote has no winner and scores 0.
            of_subsets = (wins * right).sum(axis=1) / np.maximum(wins.sum(axis=1), 1)
            scores[k].append([float(of_subsets.mean())])
    return {str(k): bootstrap_mean(of_problems) for k, of_problems in scores.items()}


def _numbers(num_samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples, which comes last; none where there is one sample."""
    # Powers of two are evenly spaced on the logarithmic axis of pass@k plots.
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    return [*powers, num_samples] if num_samples > 1 else []
