"""One shard: an Arrow IPC file with a row per captured sequence, hashed while it is written, mapped when it is read.

A row has the columns `example_id` and `sequence_hash` (16 bytes each), `checksum` (CRC-32 of all others), `input_ids`
(`T`), and lists with the values of its `T - 1` positions: position `t` has seen tokens `0 .. t` and predicts `t + 1`.
"""

import hashlib
import io
import os
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leadspan.errors import CacheError
from leadspan.files import sync_directory
from leadspan.teacher.codecs import Arrays, logsumexp_column, outside_column
from leadspan.teacher.manifest import SHARDS_DIR, Manifest, ShardEntry
from leadspan.teacher.settings import Hidden, KeptTargets, TopK
from leadspan.text import first_line

KEY_COLUMNS = ("example_id", "sequence_hash", "checksum")
PER_ENTRY = frozenset({"entries", "token_ids", "log_probs", "counts"})
SUFFIX = ".arrow"
# A shard's name holds its number in the plan and the first half of its SHA-256: a file under such a name is complete.
_NAME = re.compile(rf"(?P<number>\d{{5,}})-(?P<digest>[0-9a-f]{{32}})\{SUFFIX}")
REMEDY = (
    "run the command that captured it again (`leadspan capture` or `leadspan study`): it moves damaged shards aside "
    "and captures them again"
)
# Arrow has no bfloat16: its bits are stored as unsigned integers.
_HIDDEN_TYPES = {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16()}


def columns_of(kept: KeptTargets, hidden_dtype: str | None = None) -> dict[str, pa.DataType]:
    """The list columns of a store and the type of their values; hidden states have one of their own."""
    columns: dict[str, pa.DataType] = {"input_ids": pa.int32(), "section": pa.uint8()}
    codec = kept.codec
    if isinstance(codec, Hidden):
        return columns | {"hidden": _HIDDEN_TYPES[str(hidden_dtype)]}
    if codec.precision == "packed":
        columns["entries"] = pa.uint32()
    else:
        columns |= {"token_ids": pa.uint32(), "log_probs": pa.float32()}
    if codec.kind == "sampled":
        columns["counts"] = pa.uint8()
    if not isinstance(codec, TopK):
        columns["num_entries"] = pa.uint16()
    columns |= {"outside": pa.float32(), "label_log_prob": pa.float32()}
    if kept.engine != "transformers":  # log-probabilities alone
        return columns
    normalisers = {logsumexp_column(t): pa.float32() for t in kept.temperatures}
    tails = {outside_column(t): pa.float32() for t in kept.tail_temperatures if t != 1.0}
    return columns | {"entropy": pa.float16()} | normalisers | tails


def bytes_of(
    kept: KeptTargets, num_values: float, lengths: Sequence[int], hidden_dtype: str | None = None
) -> tuple[float, float]:
    """Bytes of a position, and of all rows of sequences of these lengths, without what frames an Arrow file.

    `num_values` is the mean number of entries of a position or, of hidden states, their width.
    """
    columns = columns_of(kept, hidden_dtype)
    per_position = sum(
        kind.bit_width // 8 * (num_values if name in PER_ENTRY or name == "hidden" else 1)
        for name, kind in columns.items()
    )
    # A sequence has two keys, a checksum, an offset into each list, and one token more than positions.
    per_sequence = 16 + 16 + 4 + 8 * len(columns) + columns["input_ids"].bit_width // 8
    sizes = [per_sequence + (length - 1) * per_position for length in lengths if length > 1]
    return per_position, sum(sizes)


def schema_of(manifest: Manifest) -> pa.Schema:
    """The Arrow schema of a store's shards."""
    key, columns = pa.binary(16), columns_of(manifest.kept_targets, manifest.hidden_dtype)
    fields = [pa.field("example_id", key), pa.field("sequence_hash", key), pa.field("checksum", pa.uint32())]
    # Large lists: the hidden states of a record batch may be more than the 2^31 values that 32-bit offsets reach.
    fields += [pa.field(name, pa.large_list(kind)) for name, kind in columns.items()]
    return pa.schema(fields, {"leadspan": manifest.model_dump_json(include={"format_version", "codec"})})


def sequence_hash(input_ids: np.ndarray) -> bytes:
    """First 16 bytes of the SHA-256 of token ids as little-endian int32."""
    return hashlib.sha256(np.ascontiguousarray(input_ids, dtype="<i4").tobytes()).digest()[:16]


def borders_of(columns: Arrays, name: str, num_positions: int) -> np.ndarray:
    """Where in a column the values of each position begin, and where the last ones end, [num_positions + 1]."""
    if name in PER_ENTRY and "num_entries" in columns:
        return np.concatenate([[0], np.cumsum(columns["num_entries"], dtype=np.int64)])
    # Columns of fixed width (hidden states, top-k entries) have as many values at every position.
    return np.arange(num_positions + 1) * (len(columns[name]) // num_positions)


def row_checksum(example_id: bytes, sequence: bytes, values: Arrays, names: list[str]) -> int:
    """CRC-32 over a row's keys and the bytes of its lists, in the order of the columns."""
    crc = zlib.crc32(sequence, zlib.crc32(example_id))
    for name in names:
        crc = zlib.crc32(np.ascontiguousarray(values[name]).data.cast("B") if len(values[name]) else b"", crc)
    return crc


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes one shard under a temporary name, in a thread; `close` gives it its own."""

    def __init__(self, directory: Path, number: int, manifest: Manifest):
        self.directory, self.number = directory, number
        self.schema = schema_of(manifest)
        self.names = self.schema.names[len(KEY_COLUMNS) :]
        # A hidden name with the process id: readers never take it for a shard, and two processes never share it.
        self._staged = directory / f".{number:05d}.{os.getpid()}.tmp"
        self._file = _HashingFile(io.FileIO(self._staged, "w"))
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), self.schema)
        # One thread is enough: Arrow and SHA-256 release the interpreter lock.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[None] = self._thread.submit(lambda: None)

    def write(self, example_ids: list[bytes], rows: list[Arrays]) -> None:
        """Append one record batch with a row per sequence, while the caller makes the next one.

        Raises:
            OSError: The batch before could not be written.
        """
        # At most one batch waits to be written, so memory does not grow when the disk is slower than the caller.
        self._pending.result()
        self._pending = self._thread.submit(self._append, example_ids, rows)

    def _append(self, example_ids: list[bytes], rows: list[Arrays]) -> None:
        hashes = [sequence_hash(row["input_ids"]) for row in rows]
        # A checksum per row lets a reader check what it uses, without hashing the file of several GB.
        checks = [row_checksum(i, h, row, self.names) for i, h, row in zip(example_ids, hashes, rows, strict=True)]
        arrays: list[pa.Array] = [
            pa.array(example_ids, pa.binary(16)),
            pa.array(hashes, pa.binary(16)),
            pa.array(checks, pa.uint32()),
        ]
        for name in self.names:
            sizes = [len(row[name]) for row in rows]
            offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int64())
            values = pa.array(np.concatenate([row[name] for row in rows]), self.schema.field(name).type.value_type)
            arrays.append(pa.LargeListArray.from_arrays(offsets, values))
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))

    def close(self) -> Path:
        """Finish the file, bring it to disk, and rename it after its content."""
        self._pending.result()
        self._writer.close()
        self._file.flush()
        # On disk before the rename: after a power cut a complete name must not stand for an empty file.
        os.fsync(self._file.fileno())
        self._file.close()
        name = f"{self.number:05d}-{self._file.digest.hexdigest()[:32]}{SUFFIX}"
        path = self._staged.replace(self.directory / name)
        sync_directory(self.directory)
        return path

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()  # waits, so that after an error too the file is not closed while a batch is written
        if kind is not None:  # a shard that was not closed does not count
            try:
                self._file.close()
            except OSError:  # closing flushes, which fails again on a full disk
                self._file.raw.close()
            self._staged.unlink(missing_ok=True)


class _HashingFile(io.BufferedWriter):
    """A file that is hashed as it is written, so that a shard of gigabytes is not read again for its name."""

    def __init__(self, raw: io.FileIO):
        super().__init__(raw)
        self.digest = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return super().write(data)


class ShardReader:
    """A shard mapped into memory; arrays of a row are views of the file."""

    def __init__(self, path: Path, manifest: Manifest):
        """Map the file.

        Raises:
            CacheError: It is not an Arrow file of this store.
        """
        schema = schema_of(manifest)
        self.path, self.names = path, schema.names[len(KEY_COLUMNS) :]
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            is_same = self._file.schema.equals(schema)
        except (OSError, pa.ArrowException) as error:
            raise damaged(path, first_line(error)) from None
        if not is_same:
            raise damaged(path, "its columns are not those of the manifest")
        self._batches: dict[int, pa.RecordBatch] = {}

    def sequences(self) -> list[tuple[int, int, bytes]]:
        """Record batch, row in it and example id of every sequence."""
        sequences: list[tuple[int, int, bytes]] = []
        for number in range(self._file.num_record_batches):
            ids = self._batch(number).column("example_id").to_pylist()
            sequences += [(number, row, example_id) for row, example_id in enumerate(ids)]
        return sequences

    def entry(self) -> ShardEntry:
        """What a manifest says of the file, as it is on disk."""
        lengths = [len(self.values(batch, row, "input_ids")) for batch, row, _ in self.sequences()]
        num_positions, size = sum(n - 1 for n in lengths), self.path.stat().st_size
        return ShardEntry(name=self.path.name, num_rows=len(lengths), num_positions=num_positions, num_bytes=size)

    def row(self, batch: int, row: int) -> Arrays:
        """All lists of a row, as `values`."""
        return {name: self.values(batch, row, name) for name in self.names}

    def check(self, batch: int, row: int) -> None:
        """Compare a row's content with its checksum.

        Raises:
            CacheError: They differ.
        """
        example_id, sequence, stated = (self.key(batch, row, name) for name in KEY_COLUMNS)
        if row_checksum(example_id, sequence, self.row(batch, row), self.names) != stated:
            raise damaged(self.path, f"row {row} of record batch {batch} does not have its checksum")

    def key(self, batch: int, row: int, name: str) -> Any:
        """What a row has in one of `KEY_COLUMNS`."""
        return self._batch(batch).column(name)[row].as_py()

    def _batch(self, number: int) -> pa.RecordBatch:
        if number not in self._batches:
            try:
                batch = self._file.get_batch(number)
                batch.validate()  # lengths and buffers, in constant time; checksums see the values
            except (OSError, pa.ArrowException) as error:
                raise damaged(self.path, f"record batch {number}: {first_line(error)}") from None
            self._batches[number] = batch
        return self._batches[number]

    def values(self, batch: int, row: int, name: str) -> np.ndarray:
        """One of the lists of a row, without a copy.

        Raises:
            CacheError: Its borders are damaged.
        """
        column = self._batch(batch).column(name)
        start, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
        # The whole column maps to one array; slicing it copies nothing.
        values = column.values.to_numpy(zero_copy_only=True)
        # Arrow trusts offsets; a flipped bit in them would read past the map.
        if not 0 <= start <= end <= len(values):
            raise damaged(self.path, f"row {row} of record batch {batch}: {name} is [{start}, {end}) of {len(values)}")
        return values[start:end]


def finished_shards(directory: Path) -> dict[int, Path]:
    """Complete shards of a store, by number; files with other names do not count."""
    named = ((_NAME.fullmatch(path.name), path) for path in (directory / SHARDS_DIR).glob("*"))
    return {int(match["number"]): path for match, path in named if match}


def has_hash_of_name(path: Path, digest: str) -> bool:
    """Whether a shard's SHA-256 begins with the digest in its name."""
    match = _NAME.fullmatch(path.name)
    return match is not None and digest.startswith(match["digest"])


def damaged(path: Path, fault: str) -> CacheError:
    """The error of a damaged file."""
    return CacheError(f"{path}: damaged ({fault}); `leadspan store verify` names all damaged files; {REMEDY}")
