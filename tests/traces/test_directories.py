import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from leadspan.errors import DataError
from leadspan.traces.files import Record, read_file
from leadspan.traces.read import list_files

ROWS: list[dict[str, Any]] = [{"n": n} for n in range(6)]


def fill(directory: Path, names: Sequence[str]) -> Path:
    """One record in each file, none twice."""
    for number, name in enumerate(names):
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        row = {"n": number}
        match file.suffix:
            case ".parquet":
                pq.write_table(pa.Table.from_pylist([row]), file)
            case ".gz":
                file.write_bytes(gzip.compress(json.dumps(row).encode()))
            case ".json":
                file.write_text(json.dumps([row]))
            case _:
                file.write_text(json.dumps(row))
    return directory


def names_of(directory: Path, **source: str) -> list[str]:
    return [str(file.relative_to(directory)) for file in list_files(directory, **source).files]


def test_a_directory_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    names = [
        "b.jsonl",
        "a.jsonl",
        "citation.jsonl",
        "README.md",
        "LICENSE",
        ".hidden.jsonl",
        "_cache.jsonl",
        "sub/c.jsonl",
        "notes.txt",
    ]
    listing = list_files(fill(tmp_path, names))
    assert listing.files == tuple(tmp_path / name for name in ("a.jsonl", "b.jsonl", "citation.jsonl"))
    assert listing.passed_over == (
        "notes.txt (none of .jsonl, .json, .parquet, .arrow, .jsonl.gz, .json.gz, .jsonl.zst, .json.zst)",
        "sub/ (a directory)",
    )


@pytest.mark.parametrize(
    ("names", "source", "read"),
    [
        pytest.param(["train.jsonl", "test.jsonl", "validation.jsonl"], {}, ["train.jsonl"], id="train when absent"),
        pytest.param(["train.jsonl", "test.jsonl"], {"split": "test"}, ["test.jsonl"], id="the split asked for"),
        pytest.param(["train.jsonl", "test.jsonl"], {"usual": "test"}, ["test.jsonl"], id="a task's usual split"),
        pytest.param(["my-train.jsonl", "my_dev.jsonl"], {"split": "validation"}, ["my_dev.jsonl"], id="other words"),
        pytest.param(["latest.jsonl", "trainer.jsonl"], {}, ["latest.jsonl", "trainer.jsonl"], id="part of a word"),
        pytest.param(["a.jsonl", "b.jsonl"], {"split": "train"}, ["a.jsonl", "b.jsonl"], id="names say no split"),
        pytest.param(["train.jsonl", "extra.jsonl"], {}, ["train.jsonl"], id="a name that says none beside train"),
        pytest.param(["hard.jsonl", "easy.jsonl"], {"split": "hard"}, ["hard.jsonl"], id="a split of its own name"),
        pytest.param(
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet",
            ],
            {},
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            id="shards of a Hub data set",
        ),
        pytest.param(
            ["hard-00000-of-00002.parquet", "hard-00001-of-00002.parquet", "easy-00000-of-00001.parquet"],
            {"split": "hard"},
            ["hard-00000-of-00002.parquet", "hard-00001-of-00002.parquet"],
            id="shards of a split of its own name",
        ),
        pytest.param(["train/0.jsonl", "test/0.jsonl"], {}, ["train/0.jsonl"], id="directories of splits"),
        pytest.param(["en/a.jsonl", "de/a.jsonl"], {"subset": "de"}, ["de/a.jsonl"], id="subset"),
        pytest.param(["part-0.jsonl", "part-1.jsonl.gz"], {}, ["part-0.jsonl", "part-1.jsonl.gz"], id="compressed too"),
    ],
)
def test_the_files_of_the_split_are_read(tmp_path: Path, names: list[str], source: Any, read: list[str]) -> None:
    assert names_of(fill(tmp_path, names), **source) == read
    listing = list_files(tmp_path, **source)
    left = [name for name in names if name not in read and not (source.get("subset") and "en/" in name)]
    assert [item.partition(" ")[0] for item in listing.passed_over] == left


@pytest.mark.parametrize(
    ("names", "source", "message"),
    [
        pytest.param([], {}, r"holds no \.jsonl, \.json, \.parquet, \.arrow", id="empty directory"),
        pytest.param(
            ["train.jsonl"], {"split": "nosuch"}, r"no file of the split nosuch \(train: train", id="no split"
        ),
        pytest.param(["test.jsonl"], {}, r"no file of the split train \(test: test\.jsonl\)", id="only test data"),
        pytest.param(["a.jsonl"], {"split": "easy"}, r"no file of the split easy \(no split: a", id="no file of it"),
        pytest.param(["a.jsonl"], {"split": "validation"}, "no file of the split validation", id="no name says it"),
        pytest.param(["en/a.jsonl"], {"subset": "fr"}, "no directory 'fr' in it; there are en", id="no subset"),
        pytest.param(["en/a.jsonl", "de/a.jsonl"], {}, r"set `subset` to one .* \(de, en\)", id="several subsets"),
        pytest.param(["a.jsonl", "a.jsonl.gz"], {}, "a.jsonl, a.jsonl.gz, which may be the same", id="packed beside"),
        pytest.param(["a.jsonl", "a.json"], {}, "files of several kinds .* the same records twice", id="two kinds"),
        pytest.param(["a.jsonl", "b.parquet"], {}, "files of several kinds", id="lines and Parquet"),
    ],
)
def test_directories_that_leave_a_doubt_are_errors(tmp_path: Path, names: list[str], source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_files(fill(tmp_path, names), **source)


def test_the_same_bytes_under_two_names_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jsonl", "b.jsonl"])
    (tmp_path / "copy of a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"holds a\.jsonl, copy of a\.jsonl, which may be the same records twice"):
        list_files(tmp_path)


def test_the_same_content_compressed_under_another_name_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jsonl", "b.jsonl"])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    with pytest.raises(DataError, match=r"holds a\.jsonl, c\.jsonl\.gz, which may be the same records twice"):
        list_files(tmp_path)


def test_metadata_beside_data_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path, ["a.json", "dataset_infos.json", "state.json"])
    (tmp_path / "settings.json").write_text('{"tags": ["not", "records"]}')
    listing = list_files(tmp_path)
    assert listing.files == (tmp_path / "a.json",)
    assert listing.passed_over == ("settings.json (a JSON object among files of records)",)


def test_objects_with_a_list_are_read_where_there_is_nothing_else(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.json").write_text(json.dumps({"data": [{"n": number}]}))
    assert names_of(tmp_path) == ["0.json", "1.json"]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        pytest.param("a.csv", {}, r"a\.csv: the suffix '\.csv' is none of \.jsonl", id="unknown suffix"),
        pytest.param("plain", {}, "the suffix '' is none of", id="no suffix"),
        pytest.param("a.jsonl", {"split": "validation"}, "its name says none; drop `split`", id="no such split"),
        pytest.param("a_train.jsonl", {"split": "test"}, "its name says train", id="another split"),
        pytest.param("a.jsonl", {"subset": "en"}, "this is a file; drop `subset`", id="subset"),
    ],
)
def test_files_that_are_not_what_was_asked_for_are_errors(tmp_path: Path, name: str, source: Any, message: str) -> None:
    fill(tmp_path, [name])
    with pytest.raises(DataError, match=message):
        list_files(tmp_path / name, **source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.jsonl", {}),
        ("a.jsonl", {"split": "train"}),
        ("a-dev.jsonl", {"split": "validation"}),
        ("b.jsonl", {"split": "b"}),
    ],
)
def test_a_file_is_read_where_nothing_contradicts_it(tmp_path: Path, name: str, source: Any) -> None:
    fill(tmp_path, [name])
    assert list_files(tmp_path / name, **source).files == (tmp_path / name,)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    fill(tmp_path, ["a.jsonl"])
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list_files(tmp_path).passed_over == ("b.jsonl (not a regular file)", "loop/ (a directory)")


def test_a_saved_data_set_is_read_without_its_caches(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path, num_shards=2)
    load_from_disk(tmp_path).map(lambda row: {"extra": row["n"]})
    assert list(tmp_path.glob("cache-*.arrow"))
    files = list_files(tmp_path).files
    assert [file.name for file in files] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert [item.row for file in files for item in read_file(file) if isinstance(item, Record)] == ROWS


def test_a_saved_dictionary_of_data_sets_is_read_by_split(tmp_path: Path) -> None:
    DatasetDict(train=Dataset.from_list(ROWS[:3]), test=Dataset.from_list(ROWS[3:4])).save_to_disk(tmp_path)
    assert list(read_file(list_files(tmp_path, "test").files[0])) == [Record(ROWS[3], "data-00000-of-00001.arrow:1")]
    with pytest.raises(DataError, match="validation: no such split; set `split`"):
        list_files(tmp_path, "validation")


def test_a_saved_data_set_without_its_list_of_files_is_an_error(tmp_path: Path) -> None:
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"state\.json: lists no `_data_files`"):
        list_files(tmp_path)


def test_shards_that_are_not_there_are_named(tmp_path: Path) -> None:
    files = [f"data/train-0000{number}-of-00003.parquet" for number in range(2)]
    listing = list_files(fill(tmp_path, files))
    assert len(listing.files) == 2
    assert listing.passed_over == ("1 of 3 shards, from train-00002-of-00003 on (not there)",)
    for first in (0, 1):
        names = [f"train-0000{number}-of-00002.parquet" for number in range(first, first + 2)]
        assert list_files(fill(tmp_path / f"from-{first}", names)).passed_over == ()
