import logging
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from architectures import tiny_config
from leadspan.errors import ModelError
from leadspan.models.forward import ATTENTION, LAYOUT, body_of, final_hidden_states, groups_of
from leadspan.models.layout import settle_layout
from leadspan.models.loading import load_model
from leadspan.models.settings import Pretrained, RandomInit
from toys import tiny

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}}
LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
    },
}


def _config(kind: str, **more: Any) -> RandomInit:
    return RandomInit(config={**tiny_config(kind), "initializer_range": 0.3, **more})


def _ids(length: int) -> torch.Tensor:
    return torch.randint(3, 60, (1, length), generator=torch.Generator().manual_seed(length))


def _own(settings: RandomInit, length: int) -> torch.Tensor:
    """What the model says of one example, with no example before it."""
    plain = load_model(settings, torch.float64, for_training=False)
    return body_of(plain)(input_ids=_ids(length), use_cache=False).last_hidden_state[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        pytest.param(_config("qwen3"), "packed", id="attention"),
        pytest.param(_config("mistral", sliding_window=16), "packed", id="window"),
        pytest.param(_config("llama", **DYNAMIC), "alone", id="rotary by the longest so far"),
        pytest.param(_config("phi3", **LONGROPE), "alone", id="rotary by the longest of a batch"),
        pytest.param(_config("llama4_text"), "padded", id="attention in chunks"),
        pytest.param(_config("bloom"), "padded", id="positions that a row does not restart"),
        pytest.param(_config("lfm2"), "padded", id="convolutions"),
    ],
)
@torch.no_grad()
def test_every_example_of_a_row_is_what_it_is_by_itself(settings: RandomInit, layout: str) -> None:
    model = load_model(settings, torch.float64)
    assert getattr(model, LAYOUT) == layout
    assert (model.config._attn_implementation == ATTENTION) == (layout == "packed")
    lengths = [90, 7, 88, 33, 31, 70] if layout == "alone" else [40, 7, 38, 20]  # around what the configs name
    row = torch.cat([_ids(n) for n in lengths], dim=1)
    borders = (0, *torch.tensor(lengths).cumsum(0).tolist())
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    found = final_hidden_states(model, row, positions, borders, torch.arange(borders[-1]))
    expected = torch.cat([_own(settings, n) for n in lengths])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(_config("gemma3_text", use_bidirectional_attention=True), id="Gemma 3"),
        pytest.param(
            _config("gemma4_text", use_bidirectional_attention="all", hidden_size_per_layer_input=0), id="Gemma 4"
        ),
        pytest.param(_config("bert"), id="an encoder"),
    ],
)
def test_a_model_that_looks_ahead_is_refused(settings: RandomInit) -> None:
    with pytest.raises(ModelError, match="a position changes with what follows it"):
        load_model(settings, torch.float32)


def test_weights_that_are_no_numbers_are_not_taken_for_a_model_that_looks_ahead() -> None:
    model = load_model(tiny(), torch.float32)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(ModelError, match="model x: its hidden states are not finite, so its weights are damaged"):
        settle_layout(model, "packed", "model x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            _config("phi3", pad_token_id=32000), "phi3.*Padding_idx must be within", id="vocabulary below pad"
        ),
        pytest.param(
            _config("deepseek_v3", num_key_value_heads=2),
            "deepseek_v3.*it does not run on a few tokens, so values of its config do not fit each other",
            id="fewer key heads",
        ),
        pytest.param(_config("youtu", num_key_value_heads=2), "youtu.*do not fit each other", id="the same of another"),
        pytest.param(RandomInit(config={"model_type": "dbrx"}), "dbrx.*rope_theta", id="a config without its class's"),
        pytest.param(_config("reformer", is_decoder=False), "reformer.*is_decoder", id="no decoder"),
        pytest.param(_config("modernbert-decoder"), "its logits are not those of its hidden states", id="its own head"),
    ],
)
def test_a_config_that_cannot_be_trained_is_one_error(settings: RandomInit, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(settings, torch.float32)


def test_own_attention_can_be_asked_for() -> None:
    settings = RandomInit(config=tiny().config, attention="own")
    model = load_model(settings, torch.float32)
    assert (getattr(model, LAYOUT), model.config._attn_implementation) == ("padded", "sdpa")


def test_the_layout_is_said_and_the_model_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    settings = _config("phi3", **LONGROPE)
    with caplog.at_level(logging.INFO, logger="leadspan"):
        model = load_model(settings, torch.bfloat16)
    assert "random_init.config (phi3): examples go through it one at a time" in caplog.text
    plain = load_model(settings, torch.bfloat16, for_training=False)
    state = model.state_dict() | dict(model.named_buffers())
    before = plain.state_dict() | dict(plain.named_buffers())
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], before[name]) and state[name].dtype == before[name].dtype for name in before)
    assert model.config.get_text_config().original_max_position_embeddings == 32
    assert model.training == plain.training


def test_examples_of_nearly_one_length_share_a_pass() -> None:
    assert groups_of((0, 10, 19, 24), "padded") == [[0, 1], [2]]
    assert groups_of((0, 10, 19, 24), "alone") == [[0], [1], [2]]
    borders = (0, 100, 199, 200, 290, 390)
    groups = groups_of(borders, "padded")
    lengths = [100, 99, 1, 90, 100]
    for group in groups:
        padded = len(group) * max(lengths[i] for i in group)
        assert sum(lengths[i] for i in group) >= 0.9 * padded
    assert sorted(index for group in groups for index in group) == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_saved_student_keeps_nothing_of_the_layout(tmp_path: Any) -> None:
    model = load_model(_config("lfm2"), torch.float32)
    model.save_pretrained(tmp_path)
    assert "leadspan" not in (tmp_path / "config.json").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert getattr(load_model(Pretrained(path=str(tmp_path)), torch.float32), LAYOUT) == "padded"
    ids = _ids(9)
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
