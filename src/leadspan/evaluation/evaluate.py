"""One model on tasks: draw, keep every sample, grade, count. Interrupted, it goes on where it was."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from leadspan.data.config import Rendering
from leadspan.errors import EvaluationError
from leadspan.evaluation.answers import has_box, is_thinking_closed, with_usual_tags
from leadspan.evaluation.choices import choice_grade
from leadspan.evaluation.config import EvaluationSettings, TaskSettings
from leadspan.evaluation.grading import GradeItem, MathGrader, Verdict, exact_grade, literal_grade
from leadspan.evaluation.metrics import Graded, evaluation_result
from leadspan.evaluation.samples import Key, SampleFile, StoredSample
from leadspan.evaluation.sampling import Request, Sample
from leadspan.evaluation.subject import Subject, open_subject
from leadspan.evaluation.tasks import Problem, load_task
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.results import EvalResult

logger = logging.getLogger(__name__)


def evaluate_model(
    model_settings: ModelSettings,
    tokenizer: Pretrained,
    rendering: Rendering,
    settings: EvaluationSettings,
    directory: Path,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[EvalResult]:
    """Evaluate one model on every task of the settings.

    Args:
        model_settings: The model.
        tokenizer: Path and revision of its tokenizer, whose chat template renders the prompts.
        rendering: How prompts are rendered and thinking is tagged.
        settings: Tasks and sampling.
        directory: `samples/` is written here, one line per sample; samples that an interrupted evaluation left there
            are taken up.
        on_progress: Told in words what is being done.

    Raises:
        ModelError: Model or tokenizer cannot be used.
        DataError: A task cannot be read.
        EvaluationError: A prompt does not fit the model's window, or the samples that are there are another's.
    """
    tasks = [(task, load_task(task)) for task in settings.tasks]
    subject = open_subject(model_settings, tokenizer, rendering, settings.sampling)
    return [_evaluate_task(subject, task, problems, settings, directory, on_progress) for task, problems in tasks]


def _evaluate_task(
    subject: Subject,
    task: TaskSettings,
    problems: Sequence[Problem],
    settings: EvaluationSettings,
    directory: Path,
    on_progress: Callable[[str], None],
) -> EvalResult:
    number = settings.sampling.samples_per_problem or task.samples_per_problem
    file = SampleFile(directory / "samples" / f"{task.name}.jsonl", subject.weights_hash, subject.drawn_with)
    stored = _draw(
        subject, problems, number, settings.system, file, lambda text: on_progress(f"evaluating: {task.name}, {text}")
    )
    start, tags = time.perf_counter(), subject.renderer.rendering
    texts = [
        with_usual_tags(sample.drawn.text, sample.thinking_closed, tags.think_open, tags.think_close)
        for sample in stored
    ]
    verdicts = _grade(task, problems, stored, texts, settings.item_seconds)
    file.write_graded(stored, verdicts, {problem.problem_id: problem.gold for problem in problems})
    graded = [
        Graded(sample, verdict, sample.thinking_closed and has_box(text))
        for sample, verdict, text in zip(stored, verdicts, texts, strict=True)
    ]
    by_problem = [graded[i : i + number] for i in range(0, len(graded), number)]
    result = evaluation_result(task, by_problem, settings.sampling, subject.name, subject.weights_hash)
    seconds = sum(sample.seconds for sample in stored) + time.perf_counter() - start
    return result.model_copy(update={"samples_file": str(file.path.relative_to(directory)), "seconds": seconds})


def _draw(
    subject: Subject,
    problems: Sequence[Problem],
    number: int,
    system: str,
    file: SampleFile,
    on_progress: Callable[[str], None],
) -> list[StoredSample]:
    """All samples, problem by problem: those of the file, and the missing ones drawn and written there."""
    prompts = _prompts(subject, problems, number, system)
    found = file.read(prompts)
    if found:
        logger.info("%s: going on from %d of %d samples", file.path, len(found), len(prompts))
    missing = [key for key in prompts if key not in found]
    requests = [Request(prompts[key], f"{key[0]}:{key[1]}") for key in missing]
    golds = {problem.problem_id: problem.gold for problem in problems}
    start = time.perf_counter()
    for batch in subject.generate(requests):
        seconds = (time.perf_counter() - start) / len(batch)
        new = [_to_store(missing[i], requests[i].prompt, batch[i], subject, seconds) for i in sorted(batch)]
        file.append(new, golds)
        found |= {stored.key: stored for stored in new}
        on_progress(f"{len(found)}/{len(prompts)} samples")
        start = time.perf_counter()
    if len(found) != len(prompts):
        raise EvaluationError(f"{file.path}: {len(prompts) - len(found)} samples were not drawn; evaluate again")
    return [found[key] for key in prompts]


def _prompts(subject: Subject, problems: Sequence[Problem], number: int, system: str) -> dict[Key, str]:
    """The prompt of every sample, problem by problem."""
    before = [{"role": "system", "content": system}] if system else []
    rendered = {
        problem.problem_id: subject.renderer.prompt_text([*before, {"role": "user", "content": problem.text}])
        for problem in problems
    }
    return {(problem, i): prompt for problem, prompt in rendered.items() for i in range(number)}


def _to_store(key: Key, prompt: str, sample: Sample, subject: Subject, seconds: float) -> StoredSample:
    tags = subject.renderer.rendering
    is_closed = is_thinking_closed(sample.text, prompt, tags.think_open, tags.think_close)
    return StoredSample(*key, prompt, sample, is_closed, seconds)


def _grade(
    task: TaskSettings,
    problems: Sequence[Problem],
    samples: Sequence[StoredSample],
    texts: Sequence[str],
    item_seconds: float,
) -> list[Verdict]:
    known = {problem.problem_id: problem for problem in problems}
    items = [
        GradeItem(text, known[stored.problem_id].gold, stored.is_finished, known[stored.problem_id].choices)
        for stored, text in zip(samples, texts, strict=True)
    ]
    match task.grader:
        case "exact":
            return [exact_grade(item) for item in items]
        case "choice":
            return [choice_grade(item) for item in items]
        case "literal":
            return [literal_grade(item) for item in items]
        case "math":
            with MathGrader(item_seconds=item_seconds) as grader:
                return grader.grade(items)
