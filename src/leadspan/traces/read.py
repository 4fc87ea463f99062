"""Traces of a source, one after the other: local files, a directory of them, or a data set on the Hub.

Records are read lazily, and each becomes a trace or a refusal whose reason is counted. A source that cannot be read, or
whose columns fit no format, is a `DataError` of every function here, while iterating where it iterates.

No single row decides on the layout of a source: the format is chosen that fits most of many rows, and its columns are
those that most rows fill, in the order of preference. A row that lacks one of them is refused by itself. Rows that have
none of the columns of the chosen layout, for example where files of several data sets lie together, may have another.
"""

import hashlib
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.errors import DataError
from leadspan.traces.directories import Listing, list_files
from leadspan.traces.files import Record, digest_file, kind_of, read_file
from leadspan.traces.formats import FORMATS, Format, Holds, Layout, parse
from leadspan.traces.records import Columns, Refusal, RefusalCounter, Row, Trace, is_missing
from leadspan.traces.settings import TraceSource
from leadspan.traces.turns import THINK_TAGS, Tags, tags_in, texts_of

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Formats whose columns the settings may name; the others have fixed names.
_MAPPABLE = ("columns", "prompt_response", "messages")
_SHOWN_COLUMNS = 40  # columns that a message lists
_SAMPLE = 512  # records from which the layouts of a source are detected
_SAMPLED_FILES = 16  # files of a directory that the sample comes from
_NAMED_FILES = 8  # files that a message names
# A name, or an owner and a name.
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


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
    if in_records:
        return None
    return (
        f"data.train.think_open: neither {source.think_open!r} nor {source.think_close!r} is in the first records of "
        f"{source.path}; where the chain of thought has a column of its own, leave both out"
    )


def detect(source: TraceSource, records: Sequence[Record]) -> list[Layout]:
    """The layouts of a source; the first one is that of most rows.

    Args:
        source: Its `format`, `columns` and think tags decide, where they are given.
        records: Many of its rows, at least one.

    Raises:
        DataError: No format fits, or the named one lacks columns; lists the columns of the source and those needed.
    """
    formats = _candidates(source)
    tags = THINK_TAGS if source.think_open is None else ((source.think_open, source.think_close or ""),)
    rows = [record.row for record in records]
    there = {name for row in rows for name in row}
    # What the settings name is searched for in all rows, and its misfits are refused one by one.
    is_named = source.format is not None or bool(source.columns.keys() - {"teacher"})
    layout = _best(formats, rows, tags, is_named) if there.issuperset(source.columns.values()) else None
    if layout is None:
        names = [name.encode("utf-8", "backslashreplace").decode()[:60] for name in rows[0]]
        columns = ", ".join(names[:_SHOWN_COLUMNS]) + (", ..." if len(names) > _SHOWN_COLUMNS else "") or "(none)"
        form_name = f"the format {source.format!r}" if source.format else "any known format"
        lines = [f"{records[0].place}: the columns {columns} are not those of {form_name}; needed are ('|' means or)"]
        lines += [f"  {form.name}: {', '.join(form.needs.values())}{form.note}" for form in formats]
        lines += [f"  columns: {role} is to be {name!r}" for role, name in source.columns.items() if name not in there]
        if objects := [name for name, value in zip(names, rows[0].values(), strict=True) if isinstance(value, dict)]:
            lines.append(f"  objects are not looked into: {', '.join(objects)}; write their texts or turns as columns")
        remedy = "Name the layout with `format`, or map it with `columns: {prompt: ..., cot: ..., answer: ...}`"
        remedy = f"{remedy}, `{{prompt: ..., response: ...}}` or `{{conversation: ...}}`; think tags other than"
        tag_names = " and ".join(opening for opening, _ in tags)
        raise DataError("\n".join([*lines, f"{remedy} {tag_names} are set with `think_open` and `think_close`."]))
    layouts = []
    while layout is not None:
        layouts.append(layout)
        rows = [] if is_named else [row for row in rows if not layouts[-1].claims(row)]
        layout = _best(formats, rows, tags, is_named) if rows else None
    return layouts


def _candidates(source: TraceSource) -> list[Format]:
    """The formats that the settings leave, with the columns that they name."""
    format_name = source.format
    # The column of teachers belongs to any layout, so it takes no part in detecting one.
    columns: Columns = {role: name for role, name in source.columns.items() if role != "teacher"}
    if columns and format_name is not None and format_name not in _MAPPABLE:
        names = ", ".join(f"`format: {name}`" for name in _MAPPABLE)
        raise DataError(f"{source.path}: `columns` belongs to {names}, not to `format: {format_name}`; drop one")
    formats = [form for form in FORMATS if format_name is None or format_name in (form.name, *form.also)]
    if columns:
        names = _MAPPABLE if format_name is None else (format_name,)
        formats = [form for form in formats if form.name in names and columns.keys() <= {*form.needs, *form.uses}]
    if not formats:
        layout = f"`format: {format_name}` has" if format_name else f"one of {', '.join(_MAPPABLE)} has"
        raise DataError(f"{source.path}: no {layout} all the roles {', '.join(columns)} of `columns`; drop some")

    return [
        replace(
            form,
            needs={role: columns.get(role, names) for role, names in form.needs.items()},
            uses={role: columns.get(role, names) for role, names in form.uses.items()},
        )
        for form in formats
    ]


def _best(formats: Sequence[Format], rows: Sequence[Row], tags: Tags, is_named: bool) -> Layout | None:
    """The first format that fits at least half as many rows as the one that fits most, with its columns.

    Where the settings name the layout, columns of other content, and in the end empty ones, are taken too: their rows
    are refused, each with its reason.
    """
    # From the strictest rule to the laxest: what a lax rule alone accepts is taken only where the settings name it.
    for needs_value, needs_content in ((True, True), (True, False), (False, True), (False, False)):
        if not (needs_content or is_named):
            continue
        layouts: list[tuple[int, Layout]] = []
        for form in formats:
            holds = form.holds if needs_content else {}
            columns = {
                role: _fullest(rows, names.split("|"), holds.get(role), tags, needs_value)
                for role, names in form.needs.items()
            }
            number = sum(
                all(_fills(row, name, holds.get(role), tags, needs_value) for role, name in columns.items())
                and (is_named or form.fits(row))
                for row in rows
            )
            if number or (is_named and all(columns.values()) and not (needs_value or needs_content)):
                needed = set(columns.values())
                # Optional columns that the rows have, none of them a needed one.
                for role, names in form.uses.items():
                    free = [name for name in names.split("|") if name not in needed]
                    if column := _fullest(rows, free, None, tags, needs_value=True):
                        columns[role] = column
                layouts.append((number, Layout(form, columns, tags)))
        if layouts:
            most = max(number for number, _ in layouts)
            return next(layout for number, layout in layouts if 2 * number >= most)
    return None


def _fills(row: Row, column: str, holds: Holds | None, tags: Tags, needs_value: bool) -> bool:
    """Whether a row has a column, where asked for a value in it, and content that a test accepts."""
    if column not in row or (needs_value and is_missing(row[column])):
        return False
    try:
        return holds is None or holds(row[column], tags)
    except RecursionError:
        return False


def _fullest(rows: Sequence[Row], names: Sequence[str], holds: Holds | None, tags: Tags, needs_value: bool) -> str:
    """The first column that at least half as many rows fill as the one that most rows fill; "" where none is."""
    numbers = {name: sum(_fills(row, name, holds, tags, needs_value) for row in rows) for name in names}
    # Half as many is enough for a preferred name: rows may leave a good column empty now and then.
    most = max(numbers.values(), default=0)
    return next((name for name, number in numbers.items() if number and 2 * number >= most), "")


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
        names = [str(file.relative_to(path)) for file in listing.files]
        logger.warning("%s: read: %s; not read: %s", path, _few(names), _few(listing.passed_over))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED_FILES]) + (f" and {len(names) - _NAMED_FILES} more" if names[_NAMED_FILES:] else "")


def _local_path(source: TraceSource) -> Path | None:
    """The path of a local source, or None where there is none and the name can be one on the Hub."""
    try:
        path = Path(source.path).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a NUL byte in it, no home directory
        raise DataError(f"{source.path!r}: is not a path ({error}); correct it") from None
    if kind_of(path) is not None or not _HUB_NAME.fullmatch(source.path):
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
