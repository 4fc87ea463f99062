"""The model under evaluation: loaded once, with its prompt renderer, stop tokens, engine and budget of thinking.

Samples may be made to answer: thinking is closed for them after a budget of tokens, or where it loops. This is what a
server with a thinking budget does: after the tokens of the budget it inserts the text that separates thought and answer
in the model's own turns, and the model continues from there. Both kinds of figures rest on the same thinking, so a
model that has learnt to reason but not to stop differs from one that cannot reason.

**Source**: budgets of thinking as Qwen3 describes them (arXiv 2505.09388, section 4.7).
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from leadspan.data.assistant_turn import spaces
from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.errors import EvaluationError
from leadspan.evaluation import sampling, vllm_engine
from leadspan.evaluation.samples import Key, StoredSample
from leadspan.evaluation.sampling import Generate, Request, encode, loop_end
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.models.loading import end_ids_of, load_model, name_of, weights_hash
from leadspan.models.reading import load_tokenizer
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.models.shapes import uses_bf16

SUFFIX = ", made to answer"
"""Follows the name of a task in the results of such samples."""


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """Where thinking is closed, and by which tokens.

    Attributes:
        num_tokens: Most tokens of thinking.
        closing: Token ids from the end of a thought to the beginning of the answer.
        renderer: Tokenizer and tags of the model.
    """

    num_tokens: int
    closing: tuple[int, ...]
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


logger = logging.getLogger(__name__)

# Settings that change no sample: each draws from its own stream, and the precision is in the hash as used.
_NOT_DECIDING = {"batch_size", "samples_per_problem", "thinking_budget", "precision"}


@dataclass(frozen=True, slots=True)
class Subject:
    """A loaded model with all that is needed to sample from it.

    Attributes:
        name: Path or name.
        weights_hash: Hash of its weights.
        drawn_with: Hash of all else that decides what is drawn from a prompt.
        answered_with: The same hash for samples that are made to answer.
        renderer: Renders its prompts.
        generate: Draws samples.
        precision: Type of its weights.
        window: Its positions, where it has a limit.
        thinking_budget: Closes their thinking; None where no sample is made to answer.
    """

    name: str
    weights_hash: str
    drawn_with: str
    answered_with: str
    renderer: PromptRenderer
    generate: Generate
    precision: Literal["float32", "bfloat16"]
    window: int | None
    thinking_budget: ThinkingBudget | None


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
    drawn_with = _hash([deciding, sorted(stops), str(dtype)])
    return Subject(
        name=name_of(model_settings),
        weights_hash=weights,
        drawn_with=drawn_with,
        answered_with=_hash([drawn_with, settings.thinking_budget, budget.closing if budget else ()]),
        renderer=renderer,
        generate=generate,
        precision=precision,
        window=window,
        thinking_budget=budget,
    )


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
