"""Answers from a model through vLLM: continuous batching on a GPU, one seed per sample.

Needs the extra: `pip install leadspan[vllm]`. vLLM draws with its own generators, so the same seed gives other samples
than with Transformers; results name the engine.

**Source**: vLLM's offline interface, `LLM.generate` with token prompts and one `SamplingParams` a prompt, returning
`RequestOutput`s in the order of the prompts, each with `outputs[0].token_ids` and `.finish_reason`
(docs.vllm.ai, version 0.15 and later).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from leadspan.errors import EvaluationError
from leadspan.evaluation.sampling import Request, Sample, prompts_and_caps, seed_of, to_sample
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.models.settings import Pretrained

RunVllm = Callable[[list[list[int]], list[dict[str, Any]]], Sequence[Any]]
"""Token ids of prompts and the fields of their `SamplingParams` to `RequestOutput`s, in order."""
VLLM_REMEDY = "pip install 'leadspan[vllm]', or use sampling.engine.kind=transformers"


def open_vllm(
    model: Pretrained, tokenizer: Pretrained, dtype: str, settings: SamplingSettings, engine: Vllm
) -> RunVllm:
    """Start vLLM on a model directory, or on a Hub name at its revision.

    Raises:
        EvaluationError: vLLM is not installed, or is not given such weights here.
    """
    if model.gguf_file is not None or model.quantization is not None:
        raise EvaluationError(
            "sampling.engine: vllm supports neither gguf_file nor quantization here; "
            "use sampling.engine.kind=transformers"
        )
    try:
        from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise EvaluationError(f"sampling.engine: vLLM cannot be imported ({error}); {VLLM_REMEDY}") from None
    # Precision, window and batch are ours; `options` may set anything else.
    llm = LLM(
        model=model.path,
        revision=model.revision,
        tokenizer=tokenizer.path,
        tokenizer_revision=tokenizer.revision,
        dtype=dtype,
        max_num_seqs=settings.batch_size,
        **engine.options,
    )

    def run(prompts: list[list[int]], fields: list[dict[str, Any]]) -> Sequence[Any]:
        # As token ids, so that vLLM's tokenizer adds nothing.
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        return llm.generate(inputs, [SamplingParams(**values) for values in fields], use_tqdm=False)

    return run


def generate(
    run: RunVllm,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: Sequence[int],
    window: int | None,
    settings: SamplingSettings,
    requests: Sequence[Request],
) -> Iterator[dict[int, Sample]]:
    """Draw one sample per request, in portions of eight full batches, so that an interruption loses little.

    Raises:
        EvaluationError: A prompt leaves no room for a new token, or vLLM did not finish every one.
    """
    prompts, caps = prompts_and_caps(tokenizer, requests, window, settings.max_new_tokens)
    # Samples are stored after each portion.
    portion = 8 * settings.batch_size
    for start in range(0, len(requests), portion):
        indices = range(start, min(start + portion, len(requests)))
        fields = [sampling_fields(requests[i].key, caps[i], stop_token_ids, settings) for i in indices]
        outputs = run([prompts[i] for i in indices], fields)
        if len(outputs) != len(indices):
            raise EvaluationError(
                f"vLLM returned {len(outputs)} outputs for {len(indices)} prompts; try another version"
            )
        samples: dict[int, Sample] = {}
        for i, output in zip(indices, outputs, strict=True):
            reasons, who = [answer.finish_reason for answer in output.outputs], f"problem {requests[i].key}"
            if reasons not in (["stop"], ["length"]):
                raise EvaluationError(f"{who}: vLLM finished it with {reasons}, not with one stop or length")
            ids = list(output.outputs[0].token_ids)
            # Read as the other engine's samples are, and compared with what vLLM says.
            samples[i] = to_sample(tokenizer, ids, stop_token_ids)
            if samples[i].finish_reason != reasons[0]:
                raise EvaluationError(
                    f"{who}: vLLM says {reasons[0]!r} and its {len(ids)} tokens say {samples[i].finish_reason!r}; its "
                    "stop tokens are not those of the tokenizer"
                )
        yield samples


def sampling_fields(key: str, cap: int, stop_token_ids: Sequence[int], settings: SamplingSettings) -> dict[str, Any]:
    """Fields of `vllm.SamplingParams` for one sample with a random stream of its own."""
    return {
        "n": 1,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k or 0,  # 0: all tokens
        "seed": seed_of(key, settings.seed),
        "max_tokens": cap,
        "stop_token_ids": list(stop_token_ids),
        "ignore_eos": True,  # the stops are ours alone; the end of sequence is one of them
        "detokenize": False,
    }
