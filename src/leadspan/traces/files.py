"""Rows of one local file: JSON lines and JSON, plain or compressed, Parquet and Arrow.

Files are read in pieces, so that memory does not grow with their size. A line that is no record is a refusal; a file
that is broken as a whole is an error, since it is unknown how many records it should hold.
"""

import codecs
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from leadspan.errors import DataError
from leadspan.traces.json_documents import LONGEST_RECORD, records_of
from leadspan.traces.records import BYTE_ORDER_MARK, Refusal

# Rows of an Arrow batch that are converted to Python at a time: long traces take much memory as objects.
_ROWS_AT_ONCE = 64
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # Arrow's names


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the source.

    Attributes:
        row: Column name to value.
        place: File and line (of a `.jsonl` file) or row, counted from 1, e.g. `traces.jsonl:17`.
    """

    row: dict[str, Any]  # Any: whatever JSON or Arrow holds
    place: str


def kind_of(path: Path) -> str | None:
    """The kind of a file of records by its name, its suffix without that of the compression; None of another file.

    >>> kind_of(Path("part-0.JSONL.gz")), kind_of(Path("table.parquet.gz"))
    ('.jsonl', None)
    """
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def read_file(path: Path) -> Iterator[Record | Refusal]:
    """The rows of one file.

    Raises:
        DataError: While iterating: the file is missing or broken.
    """
    kind = kind_of(path)
    assert kind is not None, "only files of records are listed"
    with reading(path):
        # `reading` covers the whole iteration: a file may break at its last row.
        yield from _READERS[kind](path)


def digest_file(path: Path, decompressed: bool = False) -> bytes:
    """SHA-256 over the bytes of a file, or over its content, decompressed.

    Raises:
        DataError: The file cannot be read.
    """
    with reading(path), _open(path) if decompressed else path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def head(path: Path) -> bytes:
    """The beginning of the content of a file, decompressed, up to 64 KiB.

    Raises:
        DataError: The file cannot be read.
    """
    with reading(path), _open(path) as handle:
        return handle.read(1 << 16)


def saved_files(path: Path) -> list[Path]:
    """The shards that `save_to_disk` lists; other Arrow files beside them are caches of later transforms.

    Raises:
        DataError: The list cannot be read.
    """
    state = path / "state.json"
    with reading(state):
        text = state.read_bytes()
    try:
        return [path / file["filename"] for file in json.loads(text)["_data_files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{state}: lists no `_data_files`; save the data set again with save_to_disk") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of a missing or broken file or directory into one error that names it."""
    try:
        yield
    except DataError:
        raise
    # pyarrow raises ValueError and OverflowError for values that Python has no type for, as dates after the year 9999
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {why}); mend or rewrite the file") from error


def _open(path: Path) -> io.BufferedReader:
    """The decompressed bytes of a file."""
    compression = _COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    stream = pa.CompressedInputStream(pa.OSFile(str(path)), compression)
    return io.BufferedReader(cast(io.RawIOBase, stream))


def _location(path: Path, number: int) -> str:
    """Where a record stands; bytes of a name that are no UTF-8 are escaped, since places are stored as text."""
    return f"{path.name.encode('utf-8', 'backslashreplace').decode()}:{number}"


def _read_jsonl(path: Path) -> Iterator[Record | Refusal]:
    with _open(path) as handle:  # binary, hence split at \n only: JSON strings may hold other separators
        for number in itertools.count(1):
            line = handle.readline(LONGEST_RECORD + 1)
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{path}: is text in UTF-16 or UTF-32; save it as UTF-8")
            if not line:
                return
            if len(line) > LONGEST_RECORD:
                while line and not line.endswith(b"\n"):
                    line = handle.readline(LONGEST_RECORD)
                yield Refusal("too long a line", f"it has more than {LONGEST_RECORD:,} bytes", _location(path, number))
            elif line := line.removeprefix(codecs.BOM_UTF8).strip():  # files that were joined have marks inside
                yield _decode(line, _location(path, number))


def _decode(line: bytes, location: str) -> Record | Refusal:
    try:
        return _as_record(json.loads(line.decode("utf-8")), location)
    except UnicodeDecodeError as error:
        return Refusal("not valid UTF-8", f"byte {error.start + 1} of the line is {line[error.start]:#x}", location)
    except ValueError as error:
        return Refusal("not valid JSON", _reason(error), location)
    except RecursionError:
        return Refusal("nested too deeply", "lists or objects in each other without end", location)


def _reason(error: ValueError) -> str:
    """Why a text is no JSON; Python's message for numbers that are too long would advise changing Python's settings."""
    if "integer string conversion" in str(error):
        return f"not valid JSON: a whole number of more than {sys.get_int_max_str_digits()} digits"
    return str(error)


def _as_record(value: object, location: str) -> Record | Refusal:
    if not isinstance(value, dict):
        return Refusal("not a JSON object", f"{type(value).__name__} in place of columns and values", location)
    if next(iter(value), "").startswith(BYTE_ORDER_MARK):  # of a table that was read with its mark
        value = {name.removeprefix(BYTE_ORDER_MARK): of_column for name, of_column in value.items()}
    return Record(value, location)


def _read_json(path: Path) -> Iterator[Record | Refusal]:
    try:
        for number, row in enumerate(records_of(lambda: _open(path)), 1):
            yield _as_record(row, _location(path, number))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: {_reason(error)}; mend it, or name it .jsonl if every line is a record") from None
    except RecursionError:
        raise DataError(f"{path}: a record is nested too deeply; mend it, or leave the record out") from None


def _read_parquet(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path, memory_map=True) as file:
        yield from _rows(file.iter_batches(batch_size=_ROWS_AT_ONCE), path)


def _read_arrow(path: Path) -> Iterator[Record]:
    with pa.memory_map(str(path)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file_format:
            file = pa.ipc.open_file(source)
            yield from _rows((file.get_batch(i) for i in range(file.num_record_batches)), path)
        else:  # the stream format, which `datasets` writes
            yield from _rows(pa.ipc.open_stream(source), path)


def _rows(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[Record]:
    numbers = itertools.count(1)
    for batch in batches:
        batch.validate(full=True)  # a damaged offset would be followed to wherever it points
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                yield Record(row, _location(path, next(numbers)))


# By the kind of file, whatever its compression.
_READERS: dict[str, Callable[[Path], Iterator[Record | Refusal]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
SUFFIXES = {suffix: suffix for suffix in _READERS} | {
    kind + compression: kind for compression in _COMPRESSIONS for kind in (".jsonl", ".json")
}
"""Suffix of a file of records to its kind."""
