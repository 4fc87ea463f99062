"""Traces of a source, one after the other: local files, a directory of them, or a data set on the Hub.

Records are read lazily, and each becomes a trace or a refusal whose reason is counted.
"""

import hashlib
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.errors import DataError
from leadspan.traces.detection import detect, layout_of
from leadspan.traces.directories import Listing, list_files
from leadspan.traces.files import Record, digest_file, kind_of, read_file
from leadspan.traces.formats import parse
from leadspan.traces.records import Refusal, Trace
from leadspan.traces.settings import TraceSource
from leadspan.traces.turns import THINK_TAGS, tags_in, texts_of

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_SAMPLE = 512  # records from which the layouts of a source are detected
_SAMPLED_FILES = 16  # files of a directory that the sample comes from
_NAMED_FILES = 8  # files that a message names
# A name, or an owner and a name.
_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(slots=True)
class RefusalCounter:
    """How many records were read, how many were refused for which reason, and one example of each reason.

    Attributes:
        num_read: Records read, refused ones included.
        counts: Refused records by reason.
        examples: The first refusal of each reason.
    """

    num_read: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Refusal] = field(default_factory=dict)

    def add(self, item: object) -> None:
        """Count one record: refused if it is a `Refusal`, else usable."""
        self.num_read += 1
        if isinstance(item, Refusal):
            self.counts[item.reason] += 1
            self.examples.setdefault(item.reason, item)

    def usable(self, items: Iterable[Trace | Refusal]) -> Iterator[Trace]:
        """Count every item, and pass on the traces."""
        for item in items:
            self.add(item)
            if isinstance(item, Trace):
                yield item

    def check(self, max_refused_share: float, name: str) -> None:
        """Refuse a source with too few usable records.

        Args:
            max_refused_share: Largest accepted share of refused records, from 0 to 1.
            name: Name of the source in messages.

        Raises:
            DataError: More than that share was refused, or nothing usable was read; names every reason.
        """
        if self.num_read == 0:
            raise DataError(f"{name}: holds no records; give a file or data set with at least one")
        num_refused = self.counts.total()
        share = num_refused / self.num_read
        if num_refused == self.num_read:
            rule, remedy = "so nothing is left", "."
        elif share > max_refused_share:
            rule = f"more than data.max_refused_share = {max_refused_share:g}"
            remedy = ", or raise data.max_refused_share to leave that many out."
        else:
            return
        head = f"{name}: {num_refused} of {self.num_read} records ({share:.2%}) cannot be used, {rule}:"
        layout = "their layout with `format` or `columns`, their tags with `think_open` and `think_close`"
        remedy = f"Mend these records, or name {layout}{remedy}"
        examples = [(count, self.examples[reason]) for reason, count in self.counts.most_common()]
        reasons = [f"  {count} x {first.reason}, e.g. {first.place}: {first.detail}" for count, first in examples]
        raise DataError("\n".join([head, *reasons, remedy]))


def read_traces(source: TraceSource) -> Iterator[Trace | Refusal]:
    """Read the traces of a source, in its order; the format is detected from the columns of many records.

    Raises:
        DataError: While iterating: the source cannot be read, or its columns fit no format.
    """
    layouts, teacher = None, source.columns.get("teacher")
    source = _without_teacher(source)
    for record in read_records(source):
        if isinstance(record, Refusal):
            yield record
            continue
        layouts = layouts or detect(source, _sample(source) or [record])
        trace = parse(record.row, layout_of(record.row, layouts), record.place)
        if teacher is not None and isinstance(trace, Trace):
            trace = replace(trace, teacher=str(record.row.get(teacher) or ""))
        yield trace


def check_layout(source: TraceSource) -> None:
    """Look at some records of a local source, so that what is no trace file is refused before anything large is loaded.

    Raises:
        DataError: The source cannot be read or is empty, or its columns fit no format.
    """
    if _local_path(source) is None:
        return
    if next(read_records(source), None) is None:
        RefusalCounter().check(0, source.path)  # always raises: nothing was read
    if records := _sample(source):
        detect(_without_teacher(source), records)


def read_records(source: TraceSource, usual_split: str = "train") -> Iterator[Record | Refusal]:
    """Read the rows of a source, at most `source.limit` of them, refusals included.

    Of a source that has splits and asks for none, the usual one is read.

    Raises:
        DataError: While iterating: the source cannot be read.
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


def list_source(source: TraceSource) -> Listing | None:
    """The files of a local source and what beside them is passed over; None of a source on the Hub.

    Raises:
        DataError: The source cannot be read.
    """
    path = _local_path(source)
    return None if path is None else list_files(path, source.split, source.subset)


def fingerprint(source: TraceSource) -> str:
    """A key that changes with the content of a source.

    SHA-256 over the bytes of its files in reading order; for a Hub data set, the hash `datasets` makes of its
    name, configuration, revision and split. The names of files, and what is read of the content (`limit`,
    `format`, `columns`), are not part of it.

    Raises:
        DataError: The source cannot be read.
    """
    listing = list_source(source)
    if listing is None:
        return _load_from_hub(source)._fingerprint
    digest = hashlib.sha256()
    for file in listing.files:
        digest.update(f"{kind_of(file)}{file.suffix.lower()}".encode() + digest_file(file))
    return digest.hexdigest()


def tags_warning(source: TraceSource, rendered: tuple[str, str]) -> str | None:
    """A warning of think tags in the settings that are in no record that is looked at; None if there is none.

    `rendered` are the tags that the student will write.

    Raises:
        DataError: The source cannot be read.
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


def _without_teacher(source: TraceSource) -> TraceSource:
    # The column of teachers belongs to any layout, so it takes no part in detecting one.
    return source.model_copy(update={"columns": {k: v for k, v in source.columns.items() if k != "teacher"}})


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
        raise DataError(f"{source.path!r}: is no path ({error}); mend it") from None
    if kind_of(path) is not None or not _HUB_NAME.fullmatch(source.path):
        raise DataError(
            f"{source.path}: no such file or directory, and no name a Hub data set could have; mend the path"
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
            f"{type(error).__name__}: {why}; mend the path, `subset` or `split`, or save it as a local file"
        ) from error
    assert isinstance(loaded, datasets.Dataset)
    return loaded
