import pytest
import torch

from leadspan.errors import EvaluationError
from leadspan.evaluation import sampling
from leadspan.evaluation.sampling import Request, Sample, SeededSampling, UsableScores, generate, loop_end
from leadspan.evaluation.settings import SamplingSettings
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from toys import SPECIALS, VOCAB, character_tokenizer, tiny

STOP = SPECIALS.index("<|im_end|>")
REQUESTS = [Request("add " + "one " * (i % 4), f"p{i}") for i in range(9)]


def draw(requests: list[Request], **settings: object):
    model = load_model(tiny(seed=4), torch.float32, for_training=False).eval()
    return collect(model, requests, [STOP], SamplingSettings.model_validate({"max_new_tokens": 12, **settings}))


def collect(model, requests: list[Request], stops: list[int], settings: SamplingSettings) -> list[Sample]:
    samples: dict[int, Sample] = {}
    for batch in generate(model, character_tokenizer(), stops, settings, requests):
        samples |= batch
    return [samples[i] for i in range(len(requests))]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    alone = [draw([request])[0] for request in REQUESTS]
    assert draw(REQUESTS, batch_size=4) == alone
    assert draw(REQUESTS[::-1], batch_size=9) == alone[::-1]


def test_seed_and_key_change_the_sample() -> None:
    assert draw(REQUESTS[:1]) != draw(REQUESTS[:1], seed=1)
    assert draw([Request("add", "a")]) != draw([Request("add", "b")])


@pytest.mark.parametrize("temperature", [0, 1])
def test_weights_that_are_no_numbers_give_no_samples(temperature: float) -> None:
    model = load_model(tiny(seed=4), torch.float32, for_training=False).eval()
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    settings = SamplingSettings(max_new_tokens=4, temperature=temperature)
    with pytest.raises(EvaluationError, match="the model's logits are not numbers"):
        collect(model, REQUESTS, [STOP], settings)


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


def test_padding_of_the_head_is_not_drawn() -> None:
    scores = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(200, 1)
    settings = SamplingSettings(temperature=1.0, top_p=1.0)
    draw_tokens = SeededSampling([str(i) for i in range(200)], settings, torch.device("cpu"))
    ids = torch.zeros(200, 1)
    assert set(draw_tokens(ids, UsableScores(2)(ids, scores)).argmax(-1).tolist()) == {0, 1}


def test_the_probability_of_a_draw_is_that_at_temperature() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).repeat(100, 1)
    settings = SamplingSettings(temperature=0.5, top_p=1.0)
    log_probs: list[list[float]] = [[] for _ in scores]
    sampling = SeededSampling([str(i) for i in range(100)], settings, torch.device("cpu"), log_probs)
    drawn = sampling(torch.zeros(100, 1), scores).argmax(-1)
    expected = (scores[0] / 0.5).log_softmax(-1)[drawn]
    torch.testing.assert_close(torch.tensor(log_probs)[:, 0], expected)
    assert int(drawn.max()) < 3


def test_a_temperature_near_zero_is_greedy() -> None:
    """In float32 the scores at this temperature are infinite."""
    log_probs: list[list[float]] = [[]]
    settings = SamplingSettings(temperature=1e-40, top_p=0.9, top_k=3)
    sampling = SeededSampling(["p"], settings, torch.device("cpu"), log_probs)
    assert int(sampling(torch.zeros(1, 1), torch.tensor([[1.0, 5.0, 4.9, -3.0]])).argmax()) == 1
    assert log_probs == [[0.0]]


def test_stops_and_caps_are_told_apart() -> None:
    samples = draw(REQUESTS, max_new_tokens=150)
    assert {s.finish_reason for s in samples} <= {"stop", "length"}
    for sample in samples:
        assert (sample.finish_reason == "length") == (sample.num_tokens == 150)
        assert "<|im_end|>" not in sample.text
    assert any(s.finish_reason == "stop" for s in samples)


def test_the_window_caps_new_tokens_and_never_the_prompt() -> None:
    model = load_model(tiny(max_position_embeddings=20), torch.float32, for_training=False).eval()
    settings = SamplingSettings(max_new_tokens=100, temperature=0)
    sample = collect(model, [Request("a" * 12, "k")], [VOCAB - 1], settings)[0]
    assert sample.num_tokens <= 8
    with pytest.raises(
        EvaluationError,
        match=r"problem p1:0: its prompt has 20 tokens and the model's window 20; prompts are never cut",
    ):
        collect(model, [Request("a" * 20, "p1:0")], [STOP], settings)


def test_rows_that_reach_the_window_leave_their_batch() -> None:
    """A model with learned positions has none for the token behind the window of a row with a long prompt."""
    config = {"model_type": "gpt2", "vocab_size": VOCAB, "n_positions": 90, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = load_model(RandomInit(config=config), torch.float32, for_training=False).eval()
    settings = SamplingSettings(max_new_tokens=100, temperature=1.0)
    requests = [Request("a" * number, f"p{number}:0") for number in (85, 5, 40)]
    samples = collect(model, requests, [VOCAB - 1], settings)
    assert samples == [collect(model, [request], [VOCAB - 1], settings)[0] for request in requests]
    assert all(len(r.prompt) + s.num_tokens <= 90 for r, s in zip(requests, samples, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_end_leave_their_batch_and_change_nothing(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is one call of `generate` for the whole batch, in which no row leaves."""
    model = load_model(tiny(seed=4), torch.float32, for_training=False).eval()
    settings = SamplingSettings(temperature=temperature, top_p=0.9, top_k=40, max_new_tokens=60, batch_size=7)
    requests = [Request("add " + "one " * (i % 4), f"p{i}:0") for i in range(14)]
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True)
    monkeypatch.setattr(sampling, "PORTION", settings.max_new_tokens)
    expected = collect(model, requests, [STOP], settings)
    assert set(sizes) == {7} and len({sample.num_tokens for sample in expected}) > 1
    sizes.clear()
    monkeypatch.setattr(sampling, "PORTION", 8)
    assert collect(model, requests, [STOP], settings) == expected
    assert min(sizes) < 7


def test_an_answer_that_is_continued_counts_its_tokens() -> None:
    """Greedy: the rest of an answer is what follows its first tokens in one piece."""
    whole = draw([Request("add", "x")], temperature=0, max_new_tokens=9)[0]
    begun = tuple(character_tokenizer()(whole.text[:4], add_special_tokens=False)["input_ids"])
    assert len(begun) == 4
    rest = draw([Request("add", "x", begun)], temperature=0, max_new_tokens=9)[0]
    assert (whole.text[4:], whole.num_tokens - 4) == (rest.text, rest.num_tokens)


def test_top_k_keeps_the_most_probable() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(500, 1)
    settings = SamplingSettings(temperature=2.0, top_p=1.0, top_k=2)
    drawn = SeededSampling([str(i) for i in range(500)], settings, torch.device("cpu"))(torch.zeros(500, 1), scores)
    assert set(drawn.argmax(-1).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("ids", "end"),
    [
        pytest.param([7, 8, 9] * 30, 57, id="short block: its 30 tokens occur at 0, 3, ..., 27"),
        pytest.param(list(range(30)) * 9, None, id="nine times"),
        pytest.param(list(range(30)) * 10, 300, id="ten times"),
        pytest.param([1, 2, *list(range(30)) * 12], 302, id="behind other tokens"),
        pytest.param(list(range(500)), None, id="none"),
        pytest.param([i for j in range(10) for i in (*range(40), 1000 + j)], 399, id="with something else between"),
        pytest.param([], None, id="empty"),
    ],
)
def test_where_a_loop_is_seen(ids: list[int], end: int | None) -> None:
    assert loop_end(ids) == end
