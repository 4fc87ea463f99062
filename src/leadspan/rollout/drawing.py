"""Drawing rollouts: the student, as it is now, continues prompts."""

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from leadspan.errors import ModelError
from leadspan.evaluation.sampling import batches_of_like_length, draw
from leadspan.evaluation.settings import SamplingSettings
from leadspan.models.forward import LAYOUT
from leadspan.models.loading import build_untrained, load_config, name_of
from leadspan.models.settings import ModelSettings
from leadspan.rollout.course import Turn
from leadspan.rollout.inputs import RolloutInputs
from leadspan.rollout.rows import room
from leadspan.rollout.vllm_engine import VllmDrawing
from leadspan.status import report_detail


class Drawn(NamedTuple):
    """What was drawn for a turn.

    Attributes:
        ids: New token ids, up to the cap or beyond; tokens after an end of turn have no meaning.
        log_probs: Log-probability with which each was drawn; empty where it was not requested.
    """

    ids: list[int]
    log_probs: list[float]


def draw_rollouts(
    model: PreTrainedModel | VllmDrawing,
    inputs: RolloutInputs,
    turns: Sequence[tuple[int, Turn]],
    use_bf16: bool,
    with_log_probs: bool = False,
) -> list[Drawn]:
    """Draw the rollouts of some turns, in their order.

    Args:
        model: The student, with Transformers' own attention, or a vLLM engine with its weights.
        inputs: Prompts, stops, settings.
        turns: The turns to draw, each with its step.
        use_bf16: Whether the student computes in bfloat16.
        with_log_probs: Whether to return the log-probability of each token.
    """
    settings, window = inputs.course.settings, inputs.window
    prompts = [inputs.prompts[turn.prompt] for _, turn in turns]
    caps = [room(turn, prompt, window) for (_, turn), prompt in zip(turns, prompts, strict=True)]
    sampling = SamplingSettings(
        temperature=settings.temperature,
        # No nucleus and no top-k: the rollouts must be draws from the student's own distribution.
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seed=inputs.course.seed,
    )
    if isinstance(model, VllmDrawing):  # makes its own batches
        keys, texts = [inputs.key(*turn) for turn in turns], [prompt.ids for prompt in prompts]
        return [Drawn(*fields) for fields in model.draw(texts, caps, keys, inputs.stop_ids, sampling, with_log_probs)]
    # Batched by length for speed alone: every rollout has a random stream of its own.
    drawn: dict[int, Drawn] = {}
    for indices in batches_of_like_length([prompt.ids for prompt in prompts], settings.batch_size):
        log_probs: list[list[float]] = [[] for _ in indices]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=use_bf16):
            new = draw(
                model,
                [list(prompts[i].ids) for i in indices],
                [caps[i] for i in indices],
                [inputs.key(*turns[i]) for i in indices],
                inputs.stop_ids,
                sampling,
                len(inputs.rows.renderer.tokenizer),
                log_probs if with_log_probs else None,
            )
        drawn |= {i: Drawn(ids, likely) for i, ids, likely in zip(indices, new, log_probs, strict=True)}
        report_detail(f"{len(drawn)}/{len(turns)} rollouts")
    return [drawn[i] for i in range(len(turns))]


def drawing_twin(student: torch.nn.Module, settings: ModelSettings) -> PreTrainedModel:
    """The student with Transformers' own attention, in evaluation mode, sharing all weights with the trained model.

    The optimiser changes these weights in place, so the twin needs no update.

    Raises:
        ModelError: The student's weights are sharded.
    """
    base = student.get_base_model() if isinstance(student, PeftModel) else student
    if any(isinstance(parameter, DTensor) for parameter in base.parameters()):
        raise ModelError("rollout: the student's weights are sharded, and rollouts need them whole; use DDP")
    # The memo says that the weights are copied already: modules are new, parameters are the student's.
    twin = cast(PreTrainedModel, copy.deepcopy(base, {id(parameter): parameter for parameter in base.parameters()}))
    vars(twin).pop("forward", None)  # that of the objective
    vars(twin).pop(LAYOUT, None)
    # Transformers chooses an attention when it builds a model; the student's was chosen for packed rows.
    with torch.device("meta"):
        plain = build_untrained(load_config(settings), f"model {name_of(settings)}")
    twin.set_attn_implementation(cast(str, plain.config._attn_implementation))
    twin.eval()
    return twin
