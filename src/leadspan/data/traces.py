"""Traces of a source, one after the other: local files, a directory of them, or a data set on the Hub.

A record is read when it is asked for, and becomes a trace or a refusal whose reason is counted.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leadspan.data.config import TraceSource
from leadspan.data.files import Record, digest_file, find_files, is_readable, read_file
from leadspan.data.formats import Format, bind, parse
from leadspan.data.records import Refusal, Trace
from leadspan.errors import DataError

if TYPE_CHECKING:
    import datasets

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
        """Refuse a source of which too little can be used.

        Args:
            max_refused_share: Largest accepted share of refused records, from 0 to 1.
            name: What to call the source.

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
        remedy = f"Mend these records, or name their layout with `format` or `columns`{remedy}"
        raise DataError("\n".join([head, *self._reasons(), remedy]))

    def _reasons(self) -> Iterator[str]:
        for reason, count in self.counts.most_common():
            example = self.examples[reason]
            yield f"  {count} x {reason}, e.g. {example.place}: {example.detail}"


def read_traces(source: TraceSource) -> Iterator[Trace | Refusal]:
    """Read the traces of a source, in its order; the columns of the first record tell the format.

    Raises:
        DataError: While iterating: the source cannot be read, or its columns fit no format.
    """
    form: Format | None = None
    for record in read_records(source):
        if isinstance(record, Refusal):
            yield record
            continue
        form = form or bind(source, record.row, record.place)
        yield parse(record.row, form, record.place)


def read_records(source: TraceSource) -> Iterator[Record | Refusal]:
    """Read the rows of a source, at most `source.limit` of them, refusals included.

    Raises:
        DataError: While iterating: the source cannot be read.
    """
    return itertools.islice(_all_records(source), source.limit)


def fingerprint(source: TraceSource) -> str:
    """A key that changes with the content of a source.

    SHA-256 over the bytes of its files in reading order; for a Hub data set, the hash `datasets` makes of its
    name, configuration, revision and split. The names of files, and what is read of the content (`limit`,
    `format`, `columns`), are not part of it.

    Raises:
        DataError: The source cannot be read.
    """
    path = _local_path(source)
    if path is None:
        return _load_from_hub(source)._fingerprint
    digest = hashlib.sha256()
    for file in find_files(path, source.split):
        digest.update(file.suffix.lower().encode() + digest_file(file))
    return digest.hexdigest()


def _all_records(source: TraceSource) -> Iterator[Record | Refusal]:
    path = _local_path(source)
    if path is not None:
        for file in find_files(path, source.split):
            yield from read_file(file)
        return
    for number, row in enumerate(_load_from_hub(source), 1):
        yield Record(dict(row), f"{source.path}:{number}")


def _local_path(source: TraceSource) -> Path | None:
    """The path of a local source, or None where there is none and the name can be one on the Hub."""
    path = Path(source.path).expanduser()
    if path.exists():
        return path
    if is_readable(path) or not _HUB_NAME.fullmatch(source.path):
        raise DataError(
            f"{source.path}: no such file or directory, and no name a Hub data set could have; mend the path"
        )
    return None


def _load_from_hub(source: TraceSource) -> "datasets.Dataset":
    import datasets

    try:
        loaded = datasets.load_dataset(source.path, source.subset, split=source.split)
    except Exception as error:  # the Hub's client raises errors of many libraries
        why = " ".join(str(error).split())[:300]
        raise DataError(
            f"{source.path}: no such local path, and the Hub could not be read because of "
            f"{type(error).__name__}: {why}; mend the path, `subset` or `split`, or save it as a local file"
        ) from error
    assert isinstance(loaded, datasets.Dataset)
    return loaded
