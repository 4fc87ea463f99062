"""Local paths and Hub names in settings: checks that each exists, or can be written, before anything large is loaded.

A name that exists on disk is accepted. One that does not, and cannot be a Hub name, is a mistyped path. Of the rest,
those in the Hub's caches are accepted; else the Hub is asked once, without retries.
"""

import contextlib
import difflib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from leadspan.errors import SettingsError

_SECONDS = 3.0  # for one small answer of the Hub; a slower network is left to the loaders, which try again
_HUB_NAME = re.compile(r"(?=.{1,96}$)(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Of data and settings, which no figures replace.
_OF_INPUTS = (".jsonl", ".parquet", ".arrow", ".gz", ".zst", ".csv", ".yaml", ".yml", ".jinja")
_FILE_SUFFIXES = (".json", ".txt", *_OF_INPUTS)
_OF_RUNS = ("run.json", "digests.json", "identity.json", "manifest.json", "config.json")
# Punctuation and the century: `AIME-2024` and `aime24` are the same without them.
_MARKS = re.compile(r"[^a-z0-9]|(?<!\d)20(?=\d\d$)")
_SHOWN_AS = {"model": "model", "dataset": "data set"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A file, model or data set that a setting names."""

    key: str  # the setting, dotted
    name: str  # local path, or Hub name
    kind: Literal["model", "dataset", "path"]  # of the Hub repository; `path` is local only


def check_sources(sources: Iterable[Source], where: str, must_answer: bool = True) -> None:
    """Refuse settings from `where` that name files, models or data sets that do not exist; see `source_faults`.

    Raises:
        SettingsError: Names each key, its value, what is missing and the nearest name that there is.
    """
    if lines := source_faults(sources, must_answer):
        head = f"{where}: {len(lines)} source{'s' if len(lines) > 1 else ''} cannot be read"
        raise SettingsError("\n  ".join([head, *lines]))


def output_fault(key: str, path: Path, is_directory: bool = True) -> str | None:
    """A line that says why an output, the setting or option `key`, cannot be written; None where nothing is against it.

    Its directories need not exist. A directory is written there, or a file.
    """
    try:
        parents = path.expanduser().absolute()
    except RuntimeError as error:  # no home directory
        return f"{key} = {str(path)!r}: is not a path ({error}); give another path"
    # `exists` of pathlib raises where a directory on the way is closed to the user.
    there = next(parent for parent in (parents, *parents.parents) if os.path.exists(parent))
    if there != parents and not there.is_dir():
        return f"{key} = {str(path)!r}: {there} is a file, so nothing can lie below it; give another path"
    if there == parents and there.is_dir() != is_directory:
        kinds = ("a file", "a directory") if is_directory else ("a directory", "a file")
        return f"{key} = {str(path)!r}: is {kinds[0]}, and {kinds[1]} is to be written; give another path"
    if not os.access(there, os.W_OK):
        return f"{key} = {str(path)!r}: {there} cannot be written (permissions, or a read-only disk); give another path"
    return None


def check_output(key: str, path: Path, is_directory: bool = True) -> None:
    """Refuse an output that cannot be written; see `output_fault`.

    Raises:
        SettingsError: Names the path and what is wrong with it.
    """
    if fault := output_fault(key, path, is_directory):
        raise SettingsError(fault)


def check_figures(key: str, path: Path) -> None:
    """Refuse a file for figures or a page that cannot be written, or would replace a file of another kind.

    Raises:
        SettingsError: Names the path and what is wrong with it.
    """
    check_output(key, path, is_directory=False)
    if os.path.isfile(path) and (path.suffix.lower() in _OF_INPUTS or path.name in _OF_RUNS):
        what = "data, a recipe, or a part of a run or a model"
        raise SettingsError(f"{key} = {str(path)!r}: is {what}, which would be lost; give another path")


def source_faults(sources: Iterable[Source], must_answer: bool = True, known_names: Sequence[str] = ()) -> list[str]:
    """A line for each source that does not exist.

    Args:
        sources: The sources that settings name.
        must_answer: Refuse a name of the Hub when the Hub cannot be reached; else it is logged.
        known_names: Names a user may have meant, besides those on disk.
    """
    lines: dict[str, None] = {}
    for source in sources:
        name, reason, is_certain = source.name, "no such file or directory", True
        try:
            path = Path(name).expanduser()
            if path.exists():
                continue
            is_asked = source.kind != "path" and may_be_hub_name(name)
        except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL byte in it, no home directory
            reason, is_asked = f"is not a path ({error})", False
        if is_asked:
            reason, is_certain = _hub_absence(name, source.kind)
            if not reason:
                continue
        remedy = "correct the path" if is_certain else "give a local path, or make the Hub reachable"
        line = f"{source.key} = {name!r}: {reason}{_hint(name, known_names) or f'; {remedy}'}"
        if is_certain or must_answer:
            lines[line] = None
        else:
            logger.warning("not checked: %s", line)
    return list(lines)


def may_be_hub_name(name: str) -> bool:
    """Whether a name can be one of the Hub, which needs no answer for what ends like a file or has many parts."""
    return Path(name).suffix.lower() not in _FILE_SUFFIXES and _HUB_NAME.fullmatch(name) is not None


@cache
def _hub_absence(name: str, kind: str) -> tuple[str, bool]:
    """Why the Hub's caches and the Hub have no such name, and whether that is certain; "" where only reading shows."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    # The data set library may have prepared it without a snapshot of its repository.
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    caches = [Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"]
    caches += [prepared / name.replace("/", "___")] if kind == "dataset" else []
    if any(cached.exists() for cached in caches):
        return "", True
    try:
        # One small request, which tells a missing or private name from a good one.
        HfApi().repo_info(name, repo_type=kind, timeout=_SECONDS)
    except RepositoryNotFoundError as error:
        if not isinstance(error, GatedRepoError):  # which exists; the error of loading says how to get access
            return f"no such local path, and the Hub shows no {_SHOWN_AS[kind]} of this name", True
    except OfflineModeIsEnabled:
        return "no such local path, and not in the Hub's cache, with HF_HUB_OFFLINE set", False
    except Exception as error:  # a network error of whichever HTTP client the Hub's client is built on
        if not isinstance(error, HfHubHTTPError) and "Timeout" not in type(error).__name__:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            return f"no such local path, and the Hub cannot be reached ({why})", False
    return "", True


def _hint(name: str, known_names: Sequence[str]) -> str:
    """What may have been meant: a known name, or a file next to the first part of the path that is missing; else ""."""
    # Case and punctuation are what users get wrong in names of benchmarks.
    by_letters = {_MARKS.sub("", known_name.lower()): known_name for known_name in known_names}
    # Known names first: `AIME-2024` is a benchmark before it is a directory.
    if near := difflib.get_close_matches(_MARKS.sub("", name.lower()), list(by_letters), n=1, cutoff=0.75):
        return f"; did you mean {by_letters[near[0]]!r}?"
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path_parts = Path(name).expanduser().parts
        for number, part in enumerate(path_parts):
            directory = Path(*path_parts[:number])
            if (directory / part).exists():
                continue
            others = [other for other in os.listdir(directory) if other != part]  # a link to nothing is one itself
            if close := difflib.get_close_matches(part, others, n=1):
                return f"; did you mean {str(directory.joinpath(close[0], *path_parts[number + 1 :]))!r}?"
            break
    return f"; known names: {', '.join(known_names)}" if known_names else ""
