"""Rows of local files: JSON lines, JSON, Parquet and Arrow, one file or a directory of them.

Files are read piece by piece, except `.json`, which has to be parsed whole. A line that is no record is a
refusal; a file that is broken as a whole is an error, since nobody can tell how many records it should hold.
"""

import codecs
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leadspan.data.records import Refusal
from leadspan.errors import DataError

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in the source.

    Attributes:
        row: Column name to value.
        place: File and line (of a `.jsonl` file) or row, counted from 1, e.g. `traces.jsonl:17`.
    """

    row: dict[str, Any]  # Any: whatever JSON or Arrow holds
    place: str


def find_files(path: Path, split: str) -> list[Path]:
    """The files that hold the rows of a local path, in reading order.

    Args:
        path: A file, a directory of files, or what `Dataset` or `DatasetDict` wrote with `save_to_disk`.
        split: Which split of a `DatasetDict`.

    Raises:
        DataError: There is nothing that can be read.
    """
    if not path.is_dir():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"{path}: the suffix {path.suffix!r} is none of {', '.join(_READERS)}; convert the file")
        return [path]
    if (path / "dataset_dict.json").is_file():
        path = path / split
        if not path.is_dir():
            raise DataError(f"{path}: no such split; set `split` to the name of a directory beside it")
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return _saved_files(path)
    files = sorted(file for file in path.iterdir() if is_readable(file) and not file.name.startswith("."))
    if not files:
        raise DataError(
            f"{path}: holds no {', '.join(_READERS)} file (directories below are not searched); mend the path"
        )
    return files


def is_readable(path: Path) -> bool:
    """Whether the suffix is one of a file of records."""
    return path.suffix.lower() in _READERS


def read_file(path: Path) -> Iterator[Record | Refusal]:
    """The rows of one file.

    Raises:
        DataError: While iterating: the file is missing or broken.
    """
    with _reading(path):
        yield from _READERS[path.suffix.lower()](path)


def digest_file(path: Path) -> bytes:
    """SHA-256 over the bytes of a file.

    Raises:
        DataError: The file cannot be read.
    """
    with _reading(path), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a missing or broken file raises into one message that names it."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {why}); mend or rewrite the file") from error


def _saved_files(path: Path) -> list[Path]:
    """The shards `save_to_disk` lists; other Arrow files beside them are caches of later transforms."""
    state = path / "state.json"
    with _reading(state):
        text = state.read_bytes()
    try:
        return [path / file["filename"] for file in json.loads(text)["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{state}: lists no `_data_files`; save the data set again with save_to_disk") from None


def _read_jsonl(path: Path) -> Iterator[Record | Refusal]:
    with path.open("rb") as handle:  # binary, hence split at \n only: JSON strings may hold other separators
        for number, line in enumerate(handle, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield _decode(line, f"{path.name}:{number}")


def _decode(line: bytes, place: str) -> Record | Refusal:
    try:
        return _as_record(json.loads(line.decode("utf-8")), place)
    except UnicodeDecodeError as error:
        return Refusal("not valid UTF-8", f"byte {error.start + 1} of the line is {line[error.start]:#x}", place)
    except (ValueError, RecursionError) as error:
        return Refusal("not valid JSON", str(error), place)


def _as_record(value: object, place: str) -> Record | Refusal:
    if not isinstance(value, dict):
        return Refusal("not a JSON object", f"{type(value).__name__} in place of columns and values", place)
    return Record(value, place)


def _read_json(path: Path) -> Iterator[Record | Refusal]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"{path}: not valid JSON: {error}; mend it, or name it .jsonl if every line is a record"
        ) from None
    lists = [value] if isinstance(value, list) else []
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list)]
    if len(lists) != 1:
        raise DataError(f"{path}: holds {len(lists)} lists of records; make it one list, or an object with one list")
    for number, row in enumerate(lists[0], 1):
        yield _as_record(row, f"{path.name}:{number}")


def _read_parquet(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path, memory_map=True) as file:
        yield from _rows(file.iter_batches(batch_size=_ROWS_AT_ONCE), path.name)


def _read_arrow(path: Path) -> Iterator[Record]:
    with pa.memory_map(str(path)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file_format:
            file = pa.ipc.open_file(source)
            yield from _rows((file.get_batch(i) for i in range(file.num_record_batches)), path.name)
        else:  # the stream format, which `datasets` writes
            yield from _rows(pa.ipc.open_stream(source), path.name)


def _rows(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[Record]:
    numbers = itertools.count(1)
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                yield Record(row, f"{name}:{next(numbers)}")


_READERS: dict[str, Callable[[Path], Iterator[Record | Refusal]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
