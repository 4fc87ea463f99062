"""The model under evaluation, with its prompt renderer, stop tokens, engine and budget of thinking; and its samples.

Samples may be made to answer: thinking is closed for them after a budget of tokens, or where it loops. This is what a
server with a thinking budget does: after the tokens of the budget it inserts the text that separates thought and answer
in the model's own turns, and the model continues from there. Both kinds of figures rest on the same thinking, so a
model that has learnt to reason but not to stop differs from one that cannot reason.

Samples are written to a file as they come, one JSON object per line, and read again after an interruption. Each names
the weights it was drawn from and a hash of everything else that decides what is drawn, so that nothing is graded under
another model's name or other settings. Each has a checksum, so that a damaged line is drawn again.

**Source**: budgets of thinking as Qwen3 describes them (arXiv 2505.09388, section 4.7).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from leadspan.answers.grading import Verdict
from leadspan.data.assistant_turn import spaces
from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.errors import EvaluationError
from leadspan.evaluation import sampling, vllm_engine
from leadspan.evaluation.sampling import Generate, Request, Sample, encode, loop_end
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.files import checked_line, checksum, with_checksum, write_atomically
from leadspan.models.loading import end_ids_of, load_model, name_of, weights_hash
from leadspan.models.reading import load_tokenizer
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.models.shapes import uses_bf16

SUFFIX = ", made to answer"
"""Follows the name of a task in the results of such samples."""
Key = tuple[str, int]
"""Problem id and sample number."""

logger = logging.getLogger(__name__)

# Settings that change no sample: each draws from its own stream, and the precision is in the hash as used.
_NOT_DECIDING = {"batch_size", "samples_per_problem", "thinking_budget", "precision"}


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One sample, as stored in the file."""

    problem_id: str
    sample: int  # its number, from 0
    prompt: str  # with the generation header
    drawn: Sample
    thinking_closed: bool  # or never opened
    seconds: float  # its share of the wall time of its batch

    @property
    def key(self) -> Key:
        """Problem id and sample number."""
        return self.problem_id, self.sample

    @property
    def is_finished(self) -> bool:
        """Whether it ended its turn with thinking closed: whether it is an answer."""
        return self.drawn.finish_reason == "stop" and self.thinking_closed


@dataclass(frozen=True, slots=True)
class SampleFile:
    """The samples of one model on one task."""

    path: Path
    weights_hash: str
    drawn_with: str  # hash of sampling settings, engine, number type, stops
    golds: Mapping[str, str]  # reference answers by problem id, which are stored with the samples

    def read(self, requests: Mapping[Key, Request]) -> dict[Key, StoredSample]:
        """The samples that an interrupted evaluation has drawn.

        A half-written last line is cut off the file; damaged lines are moved to another file, with a warning.

        Raises:
            EvaluationError: A line belongs to other weights, settings, prompts or problems.
        """
        if not self.path.exists():
            return {}
        samples: dict[Key, StoredSample] = {}
        # `rest` has no line end: the process died while writing it.
        *lines, rest = self.path.read_bytes().split(b"\n")
        rows = [checked_line(line) for line in lines]
        damaged = [number for number, row in enumerate(rows, 1) if row is None]
        for number, row in enumerate(rows, 1):
            if row is None:
                continue
            try:
                drawn = Sample(row["text"], row["num_tokens"], row["finish_reason"], row["loops"])
                named = row["problem_id"], row["sample"], row["prompt"]
                stored = StoredSample(*named, drawn, row["thinking_closed"], row["seconds"])
                weights, drawn_with = row["weights_hash"], row["drawn_with"]
            except (KeyError, TypeError):
                raise self._refusal(number, "it is no sample of this version") from None
            if weights != self.weights_hash:
                raise self._refusal(number, f"it was drawn from weights {weights}, not from {self.weights_hash}")
            if drawn_with != self.drawn_with:
                raise self._refusal(number, "it was drawn with other sampling settings, stop tokens or another engine")
            request = requests.get(stored.key)
            if request is None and (stored.problem_id, 0) in requests:
                many = f"it is sample {stored.sample + 1} of its problem, of which fewer are to be drawn now"
                raise self._refusal(number, f"{many} (samples_per_problem)")
            if request is None or request.prompt != stored.prompt:
                raise self._refusal(number, f"it belongs to another task or prompt (problem {stored.problem_id})")
            samples[stored.key] = stored
        if damaged:
            aside = self.path.with_suffix(".jsonl.damaged")
            text = "%s: damaged in %d lines, first line %d; they are moved to %s and drawn again"
            logger.warning(text, self.path, len(damaged), damaged[0], aside.name)
            write_atomically(aside, b"".join(lines[number - 1] + b"\n" for number in damaged))
        if damaged or rest:
            intact = (line + b"\n" for line, row in zip(lines, rows, strict=True) if row is not None)
            write_atomically(self.path, b"".join(intact))
        return samples

    def append(self, samples: Iterable[StoredSample]) -> None:
        """Append samples to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(map(self.line, samples))

    def line(self, stored: StoredSample, verdict: Verdict | None = None) -> str:
        """A sample as a line of the file, once it is graded with its verdict."""
        record = {
            "problem_id": stored.problem_id,
            "sample": stored.sample,
            "weights_hash": self.weights_hash,
            "drawn_with": self.drawn_with,
            "prompt": stored.prompt,
            **asdict(stored.drawn),
            "thinking_closed": stored.thinking_closed,
            "seconds": round(stored.seconds, 6),
            "gold": self.golds[stored.problem_id],
            **({} if verdict is None else asdict(verdict)),
        }
        return with_checksum(record)

    def _refusal(self, number: int, why: str) -> EvaluationError:
        return EvaluationError(
            f"{self.path}:{number}: {why}; resume with the model, task and settings it was begun with, or give another "
            "output directory"
        )


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """Where thinking is closed, and by which tokens."""

    num_tokens: int  # of thinking, at most
    closing: tuple[int, ...]  # token ids from the end of a thought to the beginning of the answer
    renderer: PromptRenderer

    @classmethod
    def of(cls, num_tokens: int, max_new_tokens: int, renderer: PromptRenderer) -> "ThinkingBudget":
        """The budget with the closing text of a template: what the template writes between thought and answer.

        Raises:
            EvaluationError: Budget and closing tag leave no token for an answer.
        """
        rendering = renderer.rendering
        # What stands around the tag in the model's own turns, so that the answer begins where it has learnt to begin.
        _, before, behind = spaces(renderer.turn, rendering)
        text = f"{before}{rendering.think_close}{behind}"
        closing = tuple(encode(renderer.tokenizer, text))
        if num_tokens + len(closing) >= max_new_tokens:
            raise EvaluationError(
                f"sampling.thinking_budget: {num_tokens} tokens of thinking and {len(closing)} that close it leave "
                f"no token of sampling.max_new_tokens {max_new_tokens} for the answer; raise the one or lower the other"
            )
        return cls(num_tokens, closing, renderer)

    def requests(self, samples: Iterable[StoredSample]) -> dict[Key, Request]:
        """Requests that continue every sample whose thinking has to be closed for it.

        Thinking that the model closed within the budget stays as it is, whatever follows.
        """
        requests: dict[Key, Request] = {}
        tokenizer, tags = self.renderer.tokenizer, self.renderer.rendering
        for stored in samples:
            text = stored.drawn.text
            if stored.thinking_closed:
                # The first closing tag behind the last opening one ends the thinking.
                thinking = text[: text.find(tags.think_close, max(text.rfind(tags.think_open), 0))]
                if tags.think_close not in text or len(encode(tokenizer, thinking)) <= self.num_tokens:
                    continue
            ids = encode(tokenizer, text)
            # Whichever comes first: the budget, the end of the text, or the end of a loop's tenth run.
            length = min(self.num_tokens, len(ids), loop_end(ids) or self.num_tokens)
            key = f"{stored.problem_id}:{stored.sample}:answer"
            requests[stored.key] = Request(stored.prompt, key, (*ids[:length], *self.closing))
        return requests


@dataclass(frozen=True, slots=True)
class Subject:
    """A loaded model with all that is needed to sample from it."""

    name: str  # or its path
    weights_hash: str
    drawn_with: str  # hash of all else that decides what is drawn from a prompt
    answered_with: str  # the same for samples that are made to answer
    renderer: PromptRenderer
    generate: Generate
    precision: Literal["float32", "bfloat16"]  # of its weights
    window: int | None  # its positions, where it has a limit
    thinking_budget: ThinkingBudget | None  # None where no sample is made to answer


def open_subject(
    model_settings: ModelSettings, tokenizer: Pretrained, rendering: Rendering, settings: SamplingSettings
) -> Subject:
    """Load model, tokenizer and engine.

    Raises:
        ModelError: Model or tokenizer cannot be used.
        EvaluationError: The engine cannot be started, or no token would end a turn.
    """
    renderer = PromptRenderer(load_tokenizer(tokenizer.tokenizer_path, tokenizer.revision), rendering)
    for fault in (renderer.header_fault(), renderer.unknown_variables()):
        if fault:
            logger.warning("evaluating %s: %s", name_of(model_settings), fault)
    most = settings.thinking_budget
    budget = None if most is None else ThinkingBudget.of(most, settings.max_new_tokens, renderer)
    # Evaluation runs on one device; training spreads over several.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bfloat16" if uses_bf16(settings.precision, model_settings) else "float32"
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = load_model(model_settings, dtype, for_training=False).eval()
    # Of the loaded weights, so that no other model's samples are resumed under the same path.
    weights = weights_hash(model)
    # Every id that ends a turn: the chat template's, the tokenizer's and the generation config's.
    stops = list(dict.fromkeys([*renderer.end_of_turn_ids(), *end_ids_of(model.generation_config)]))
    if not stops:
        raise EvaluationError(
            f"model {name_of(model_settings)}: neither chat template, tokenizer nor generation config names a token "
            "that ends a turn, so no sample would end; set the tokenizer's eos_token"
        )
    window = sampling.window_of(model.config)
    if isinstance(settings.engine, Vllm):
        if not isinstance(model_settings, Pretrained):
            raise EvaluationError("sampling.engine: vLLM reads a model directory or Hub name; save the model first")
        # The model that was loaded here gave the hash of the same weights, and is released.
        run = vllm_engine.open_vllm(model_settings, tokenizer, precision, settings, settings.engine)
        generate = partial(vllm_engine.generate, run, renderer.tokenizer, stops, window, settings)
    else:
        generate = partial(sampling.generate, model.to(device), renderer.tokenizer, stops, settings)  # pyright: ignore[reportArgumentType]  # .to is typed for str
    # Samples resume only where all that decides them is the same.
    deciding = settings.model_dump(mode="json", exclude=_NOT_DECIDING)
    drawn_with = checksum([deciding, sorted(stops), str(dtype)])[:16]
    return Subject(
        name=name_of(model_settings),
        weights_hash=weights,
        drawn_with=drawn_with,
        answered_with=checksum([drawn_with, most, budget.closing if budget else ()])[:16],
        renderer=renderer,
        generate=generate,
        precision=precision,
        window=window,
        thinking_budget=budget,
    )
