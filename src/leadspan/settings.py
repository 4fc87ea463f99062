"""Settings: one frozen pydantic base, and YAML 1.2 plus dotted overrides to a typed object.

All faults of a file are reported at once, each with its path, the value, the rule and, for a misspelt key, the nearest
valid key.
"""

import ast
import inspect
import io
import itertools
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema
from ruamel.yaml import YAML

from leadspan.errors import LeadspanError, SettingsError
from leadspan.faults import Conflict, Faults, Rule, all_faults
from leadspan.text import places_of_secrets, shortened
from leadspan.yaml_text import MAX_DEPTH, not_text, parse_yaml, read_yaml_mapping


class Settings(BaseModel):
    """Base of every settings section: immutable, unknown keys refused, documented by the docstring of each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    _is_accepted: bool = PrivateAttr(default=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # Not by `use_attribute_docstrings`, see `field_docstrings`.
        schema = handler(core_schema)
        properties = schema.get("properties", {})
        for name, text in field_docstrings(cls).items():
            properties[name].setdefault("description", text)
        return schema

    @field_validator("*")
    @classmethod
    def _below_home(cls, value: Any, info: ValidationInfo) -> Any:
        """`~/runs` is below the user's home, and `~name/runs` below another's, as a shell has it."""
        if isinstance(value, Path):
            return Path(os.path.expanduser(value))
        if isinstance(value, dict):
            return {Path(os.path.expanduser(key)) if isinstance(key, Path) else key: value[key] for key in value}
        return os.path.expanduser(value) if info.field_name in ("path", "tokenizer") and value else value

    def conflicts(self) -> Iterator[Rule]:
        """Rules between settings of this section that they break: the settings, and why, with the remedy."""
        return iter(())

    @model_validator(mode="after")
    def _no_conflicts(self) -> Self:
        broken = [] if self._is_accepted else list(self.conflicts())
        if broken:
            raise Conflict(self, broken)
        return self


# Faults that one message lists.
_MAX_SHOWN = 20
# A key and its value without a space between, which YAML reads as text.
_IS_PAIR = re.compile(r"\w+:\S")
SettingsT = TypeVar("SettingsT", bound=Settings)
MoreFaults = Callable[[SettingsT, Callable[[str], bool]], Iterable[str]]
"""Finds faults of settings beyond their rules, one line each. Its second argument tests whether a dotted key is already
reported as wrong, so that no further fault of it is reported."""


def load_settings(
    kind: type[SettingsT], path: Path, overrides: Sequence[str] = (), more_faults: MoreFaults[SettingsT] | None = None
) -> SettingsT:
    """Read a YAML file, apply `key.sub=value` overrides, whose values are YAML too, and validate.

    Raises:
        SettingsError: The file is missing or not a mapping, or any value breaks a rule; names every fault.
    """
    values = read_yaml_mapping(path)
    return validate(kind, values, str(path), more_faults, list(override_faults(values, overrides)))


Count = Annotated[int, Field(ge=0, lt=2**127)]
"""A count in a file, small enough for arithmetic with floats."""
Amount = Annotated[float, Field(ge=0, lt=2.0**127)]
"""A measured amount in a file."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole in a file."""


def load_json(
    kind: type[SettingsT],
    path: Path,
    remedy: str = "make it anew",
    error_type: type[LeadspanError] = SettingsError,
    content: bytes | None = None,
) -> SettingsT:
    """Read a settings object from the JSON file it was written to, or its `content`; an error names the `remedy`.

    Raises:
        LeadspanError: The file cannot be read, or is of another kind; of type `error_type`.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise error_type(f"{path}: is not a file; {remedy}")
    try:
        return kind.model_validate_json(path.read_bytes() if content is None else content)
    except FileNotFoundError:
        raise error_type(f"{path}: not found; {remedy}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            fault = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in fault["loc"]) or "(top level)"
            # The first fault is enough: the file was written by a program.
            reason = f"holds no {kind.__name__} ({field}: {fault['msg']})"
        else:
            reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise error_type(f"{path}: {reason}; {remedy}") from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `key.sub=value` in a nested mapping, in place; a number is the index of a list.

    Raises:
        SettingsError: An override has no `=`, or leads below a value that has no keys; names every such one.
    """
    if faults := list(override_faults(values, overrides)):
        raise SettingsError("\n  ".join(faults))


def override_faults(values: dict[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Set `key.sub=value` in a nested mapping, in place, and yield the fault of each that cannot be set."""
    texts: dict[str, str] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        if key in texts and _IS_PAIR.match(text) and _IS_PAIR.match(texts[key]):  # what a shell makes of key={a:b,c:d}
            yield (
                f"override {key}: given as {texts[key]!r} and as {text!r}; in a shell, quote a mapping as "
                "'key={kind: value}'"
            )
        texts[key] = text
        try:
            _apply_override(values, override)
        except SettingsError as error:
            yield str(error)


def validate(
    kind: type[SettingsT],
    values: Mapping[str, Any],
    source: str,
    more_faults: MoreFaults[SettingsT] | None = None,
    earlier_faults: Sequence[str] = (),
) -> SettingsT:
    """Validate a mapping against a settings class, with every fault in one message.

    Args:
        kind: The settings class.
        values: The mapping.
        source: What holds it, for the error.
        more_faults: Finds further faults; gets the settings with a stand-in for each value that breaks a rule.
        earlier_faults: Lines of faults that were found before, which come first.

    Raises:
        SettingsError: At least one value breaks a rule.
    """
    # Before anything else, since messages quote values.
    if secrets := list(places_of_secrets(values)):
        raise SettingsError(
            f"{source}: {', '.join(secrets)} holds a password or a token, which would be written into every run; take "
            "it out, and log in with `hf auth login` or set HF_TOKEN"
        )
    # Rules beyond the class see stand-ins for wrong values, so that all faults are reported at once.
    faults, settings = Faults([], set(), None), None
    try:
        settings = faults.mended = kind.model_validate(values)
    except ValidationError as error:
        faults = all_faults(kind, values, error)
    misread = {path: line for path, line in _misread(values, faults.mended) if not faults.involve(path)}
    faults.keys |= {tuple(path.split(".")) for path in misread}
    lines = [*earlier_faults, *faults.lines, *misread.values()]
    if more_faults is not None and faults.mended is not None:
        lines += more_faults(faults.mended, faults.involve)
    if settings is not None and not lines:
        return settings
    head = f"{source}: {len(lines)} invalid setting{'s' if len(lines) > 1 else ''}"
    more = [f"and {len(lines) - _MAX_SHOWN:,} more"] if len(lines) > _MAX_SHOWN else []
    raise SettingsError("\n  ".join([head, *lines[:_MAX_SHOWN], *more]))


def _misread(values: Any, settings: Any, path: str = "", may_be_empty: bool = True) -> Iterator[tuple[str, str]]:
    """Paths and faults of values that are read as what nobody means.

    Truth is read as a number (Pydantic's strict mode would refuse text for a path, too), and an empty text as a path.
    """
    if isinstance(values, bool) and isinstance(settings, int | float) and not isinstance(settings, bool):
        yield path, f"{path}: true or false, where a number belongs"
    elif values == "" and settings is not None and not may_be_empty:
        yield path, f"{path} = '': an empty text; give a value, or leave it out where it has a default"
    elif isinstance(values, Mapping):
        fields = type(settings).model_fields if isinstance(settings, BaseModel) else {}
        for key, value in values.items():
            below = settings.get(key) if isinstance(settings, Mapping) else getattr(settings, str(key), None)
            below_path = f"{path}.{key}" if path else str(key)
            yield from _misread(value, below, below_path, key not in fields or fields[key].default == "")
    elif isinstance(values, list) and isinstance(settings, list | tuple):
        for i, (value, below) in enumerate(zip(values, settings, strict=False)):
            yield from _misread(value, below, f"{path}.{i}")


def field_docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """The docstring behind each field of a settings class, by field.

    Pydantic's `use_attribute_docstrings` reads them when a class is made, which took a third of the time in which
    `leadspan` starts; they are only needed where settings are described.
    """
    docstrings = {"kind": "Tag."}  # of a member of a tagged union
    for base in reversed(kind.__mro__):
        if issubclass(base, Settings) and base is not Settings:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for statement, after in itertools.pairwise(getattr(definition, "body", [])):
                match statement, after:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                        docstrings[name] = inspect.cleandoc(text)
    # A constant of a class, such as a `ClassVar`, is no field.
    return {name: text for name, text in docstrings.items() if name in kind.model_fields}


def json_schema(kind: type[Settings]) -> dict[str, Any]:
    """The JSON schema of files of a settings class: keys, types, bounds and meanings; not rules between settings."""
    schema = kind.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def flat_settings(settings: Settings) -> dict[str, Any]:
    """Dotted name of every setting to its plain value; an empty mapping is one."""
    return dict(flat(settings.model_dump(mode="json")))


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """All settings except those named and those nested in them."""
    nested = tuple(f"{name}." for name in names)
    return {key: value for key, value in settings.items() if key not in names and not key.startswith(nested)}


def dump_yaml(settings: Settings) -> str:
    """The settings as a YAML document that `load_settings` reads back to an equal object."""
    stream = io.StringIO()
    # Block style, in the order of the fields, as recipes are written.
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]  # untyped option
    yaml.dump(settings.model_dump(mode="json"), stream)
    return stream.getvalue()


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    source = f"override {shortened(override, 100)!r}"
    *parents, last = key.split(".")
    if not equals or not all((*parents, last)):
        raise SettingsError(f"{source}: write it as key.sub=value, for example training.epochs=1")
    if not_text(key):
        raise SettingsError(f"{source}: its key holds {not_text(key)}, which no text has")
    if len(parents) >= MAX_DEPTH:
        raise SettingsError(f"{source}: {len(parents) + 1:,} keys deep; settings are at most {MAX_DEPTH} deep")
    node: Any = values
    for name in parents:
        if isinstance(node, list):
            node = node[_index(node, name, source)]
        elif isinstance(node, dict):
            below = {} if node.get(name) is None else node[name]
            node[name] = below
            node = below
        else:
            raise SettingsError(f"{source}: {name!r} lies below {node!r}, which has no keys to set")
    try:
        value = parse_yaml(text, source)
    except SettingsError as error:
        hint = "; in a shell, quote it as 'key={kind: value}'" if set("{}[]") & set(text) else ""
        raise SettingsError(f"{error}{hint}") from None
    if isinstance(node, list):
        node[_index(node, last, source)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise SettingsError(f"{source}: {'.'.join(parents)} is {node!r}, which has no keys to set")


def _index(node: list[Any], name: str, source: str) -> int:
    if not node:
        raise SettingsError(f"{source}: {name!r} lies in an empty list; give the whole list")
    if name not in map(str, range(len(node))):
        raise SettingsError(f"{source}: {name!r} must be a list index from 0 to {len(node) - 1}")
    return int(name)
