"""Answers from a model through Transformers' continuous batching: a finished sample's place is filled at once.

The draws are those of `sampling.generate`, sample by sample: every request keeps its own random stream, whatever it
shares a step with. For that, asynchronous scheduling and CUDA graphs stay off, as is a change of the attention, which
would alter results unasked.

**Source**: `transformers.generation.continuous_batching` of Transformers 5 (its manager, scheduler and paged cache).
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from leadspan.errors import EvaluationError
from leadspan.evaluation.config import SamplingSettings
from leadspan.evaluation.sampling import Request, Sample, SeededSampling, budgets, encode, to_sample, window_of

PAGE_TOKENS = 256
"""Tokens in a page of the cache."""
POLL_SECONDS = 1.0
"""How often a waiting evaluation looks whether generation is still alive."""


class SeededRequests(ContinuousBatchingLogitsProcessor):
    """`SeededSampling` for rows that change from step to step: each request has its own generator."""

    supported_kwargs: dict[str, type] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, keys: Sequence[str], settings: SamplingSettings, device: torch.device):
        self.sampling = SeededSampling(keys, settings, device)
        self._rows: list[int] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """No argument of its own goes through the tensor."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> torch.Tensor:
        """Note whose rows come next; called once a step, in the order of the rows."""
        self._rows = [int(request.state.request_id) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Scores `[rows, V]` with each request's own noise."""
        num_rows = len(self._rows)
        return torch.cat([self.sampling.draw(scores[:num_rows], self._rows), scores[num_rows:].float()])


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    settings: SamplingSettings,
    requests: Sequence[Request],
) -> Iterator[dict[int, Sample]]:
    """Draw one sample per request; samples come as they end. Arguments as in `sampling.generate`.

    Raises:
        EvaluationError: A prompt leaves no room for a new token, or generation failed.
    """
    prompts = encode(tokenizer, requests)
    caps = budgets(requests, prompts, window_of(model.config), settings.max_new_tokens)
    if not requests:
        return
    most = max(len(prompt) + cap for prompt, cap in zip(prompts, caps, strict=True))
    manager = _start(model, [request.key for request in requests], stop_token_ids, most, settings)
    try:
        for place, (prompt, cap) in enumerate(zip(prompts, caps, strict=True)):
            manager.add_request(prompt, request_id=str(place), max_new_tokens=cap)
        for _ in requests:
            place, new_ids = _next_result(manager, requests)
            yield {place: to_sample(tokenizer, new_ids[: caps[place]], stop_token_ids)}
    finally:
        manager.stop(block=True, timeout=5)
        manager.destroy()


def _start(
    model: PreTrainedModel, keys: Sequence[str], stop_token_ids: Sequence[int], most: int, settings: SamplingSettings
) -> Any:  # Any: its class is not exported
    """Start generation for sequences of at most `most` tokens.

    The cache takes what those need on a CPU, where Transformers would fill most of the memory first, and a share of the
    free memory on a GPU.
    """
    generation = GenerationConfig(
        do_sample=False, max_new_tokens=most, eos_token_id=list(stop_token_ids), pad_token_id=stop_token_ids[0]
    )
    num_blocks = settings.batch_size * -(-most // PAGE_TOKENS) if model.device.type == "cpu" else None
    batching = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=num_blocks,
        max_batch_tokens=max(most, settings.batch_size) if num_blocks else None,
        max_requests_per_batch=settings.batch_size,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
    )
    try:
        manager = cast(Any, model).init_continuous_batching(generation, batching)
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise EvaluationError(
            f"sampling.engine: {type(model).__name__} cannot be batched continuously ({error}); "
            "set sampling.engine.kind=transformers"
        ) from None
    if settings.temperature > 0:
        noise = SeededRequests(keys, settings, model.device)
        manager.logit_processor = ContinuousBatchingLogitsProcessorList(cast(Any, LogitsProcessorList([noise])))
        manager.logit_processor.tensors_required = 1
    manager.start()
    return manager


def _next_result(manager: Any, requests: Sequence[Request]) -> tuple[int, list[int]]:
    while True:
        result = manager.get_result(timeout=POLL_SECONDS)
        if result is None:
            if not manager.is_running():
                raise EvaluationError(
                    "sampling.engine: continuous batching stopped before all samples were drawn; evaluate again to go "
                    "on, with sampling.engine.kind=transformers if it stops again"
                )
            continue
        place = int(result.request_id)
        if result.error is not None:
            raise EvaluationError(f"problem {requests[place].key}: continuous batching failed: {result.error}")
        if result.is_finished():
            return place, list(result.generated_tokens)
