import codecs
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leadspan.errors import DataError
from leadspan.traces.files import LONGEST_RECORD, Record, read_file
from leadspan.traces.records import Refusal

ROWS: list[dict[str, Any]] = [
    {
        "problem": f"{n} + 1?",
        "turns": [{"from": "human", "value": "line\u2028break"}],
        "gold": None if n == 1 else "x",
    }
    for n in range(130)
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_gzip(path: Path, rows: list[dict[str, Any]]) -> None:
    """Two members, as parallel compressors write."""
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(gzip.compress(b"".join(lines[:7])) + gzip.compress(b"".join(lines[7:])))


def write_zstandard(path: Path, rows: list[dict[str, Any]]) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_json_object(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"version": "1.0", "data": rows}), encoding="utf-8-sig")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)


def write_arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def write_arrow_file(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def records(path: Path) -> list[Record | Refusal]:
    return list(read_file(path))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param("a.jsonl", write_jsonl, id="jsonl"),
        pytest.param("a.JSONL", write_jsonl, id="suffix in capitals"),
        pytest.param("a.jsonl.gz", write_gzip, id="gzip"),
        pytest.param("a.jsonl.zst", write_zstandard, id="zstandard"),
        pytest.param(
            "a.json.gz", lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())), id="json gzip"
        ),
        pytest.param("a.json", write_json, id="json array"),
        pytest.param("a.json", write_json_object, id="json object with one list"),
        pytest.param("a.parquet", write_parquet, id="parquet"),
        pytest.param("a.arrow", write_arrow_stream, id="arrow stream"),
        pytest.param("a.arrow", write_arrow_file, id="arrow file"),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    write(tmp_path / name, ROWS)
    assert records(tmp_path / name) == [Record(row, f"{name}:{n}") for n, row in enumerate(ROWS, 1)]


def test_json_lines_keep_their_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        codecs.BOM_UTF8 + b'{"n": 1}',
        b"",
        b"  ",
        b'{"n": 4}\r',
        b'{"n": ',
        b'"n"',
        b'{"n": "\xff"}',
        b'{"n": 8',
    ]
    path.write_bytes(b"\n".join(lines))
    *good, truncated, text, undecodable, unfinished = records(path)
    assert good == [Record({"n": 1}, "a.jsonl:1"), Record({"n": 4}, "a.jsonl:4")]
    assert isinstance(truncated, Refusal) and truncated.reason == "not valid JSON"
    assert truncated.place == "a.jsonl:5" and "Expecting value" in truncated.detail
    assert text == Refusal("not a JSON object", "str in place of columns and values", "a.jsonl:6")
    assert undecodable == Refusal("not valid UTF-8", "byte 8 of the line is 0xff", "a.jsonl:7")
    assert isinstance(unfinished, Refusal) and unfinished.reason == "not valid JSON"


def test_json_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[" * 200_000 + "\n" + '{"n": 2}')
    first, second = records(tmp_path / "a.jsonl")
    assert isinstance(first, Refusal) and first.reason == "nested too deeply"
    assert second == Record({"n": 2}, "a.jsonl:2")


@pytest.mark.slow
def test_a_line_without_end_is_refused_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"n": 1}\n')
        file.seek(3 * LONGEST_RECORD, 1)  # a hole in the file: nothing but NUL bytes
        file.write(b'\n{"n": 3}\n')
    assert records(path) == [
        Record({"n": 1}, "a.jsonl:1"),
        Refusal("too long a line", "it has more than 67,108,864 bytes", "a.jsonl:2"),
        Record({"n": 3}, "a.jsonl:3"),
    ]


def test_numbers_that_are_too_long_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": ' + "9" * 5000 + "}\n")
    detail = "not valid JSON: a whole number of more than 4300 digits"
    assert records(tmp_path / "a.jsonl") == [Refusal("not valid JSON", detail, "a.jsonl:1")]


def test_a_key_that_stands_twice_with_different_values_is_refused(tmp_path: Path) -> None:
    same, other = '{"a": 1, "b": 2, "a": 1}', '{"turns": [{"role": "user", "": "4", "": "5"}]}'
    (tmp_path / "a.jsonl").write_text(f"{same}\n{other}\n")
    detail = "'' stands twice in an object, with different values"
    read = [Record({"a": 1, "b": 2}, "a.jsonl:1"), Refusal("a key twice", detail, "a.jsonl:2")]
    assert records(tmp_path / "a.jsonl") == read
    (tmp_path / "a.json").write_text(f"[{same}, {other}]")
    with pytest.raises(DataError, match=r"a\.json: '' stands twice .* \(after character 28\); correct it"):
        records(tmp_path / "a.json")


def test_byte_order_marks_of_joined_files_and_of_tables(tmp_path: Path) -> None:
    """Joined files have a mark in the midst, and a table that was read with its mark has one in its first column."""
    line = '\ufeff{"\\ufeffn": 1, "m": "\\ufeffx"}\n'
    (tmp_path / "a.jsonl").write_text(2 * line, encoding="utf-8")
    assert [item.row for item in records(tmp_path / "a.jsonl") if isinstance(item, Record)] == 2 * [
        {"n": 1, "m": "\ufeffx"}
    ]


def test_items_of_a_json_array_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 1}, 2]')
    assert records(tmp_path / "a.json")[1] == Refusal(
        "not a JSON object", "int in place of columns and values", "a.json:2"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.json", b'[{"n": 1}, {"n"', "not valid JSON.*Expecting", id="truncated json"),
        pytest.param("a.json", b"", "not valid JSON", id="empty json"),
        pytest.param("a.json", b"[" * 100_000, "nested too deeply", id="json, nested without end"),
        pytest.param("a.json", b'[{"n": ' + b"9" * 5000, "more than 4300 digits", id="json, long number"),
        pytest.param("a.jsonl", '{"n": 1}'.encode("utf-16"), "in UTF-16 or UTF-32; save it as UTF-8", id="UTF-16"),
        pytest.param("a.jsonl", '{"n": 1}'.encode("utf-32"), "in UTF-16 or UTF-32; save it as UTF-8", id="UTF-32"),
        pytest.param("a.jsonl", gzip.compress(b'{"n": 1}'), "compressed by gzip; end its name in .gz", id="gzip"),
        pytest.param("a.jsonl", b"(\xb5/\xfd" + b"x" * 20, "compressed by zstd; end its name in .zst", id="zstandard"),
        pytest.param("a.jsonl", b"PAR1\x15", "a Parquet file; end its name in .parquet", id="parquet as lines"),
        pytest.param("a.json", b'{"n": 1}\n{"n": 2}', "Extra data.*name it .jsonl", id="lines in json"),
        pytest.param("a.json", b'{"a": [], "b": []}', "holds 2 lists of records", id="two lists"),
        pytest.param("a.json", b'{"n": 1}', "holds 0 lists of records", id="no list"),
        pytest.param("a.json", b'["\xff"]', "UnicodeDecodeError", id="json, not UTF-8"),
        pytest.param("a.parquet", b"PAR1 broken", "cannot be read", id="broken parquet"),
        pytest.param("a.parquet", b"", "cannot be read", id="empty parquet"),
        pytest.param("a.arrow", b"\xff\xff\xff\xff\x10\x00", "cannot be read", id="broken arrow stream"),
        pytest.param("a.arrow", b"ARROW1\x00\x00", "cannot be read", id="broken arrow file"),
        pytest.param("a.arrow", b"", "cannot be read", id="empty arrow"),
        pytest.param("a.jsonl.gz", gzip.compress(b'{"n": 1}\n' * 9)[:-9], "cannot be read", id="truncated gzip"),
        pytest.param("a.jsonl.gz", b'{"n": 1}\n', "cannot be read", id="named .gz, not compressed"),
        pytest.param("a.jsonl.zst", b"(\xb5/\xfd" + b"x" * 20, "cannot be read", id="broken zstandard"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        records(tmp_path / name)


def test_an_arrow_file_that_was_cut_short_is_an_error_after_its_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    write_arrow_stream(path, ROWS)
    path.write_bytes(path.read_bytes()[:-200])
    reader = read_file(path)
    assert next(reader) == Record(ROWS[0], "a.arrow:1")
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read"):
        list(reader)


def test_a_time_in_an_unknown_zone_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"when": pa.array([1], pa.timestamp("us", tz="Mars/Phobos"))}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read .*Mars/Phobos"):
        records(tmp_path / "a.parquet")


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    schema = pa.schema({"problem": pa.string()})
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet") == []


def test_a_parquet_file_that_shrinks_while_it_is_read_ends_no_process(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"n": n, "text": random.Random(n).randbytes(5000).hex()} for n in range(1000)])
    # In a process of its own: a mapped page behind the end of a file is a bus error.
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom leadspan.errors import DataError\n"
        "from leadspan.traces.files import read_file\npath = Path(sys.argv[1])\ntry:\n"
        "    for record in read_file(path):\n        os.truncate(path, 100_000)\nexcept DataError:\n    pass"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_two_columns_of_one_name_are_an_error(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["answer", "answer"])
    if name == "t.parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_stream(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=r"has two columns 'answer'; rename one, or leave it out"):
        list(read_file(tmp_path / name))
