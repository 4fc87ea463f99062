"""Faults of settings in words: each key as it was written, the value, the rule, and the nearest valid key.

Rules between settings are checked even where other settings are wrong: a wrong setting is replaced by its default, and
rules that involve it are skipped.
"""

import contextlib
import copy
import difflib
import itertools
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from leadspan.other_tools import OTHER_NAMES, OTHER_VALUES

Rule = tuple[tuple[str, ...], str]
"""Settings that contradict each other, as dotted keys below their section, and why."""

_Keys = tuple[str | int, ...]
# Rounds of validation, as replacing one fault may uncover others; similar keys that a message names; and how similar
# they must be (`difflib`).
_MAX_ROUNDS, _MAX_NEAR, _CLOSE = 10, 3, 0.75
# Tried in turn for a required setting without a default, until one is valid.
_STAND_INS: tuple[Any, ...] = (1, 0.5, "unknown", [], {})
_MAPPING_FAULTS = ("model_type", "model_attributes_type", "dict_type", "dataclass_type")
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


class Conflict(ValueError):
    """Settings of one section that are valid one by one, and together break a rule."""

    def __init__(self, section: BaseModel, rules: Sequence[Rule]):
        super().__init__("; ".join(text for _, text in rules))
        self.section, self.rules = section, rules


@dataclass
class Faults:
    """What is wrong with values."""

    lines: list[str]  # every fault: of single settings, then of rules between valid settings
    keys: set[_Keys]  # the settings that are wrong by themselves
    mended: Any  # the settings with defaults in place of the faults; None where that fails

    def involve(self, key: str) -> bool:
        """Whether a setting, given as a dotted key, is wrong by itself, or is inside or around one that is."""
        return any(_overlap(tuple(key.split(".")), keys) for keys in self.keys)


def all_faults(kind: type[BaseModel], values: Mapping[str, Any], error: ValidationError) -> Faults:
    """Everything that is wrong with values that a settings class has refused with an error."""
    mended: dict[str, Any] = copy.deepcopy(dict(values))
    section: Any = None
    paths = list(_paths(kind, values))
    lines: dict[str, dict[str, None]] = {}
    faulty: set[_Keys] = set()
    # Each round replaces what was wrong and validates again, so that rules between the rest are checked too.
    for later in range(_MAX_ROUNDS):
        num_known, still = (len(lines), len(faulty)), set[_Keys]()
        for fault in error.errors(include_url=False):
            conflict = fault.get("ctx", {}).get("error")
            keys, models = _located(kind, values, fault)
            if isinstance(conflict, Conflict):
                lines |= {line: {} for line in _accept(conflict, mended, keys, faulty)}
                section = section if keys else conflict.section
            elif later and (stood_in := {bad_keys for bad_keys in faulty if _overlap(keys, bad_keys)}):
                still |= stood_in
            elif not (models and fault["type"] == "string_type" and isinstance(fault["input"], Mapping)):
                # Where a union of text and settings gets a mapping, the settings were meant.
                # In a later round, a missing key may be one that a wrong `kind` or benchmark would have filled in.
                if not (later and fault["type"] == "missing"):
                    path, text = _described(fault, keys, models, paths)
                    lines.setdefault(path, {})[text] = None
                near = _near_tag(fault, models)
                faulty.add((*keys, "kind") if near else keys)
                _mend(kind, mended, keys, near)
        for around in {keys[:-1] for keys in still if keys[:-1]}:  # no stand-in is valid: leave out the whole section
            faulty.add(around)
            _mend(kind, mended, around)
        if (len(lines), len(faulty)) == num_known:
            break
        try:
            section = kind.model_validate(mended)
            break
        except ValidationError as remaining:
            error = remaining
    return Faults([path + " or ".join(texts) for path, texts in lines.items()], faulty, section)


def _accept(conflict: Conflict, mended: dict[str, Any], keys: _Keys, faulty: set[_Keys]) -> Iterator[str]:
    """The broken rules of a section that involve no setting that is wrong by itself; they are not reported again."""
    node: Any = mended
    for key in keys[:-1]:
        node = _get(node, key)
    if keys and _holds(node, keys[-1]):
        node[keys[-1]] = _accepted(conflict.section)
    for fields, text in conflict.rules:
        named = [(*keys, *field.split(".")) for field in fields]
        if not any(_overlap(field_keys, bad_keys) for field_keys in named for bad_keys in faulty):
            yield f"{'.'.join(map(str, keys))}: {text}" if keys else text


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in a field's annotation, e.g. the members of a tagged union."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in typing.get_args(annotation) for model in models_in(inner)]


def _located(
    kind: type[BaseModel], values: Mapping[str, Any], fault: ErrorDetails
) -> tuple[_Keys, list[type[BaseModel]]]:
    """The keys that lead to a fault, without the tags that pydantic puts between them, and the classes there."""
    # Pydantic puts the tag of a union's member into the path, which is no key of the file.
    models, keys, node, follows_union = [kind], [], values, False
    final = len(fault["loc"]) - 1
    for number, part in enumerate(fault["loc"]):
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        below = [model for field in fields for model in models_in(field.annotation)]
        tagged = [model for model in models if part in (_tag_of(model), model.__name__)]
        # The last part of a missing or unknown key is a key, although no class or value shows it.
        is_new = number == final and fault["type"] in ("missing", "extra_forbidden")
        if tagged and follows_union:  # before fields: a class may have one that is called as its tag is
            models, follows_union = tagged, False
        elif fields or is_new or _holds(node, part):
            keys.append(part)
            follows_union = len(below) > 1 if fields else follows_union
            models = below if fields else models
            node = _get(node, part)
        elif tagged:
            models = tagged
    return tuple(keys), models


def _described(fault: ErrorDetails, keys: _Keys, models: list[type[BaseModel]], paths: list[_Keys]) -> tuple[str, str]:
    """The text before the colon of a message, and the text after it."""
    key, value = ".".join(map(str, keys)) or "(all)", fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; ", _nearest(keys, models, paths)
    if text := {"invalid_key": "keys are text", "missing": "missing, and it has no default"}.get(fault["type"]):
        return f"{key}: ", text
    tags = [str(tag) for tag in dict.fromkeys(map(_tag_of, models)) if tag is not None]
    if fault["type"] == "union_tag_not_found":
        return f"{key}.kind: ", f"missing; one of {', '.join(tags)}"
    if fault["type"] == "union_tag_invalid":
        hint = f"did you mean {near!r}? " if (near := _near_tag(fault, models)) else ""
        tag = _repr.repr(str(fault.get("ctx", {}).get("tag", "")))
        return f"{key}.kind = {tag}: ", f"{hint}one of {', '.join(tags)}"
    if fault["type"] in _MAPPING_FAULTS:
        return f"{key} = {_repr.repr(value)}: ", f"settings are a mapping; write {_as_mapping(models, value)}"
    text = fault["msg"].removeprefix("Value error, ")
    if fault["type"].startswith("less_than") and isinstance(value, int | float) and 2 <= value <= 100:
        is_share = 1 in (fault.get("ctx", {}).get("le"), fault.get("ctx", {}).get("lt"))
        text += f"; write {value / 100:g} for {value:g} %" if is_share else ""
    if fault["type"] == "list_type":
        is_none = str(value).lower() == "none"
        text += "; write []" if is_none else f"; write [{_as_mapping(models, value) if models else value}]"
    if fault["type"] == "literal_error":
        choices = re.findall(r"'(.*?)'", fault["msg"])
        here = OTHER_VALUES.get(str(value).lower())
        near_choices = [here] if here in choices else difflib.get_close_matches(str(value), choices, n=1)
        text += f"; did you mean {near_choices[0]!r}?" if near_choices else ""
    return (f"{key}: " if value and isinstance(value, Mapping | BaseModel) else f"{key} = {_repr.repr(value)}: "), text


def _near_tag(fault: ErrorDetails, models: list[type[BaseModel]]) -> str | None:
    """The kind that an unknown one may have been meant for."""
    tags = [str(tag) for tag in map(_tag_of, models) if tag is not None and fault["type"] == "union_tag_invalid"]
    unknown = str(fault.get("ctx", {}).get("tag", ""))
    here = OTHER_VALUES.get(unknown.lower())
    return here if here in tags else next(iter(difflib.get_close_matches(unknown, tags, n=1, cutoff=0.5)), None)


def _as_mapping(models: list[type[BaseModel]], value: Any) -> str:
    """How a bare value would be written as the settings it may stand for."""
    for model in models:
        tag = _tag_of(model)
        if tag is not None and value == tag:
            return f"{{kind: {value}}}"
        # A bare path, as in `student: org/model`.
        if isinstance(value, str) and "path" in model.model_fields and "/" in value:
            return f"{{{f'kind: {tag}, ' if tag else ''}path: {value}}}"
    fields = models[0].model_fields if models else {}
    if isinstance(value, str) and "benchmark" in fields:  # a task
        return f"{{benchmark: {value}}}"
    tag = _tag_of(models[0]) if models else None
    return f"{{kind: {tag}, ...}}" if tag else f"{{{next(iter(fields), 'key')}: ..., ...}}"


def _nearest(keys: _Keys, models: list[type[BaseModel]], paths: list[_Keys]) -> str:
    """The key that an unknown one may have been meant for: of that name elsewhere, else of a similar one."""
    unknown = str(keys[-1])
    here = sorted({name for model in models for name in model.model_fields})
    paths = sorted(paths, key=lambda path: (-_shared(path, keys), len(path)))
    # The same name elsewhere is likelier than a similar name here: settings are put into the wrong section.
    same = [path for path in paths if path[-1] == unknown]
    closest = max((_shared(path, keys) for path in same), default=0)
    same = [path for path in same if _shared(path, keys) == closest][:_MAX_NEAR]
    if same:
        return f"did you mean {' or '.join('.'.join(map(str, path)) for path in same)}?"
    # A name of another program comes before a similar name: `lr` is not `loss`.
    if translated := OTHER_NAMES.get(unknown.replace("-", "_").lower()):
        return translated if translated.startswith("not used") else f"in a recipe it is {translated}"
    if near := difflib.get_close_matches(unknown, here, n=1, cutoff=_CLOSE):
        return f"did you mean {near[0]!r}?"
    ends = sorted({str(path[-1]) for path in paths})
    if elsewhere := difflib.get_close_matches(unknown, ends, n=1, cutoff=_CLOSE):
        like = [path for path in paths if path[-1] == elsewhere[0]]
        nearest = [path for path in like if len(path) == len(like[0])][:_MAX_NEAR]
        return f"did you mean {' or '.join('.'.join(map(str, path)) for path in nearest)}?"
    return f"known keys: {', '.join(here)}"


def _paths(model: type[BaseModel], values: Any, before: _Keys = ()) -> Iterator[_Keys]:
    """Every key below a class, of the members of tagged unions those that the values, or the defaults, name."""
    for name, field in model.model_fields.items():
        keys = (*before, name)
        yield keys
        inner = _get(values, name)
        default = field.get_default(call_default_factory=True) if not field.is_required() else None
        tag = _get(inner, "kind") if inner is not None else getattr(default, "kind", None)
        members = models_in(field.annotation)
        for member in [m for m in members if _tag_of(m) == tag] or (members if len(members) == 1 else []):
            if not _is_container(field.annotation):
                yield from _paths(member, inner, keys)


def _mend(kind: type[BaseModel], mended: dict[Any, Any], keys: _Keys, near: str | None = None) -> None:
    """Replace a faulty setting by its default or else some valid value, or settings of an unknown kind by `near`."""
    models: list[type[BaseModel]] = [kind]
    node: Any = mended
    for number, key in enumerate(keys):
        fields = [model.model_fields[str(key)] for model in models if key in model.model_fields]
        field, below = next(iter(fields), None), _get(node, key)
        inner = [model for each in fields for model in models_in(each.annotation)]
        is_last = number == len(keys) - 1 or not isinstance(below, dict | list)
        # Settings of a misspelt kind are checked as the kind that was probably meant.
        if near and number == len(keys) - 1 and isinstance(below, dict):
            below["kind"] = near
            return
        if is_last or (field is not None and _is_container(field.annotation) and not inner):
            # Left out, or something right in its place where it must be there.
            if isinstance(node, list) and isinstance(key, int):
                node[key] = _constructed(models[0])
            elif isinstance(node, dict):
                node.pop(key, None)
                if field is not None and field.is_required():
                    node[key] = _stand_in(field)
            return
        candidates = inner or models  # below a name or number of the user's: those of its container
        is_tagged = field is None or not _is_container(field.annotation)
        models = [m for m in candidates if is_tagged and _tag_of(m) == _get(below, "kind")] or candidates
        node = below


def _stand_in(field: FieldInfo) -> Any:
    """A valid value of a field; for settings, an object that is not validated."""
    models = models_in(field.annotation)
    if models and not _is_container(field.annotation):
        return _constructed(models[0])
    kind = field.annotation
    if field.metadata:
        kind = Annotated[kind, *field.metadata]  # pyright: ignore[reportInvalidTypeForm]  # made where it is used
    checked: TypeAdapter[Any] = TypeAdapter(kind)  # pyright: ignore[reportArgumentType]
    literals = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    for value in (*literals, *_STAND_INS):
        with contextlib.suppress(ValidationError):
            return checked.validate_python(value)
    return None


def _constructed(model: type[BaseModel]) -> BaseModel:
    required = {name: field for name, field in model.model_fields.items() if field.is_required()}
    return _accepted(model.model_construct(**{name: _stand_in(field) for name, field in required.items()}))


def _accepted(section: BaseModel) -> BaseModel:
    """The section, marked so that its conflicts are not reported again, or not at all where it is a stand-in."""
    if hasattr(section, "_is_accepted"):
        setattr(section, "_is_accepted", True)  # noqa: B010  # a private attribute of settings, which mypy-like tools see
    return section


def _is_container(annotation: Any) -> bool:
    """Whether what lies below a field of this type has names or numbers of the user's."""
    is_one = typing.get_origin(annotation) in (list, dict, tuple)
    return is_one or any(map(_is_container, typing.get_args(annotation)))


def _tag_of(model: type[BaseModel]) -> object:
    field = model.model_fields.get("kind")
    return field.default if field is not None else None


def _holds(node: Any, key: str | int) -> bool:
    return key in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(key, int)


def _get(node: Any, key: str | int) -> Any:
    if isinstance(node, Mapping):
        return node.get(key)
    return node[key] if isinstance(node, list) and isinstance(key, int) and key < len(node) else None


def _shared(path: _Keys, keys: _Keys) -> int:
    """How many keys a path has in common, from the top, with where the other keys lie."""
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, keys[:-1], strict=False))
    return sum(1 for _ in common)


def _overlap(a: _Keys, b: _Keys) -> bool:
    """Whether one of two key paths is a prefix of the other, or equal to it."""
    return all(str(x) == str(y) for x, y in zip(a, b, strict=False))
