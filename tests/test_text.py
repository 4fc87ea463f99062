import logging

import pytest

from leadspan.errors import SettingsError
from leadspan.models.settings import Pretrained
from leadspan.settings import validate
from leadspan.text import LogFormatter, places_of_secrets, plain, plain_values

TOKEN = "hf_" + "aB3" * 11
SECRETS = [
    "https://user:pass@huggingface.co/x",
    "https://pass@host",
    "https:/user:pass@host/x",
    "git+ssh://git:pass%40x@host/x.git",
    "https://host/x?token=pass&page=2",
    "https://host/x?page=2&access_token=pass#here",
    "https://host/x?X-Amz-Signature=pass",
    TOKEN.replace("aB3aB3", "pass"),
    "ghp_" + "pass" * 9,
    "github_pat_11A_pass" + "x" * 20,
    "(glpat-pass4567890123456789)",
    "sk-pass" + "Z9" * 12,
    "HF_TOKEN_" + TOKEN.replace("aB3aB3", "pass"),
    "42" + TOKEN.replace("aB3aB3", "pass"),
    "KEY_sk-pass" + "Z9" * 12,
]
HARMLESS = [
    "hf_datasets/train", "runs/sk-a-name-of-a-run", "a@b.c", "token=5", "see https://host/a@b/c?page=2", "f(x) = y:z@w",
    "ghp_short", "tab\tand\nline", "\N{HORIZONTAL ELLIPSIS} \u00e9 \u4e2d \U0001f468\u200d\U0001f469",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_no_secret_is_left(text: str) -> None:
    assert "pass" in text and "pass" not in plain(text) and "***" in plain(text)
    assert plain(plain(text)) == plain(text)
    assert list(places_of_secrets({"a": ["x", {"b": text}]})) == ["a.1.b"]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_a_loop_of_beginnings_of_tokens_stays_as_it_is() -> None:
    text = "sk-" * 100_000  # in the square of this number of steps it would take minutes
    assert plain(text) == text


@pytest.mark.parametrize(
    "code",
    [
        *("\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "\u202e", "\u2066", "\r", "\x00", "\u2028", "\u200f", "\ud800"),
        *("\u206a", "\ufff9", "\u180e", "\U000e0041", "\U000e0100", "\U0001d173", "\U0001bca0"),
    ],
)
def test_no_control_code_is_left(code: str) -> None:
    assert code[0] not in plain(f"before{code}after")
    assert plain_values({code: [code, 3, None]}) == {plain(code): [plain(code), 3, None]}


def test_log_lines_are_plain() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s", (f"{TOKEN} \x1b[2J",), None)
    assert LogFormatter().format(record) == "warning: x: *** \N{REPLACEMENT CHARACTER}[2J"


@pytest.mark.parametrize(
    ("name", "level", "line"),
    [
        ("leadspan.data.prepare", logging.INFO, "60 records"),
        ("leadspan.data.prepare", logging.WARNING, "warning: 60 records"),
        ("transformers", logging.WARNING, "warning: transformers: 60 records"),
    ],
)
def test_log_lines_name_the_logger_of_other_libraries_alone(name: str, level: int, line: str) -> None:
    assert LogFormatter().format(logging.LogRecord(name, level, "", 0, "%d records", (60,), None)) == line


@pytest.mark.parametrize("text", SECRETS)
def test_settings_with_a_secret_are_refused_without_naming_it(text: str) -> None:
    with pytest.raises(SettingsError, match=r"x: path holds a password or a token.*HF_TOKEN") as caught:
        validate(Pretrained, {"path": text}, "x")
    assert "pass" not in str(caught.value).replace("password", "")
