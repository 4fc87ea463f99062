import pytest
import torch

from leadspan.errors import EvaluationError
from leadspan.evaluation import continuous
from leadspan.evaluation.config import SamplingSettings
from leadspan.evaluation.sampling import Request, Sample, SeededSampling, generate, is_loop
from leadspan.models.loading import load_model
from toys import SPECIALS, VOCAB, character_tokenizer, tiny

STOP = SPECIALS.index("<|im_end|>")
REQUESTS = [Request("add " + "one " * (i % 4), f"p{i}") for i in range(9)]


def draw(requests: list[Request], **settings: object):
    model = load_model(tiny(seed=4), torch.float32, for_training=False).eval()
    sampling = SamplingSettings.model_validate({"max_new_tokens": 12, **settings})
    return collect(model, requests, [STOP], sampling)


def collect(model, requests: list[Request], stops: list[int], sampling: SamplingSettings) -> list[Sample]:
    found = {}
    for batch in generate(model, character_tokenizer(), stops, sampling, requests):
        found |= batch
    return [found[i] for i in range(len(requests))]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    alone = [draw([request])[0] for request in REQUESTS]
    assert draw(REQUESTS, batch_size=4) == alone
    assert draw(REQUESTS[::-1], batch_size=9) == alone[::-1]


def test_seed_and_key_change_the_sample() -> None:
    assert draw(REQUESTS[:1]) != draw(REQUESTS[:1], seed=1)
    assert draw([Request("add", "a")]) != draw([Request("add", "b")])


def test_greedy_is_the_argmax() -> None:
    model = load_model(tiny(seed=4), torch.float32, for_training=False).eval()
    tokenizer = character_tokenizer()
    ids = tokenizer("add", add_special_tokens=False)["input_ids"]
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    sample = draw([Request("add", "x")], temperature=0, max_new_tokens=6)[0]
    assert STOP in ids[3:] or sample.text == tokenizer.decode(ids[3:])


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    settings = SamplingSettings(temperature=0.7, top_p=1.0)
    keys = [str(i) for i in range(4000)]
    drawn = SeededSampling(keys, settings, torch.device("cpu"))(torch.zeros(4000, 1), scores).argmax(-1)
    expected = (scores[0] / 0.7).softmax(-1)
    found = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    nucleus = SamplingSettings(temperature=0.7, top_p=0.5)
    assert set(
        SeededSampling(keys, nucleus, torch.device("cpu"))(torch.zeros(4000, 1), scores).argmax(-1).tolist()
    ) == {0}


def test_stops_and_caps_are_told_apart() -> None:
    samples = draw(REQUESTS, max_new_tokens=150)
    assert {s.finish_reason for s in samples} <= {"stop", "length"}
    for sample in samples:
        assert (sample.finish_reason == "length") == (sample.num_tokens == 150)
        assert "<|im_end|>" not in sample.text
    assert any(s.finish_reason == "stop" for s in samples)


def test_the_window_caps_new_tokens_and_never_the_prompt() -> None:
    model = load_model(tiny(max_position_embeddings=20), torch.float32, for_training=False).eval()
    sampling = SamplingSettings(max_new_tokens=100, temperature=0)
    sample = collect(model, [Request("a" * 12, "k")], [VOCAB - 1], sampling)[0]
    assert sample.num_tokens <= 8
    with pytest.raises(
        EvaluationError,
        match=r"problem p1:0: its prompt has 20 tokens and the model's window 20; prompts are never cut",
    ):
        collect(model, [Request("a" * 20, "p1:0")], [STOP], sampling)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_continuous_batching_draws_the_same_samples(temperature: float) -> None:
    model = load_model(tiny(seed=4), torch.float32, for_training=False).eval()
    sampling = SamplingSettings(temperature=temperature, top_p=0.9, top_k=40, max_new_tokens=60, batch_size=4)
    requests = [Request("add " + "one " * (i % 4), f"p{i}:0") for i in range(14)]
    expected = collect(model, requests, [STOP], sampling)
    found = {}
    for batch in continuous.generate(model, character_tokenizer(), [STOP], sampling, requests):
        found |= batch
    assert [found[i] for i in range(14)] == expected
    assert len({sample.num_tokens for sample in expected}) > 1
    assert list(continuous.generate(model, character_tokenizer(), [STOP], sampling, [])) == []


def test_continuous_batching_never_cuts_a_prompt() -> None:
    model = load_model(tiny(max_position_embeddings=20), torch.float32, for_training=False).eval()
    requests, sampling = [Request("a" * 12, "k:0"), Request("a" * 15, "l:0")], SamplingSettings(temperature=0)
    found = list(continuous.generate(model, character_tokenizer(), [VOCAB - 1], sampling, requests))
    assert {i: sample.num_tokens for batch in found for i, sample in batch.items()} == {0: 8, 1: 5}
    with pytest.raises(EvaluationError, match="prompts are never cut"):
        next(continuous.generate(model, character_tokenizer(), [STOP], sampling, [Request("a" * 20, "k:0")]))


def test_top_k_keeps_the_most_probable() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(500, 1)
    settings = SamplingSettings(temperature=2.0, top_p=1.0, top_k=2)
    drawn = SeededSampling([str(i) for i in range(500)], settings, torch.device("cpu"))(torch.zeros(500, 1), scores)
    assert set(drawn.argmax(-1).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        pytest.param([7, 8, 9] * 30, True, id="short block"),
        pytest.param(list(range(30)) * 9, False, id="nine times"),
        pytest.param(list(range(30)) * 10, True, id="ten times"),
        pytest.param(list(range(500)), False, id="none"),
        pytest.param([i for j in range(10) for i in (*range(40), 1000 + j)], True, id="with something else between"),
        pytest.param([], False, id="empty"),
    ],
)
def test_loops(ids: list[int], loops: bool) -> None:
    assert is_loop(ids) == loops
