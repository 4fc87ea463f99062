"""Settings: one frozen pydantic base, and YAML 1.2 plus dotted overrides to a typed object.

Every fault of a file is reported at once, each with its path, the value, the rule and, for a misspelt key, the nearest
key there is.
"""

import difflib
import io
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from leadspan.errors import SettingsError


class Settings(BaseModel):
    """Base of every settings section: immutable, unknown keys refused, documented by the docstring of each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


SettingsT = TypeVar("SettingsT", bound=Settings)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML 1.2 (`1e-5` is a number, `no` is a string, duplicate keys are refused).

    Args:
        text: The document.
        source: What to call it in an error.

    Raises:
        SettingsError: The text is not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise SettingsError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def load_settings(kind: type[SettingsT], path: Path, overrides: Sequence[str] = ()) -> SettingsT:
    """Read a YAML file, apply `key.sub=value` overrides, and validate.

    Args:
        kind: The settings class of the whole file.
        path: The file.
        overrides: `dotted.key=value`; the value is parsed as YAML.

    Raises:
        SettingsError: The file is missing or not a mapping, or any value breaks a rule; names every fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); give the path of a recipe file") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not UTF-8 text; give the path of a recipe file") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: a recipe is a mapping of settings, this is {type(values).__name__}")
    apply_overrides(values, overrides)
    return validate(kind, values, str(path))


def load_json(kind: type[SettingsT], path: Path) -> SettingsT:
    """Read a settings object from the JSON file it was written to.

    Raises:
        SettingsError: The file cannot be read, or is of another kind.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read ({error}); give the path of a {kind.__name__} file") from None
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"]) or "(top level)"
        raise SettingsError(f"{path}: not a {kind.__name__} file ({place}: {fault['msg']}); make it anew") from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `key.sub=value` in a nested mapping, in place; a number is the index of a list.

    Raises:
        SettingsError: An override has no `=`, or leads below a value that has no keys.
    """
    for override in overrides:
        _apply_override(values, override)


def validate(kind: type[SettingsT], values: Mapping[str, Any], source: str) -> SettingsT:
    """Validate a mapping against a settings class, with every fault in one message.

    Raises:
        SettingsError: At least one value breaks a rule.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = [_describe(kind, fault) for fault in error.errors()]
        head = f"{source}: {len(faults)} setting{'s' if len(faults) > 1 else ''} to mend"
        raise SettingsError("\n  ".join([head, *faults])) from None


def dump_yaml(settings: Settings) -> str:
    """The settings as a YAML document that `load_settings` reads back to an equal object."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]  # untyped option
    yaml.dump(settings.model_dump(mode="json"), stream)
    return stream.getvalue()


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SettingsError(f"override {override!r}: write it as key.sub=value, for example training.epochs=1")
    *parents, last = key.split(".")
    node: Any = values
    for name in parents:
        node = _child(node, name, override)
    value = parse_yaml(text, f"override {override!r}")
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise SettingsError(f"override {override!r}: {'.'.join(parents)} is {node!r}, which has no keys to set")


def _child(node: Any, name: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, override)]
    if not isinstance(node, dict):
        raise SettingsError(f"override {override!r}: {name!r} lies below {node!r}, which has no keys to set")
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _index(node: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise SettingsError(f"override {override!r}: {name!r} must be a list index from 0 to {len(node) - 1}")
    return int(name)


def _describe(kind: type[BaseModel], fault: ErrorDetails) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "(top level)"
    if fault["type"] == "extra_forbidden":
        known = sorted(set(_keys_at(kind, fault["loc"][:-1])))
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if fault["type"] == "union_tag_not_found":
        tags = dict.fromkeys(str(_tag_of(model)) for model in _models_at(kind, fault["loc"]))
        return f"{path}.kind: missing; one of {', '.join(tags)}"
    if fault["type"] == "missing":
        return f"{path}: missing, and it has no default"
    shown = repr(fault["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{path} = {shown}: {fault['msg'].removeprefix('Value error, ')}"


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> Iterator[str]:
    """The field names that are legal at a location."""
    for model in _models_at(kind, location):
        yield from model.model_fields


def _models_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The settings classes a location may hold; a tag of a tagged union narrows the choice."""
    models: list[type[BaseModel]] = [kind]
    for part in location:
        below = [
            found
            for model in models
            if part in model.model_fields
            for found in models_in(model.model_fields[str(part)].annotation)
        ]
        tagged = [model for model in models if _tag_of(model) == part]
        models = below or tagged or models
    return models


def _tag_of(model: type[BaseModel]) -> object:
    field = model.model_fields.get("kind")
    return field.default if field is not None else None


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in a field's annotation, e.g. the members of a tagged union."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for inner in typing.get_args(annotation) for found in models_in(inner)]
