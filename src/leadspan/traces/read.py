"""Traces of a source, one after the other: local files, a directory of them, or a data set on the Hub.

Records are read lazily, and each becomes a trace or a refusal whose reason is counted. A source that cannot be read, or
whose columns fit no format, is a `DataError` of every function here, while iterating where it iterates.

Of a directory the files of the requested split are read, each record once. No file that could hold records is skipped
in silence: skipped files are listed with the reason. A row that lacks a column of its layout is refused by itself. Rows
that have none of the columns of the chosen layout, for example where files of several data sets lie together, may have
another.
"""

import codecs
import hashlib
import itertools
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.errors import DataError
from leadspan.sources import may_be_hub_name
from leadspan.traces.files import (
    SHARD,
    SUFFIXES,
    Record,
    digest_file,
    head,
    kind_of,
    missing_shards,
    read_file,
    reading,
    saved_files,
    stem_of,
)
from leadspan.traces.formats import detect, parse
from leadspan.traces.records import Refusal, RefusalCounter, Trace
from leadspan.traces.settings import TraceSource
from leadspan.traces.turns import THINK_TAGS, tags_in, texts_of

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_SAMPLE = 512  # records from which the layouts of a source are detected
_SAMPLED_FILES = 16  # files of a directory that the sample comes from
_NAMED_FILES = 8  # files that a message names
# Words that name a split in a file or directory name, as `datasets` reads them, and held-out data beside them. Whole
# words only: `latest` holds no `test`.
_NAMED = {
    split: re.compile(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])", re.IGNORECASE)
    for split, words in (
        ("train", "train|training"),
        ("validation", "validation|valid|val|dev"),
        ("test", "test|testing|eval|evaluation|heldout|holdout"),
    )
}
# Names that `datasets` writes, and files that lie in data sets without being data.
_METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "croissant.json"}
_DOCUMENT = re.compile(r"(readme|licen[cs]e|notice|citation)\b.*|.*\.(md|py|ya?ml)", re.I)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a local path that are read, in reading order."""

    files: tuple[Path, ...]
    passed_over: tuple[str, ...] = ()  # what could hold records and is not read, each with the reason


def read_traces(source: TraceSource) -> Iterator[Trace | Refusal]:
    """Read the traces of a source, in its order; the format is detected from the columns of many records."""
    layouts, teacher = None, source.columns.get("teacher")
    for record in read_records(source):
        if isinstance(record, Refusal):
            yield record
            continue
        layouts = layouts or detect(source, _sample(source) or [record])
        # A row without any layout's columns goes by that of most rows, whose refusal says what the row lacks.
        layout = next((layout for layout in layouts if layout.claims(record.row)), layouts[0])
        yield parse(record.row, layout, record.place, teacher)


def check_layout(source: TraceSource) -> None:
    """Look at some records of a local source, so that what is no trace file is refused before anything is loaded."""
    if _local_path(source) is None:
        return
    if next(read_records(source), None) is None:
        RefusalCounter().check(0, source.path)  # always raises: nothing was read
    if records := _sample(source):
        detect(source, records)


def read_records(source: TraceSource, usual_split: str = "train") -> Iterator[Record | Refusal]:
    """Read the rows of a source, at most `source.limit` of them, refusals included.

    Of a source that has splits and asks for none, the usual one is read.
    """
    path = _local_path(source)
    if path is None:
        rows = enumerate(_load_from_hub(source, usual_split), 1)
        records = (Record(dict(row), f"{source.path}:{number}") for number, row in rows)
    else:
        listing = list_files(path, source.split, source.subset, usual_split)
        _warn_of_passed_over(path, listing)
        records = itertools.chain.from_iterable(map(read_file, listing.files))
    yield from itertools.islice(records, source.limit)


def list_source(source: TraceSource, usual_split: str = "train") -> Listing | None:
    """The files of a local source and what beside them is passed over; None of a source on the Hub."""
    path = _local_path(source)
    return None if path is None else list_files(path, source.split, source.subset, usual_split)


def fingerprint(source: TraceSource, usual_split: str = "train") -> str:
    """A key that changes with the content of a source.

    SHA-256 over the bytes of its files in reading order; for a Hub data set, the hash `datasets` makes of its
    name, configuration, revision and split. The names of files, and what is read of the content (`limit`,
    `format`, `columns`), are not part of it.
    """
    listing = list_source(source, usual_split)
    if listing is None:
        return _load_from_hub(source, usual_split)._fingerprint
    digest = hashlib.sha256()
    for file in listing.files:
        digest.update(f"{kind_of(file)}{file.suffix.lower()}".encode() + digest_file(file))
    return digest.hexdigest()


def tags_warning(source: TraceSource, rendered: tuple[str, str]) -> str | None:
    """A warning of think tags in the settings that are in no record that is looked at; None if there is none.

    `rendered` are the tags that the student will write.
    """
    if source.think_open is None and rendered in THINK_TAGS:
        return None
    tags = THINK_TAGS if source.think_open is None else [(source.think_open, source.think_close or "")]
    in_records = {tag for record in _sample(source) for text in texts_of(record.row) for tag in tags_in(text, tags)}
    if source.think_open is None:
        other = next((tag for pair in tags for tag in pair if tag in in_records), None)
        return other and (
            f"data.rendering.think_open: {rendered[0]!r} is what the student will write, and the records have "
            f"{other!r}; tags of the records are set with data.train.think_open and think_close"
        )
    neither = f"neither {source.think_open!r} nor {source.think_close!r} is in the first records of {source.path}"
    remedy = "where the chain of thought has a column of its own, leave both out"
    return None if in_records else f"data.train.think_open: {neither}; {remedy}"


def _sample(source: TraceSource) -> list[Record]:
    """Records from all over a source: of the heads of files, or of evenly spaced rows of a Hub data set."""
    listing = list_source(source)
    if listing is None:
        loaded = _load_from_hub(source)
        # Evenly spaced, since neighbours in a data set are alike.
        step = max(1, len(loaded) // _SAMPLE)
        return [Record(dict(loaded[i]), f"{source.path}:{i + 1}") for i in range(0, len(loaded), step)]
    # All over the directory, for the same reason.
    files = listing.files[:: max(1, len(listing.files) // _SAMPLED_FILES)]
    heads = (itertools.islice(read_file(file), _SAMPLE // len(files)) for file in files)
    return [record for head in heads for record in head if isinstance(record, Record)]


@cache  # once a process, however often a source is read
def _warn_of_passed_over(path: Path, listing: Listing) -> None:
    if listing.passed_over:
        few = [
            ", ".join(names[:_NAMED_FILES]) + (f" and {len(names) - _NAMED_FILES} more" if names[_NAMED_FILES:] else "")
            for names in ([str(file.relative_to(path)) for file in listing.files], listing.passed_over)
        ]
        logger.warning("%s: read: %s; not read: %s", path, *few)


def _local_path(source: TraceSource) -> Path | None:
    """The path of a local source, or None where there is none and the name can be one on the Hub."""
    try:
        path = Path(source.path).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL byte in it, no home directory
        raise DataError(f"{source.path!r}: is not a path ({error}); correct it") from None
    if not may_be_hub_name(source.path):
        raise DataError(
            f"{source.path}: no such file or directory, and not a possible name of a Hub data set; correct the path"
        )
    return None


def _load_from_hub(source: TraceSource, usual_split: str = "train") -> "datasets.Dataset":
    import datasets

    try:
        loaded = datasets.load_dataset(source.path, source.subset, split=source.split or usual_split)
    except Exception as error:  # the Hub's client raises errors of many libraries
        why = " ".join(str(error).split())[:300]
        raise DataError(
            f"{source.path}: no such local path, and the Hub could not be read because of "
            f"{type(error).__name__}: {why}; correct the path, `subset` or `split`, or save it as a local file"
        ) from error
    assert isinstance(loaded, datasets.Dataset)
    return loaded


def list_files(path: Path, split: str | None = None, subset: str | None = None, usual: str = "train") -> Listing:
    """The files that hold the rows of a local path, in reading order.

    The path is a file, a directory of files, or what `Dataset` or `DatasetDict` wrote with `save_to_disk`; `subset` is
    a directory in it. Where no `split` is given and the path has splits, the `usual` one is read.

    Raises:
        DataError: Nothing can be read, the split or the subset is not there, or files may hold the same records.
    """
    with reading(path):
        if not path.is_dir():
            if kind_of(path) is None:
                kinds = ", ".join(SUFFIXES)
                raise DataError(f"{path}: the suffix {path.suffix!r} is none of {kinds}; convert the file")
            if path.exists() and not path.is_file():
                raise DataError(f"{path}: is not a regular file; write the records to one")
            if subset is not None:
                raise DataError(f"{path}: `subset: {subset}` is the name of a directory, this is a file; drop `subset`")
            named = _split_of((stem_of(path),))
            if split not in (None, stem_of(path)) and _split_of((split,)) != (named or usual):
                remedy = f"but its name says {named or 'none'}; drop `split`, or give the file of that split"
                raise DataError(f"{path}: `split: {split}` is asked for, {remedy}")
            return Listing((path,))
        if subset is not None and not (path / subset).is_dir():
            names = _are(_directories(path))
            raise DataError(f"{path}: no directory {subset!r} in it; there are {names}; correct `subset`")
        path /= subset or ""
        if (path / "dataset_dict.json").is_file():  # what `DatasetDict` wrote, a directory for each split
            saved = path / (split or usual)
            if not saved.is_dir():
                names = _are(_directories(path))
                raise DataError(f"{saved}: no such split; set `split` to the name of a directory beside it ({names})")
            return Listing(tuple(saved_files(saved)))
        passed_over: list[str] = []
        files = _of_split(path, _gather(path, passed_over), split, usual, passed_over)
        return Listing(files, tuple(passed_over))


def _gather(path: Path, passed_over: list[str]) -> list[Path]:
    """The files of records in a directory; where it has none, those of its one data directory or its splits."""
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return list(saved_files(path))
    files: list[Path] = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir() or entry.name in _METADATA or entry.name.startswith((".", "_")):
            continue
        if kind_of(entry) is None:
            if not _DOCUMENT.fullmatch(entry.name):
                passed_over.append(f"{entry.name} (none of {', '.join(SUFFIXES)})")
        elif entry.is_file():
            files.append(entry)
        else:
            passed_over.append(f"{entry.name} (not a regular file)")
    below = [directory for directory in _directories(path) if _holds_records(directory)]
    if files:
        passed_over += [f"{directory.name}/ (a directory)" for directory in below]
        return files
    # Several directories are one source only where each is a split.
    splits = [directory for directory in below if _split_of((directory.name,))]
    if len(below) > 1 and len(splits) < len(below):
        raise DataError(
            f"{path}: has no file of records itself; set `subset` to one of its directories ({_are(below)})"
        )
    if not below:
        raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file; correct the path")
    return [file for directory in below for file in _gather(directory, passed_over)]


def _holds_records(directory: Path, depth: int = 3) -> bool:
    holds = any(kind_of(e) is not None and e.name not in _METADATA and e.is_file() for e in directory.iterdir())
    return holds or (depth > 1 and any(_holds_records(below, depth - 1) for below in _directories(directory)))


def _of_split(
    path: Path, files: Sequence[Path], split: str | None, usual: str, passed_over: list[str]
) -> tuple[Path, ...]:
    """The files of a split, refused where two of them may hold the same records in another form.

    They are all the files where no name says a split and none but the usual one is asked for.
    """
    by_split: defaultdict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        by_split[_split_of(file.relative_to(path).with_name(stem_of(file)).parts)].append(file)
    if split is not None:
        # A split of exactly this name first, e.g. `test_hard`; else files whose name only contains a word for it.
        directories = {file: file.relative_to(path).parts[:-1] for file in files}
        chosen = [file for file in files if split in (SHARD.sub("", stem_of(file)), *directories[file])]
        # Files whose name says no split are not of one that is none of the usual: it may be a name misspelt.
        if not chosen and (usual_name := _split_of((split,))):
            chosen = by_split.get(usual_name, [])
        if not chosen and by_split.keys() == {None} and split == usual:
            chosen = files
    else:
        chosen = files if by_split.keys() == {None} else by_split.get(usual, [])
    if not chosen:
        there = "; ".join(f"{name or 'no split'}: {_are(of_split)}" for name, of_split in by_split.items())
        raise DataError(
            f"{path}: no file of the split {split or usual} ({there}); set `split`, or give one file as the path"
        )
    for name, of_split in by_split.items():
        reason = f"split {name}" if name else "its name says no split"
        passed_over += [f"{file.relative_to(path)} ({reason})" for file in of_split if file not in chosen]
    heads = {file: head(file) for file in chosen}
    json_files = [file for file in chosen if kind_of(file) == ".json"]
    objects = [file for file in json_files if not heads[file].removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")]
    if len(objects) < len(chosen):  # settings and metadata have a name of their own in every tool
        passed_over += [f"{file.relative_to(path)} (a JSON object among files of records)" for file in objects]
        chosen = [file for file in chosen if file not in objects]
    passed_over += missing_shards(chosen)
    remedy = "which may be the same records twice; give one file as the path, or move the others away"
    if len({kind_of(file) for file in chosen}) > 1:
        raise DataError(f"{path}: holds files of several kinds ({_are(chosen)}), {remedy}")
    # Heads first: hashing every file of a large data set would take minutes.
    num_with = Counter(heads[file] for file in chosen)
    alike = [file for file in chosen if heads[file] and num_with[heads[file]] > 1]
    seen: dict[object, Path] = {}
    by_name = ((file.with_name(stem_of(file)), file) for file in chosen)
    for key, file in itertools.chain(by_name, ((digest_file(file, True), file) for file in alike)):
        if seen.setdefault(key, file) is not file:
            raise DataError(f"{path}: holds {_are((seen[key], file))}, {remedy}")
    return tuple(chosen)


def _split_of(names: Sequence[str]) -> str | None:
    """The split that the outermost of some directory and file names says; None where it says none or several."""
    for part in names:
        if said := [split for split, pattern in _NAMED.items() if pattern.search(part)]:
            return said[0] if len(said) == 1 else None
    return None


def _directories(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _are(paths: Sequence[Path]) -> str:
    """Some names, for messages."""
    return ", ".join([*(path.name for path in paths[:5]), *(["..."] if paths[5:] else [])]) or "none"
