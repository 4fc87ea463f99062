"""YAML 1.2 as plain values: text, numbers, truth values, null, lists and mappings, all of a bounded size.

Settings are written by hand, or come from strangers. What only a program writes is refused where it stands: aliases
that stand for millions of values, endless nesting, tags, integers no setting holds, text no file can hold.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from leadspan.errors import SettingsError

# The largest study here has some 200 values, 8 deep, in 4,000 characters; the parser reads 10,000 values a second.
_OF_DATA = (".jsonl", ".parquet", ".arrow", ".gz", ".zst")
MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH, MAX_INTEGER_BITS = 200_000, 5_000, 40, 64
# Tags of plain values; those of dates, sets or Python objects have no use in settings.
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))
_OTHER_VERSION = re.compile(r"^%YAML\s(?!\s*1\.2\s*(?:#.*)?$).*", re.MULTILINE)
# No file name may hold NUL, and no encoding has half of a surrogate pair.
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")


class _BoundedComposer(Composer):
    """Counts values and depth while it reads; an alias counts as much as the node that it repeats."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self._num_values = self._level = self._deepest = 0
        self._extents: dict[int, tuple[int, int]] = {}  # values and height of every finished node, by its id

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.parser.peek_event()
        tag = getattr(event, "ctag", None)
        if tag is not None and str(tag) not in (*_PLAIN_TAGS, "!"):
            raise ComposerError(None, None, f"tags such as {str(tag)[:60]!r} are not used here", event.start_mark)
        before, outer, self._deepest = self._num_values, self._deepest, self._level + 1
        self._level += 1
        self._check(event)  # on the way down too, so that endless nesting is stopped
        node = super().compose_node(parent, index)
        if isinstance(event, AliasEvent):
            if id(node) not in self._extents:
                raise ComposerError(None, None, f"alias {event.anchor!r} refers to itself", event.start_mark)
            values, height = self._extents[id(node)]
            self._num_values += values
            self._deepest = self._level - 1 + height
        else:
            self._num_values += 1
            self._extents[id(node)] = (self._num_values - before, self._deepest - self._level + 1)
        self._check(event)
        self._level -= 1
        self._deepest = max(outer, self._deepest)
        return node

    def _check(self, event: Any) -> None:
        if self._num_values > MAX_VALUES:
            raise ComposerError(None, None, f"more than {MAX_VALUES:,} values, aliases counted", event.start_mark)
        if self._deepest > MAX_DEPTH:
            raise ComposerError(None, None, f"nested more than {MAX_DEPTH} levels deep", event.start_mark)


class _PlainConstructor(SafeConstructor):
    """Names the line of a value whose text does not fit its tag or its apparent type."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError) as error:
            kind = str(node.tag).rpartition(":")[2]
            reason = str(error).partition(";")[0] or type(error).__name__
            raise ConstructorError(None, None, f"not a valid {kind} ({reason[:100]})", node.start_mark) from None


class _CoreResolver(VersionedResolver):
    """Dates and `=` are text, as YAML 1.2 has it."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        is_text = kind is ScalarNode and str(tag) in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
        return self.DEFAULT_SCALAR_TAG if is_text else tag


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 (`1e-5` is a number, `no` and `2026-01-31` are text, duplicate keys are refused).

    Nothing in the result is shared: where an alias stands, there is a copy. An error calls the document `source`.

    Raises:
        SettingsError: The text is not YAML, or holds what no setting can be.
    """
    if len(text) > MAX_CHARACTERS:
        raise SettingsError(f"{source}: {len(text):,} characters; settings have at most {MAX_CHARACTERS:,}")
    # YAML 1.1 reads `no` and `1:30` as a truth value and a number.
    if directive := _OTHER_VERSION.search(text):
        raise SettingsError(f"{source}: {directive[0].strip()[:40]!r}: settings are YAML 1.2; leave the line out")
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Constructor, yaml.Resolver = _BoundedComposer, _PlainConstructor, _CoreResolver
    try:
        values = yaml.load(text)
    except ReaderError as error:
        fault = f"character U+{error.character:04X} at position {error.position + 1:,}: {error.reason}"
    except MarkedYAMLError as error:
        # Without the parser's own advice on how to switch a check off.
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        is_continued = str(error.problem).startswith("but ")
        problem = f"{error.context} {error.problem}" if is_continued else error.problem or error.context
        fault = at + " ".join(str(problem or "cannot be read").split())
        fault += "; indent with spaces" if r"'\t'" in fault else ""
    except YAMLError as error:
        fault = " ".join(str(error).split()) or type(error).__name__
    except (ValueError, OverflowError):  # the scanner converts escapes to characters without a range check
        fault = "an escape such as \\U names no character"
    else:
        return _plain(values, source, "")
    raise SettingsError(f"{source}: not valid YAML: {fault}")


def read_yaml_mapping(path: Path) -> dict[str, Any]:
    """Read a file of settings.

    Raises:
        SettingsError: It cannot be read, or does not hold a mapping of plain values.
    """
    remedy = "give the path of a YAML file of settings"
    if path.suffix.lower() in _OF_DATA and path.is_file():
        raise SettingsError(f"{path}: holds data, not a recipe; `leadspan init {path}` writes a recipe for traces")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise SettingsError(f"{path}: is a directory; {remedy}")
        if not stat.S_ISREG(mode):  # a pipe may never end, and reading a device may never begin
            raise SettingsError(f"{path}: is not a regular file; {remedy}")
        with path.open("rb") as file:
            # UTF-8 has at most four bytes a character, and one more shows that the file is too long.
            content = file.read(4 * MAX_CHARACTERS + 1)
        if len(content) > 4 * MAX_CHARACTERS:  # which may end within a character
            raise SettingsError(
                f"{path}: {4 * MAX_CHARACTERS:,} bytes and more; settings have at most "
                f"{MAX_CHARACTERS:,} characters; {remedy}"
            )
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text (byte {error.start + 1:,}); {remedy}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        kinds = {type(None): "empty", list: "a list", str: "a text", bool: "a truth value"}
        shown = kinds.get(type(values), "a number")
        raise SettingsError(f"{path}: is {shown}; a recipe is a mapping of settings, as lines of `key: value`")
    return values


def not_text(text: str) -> str:
    """The first character that no file or path can contain, such as `U+D800`; empty where there is none."""
    character = _NO_TEXT.search(text)
    return f"U+{ord(character[0]):04X}" if character else ""


def _plain(value: Any, source: str, key: str) -> Any:
    """A copy that shares nothing, of values that can be printed, stored and written as JSON."""
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise SettingsError(
                    f"{source}: key {str(name)[:60]!r} below {key or 'the top level'}: quote it as text"
                )
            _plain(name, source, key)
        return {name: _plain(inner, source, f"{key}.{name}".lstrip(".")) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, source, f"{key}.{i}".lstrip(".")) for i, inner in enumerate(value)]
    if isinstance(value, str) and not_text(value):
        raise SettingsError(f"{source}: {key or 'the value'} holds {not_text(value)}, which no text has; leave it out")
    # Python refuses to print integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise SettingsError(
            f"{source}: {key or 'the value'} is an integer of {value.bit_length():,} bits; "
            f"settings have at most {MAX_INTEGER_BITS}"
        )
    return value
