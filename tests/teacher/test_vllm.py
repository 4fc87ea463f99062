"""Prompt log-probabilities as engines return them, and vLLM's adapter where vLLM is missing."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from leadspan.errors import SettingsError, TargetsError
from leadspan.models.settings import Pretrained
from leadspan.settings import validate
from leadspan.teacher.codecs import decode
from leadspan.teacher.engine import VllmEngine
from leadspan.teacher.server import read_support
from leadspan.teacher.settings import CaptureSettings, TopK

IDS = np.array([5, 9, 151_935], dtype=np.int32)
ANSWER = [None, {9: -0.1, 7: -2.5}, {3: -0.2, 151_935: -6.0, 8: -2.0}]  # the data's token besides the two likeliest


def test_rows_hold_the_likeliest_and_the_datas_token() -> None:
    rows = read_support(ANSWER, IDS, 2, "vllm", "capture.codec.k").columns("float32")
    found = decode(rows, TopK(k=2, precision="float32"))
    assert found["token_ids"].tolist() == [[9, 7], [3, 8]]
    np.testing.assert_allclose(found["log_probs"], [[-0.1, -2.5], [-0.2, -2.0]], rtol=1e-6)
    np.testing.assert_allclose(rows["label_log_prob"], [-0.1, -6.0])
    np.testing.assert_allclose(rows["outside"], 1 - np.exp([[-0.1, -2.5], [-0.2, -2.0]]).sum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ANSWER[:2], "returned 2 prompt log-probabilities for 3 tokens"),
        (None, "returned none"),
        ([None, {9: -0.1}, ANSWER[2]], "returned 1 of 2 tokens at position 0"),
        ([None, {1: -0.1, 2: -3.0}, ANSWER[2]], "without the data's token 9"),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer, message: str) -> None:
    with pytest.raises(TargetsError, match=message):
        read_support(answer, IDS, 2, "vllm", "capture.codec.k")


def test_a_tail_that_rounding_left_nothing_of_is_small_and_not_none() -> None:
    support = read_support([None, {1: 0.0, 0: -40.0}], np.array([0, 1]), 2, "vllm", "capture.codec.k")
    assert support.outside.tolist() == [2.0**-24]


@pytest.mark.parametrize(
    "changes", [{"codec": {"kind": "hidden"}}, {"temperatures": [1.0, 2.0]}, {"vocabulary": "tokenizer"}]
)
def test_what_vllm_cannot_store_is_refused_in_the_recipe(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="engine vllm returns the likeliest tokens at temperature 1"):
        validate(CaptureSettings, {"engine": "vllm", **changes}, "recipe")
    assert validate(CaptureSettings, {"engine": "vllm"}, "recipe").codec.kind == "top_k"


def test_without_vllm_the_extra_is_named() -> None:
    pytest.importorskip("importlib")
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match=r"pip install 'leadspan\[vllm\]'"):
            VllmEngine(Pretrained(path="any"), TopK(), 10, torch.float32)


def test_vllm_computes_in_the_type_that_the_manifest_states(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, object] = {}
    stand_in = SimpleNamespace(LLM=lambda **given: options.update(given), SamplingParams=lambda **given: None)
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    VllmEngine(Pretrained(path="any"), TopK(k=7), 10, torch.float32)
    assert (options["dtype"], options["max_logprobs"], options["max_model_len"]) == ("float32", 7, 11)
