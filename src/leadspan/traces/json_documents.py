"""The records of a JSON document, one after the other, in memory that does not grow with the document.

A document is one list of records, or an object with one list among its values.
"""

import codecs
import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

LONGEST_RECORD = 1 << 26
"""Characters or bytes of a record, some ten million tokens; what is longer is no trace, but another kind of file."""
# Bytes that are read at a time, at least.
_CHUNK = 1 << 20
# White space as JSON has it; `\s` would take more.
_SPACE = re.compile(r"[ \t\n\r]*")
# Decodes a value at a position, and says where it ends.
_DECODER = json.JSONDecoder()
# Errors of a text that ends too early point at its end, or at the begin of a word or number cut short.
_LONGEST_WORD = 16
_NUMBER_MAY_GO_ON = re.compile(r"[-+.eE\d]*\Z")  # `1` or `1.` of `1.5`, where the text that is held ends


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
        """The items of the one list."""
        num_lists = 0
        match self.next_character():
            case "[":
                num_lists = 1
                yield from (self._value() for _ in self._members("]"))
            case "{":
                for _ in self._members("}"):
                    if not isinstance(self._value(), str):
                        raise self._fault("a key is no text")
                    if not self._is_next(":"):
                        raise self._fault("Expecting ':'")
                    if self.next_character() == "[":
                        num_lists += 1
                        yield from (self._value() for _ in self._members("]"))
                    else:
                        self._value()
            case _:
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
