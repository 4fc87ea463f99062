import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from leadspan.traces.files import records_of

ROWS: list[Any] = [
    {"prompt": 'q\u00e9\u4e2d\U0001f600 \\ " \u2028', "n": [1, -2.5e-3, True, None, {"a": {}}], "": ""},
    {},
    12345678901234567890,
    [[], "x" * 50],
    "}]{[,:",
    None,
]


class Dribbling(io.BytesIO):
    """Gives a few bytes at a time, so that every value is cut somewhere."""

    def __init__(self, data: bytes, most: int):
        super().__init__(data)
        self.most = most

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.most)


def read(text: str | bytes, most: int = 1 << 20) -> list[Any]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(records_of(lambda: Dribbling(data, most)))


@pytest.mark.parametrize("most", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_items_are_what_the_whole_parser_gives(most: int, indent: int | None) -> None:
    for ascii_only in (True, False):
        document = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
        assert read(document, most) == ROWS
        assert read("\ufeff \r\n" + document + " \n", most) == ROWS
        inside = json.dumps({"version": 1.5, "of": {"a": [1]}, "data": ROWS, "end": "]"}, indent=indent)
        assert read(inside, most) == ROWS
    assert read("[]", most) == read('{"a": [ ] }', most) == []


@pytest.mark.parametrize("most", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "Expecting value at character 1"),
        ('[{"n": 1}, {"n"', "Expecting ':' delimiter"),
        ('[{"n": 1}, {"n": "x', "Unterminated string"),
        ("[1, 2", "Expecting ','"),
        ("[1, ]", "Expecting value at character 5"),
        ("[1 2]", "Expecting ',' at character 4"),
        ("[nu]", "Expecting value at character 2"),
        ('[{"a": 1,, "b": ' + "2" * 99 + "}]", "not valid JSON: .* at character 10"),
        ("[1]]", "Extra data at character 4"),
        ('{"n": 1}\n{"n": 2}', "Extra data at character 10"),
        ('{"messages": [1]}\n{"messages": [2]}', "Extra data at character 19"),
        ("{1: [2]}", "a key is no text"),
        ('{"a" [2]}', "Expecting ':'"),
        ("3", "holds 0 lists of records"),
        ('{"n": 1}', "holds 0 lists of records"),
        ('{"a": [1], "b": []}', "holds 2 lists of records"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b'["\xe4', "can't decode byte 0xe4|unexpected end of data"),
    ],
)
def test_what_is_no_list_of_records_is_an_error(document: str | bytes, message: str, most: int) -> None:
    with pytest.raises(ValueError, match=message):
        read(document, most)


def test_an_object_gives_nothing_before_it_is_known_to_be_one() -> None:
    lines = '{"messages": [1]}\n{"messages": [2]}'
    with pytest.raises(ValueError, match="Extra data"):
        next(records_of(lambda: io.BytesIO(lines.encode())))


def test_broken_documents_never_give_other_records_than_whole_ones() -> None:
    """What is read of a damaged text is the beginning of what a whole parser reads, or the text is refused."""
    document = json.dumps({"a": 1, "data": ROWS}).encode()
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(document)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.choice(b'[]{},:"\\ 0x')
        try:
            whole = json.loads(bytes(damaged))
        except ValueError:
            with pytest.raises(ValueError, match=r"."):
                read(bytes(damaged), 9)
            continue
        lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else [whole]
        if len(lists) == 1 and len(whole) == 2:  # no key came twice
            assert read(bytes(damaged), 9) == lists[0]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_document(tmp_path: Path) -> None:
    def peak(number: int) -> int:
        path = tmp_path / "a.json"
        with path.open("w") as file:
            file.write('{"data": [')
            for i in range(number):
                file.write(("," if i else "") + json.dumps({"prompt": "q" * 5000}))
            file.write("]}")
        tracemalloc.start()

        def opened() -> BinaryIO:
            return path.open("rb")

        assert sum(1 for _ in records_of(opened)) == number
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(4000) < 1.2 * peak(1000)  # 20 MB and 5 MB
