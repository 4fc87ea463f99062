"""One model on one task: draw, keep every sample, grade, count."""

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from leadspan.data.config import Rendering
from leadspan.data.sections import Renderer
from leadspan.evaluation.config import EvaluationSettings, SamplingSettings, TaskSettings
from leadspan.evaluation.grading import GradeItem, MathGrader, Verdict, exact_grade
from leadspan.evaluation.sampling import Request, Sample, generate
from leadspan.evaluation.statistics import bootstrap_mean
from leadspan.evaluation.tasks import Problem, load_task
from leadspan.models.config import ModelSettings
from leadspan.models.loading import load_model, load_tokenizer, name_of, weights_hash
from leadspan.results import EvalResult, Interval

logger = logging.getLogger(__name__)


def evaluate_model(
    model_settings: ModelSettings,
    tokenizer_path: str,
    rendering: Rendering,
    settings: EvaluationSettings,
    directory: Path,
    on_progress: Callable[[str], None] = lambda text: None,
) -> list[EvalResult]:
    """Evaluate one model on every task of the settings.

    Args:
        model_settings: The model.
        tokenizer_path: Its tokenizer, whose chat template renders the prompts.
        rendering: How prompts are rendered and thinking is tagged.
        settings: Tasks and sampling.
        directory: `samples/` is written here, one line per sample.
        on_progress: Told in words what is being done.

    Raises:
        ModelError: Model or tokenizer cannot be used.
        DataError: A task cannot be read.
        EvaluationError: A prompt does not fit the model's window.
    """
    tasks = [(task, load_task(task)) for task in settings.tasks]
    renderer = Renderer(load_tokenizer(tokenizer_path), rendering)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = load_model(model_settings, dtype, for_training=False).to(device).eval()  # pyright: ignore[reportArgumentType]  # typed for str
    weights, stops = weights_hash(model), stop_token_ids(model, renderer)
    results = []
    for task, problems in tasks:
        start = time.perf_counter()
        samples = _draw(
            model,
            renderer,
            problems,
            stops,
            settings.sampling,
            lambda text, t=task: on_progress(f"evaluating: {t.name}, {text}"),
        )
        path = directory / "samples" / f"{task.name}.jsonl"
        _write_samples(path, problems, samples, None, weights)  # kept even if grading should fail
        verdicts = _grade(task, problems, samples, rendering, settings)
        _write_samples(path, problems, samples, verdicts, weights)
        counted = _count(task, problems, samples, verdicts, rendering, settings.sampling)
        results.append(
            counted.model_copy(
                update={
                    "model": name_of(model_settings),
                    "weights_hash": weights,
                    "samples_file": str(path.relative_to(directory)),
                    "seconds": time.perf_counter() - start,
                }
            )
        )
    return results


def stop_token_ids(model: PreTrainedModel, renderer: Renderer) -> list[int]:
    """Every id that ends a turn: the chat template's, the tokenizer's and the generation config's."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    known = own if isinstance(own, list) else [own]
    ids = [renderer.stop_token_id, renderer.tokenizer.eos_token_id, *known]
    return list(dict.fromkeys(i for i in ids if i is not None))


def is_closed(text: str, prompt: str, rendering: Rendering) -> bool:
    """Whether thinking was closed, or never opened by prompt or text."""
    opened = rendering.think_open in text or prompt.rstrip().endswith(rendering.think_open)
    return rendering.think_close in text or not opened


def _draw(
    model: PreTrainedModel,
    renderer: Renderer,
    problems: Sequence[Problem],
    stops: list[int],
    settings: SamplingSettings,
    on_progress: Callable[[str], None],
) -> list[list[tuple[str, Sample]]]:
    """Per problem its samples, each with its prompt."""
    number = settings.samples_per_problem
    prompts = [renderer.prompt_text([{"role": "user", "content": p.text}]) for p in problems]
    requests = [
        Request(prompt, f"{problem.problem_id}:{i}")
        for prompt, problem in zip(prompts, problems, strict=True)
        for i in range(number)
    ]
    total = len(requests)
    drawn = generate(
        model,
        renderer.tokenizer,
        requests,
        stops,
        settings,
        lambda done: on_progress(f"{done}/{total} samples"),
    )
    return [[(prompt, sample) for sample in drawn[i * number : (i + 1) * number]] for i, prompt in enumerate(prompts)]


def _grade(
    task: TaskSettings,
    problems: Sequence[Problem],
    samples: list[list[tuple[str, Sample]]],
    rendering: Rendering,
    settings: EvaluationSettings,
) -> list[list[Verdict]]:
    items = [
        GradeItem(
            _with_usual_tags(sample.text, rendering),
            problem.gold,
            sample.finish_reason == "stop" and is_closed(sample.text, prompt, rendering),
        )
        for problem, drawn in zip(problems, samples, strict=True)
        for prompt, sample in drawn
    ]
    if task.grader == "exact":
        verdicts = [exact_grade(item) for item in items]
    else:
        with MathGrader(item_seconds=settings.item_seconds) as grader:
            verdicts = grader.grade(items)
    number = settings.sampling.samples_per_problem
    return [verdicts[i * number : (i + 1) * number] for i in range(len(problems))]


def _with_usual_tags(text: str, rendering: Rendering) -> str:
    return text.replace(rendering.think_open, "<think>").replace(rendering.think_close, "</think>")


def _write_samples(
    path: Path,
    problems: Sequence[Problem],
    samples: list[list[tuple[str, Sample]]],
    verdicts: list[list[Verdict]] | None,
    weights: str,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row, (problem, drawn) in enumerate(zip(problems, samples, strict=True)):
            for number, (prompt, sample) in enumerate(drawn):
                record = {
                    "problem_id": problem.problem_id,
                    "sample": number,
                    "weights_hash": weights,
                    "prompt": prompt,
                    **dataclasses.asdict(sample),
                    "gold": problem.gold,
                }
                if verdicts is not None:
                    record |= dataclasses.asdict(verdicts[row][number])
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _count(
    task: TaskSettings,
    problems: Sequence[Problem],
    samples: list[list[tuple[str, Sample]]],
    verdicts: list[list[Verdict]],
    rendering: Rendering,
    sampling: SamplingSettings,
) -> EvalResult:
    flat = [pair for drawn in samples for pair in drawn]
    lengths = np.array([sample.num_tokens for _, sample in flat])
    correct = {
        problem.problem_id: [int(v.strict == "right") for v in judged]
        for problem, judged in zip(problems, verdicts, strict=True)
    }
    return EvalResult(
        task=task.name,
        model="",
        weights_hash="",
        num_problems=len(problems),
        samples_per_problem=sampling.samples_per_problem,
        sampling=sampling.model_dump(mode="json"),
        accuracy_strict=bootstrap_mean(list(correct.values())),
        accuracy_flexible=bootstrap_mean([[int(v.flexible == "right") for v in judged] for judged in verdicts]),
        termination_rate=_rate([[sample.finish_reason == "stop" for _, sample in drawn] for drawn in samples]),
        cap_hit_rate=float(np.mean([sample.finish_reason == "length" for _, sample in flat])),
        thinking_closed_rate=float(np.mean([is_closed(s.text, prompt, rendering) for prompt, s in flat])),
        tokens_mean=float(lengths.mean()),
        tokens_p50=float(np.percentile(lengths, 50)),
        tokens_p95=float(np.percentile(lengths, 95)),
        outcomes=dict(Counter(v.strict for judged in verdicts for v in judged)),
        correct=correct,
    )


def _rate(flags: list[list[bool]]) -> Interval:
    return bootstrap_mean([[int(flag) for flag in drawn] for drawn in flags])
