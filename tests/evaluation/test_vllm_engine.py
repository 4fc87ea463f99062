"""The adapter against the documented shape of vLLM's answers; vLLM itself needs a GPU and is not run here."""

import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest

from leadspan.errors import EvaluationError
from leadspan.evaluation.sampling import Request, Sample, seed_of
from leadspan.evaluation.settings import SamplingSettings, Vllm
from leadspan.evaluation.vllm_engine import generate, open_vllm
from leadspan.models.settings import Pretrained
from toys import SPECIALS, character_tokenizer

STOP = SPECIALS.index("<|im_end|>")
REQUESTS = [Request("add " + "a" * i, f"p{i}:0") for i in range(5)]


@dataclass
class CompletionOutput:
    """Fields of `vllm.outputs.CompletionOutput`."""

    token_ids: list[int]
    finish_reason: str | None
    index: int = 0
    text: str = ""
    cumulative_logprob: float | None = None
    logprobs: object = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    """Fields of `vllm.outputs.RequestOutput`."""

    outputs: list[CompletionOutput]
    prompt_token_ids: list[int] = field(default_factory=list)
    request_id: str = "0"
    finished: bool = True


def answer(prompt: list[int], values: dict[str, Any]) -> RequestOutput:
    """What a greedy engine that says `ok` says: the stop token is among the ids, as vLLM has it."""
    ids = [*character_tokenizer()("ok", add_special_tokens=False)["input_ids"], STOP][: values["max_tokens"]]
    return RequestOutput([CompletionOutput(ids, "stop" if ids[-1] == STOP else "length")], prompt)


def draw(settings: SamplingSettings, window: int | None = 100, requests: list[Request] = REQUESTS, **engine: Any):
    calls: list[tuple[list[list[int]], list[dict[str, Any]]]] = []

    def run(prompts: list[list[int]], fields: list[dict[str, Any]]) -> list[RequestOutput]:
        calls.append((prompts, fields))
        return [engine.get("answer", answer)(p, f) for p, f in zip(prompts, fields, strict=True)]

    found: dict[int, Sample] = {}
    for batch in generate(run, character_tokenizer(), [STOP], window, settings, requests):
        found |= batch
    return found, calls


def test_samples_come_from_the_token_ids() -> None:
    found, _ = draw(SamplingSettings())
    assert found == {i: Sample("ok", 3, "stop", False) for i in range(5)}
    capped, _ = draw(SamplingSettings(max_new_tokens=1))
    assert capped[0] == Sample("o", 1, "length", False)


def test_each_sample_has_its_own_seed_and_budget() -> None:
    _, calls = draw(SamplingSettings(temperature=0.7, top_p=0.9, seed=3, max_new_tokens=50), window=20)
    (prompts, fields) = calls[0]
    assert [f["seed"] for f in fields] == [seed_of(r.key, 3) for r in REQUESTS]
    assert [len(p) + f["max_tokens"] for p, f in zip(prompts, fields, strict=True)] == [20] * 5
    assert {(f["temperature"], f["top_p"], f["top_k"], f["n"]) for f in fields} == {(0.7, 0.9, 0, 1)}
    assert all(f["stop_token_ids"] == [STOP] for f in fields)


def test_portions_are_handed_over_as_they_end() -> None:
    many = [Request("add", f"p{i}:0") for i in range(20)]
    found, calls = draw(SamplingSettings(batch_size=1), requests=many)
    assert [len(prompts) for prompts, _ in calls] == [8, 8, 4] and sorted(found) == list(range(20))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param(RequestOutput([CompletionOutput([5], "abort")]), r"finished it with \['abort'\]", id="aborted"),
        pytest.param(RequestOutput([]), r"finished it with \[\]", id="nothing"),
        pytest.param(RequestOutput([CompletionOutput([5], "stop")]), "its stop tokens are not those", id="other stop"),
    ],
)
def test_answers_of_another_kind_are_refused(reply: RequestOutput, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        draw(SamplingSettings(), answer=lambda prompt, fields: reply)


def test_prompts_are_never_cut() -> None:
    with pytest.raises(EvaluationError, match="problem p4:0: its prompt has 8 tokens and the model's window 8"):
        draw(SamplingSettings(), window=8)


def test_the_engine_is_opened_at_the_revisions(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}
    stub = types.SimpleNamespace(LLM=lambda **options: opened.update(options), SamplingParams=dict)
    monkeypatch.setitem(sys.modules, "vllm", stub)
    model, tokenizer = Pretrained(path="m", revision="v2"), Pretrained(path="t", revision="v3")
    open_vllm(model, tokenizer, "bfloat16", SamplingSettings(), Vllm(options={"seed": 1}))
    assert (opened["model"], opened["revision"]) == ("m", "v2") and opened["seed"] == 1
    assert (opened["tokenizer"], opened["tokenizer_revision"]) == ("t", "v3")


def test_without_the_extra_it_says_which() -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(EvaluationError, match=r"pip install 'leadspan\[vllm\]'"):
            open_vllm(Pretrained(path="m"), Pretrained(path="t"), "bfloat16", SamplingSettings(), Vllm())
    else:
        pytest.skip("vLLM is installed")
