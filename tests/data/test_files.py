import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from leadspan.data.files import Record, find_files, read_file
from leadspan.data.records import Refusal
from leadspan.errors import DataError

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
    assert find_files(tmp_path / name, "train") == [tmp_path / name]
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
    assert isinstance(first, Refusal) and first.reason == "not valid JSON"
    assert second == Record({"n": 2}, "a.jsonl:2")


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
        pytest.param("a.json", b'{"n": 1}\n{"n": 2}', "Extra data.*name it .jsonl", id="lines in json"),
        pytest.param("a.json", b'{"a": [], "b": []}', "holds 2 lists of records", id="two lists"),
        pytest.param("a.json", b'{"n": 1}', "holds 0 lists of records", id="no list"),
        pytest.param("a.json", b'["\xff"]', "UnicodeDecodeError", id="json, not UTF-8"),
        pytest.param("a.parquet", b"PAR1 broken", "cannot be read", id="broken parquet"),
        pytest.param("a.parquet", b"", "cannot be read", id="empty parquet"),
        pytest.param("a.arrow", b"\xff\xff\xff\xff\x10\x00", "cannot be read", id="broken arrow stream"),
        pytest.param("a.arrow", b"ARROW1\x00\x00", "cannot be read", id="broken arrow file"),
        pytest.param("a.arrow", b"", "cannot be read", id="empty arrow"),
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


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    schema = pa.schema({"problem": pa.string()})
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    assert records(tmp_path / "a.parquet") == []


def test_a_directory_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    write_parquet(tmp_path / "a.parquet", ROWS[2:4])
    for other in ("README.md", ".hidden.jsonl"):
        (tmp_path / other).write_text("not for reading")
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "sub" / "c.jsonl", ROWS)
    assert find_files(tmp_path, "train") == [tmp_path / "a.parquet", tmp_path / "b.jsonl"]


def test_a_saved_data_set_is_read_without_its_caches(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path, num_shards=2)
    load_from_disk(tmp_path).map(lambda row: {"extra": row["problem"]})
    assert list(tmp_path.glob("cache-*.arrow"))
    files = find_files(tmp_path, "train")
    assert [file.name for file in files] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    rows = [item.row for file in files for item in read_file(file) if isinstance(item, Record)]
    assert rows == ROWS


def test_a_saved_dictionary_of_data_sets_is_read_by_split(tmp_path: Path) -> None:
    DatasetDict(train=Dataset.from_list(ROWS[:3]), test=Dataset.from_list(ROWS[3:4])).save_to_disk(tmp_path)
    assert records(find_files(tmp_path, "test")[0]) == [Record(ROWS[3], "data-00000-of-00001.arrow:1")]
    with pytest.raises(DataError, match="validation: no such split; set `split`"):
        find_files(tmp_path, "validation")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param(".", r"holds no \.jsonl, \.json, \.parquet, \.arrow file", id="empty directory"),
        pytest.param("a.csv", r"a\.csv: the suffix '\.csv' is none of \.jsonl", id="unknown suffix"),
        pytest.param("plain", "the suffix '' is none of", id="no suffix"),
    ],
)
def test_paths_without_records_are_errors(tmp_path: Path, name: str, message: str) -> None:
    if name != ".":
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        find_files(tmp_path / name, "train")


def test_a_saved_data_set_without_its_list_of_files_is_an_error(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: lists no `_data_files`"):
        find_files(tmp_path, "train")
