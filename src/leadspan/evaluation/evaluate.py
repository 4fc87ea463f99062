"""Evaluation of one model on tasks: draw samples, store each, grade and count. An interrupted one resumes.

`ask` draws answers to single questions, outside of any task.
"""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from leadspan.answers.boxes import has_box, is_thinking_closed, with_usual_tags
from leadspan.answers.grading import GradeItem, MathGrader, exact_grade, literal_grade
from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.data.templates import Message
from leadspan.errors import EvaluationError
from leadspan.evaluation.result import EvalResult
from leadspan.evaluation.samples import Graded, Key, SampleFile, StoredSample, evaluation_result
from leadspan.evaluation.sampling import Request, Sample, budgets, encode, loop_end, prompt_ids
from leadspan.evaluation.settings import EvaluationSettings, TaskSettings, Vllm
from leadspan.evaluation.subject import SUFFIX, Subject, ThinkingBudget, open_subject
from leadspan.evaluation.tasks import Problem, choice_grade, load_task, task_prompts, warn_of_golds
from leadspan.evaluation.vllm_engine import VLLM_REMEDY
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.status import Progress

logger = logging.getLogger(__name__)

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
    drawn = _drawn(subject, {(str(i), 0): Request(prompt, f"ask:{i}") for i, prompt in enumerate(prompts)})
    budget = subject.thinking_budget
    closed = {} if budget is None else _drawn(subject, budget.requests(drawn.values()))
    return [(sample, closed.get(key)) for key, sample in drawn.items()]


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
            requests = [
                Request(prompt, problem.problem_id, ids) for problem, prompt in zip(problems, prompts, strict=True)
            ]
            budgets(requests, prompt_ids(renderer.tokenizer, requests), window, sampling.max_new_tokens)


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
    texts = [
        with_usual_tags(sample.drawn.text, sample.thinking_closed, tags.think_open, tags.think_close)
        for sample in samples
    ]
    by_id, items = {problem.problem_id: problem for problem in problems}, []
    for stored, text in zip(samples, texts, strict=True):
        problem = by_id[stored.problem_id]
        gold = problem.entry if task.grader == "reasoning_gym" else problem.gold
        items.append(GradeItem(text, gold, stored.is_finished, problem.choices))
    if task.grader in _GRADERS:
        verdicts = [_GRADERS[task.grader](item) for item in items]
    else:
        # The parser and the verifiers may run for ever, so they run in processes that can be killed.
        with MathGrader(item_seconds=settings.item_seconds) as grader:
            verdicts = grader.grade(items) if task.grader == "math" else grader.grade_by_verifier(items)
    file.write_graded(samples, verdicts)
    # A box counts only where the thinking was closed: before that it is no answer.
    graded = [
        Graded(sample, verdict, sample.thinking_closed and has_box(text))
        for sample, verdict, text in zip(samples, verdicts, texts, strict=True)
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
    samples = file.read(requests)
    if samples:
        logger.info("%s: resuming after %d of %d samples", file.path, len(samples), len(requests))
    samples |= reused
    missing = {key: request for key, request in requests.items() if key not in samples}
    keys = list(missing)
    progress = Progress("evaluating", len(requests), f"samples of {file.path.stem}", len(samples))
    progress.report(len(samples))
    start = time.perf_counter()
    for batch in subject.generate(list(missing.values())):
        # Samples of a batch are drawn together, so each gets an equal share of its time.
        seconds = (time.perf_counter() - start) / len(batch)
        new = [to_stored(keys[i], missing[keys[i]], batch[i], subject, seconds) for i in sorted(batch)]
        file.append(new)
        samples |= {stored.key: stored for stored in new}
        progress.report(len(samples))
        start = time.perf_counter()
    if not samples.keys() >= requests.keys():
        raise EvaluationError(f"{file.path}: {len(requests) - len(samples)} samples were not drawn; evaluate again")
    return [samples[key] for key in requests]


def _drawn(subject: Subject, requests: Mapping[Key, Request]) -> dict[Key, StoredSample]:
    # In the order of the requests, although batches come by length.
    keys, samples = list(requests), dict[Key, StoredSample]()
    for batch in subject.generate(list(requests.values())) if keys else ():
        samples |= {keys[i]: to_stored(keys[i], requests[keys[i]], sample, subject, 0.0) for i, sample in batch.items()}
    return {key: samples[key] for key in keys}


def to_stored(key: Key, request: Request, sample: Sample, subject: Subject, seconds: float) -> StoredSample:
    """A sample as it is stored: with the text that it continued, and whether its thinking was closed."""
    tokenizer, tags = subject.renderer.tokenizer, subject.renderer.rendering
    # A continued sample is stored as one text, so that it is graded and counted like any other.
    if request.begun:
        text = f"{tokenizer.decode(list(request.begun), skip_special_tokens=False)}{sample.text}"
        loops = loop_end(encode(tokenizer, text)) is not None
        sample = replace(sample, text=text, num_tokens=len(request.begun) + sample.num_tokens, loops=loops)
    is_closed = is_thinking_closed(sample.text, request.prompt, tags.think_open, tags.think_close)
    return StoredSample(*key, request.prompt, sample, is_closed, seconds)
