"""Untrusted text, made safe to display: the single place for consoles, logs, Markdown and pages.

Traces, names, models and error messages are written by others. What a terminal would obey, what reorders text on a
page, and what gives access to something is replaced before it is shown.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# Control codes but tab and line feed, separators that break lines elsewhere, marks that reorder or hide text or carry
# it unseen (tags, variation selectors of plane 14), and halves of surrogates, which no file can hold.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_NAMES = "access_token|api_?key|auth|auth_token|key|passwd|password|pwd|secret|sig|signature|token|x-amz-[a-z-]+"
# The user of a URL; a value of its query; tokens of Hugging Face, GitHub, GitLab, OpenAI, Slack and AWS, of which the
# shortest has 20 characters.
_SECRET = re.compile(
    r"(?P<user>(?<=://)[^\s/?#'\"<>\\]+(?=@))"
    rf"|(?P<name>[?&;#](?i:{_NAMES})=)[^\s&;#'\"<>\\]+"
    r"|(?:hf_|gh[oprsu]_|\bAKIA)[A-Za-z0-9]{16,}"
    r"|(?<![A-Za-z0-9])(?:github_pat_|glpat-|sk-|xox[abeprs]-)(?=[a-z_-]*[0-9A-Z])[A-Za-z0-9_-]{16,}"
)
HIDDEN = "***"


def plain(text: str) -> str:
    """The text with control codes as U+FFFD, and passwords and tokens as asterisks.

    >>> plain("https://me:pass@host/x?token=abc&page=2")
    'https://***@host/x?token=***&page=2'
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", without_secrets(text))


def without_secrets(text: str) -> str:
    """The text with passwords and tokens as asterisks."""
    return _SECRET.sub(lambda match: (match["name"] or "") + HIDDEN, text)


def plain_values(value: Any) -> Any:  # Any: plain JSON
    """Nested values with all of their text made plain."""
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


class PlainFormatter(logging.Formatter):
    """Log lines of plain text."""

    def format(self, record: logging.LogRecord) -> str:
        """Format as usual, then make it plain."""
        return plain(super().format(record))
