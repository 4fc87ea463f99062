"""The model under evaluation: loaded once, with what renders its prompts, what ends its turns and what draws."""

import hashlib
import json
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from leadspan.data.config import Rendering
from leadspan.data.prompts import PromptRenderer
from leadspan.errors import EvaluationError
from leadspan.evaluation import continuous, sampling, vllm_engine
from leadspan.evaluation.config import Continuous, SamplingSettings, Vllm
from leadspan.evaluation.sampling import Generate
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.models.loading import load_model, load_tokenizer, name_of, weights_hash


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that can be asked.

    Attributes:
        name: Path or name.
        weights_hash: Hash of its weights.
        drawn_with: Hash of all else that decides what is drawn from a prompt.
        renderer: Renders its prompts.
        generate: Draws samples.
    """

    name: str
    weights_hash: str
    drawn_with: str
    renderer: PromptRenderer
    generate: Generate


def open_subject(
    model_settings: ModelSettings, tokenizer: Pretrained, rendering: Rendering, settings: SamplingSettings
) -> Subject:
    """Load model, tokenizer and engine.

    Raises:
        ModelError: Model or tokenizer cannot be used.
        EvaluationError: The engine cannot be started, or no token would end a turn.
    """
    renderer = PromptRenderer(load_tokenizer(tokenizer.path, tokenizer.revision), rendering)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = load_model(model_settings, dtype, for_training=False).eval()
    weights, stops = weights_hash(model), stop_token_ids(model, renderer)
    if not stops:
        raise EvaluationError(
            f"model {name_of(model_settings)}: neither chat template, tokenizer nor generation config names a token "
            "that ends a turn, so no sample would end; set the tokenizer's eos_token"
        )
    if isinstance(settings.engine, Vllm):
        name = str(dtype).removeprefix("torch.")
        generate = _with_vllm(model, model_settings, tokenizer, renderer, stops, name, settings)
    else:
        engine = continuous.generate if isinstance(settings.engine, Continuous) else sampling.generate
        generate = partial(engine, model.to(device), renderer.tokenizer, stops, settings)  # pyright: ignore[reportArgumentType]  # .to is typed for str
    return Subject(name_of(model_settings), weights, _drawn_with(settings, stops, dtype), renderer, generate)


def stop_token_ids(model: PreTrainedModel, renderer: PromptRenderer) -> list[int]:
    """Every id that ends a turn: the chat template's, the tokenizer's and the generation config's."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    known = own if isinstance(own, list) else [own]
    return list(dict.fromkeys([*renderer.end_of_turn_ids(), *(i for i in known if i is not None)]))


def _with_vllm(
    model: PreTrainedModel,
    model_settings: ModelSettings,
    tokenizer: Pretrained,
    renderer: PromptRenderer,
    stops: list[int],
    dtype: str,
    settings: SamplingSettings,
) -> Generate:
    """VLLM on the same weights; the model loaded here gave their hash and is dropped."""
    if not isinstance(model_settings, Pretrained):
        raise EvaluationError("sampling.engine: vLLM reads a model directory or Hub name; save the model first")
    assert isinstance(settings.engine, Vllm)
    window = sampling.window_of(model.config)
    run = vllm_engine.open_vllm(model_settings, tokenizer, dtype, settings, settings.engine)
    return partial(vllm_engine.generate, run, renderer.tokenizer, stops, window, settings)


def _drawn_with(settings: SamplingSettings, stops: list[int], dtype: torch.dtype) -> str:
    """Hash of all settings that can change a sample; the batch size and the number of samples cannot."""
    deciding = settings.model_dump(mode="json", exclude={"batch_size", "samples_per_problem"})
    text = json.dumps([deciding, sorted(stops), str(dtype)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
