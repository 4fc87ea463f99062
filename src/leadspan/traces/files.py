"""Rows of one local file: JSON lines and JSON, plain or compressed, Parquet and Arrow.

Files are read in pieces, so that memory does not grow with their size. A line that is no record is a refusal; a file
that is broken as a whole is a `DataError` of every function here, since it is unknown how many records it should hold.
A JSON document is one list of records, or an object with one list among its values.
"""

import codecs
import hashlib
import io
import itertools
import json
import re
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from leadspan.errors import DataError
from leadspan.traces.records import BYTE_ORDER_MARK, Refusal, shown

# Rows of an Arrow batch that are converted to Python at a time: long traces take much memory as objects.
_ROWS_AT_ONCE = 64
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # Arrow's names
SUFFIXES = {kind: kind for kind in (".jsonl", ".json", ".parquet", ".arrow")} | {
    kind + compression: kind for compression in _COMPRESSIONS for kind in (".jsonl", ".json")
}
"""Suffix of a file of records to its kind."""
SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
"""In the name of a file that `datasets` writes: which one of how many it is."""
# How files of other kinds begin, and what to do about them.
_OTHER_KINDS = {
    **dict.fromkeys((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "text in UTF-16 or UTF-32; save it as UTF-8"),
    b"\x1f\x8b": "compressed by gzip; end its name in .gz",
    b"(\xb5/\xfd": "compressed by zstd; end its name in .zst",
    b"PAR1": "a Parquet file; end its name in .parquet",
}
LONGEST_RECORD = 1 << 26
"""Characters or bytes of a record, some ten million tokens; what is longer is no trace, but another kind of file."""
# Bytes that are read at a time, at least.
_CHUNK = 1 << 20
# White space as JSON has it; `\s` would take more.
_SPACE = re.compile(r"[ \t\n\r]*")


class _AmbiguousError(ValueError):
    """An object has a key twice, with different values: which one counts would depend on the program that reads it."""


def _as_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(members)
    for key, value in members if len(values) < len(members) else ():
        if value != values[key]:
            raise _AmbiguousError(f"{shown(key)} stands twice in an object, with different values")
    return values


# Decodes a value at a position, and says where it ends.
_DECODER = json.JSONDecoder(object_pairs_hook=_as_object)
# Errors of a text that ends too early point at its end, or at the begin of a word or number cut short.
_LONGEST_WORD = 16
_NUMBER_MAY_GO_ON = re.compile(r"[-+.eE\d]*\Z")  # `1` or `1.` of `1.5`, where the text that is held ends


@dataclass(frozen=True, slots=True)
class Record:
    """A row of the source."""

    row: dict[str, Any]  # Any: whatever JSON or Arrow holds
    place: str  # file and line (of a `.jsonl` file) or row, counted from 1, e.g. `traces.jsonl:17`


def kind_of(path: Path) -> str | None:
    """The kind of a file of records by its name, its suffix without that of the compression; None of another file.

    >>> kind_of(Path("part-0.JSONL.gz")), kind_of(Path("table.parquet.gz"))
    ('.jsonl', None)
    """
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """The name of a file without its suffixes of kind and compression."""
    name = path.name.lower()
    return next((path.name[: -len(suffix)] for suffix in SUFFIXES if name.endswith(suffix)), path.name)


def read_file(path: Path) -> Iterator[Record | Refusal]:
    """The rows of one file."""
    kind = kind_of(path)
    assert kind is not None, "only files of records are listed"
    with reading(path):  # the whole iteration: a file may break at its last row
        if kind == ".jsonl":
            yield from _read_jsonl(path)
        elif kind == ".json":
            try:
                for number, row in enumerate(records_of(lambda: _open(path)), 1):
                    yield _as_record(row, _location(path, number))
            except UnicodeDecodeError:
                raise  # as of any file that is broken; it is a ValueError, too
            except ValueError as error:
                why = f"{_reason(error)}; correct it, or name it .jsonl if every line is a record"
                raise DataError(f"{path}: {why}") from None
            except RecursionError:
                raise DataError(f"{path}: a record is nested too deeply; correct it, or leave the record out") from None
        elif kind == ".parquet":
            with pq.ParquetFile(path) as table:
                yield from _rows(table.iter_batches(batch_size=_ROWS_AT_ONCE), path)
        else:
            with pa.memory_map(str(path)) as source:
                is_file_format = source.read(6) == b"ARROW1"
                source.seek(0)
                if is_file_format:
                    file = pa.ipc.open_file(source)
                    yield from _rows(map(file.get_batch, range(file.num_record_batches)), path)
                else:  # the stream format, which `datasets` writes
                    yield from _rows(pa.ipc.open_stream(source), path)


def digest_file(path: Path, decompressed: bool = False) -> bytes:
    """SHA-256 over the bytes of a file, or over its content, decompressed."""
    with reading(path), _open(path) if decompressed else path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def missing_shards(files: Iterable[Path]) -> list[str]:
    """What is not there of shards whose names count them, as after a download that was broken off."""
    present: defaultdict[tuple[Path, int], set[int]] = defaultdict(set)
    for file in files:
        if shard := SHARD.search(file.name):
            present[file.with_name(file.name[: shard.start()]), int(shard[2])].add(int(shard[1]))
    lines: list[str] = []
    for (name, total), numbers in present.items():
        first = int(total in numbers)  # `datasets` counts from 0, other programs from 1
        if missing := set(range(first, first + total)) - numbers:
            where = f"{name.name}-{min(missing):05}-of-{total:05}"
            lines.append(f"{len(missing)} of {total} shards, from {where} on (not there)")
    return lines


def head(path: Path) -> bytes:
    """The beginning of the content of a file, decompressed, up to 64 KiB."""
    with reading(path), _open(path) as handle:
        return handle.read(1 << 16)


def saved_files(path: Path) -> list[Path]:
    """The shards that `save_to_disk` lists; other Arrow files beside them are caches of later transforms."""
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
    # pyarrow raises errors of three kinds for values that Python has no type for, as dates after the year 9999: a
    # ValueError, an OverflowError, or for an unknown time zone a LookupError.
    except (OSError, EOFError, ValueError, ArithmeticError, LookupError, MemoryError, pa.ArrowException) as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {why}); repair the file") from error


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
            line, location = handle.readline(LONGEST_RECORD + 1), _location(path, number)
            if number == 1 and (other := next((mark for mark in _OTHER_KINDS if line.startswith(mark)), None)):
                raise DataError(f"{path}: is {_OTHER_KINDS[other]}")
            if not line:
                return
            if len(line) > LONGEST_RECORD:
                while line and not line.endswith(b"\n"):
                    line = handle.readline(LONGEST_RECORD)
                yield Refusal("too long a line", f"it has more than {LONGEST_RECORD:,} bytes", location)
            elif line := line.removeprefix(codecs.BOM_UTF8).strip():  # files that were joined have marks inside
                try:
                    record = _as_record(_DECODER.decode(line.decode("utf-8")), location)
                except UnicodeDecodeError as error:
                    byte = f"byte {error.start + 1} of the line is {line[error.start]:#x}"
                    record = Refusal("not valid UTF-8", byte, location)
                except _AmbiguousError as error:
                    record = Refusal("a key twice", str(error), location)
                except ValueError as error:
                    record = Refusal("not valid JSON", _reason(error), location)
                except RecursionError:
                    record = Refusal("nested too deeply", "lists or objects in each other without end", location)
                yield record


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


def _rows(batches: Iterable[pa.RecordBatch], path: Path) -> Iterator[Record]:
    numbers = itertools.count(1)
    for batch in batches:
        batch.validate(full=True)  # a damaged offset would be followed to wherever it points
        names = batch.schema.names
        if twice := next((name for name in names if names.count(name) > 1), None):  # a row would have one of the two
            raise DataError(f"{path}: has two columns {shown(twice)}; rename one, or leave it out")
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for row in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                yield Record(row, _location(path, next(numbers)))


def records_of(open_document: Callable[[], BinaryIO]) -> Iterator[Any]:
    """The items of a document's list.

    Args:
        open_document: Opens the document, each time anew: that an object has one list is seen at its end only.

    Raises:
        ValueError: While iterating: the document is no JSON in UTF-8, or has no such list; its text says why.
        RecursionError: While iterating: an item is nested too deeply.
    """
    with open_document() as handle:
        document = _Document(handle)
        if document.next_character() != "{":
            yield from document.items()
            return
        # Once through without yielding: whether it has one list alone is seen at its end.
        deque(document.items(), maxlen=0)
    with open_document() as handle:
        yield from _Document(handle).items()


class _Document:
    """A text that is read in pieces; only the piece being parsed is in memory."""

    def __init__(self, handle: BinaryIO):
        self._handle = handle
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        # The piece, the position in it, characters dropped before it, and whether it reaches to the end of the text.
        self._text, self._at, self._dropped, self._is_whole = "", 0, 0, False

    def items(self) -> Iterator[Any]:
        """The items of the one list: the document itself, or the value of a member of the object that it is."""
        num_lists, is_object = 0, self.next_character() == "{"
        for _ in self._members("}") if is_object else range(1):
            if is_object and not isinstance(self._value(), str):
                raise self._fault("a key is no text")
            if is_object and not self._is_next(":"):
                raise self._fault("Expecting ':'")
            if self.next_character() == "[":
                num_lists += 1
                yield from (self._value() for _ in self._members("]"))
            else:
                self._value()
        if self.next_character():
            raise self._fault("Extra data")
        if num_lists != 1:
            raise ValueError(f"holds {num_lists} lists of records; make it one list, or an object with one list")

    def next_character(self) -> str:
        """The next character that is no white space, which stays the next one; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = self._at if space is None else space.end()
            if self._at < len(self._text) or self._is_whole:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def _members(self, closing: str) -> Iterator[None]:
        """Stop before each member of a list or an object, which the caller reads, up to the closing bracket."""
        self._at += 1
        if self._is_next(closing):
            return
        while True:
            yield
            if self._is_next(closing):
                return
            if not self._is_next(","):
                raise self._fault("Expecting ','")

    def _is_next(self, character: str) -> bool:
        """Take a character, if it is the next one."""
        is_next = self.next_character() == character
        self._at += is_next
        return is_next

    def _value(self) -> Any:
        self.next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if self._is_whole or not is_cut:
                    self._at = error.pos
                    raise self._fault(error.msg) from None
            except _AmbiguousError as error:
                raise ValueError(f"{error} (after character {self._dropped + self._at + 1:,})") from None
            else:
                if self._is_whole or not _NUMBER_MAY_GO_ON.match(self._text, end):
                    self._at = end
                    return value
            if len(self._text) - self._at > LONGEST_RECORD:
                raise self._fault(f"a value of more than {LONGEST_RECORD:,} characters")
            self._read_on()

    def _read_on(self) -> None:
        """Drop the parsed part and double the rest, so that a long value is parsed only a few times."""
        data = self._handle.read(max(_CHUNK, len(self._text) - self._at))
        self._is_whole = not data
        self._dropped += self._at
        self._text, self._at = self._text[self._at :] + self._decode(data, final=self._is_whole), 0

    def _fault(self, what: str) -> ValueError:
        return ValueError(f"not valid JSON: {what} at character {self._dropped + self._at + 1:,}")
