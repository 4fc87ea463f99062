import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo
from datasets.arrow_writer import ArrowWriter

from leadspan.data.settings import DataSettings
from leadspan.errors import DataError
from leadspan.traces.read import fingerprint, read_traces, tags_warning
from leadspan.traces.records import Refusal, RefusalCounter, Trace
from leadspan.traces.settings import TraceSource

UNCLOSED = "chain of thought never closed"


def good(n: int) -> dict[str, Any]:
    return {
        "prompt": f"What is {n} + 1?",
        "cot": f"One more than {n} is {n + 1}.",
        "answer": f"{n + 1}",
        "gold": n + 1,
    }


def reply(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": text}]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_lines(*rows: object, name: str = "toy.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return write_lines


def counted(path: str, **source: Any) -> tuple[list[Trace], RefusalCounter]:
    counter = RefusalCounter()
    return list(counter.usable(read_traces(TraceSource(path=path, **source)))), counter


def test_traces_come_in_order_with_their_places(write: Callable[..., str]) -> None:
    first, broken, second = read_traces(TraceSource(path=write(good(1), "{", good(2))))
    assert first == Trace(
        ({"role": "user", "content": "What is 1 + 1?"},), "One more than 1 is 2.", "2", "2", "toy.jsonl:1"
    )
    assert isinstance(broken, Refusal) and (broken.reason, broken.place) == ("not valid JSON", "toy.jsonl:2")
    assert isinstance(second, Trace) and second.place == "toy.jsonl:3"


def test_reading_is_lazy(write: Callable[..., str]) -> None:
    path = write(*(good(n) for n in range(3)))
    traces = read_traces(TraceSource(path=path))
    assert isinstance(next(traces), Trace)
    with Path(path).open("a") as handle:
        handle.write("\n" * 100_000 + json.dumps(good(3)))
    assert sum(1 for _ in traces) == 3


def test_records_that_cannot_be_read_do_not_decide_the_format(write: Callable[..., str]) -> None:
    traces, counter = counted(write("{", "[]", good(1)))
    assert [trace.place for trace in traces] == ["toy.jsonl:3"]
    assert counter.counts == {"not valid JSON": 1, "not a JSON object": 1}


def test_a_first_record_that_lacks_a_column_is_refused_by_itself(write: Callable[..., str]) -> None:
    lacking = {key: value for key, value in good(0).items() if key != "answer"}
    for first in (lacking, lacking | {"answer": None}, lacking | {"answer": float("nan")}):
        path = write(first, *(good(n) | {"solution": f"By hand: {n}."} for n in range(1, 41)))
        for source in ({}, {"format": "columns"}, {"columns": {"answer": "answer"}}):
            traces, counter = counted(path, **source)
            assert [trace.answer for trace in traces] == [str(n + 1) for n in range(1, 41)]
            assert counter.counts == {"missing or mistyped column": 1}
            assert counter.examples["missing or mistyped column"].place == "toy.jsonl:1"


def test_a_first_record_of_another_layout_does_not_decide_for_the_others(write: Callable[..., str]) -> None:
    traces, counter = counted(write({"id": 1}, reply("<think>a</think>b"), *(good(n) for n in range(5))))
    assert [trace.answer for trace in traces] == ["b", "1", "2", "3", "4", "5"]
    assert counter.counts == {"missing or mistyped column": 1}


def test_what_a_directory_holds_beside_the_split_is_told(
    tmp_path: Path, write: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("train.jsonl", "test.jsonl", "notes.txt")):
        write(good(number), name=name)
    traces, _ = counted(str(tmp_path))
    assert [trace.place for trace in traces] == ["train.jsonl:1"]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: read: train.jsonl; not read: notes.txt (none of .jsonl,")
    assert message.endswith("test.jsonl (split test)")


@pytest.mark.parametrize(
    ("value", "teacher"),
    [
        pytest.param("large", "large", id="text"),
        pytest.param(2.0, "2", id="a whole number beside missing ones"),
        pytest.param(float("nan"), "", id="nan, as pandas writes null"),
        pytest.param(None, "", id="null"),
        pytest.param("\ud800", Refusal("not valid UTF-8", "the text has one half of a surrogate pair", "toy.jsonl:1")),
        pytest.param(
            ["large"],
            Refusal("missing or mistyped column", "'by' is list (['large']), text is needed", "toy.jsonl:1"),
        ),
    ],
)
def test_the_teacher_of_a_trace(write: Callable[..., str], value: object, teacher: str | Refusal) -> None:
    path = write(good(1) | {"by": value})
    (read,) = read_traces(TraceSource(path=path, columns={"teacher": "by"}))
    assert (read.teacher if isinstance(read, Trace) else read) == teacher
    with pytest.raises(DataError, match="columns: teacher is set to 'from'"):
        list(read_traces(TraceSource(path=path, columns={"teacher": "from"})))


def test_limit_counts_records_read(write: Callable[..., str]) -> None:
    path = write(good(1), "", "{", good(2), good(3))
    for limit, expected in ((1, (1, 1)), (2, (1, 2)), (3, (2, 3)), (9, (3, 4)), (None, (3, 4))):
        traces, counter = counted(path, limit=limit)
        assert (len(traces), counter.num_read) == expected


@pytest.mark.parametrize("kind", ["parquet", "arrow", "saved"])
def test_typed_columns_read_like_lines(tmp_path: Path, write: Callable[..., str], kind: str) -> None:
    rows = [good(n) | {"gold": str(n + 1) if n else None} for n in range(5)]
    path = tmp_path / f"rows.{kind}"
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "arrow":
            with ArrowWriter(path=str(path)) as writer:
                for row in rows:
                    writer.write(row)
                writer.finalize()
        case _:
            Dataset.from_list(rows).save_to_disk(path)
    expected, _ = counted(write(*rows))
    traces, counter = counted(str(path))
    assert (counter.num_read, traces[4].gold, traces[0].gold) == (5, "5", None)
    assert [(t.messages, t.cot, t.answer, t.gold) for t in traces] == [
        (t.messages, t.cot, t.answer, t.gold) for t in expected
    ]


def test_gold_may_change_its_type_from_line_to_line(write: Callable[..., str]) -> None:
    golds = [2, "2", None, 2.0, 2.5]
    traces, counter = counted(write(*(good(1) | {"gold": gold} for gold in golds)))
    assert [trace.gold for trace in traces] == ["2", "2", None, "2", "2.5"]
    assert not counter.counts


@pytest.mark.parametrize(
    ("num_bad", "num_read", "is_error"),
    [
        pytest.param(0, 20, False, id="none"),
        pytest.param(1, 20, False, id="exactly 5 %"),
        pytest.param(1, 21, False, id="just below"),
        pytest.param(1, 19, True, id="just above"),
        pytest.param(2, 39, True, id="just above, two"),
    ],
)
def test_the_default_limit_is_one_in_twenty(num_bad: int, num_read: int, is_error: bool) -> None:
    limit = DataSettings(train=TraceSource(path="toy.jsonl")).max_refused_share
    counter = RefusalCounter()
    for n in range(num_read):
        counter.add(Refusal(UNCLOSED, "'finished' is false", f"toy.jsonl:{n + 1}") if n < num_bad else None)
    if not is_error:
        counter.check(limit, "toy.jsonl")
        return
    with pytest.raises(DataError, match=rf"{num_bad} of {num_read} records .* data.max_refused_share = 0.05"):
        counter.check(limit, "toy.jsonl")


def test_the_message_has_every_reason_with_its_count_and_first_example(write: Callable[..., str]) -> None:
    texts = ["<think>a</think>b", "4", "<think>a", "<think>", "<think>a</think>b<think>a</think>b"]
    _, counter = counted(write(*map(reply, texts)))
    with pytest.raises(DataError) as caught:
        counter.check(0.5, "toy")
    assert str(caught.value).split("\n") == [
        "toy: 4 of 5 records (80.00 %) cannot be used, more than data.max_refused_share = 0.5:",
        "  2 x chain of thought never closed, e.g. toy.jsonl:3: <think> without </think>",
        "  1 x no think tags, e.g. toy.jsonl:2: none of <think>, </think>, <|begin_of_thought|>, "
        "<|end_of_thought|> in '4'",
        "  1 x think tags more than once, e.g. toy.jsonl:5: 2 x <think>, 2 x </think>",
        "Correct these records, or name their layout with `format` or `columns`, their tags with `think_open` and "
        "`think_close`, or raise data.max_refused_share to leave that many out.",
    ]


def test_a_source_of_unclosed_chains_of_thought_is_an_error_at_any_share(write: Callable[..., str]) -> None:
    traces, counter = counted(write(reply("<think>Let me see."), reply("<think>Well,")))
    assert traces == []
    with pytest.raises(DataError, match=r"(?s)2 of 2 .* so nothing is left:.*2 x chain of .*`think_close`\.$"):
        counter.check(1.0, "toy.jsonl")


def test_a_source_without_records_is_an_error(write: Callable[..., str]) -> None:
    traces, counter = counted(write("", "  "))
    assert traces == []
    with pytest.raises(DataError, match=r"toy\.jsonl: holds no records"):
        counter.check(1.0, "toy.jsonl")


def test_objects_in_a_record_are_named_as_not_looked_into(write: Callable[..., str]) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": "<think>a</think>b"}}]}
    with pytest.raises(DataError, match=r"objects are not looked into: response; write their texts"):
        list(read_traces(TraceSource(path=write({"custom_id": "r0", "response": {"body": body}, "error": None}))))


def test_unknown_columns_stop_the_reading(write: Callable[..., str]) -> None:
    with pytest.raises(DataError, match=r"toy\.jsonl:1: the columns a, b are not those of any known format"):
        counted(write({"a": 1, "b": 2}))


@pytest.mark.parametrize("path", ["gone.jsonl", "./gone", "/gone/for/good", "one/two/three", ""])
def test_a_missing_path_is_told_from_a_hub_name(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = "no such file or directory, and not a possible name" if path else "holds no .jsonl"
    for action in (counted, lambda missing: fingerprint(TraceSource(path=missing))):
        with pytest.raises(DataError, match=message):
            action(path)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub that cannot be reached, and the directory where `datasets` keeps what it once downloaded."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def keep_download(cache: Path, revision: str, rows: list[dict[str, Any]]) -> None:
    directory = cache / "toy-lab___sums" / "default" / "0.0.0" / revision
    directory.mkdir(parents=True)
    with ArrowWriter(path=str(directory / "sums-train.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    info = DatasetInfo(
        features=Dataset.from_list(rows).features,
        dataset_name="sums",
        builder_name="parquet",
        config_name="default",
        version="0.0.0",
        splits=SplitDict({"train": SplitInfo("train", num_examples=len(rows), dataset_name="sums")}),
    )
    info.write_to_directory(str(directory))


def test_a_hub_data_set_is_read_by_name(offline_hub: Path) -> None:
    keep_download(offline_hub, "aaaa", [good(1), good(2)])
    traces, counter = counted("toy-lab/sums", limit=1)
    assert (counter.num_read, traces[0].answer, traces[0].place) == (1, "2", "toy-lab/sums:1")
    key = fingerprint(TraceSource(path="toy-lab/sums"))
    assert key == fingerprint(TraceSource(path="toy-lab/sums", limit=1))
    (offline_hub / "toy-lab___sums" / "default" / "0.0.0" / "aaaa").rename(offline_hub / "gone")
    keep_download(offline_hub, "bbbb", [good(1), good(2)])
    assert fingerprint(TraceSource(path="toy-lab/sums")) != key


@pytest.mark.parametrize("source", [{"path": "toy-lab/nothing"}, {"path": "toy-lab/sums", "split": "test"}])
def test_what_the_hub_raises_is_one_message(offline_hub: Path, source: dict[str, str]) -> None:
    keep_download(offline_hub, "aaaa", [good(1)])
    message = "no such local path, and the Hub could not be read because of .*; correct the path, `subset`"
    with pytest.raises(DataError, match=f"{source['path']}: {message}"):
        counted(**source)


def test_the_fingerprint_follows_the_content(tmp_path: Path, write: Callable[..., str]) -> None:
    def key(path: str | Path, **source: Any) -> str:
        return fingerprint(TraceSource(path=str(path), **source))

    path = write(good(1), good(2))
    first = key(path)
    assert first == key(write(good(1), good(2), name="copy.jsonl")) == key(path, limit=1, format="columns")
    assert len({first, key(write(good(1), good(3))), key(write(good(2), good(1))), key(write(good(1)))}) == 4


def test_the_fingerprint_of_a_directory_follows_each_of_its_files(tmp_path: Path, write: Callable[..., str]) -> None:
    source = TraceSource(path=str(tmp_path))
    keys = []
    for name, row in (("a.jsonl", good(1)), ("b.jsonl", good(2)), ("b.jsonl", good(3)), ("c.jsonl", good(4))):
        write(row, name=name)
        keys.append(fingerprint(source))
    (tmp_path / "notes.txt").write_text("not read")
    assert len(set(keys)) == 4
    assert fingerprint(source) == keys[-1]


@pytest.mark.parametrize(
    ("row", "tags", "rendered", "setting"),
    [
        (reply("<think>2 + 2 is 4</think>4"), None, ("<think>", "</think>"), None),
        (reply("<r>2 + 2 is 4</r>4"), ("<r>", "</r>"), ("<think>", "</think>"), None),
        (reply("2 + 2 is 4</r>4"), ("<r>", "</r>"), ("<think>", "</think>"), None),  # the prompt opens it
        (good(1), ("<r>", "</r>"), ("<think>", "</think>"), "data.train.think_open: neither '<r>' nor '</r>'"),
        (good(1), None, ("<r>", "</r>"), None),  # no tags in the records: any tag may be written
        (
            reply("<think>2 + 2 is 4</think>4"),
            None,
            ("<r>", "</r>"),
            "data.rendering.think_open: '<r>' is what the student will write, and the records have '<think>'",
        ),
    ],
)
def test_tags_of_the_settings_that_no_record_has_are_warned_of(
    write: Callable[..., str],
    row: dict[str, Any],
    tags: tuple[str, str] | None,
    rendered: tuple[str, str],
    setting: str | None,
) -> None:
    opening, closing = tags or (None, None)
    source = TraceSource(path=write(row), think_open=opening, think_close=closing)
    warning = tags_warning(source, rendered)
    assert warning is None if setting is None else (warning or "").startswith(setting)
