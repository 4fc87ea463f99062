"""Untrusted text made safe to display, for consoles, logs, Markdown and pages alike.

Traces, names, models and error messages are written by others. Control codes, which a terminal would obey, marks that
reorder or hide text, and passwords and tokens are replaced before anything is shown.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# Control codes except tab and line feed, separators that some programs break lines at, marks that reorder or hide text
# or smuggle it in unseen (tags, variation selectors of plane 14), and halves of surrogates, which no file can hold.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_NAMES = "access_token|api_?key|auth|auth_token|key|passwd|password|pwd|secret|sig|signature|token|x-amz-[a-z-]+"
# The user of a URL, also where a path has lost one slash of it; a value of its query; tokens of Hugging Face, GitHub,
# GitLab, OpenAI, Slack and AWS, all of 20 characters or more: a lower bound would hide words such as `sk-learn`.
_SECRET = re.compile(
    r"(?P<user>(?:(?<=://)|(?<=[a-z]:/))[^\s/?#'\"<>\\]+(?=@))"
    rf"|(?P<name>[?&;#](?i:{_NAMES})=)[^\s&;#'\"<>\\]+"
    r"|(?:hf_|gh[oprsu]_|\bAKIA)[A-Za-z0-9]{16,}"
    r"|(?<![A-Za-z0-9])(?:github_pat_|glpat-|sk-|xox[abeprs]-)(?=[a-z_-]{0,99}[0-9A-Z])[A-Za-z0-9_-]{16,}"
)
HIDDEN = "***"


def shortened(text: str, most: int) -> str:
    """A text for a message: all of it, or its beginning and three dots, at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def first_line(error: Exception) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def plain(text: str) -> str:
    """The text with every control code replaced by U+FFFD, and every password and token by asterisks.

    >>> plain("https://me:pass@host/x?token=abc&page=2")
    'https://***@host/x?token=***&page=2'
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", without_secrets(text))


def without_secrets(text: str) -> str:
    """The text with every password and token replaced by asterisks."""
    # The name of a query's value stays: it says what was hidden, and gives access to nothing.
    return _SECRET.sub(lambda match: (match["name"] or "") + HIDDEN, text)


def plain_values(value: Any) -> Any:  # Any: plain JSON
    """Nested values with all of their text, keys included, made plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain_values(key): plain_values(inner) for key, inner in value.items()}
    return [plain_values(inner) for inner in value] if isinstance(value, list | tuple) else value


def places_of_secrets(value: Any, path: str = "") -> Iterator[str]:
    """Dotted names of the nested values that hold a password or a token; already hidden values do not count."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from places_of_secrets(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from places_of_secrets(inner, f"{path}.{number}".lstrip("."))
    elif isinstance(value, str) and without_secrets(value) != value:
        yield path


def print_plain(text: str = "", error: bool = False) -> None:
    """Write a line of text to standard output, or to standard error, where a failure to write changes nothing."""
    if not error:
        sys.stdout.write(plain(text) + "\n")
        return
    with contextlib.suppress(OSError):  # a terminal that has closed, or a log on a full disk
        sys.stderr.write(plain(text) + "\n")


class LogFormatter(logging.Formatter):
    """Formats log lines for a reader: plain, the level but for information, the logger only of other libraries."""

    def format(self, record: logging.LogRecord) -> str:
        """The line as plain text."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        library = "" if record.name.partition(".")[0] == "leadspan" else f"{record.name}: "
        return plain(f"{level}{library}{super().format(record)}")
