"""The adapter against the shape vLLM documents: `RequestOutput.prompt_logprobs`, a list with None for the first token,
then `dict[int, Logprob]` (fields `logprob`, `rank`, `decoded_token`) of the k likeliest tokens and the prompt's own."""

from dataclasses import dataclass

import numpy as np
import pytest

from leadspan.errors import SettingsError, TargetsError
from leadspan.models.config import Pretrained
from leadspan.settings import validate
from leadspan.teacher.codecs import decode
from leadspan.teacher.config import CaptureSettings, TopK
from leadspan.teacher.vllm import VllmEngine, rows_of


@dataclass
class Logprob:
    """As `vllm.logprobs.Logprob`."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


IDS = np.array([5, 9, 151_935], dtype=np.int32)
ANSWER = [
    None,
    {9: Logprob(-0.1, 1, "a"), 7: Logprob(-2.5, 2, "b")},
    {
        3: Logprob(-0.2, 1),
        151_935: Logprob(-6.0, 40),
        8: Logprob(-2.0, 2),
    },  # the data's token besides the two likeliest
]


def test_rows_hold_the_likeliest_and_the_datas_token() -> None:
    rows = rows_of(ANSWER, IDS, 2, "float32")
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
        ([None, {9: Logprob(-0.1)}, ANSWER[2]], "returned 1 of 2 tokens at position 0"),
        ([None, {1: Logprob(-0.1), 2: Logprob(-3.0)}, ANSWER[2]], "without the data's token 9"),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer, message: str) -> None:
    with pytest.raises(TargetsError, match=message):
        rows_of(answer, IDS, 2, "packed")


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
            VllmEngine(Pretrained(path="any"), TopK(), 10)
