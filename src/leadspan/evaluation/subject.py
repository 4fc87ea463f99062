"""The model under evaluation: loaded once, with its prompt renderer, its stop tokens and its sampling engine."""

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from leadspan.data.prompts import PromptRenderer
from leadspan.data.settings import Rendering
from leadspan.errors import EvaluationError
from leadspan.evaluation import sampling, vllm_engine
from leadspan.evaluation.sampling import Generate
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.evaluation.thinking_budget import ThinkingBudget
from leadspan.models.identity import end_ids_of
from leadspan.models.loading import load_model, load_tokenizer, name_of, weights_hash
from leadspan.models.precision import uses_bf16
from leadspan.models.settings import ModelSettings, Pretrained

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
    stops = list(dict.fromkeys([*renderer.end_of_turn_ids(), *end_ids_of(model)]))
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
