"""Settings of trace sources: where traces come from and in which format."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from leadspan.faults import Rule
from leadspan.settings import Settings

FormatName = Literal[
    "openthoughts", "bespoke_stratos", "synthetic_1", "llama_nemotron", "openr1_math", "s1k", "messages", "columns",
    "prompt_response", "gsm8k",
]  # fmt: skip
Role = Literal["prompt", "cot", "answer", "response", "conversation", "gold", "system", "teacher"]


class TraceSource(Settings):
    """A local file, a directory of files, or a dataset on the Hub."""

    path: str
    """Local `.jsonl`, `.json` (each also `.gz` or `.zst`), `.parquet` or `.arrow` file, a directory of files of one
    kind, or a Hub dataset name."""
    format: FormatName | None = None
    """Format of the records; detected from the columns of many records when absent."""
    columns: dict[Role, str] = {}
    """Names of the columns, where they differ from the usual ones: `prompt`, `cot` and `answer`, each in a column of
    its own; or `prompt` and a `response` with think tags inside; or a `conversation`, a list of turns; and `gold`,
    `system`. With records of any format also `teacher`: which of several (`teacher.kind: servers`) a trace is learnt
    from."""
    think_open: str | None = Field(default=None, min_length=1)
    """Opening tag of the chain of thought in the records, where it is neither `<think>` nor `<|begin_of_thought|>`."""
    think_close: str | None = Field(default=None, min_length=1)
    """Its closing tag."""
    subset: str | None = None
    """Hub configuration name; of a local path, a directory in it."""
    split: str | None = None
    """Hub split; of a local path, the directory or the files whose name says it. `train` when absent; a local path
    whose names say no split is then read whole."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many records."""

    def conflicts(self) -> Iterator[Rule]:
        """Tags come in pairs, and columns are those of one layout."""
        tags = self.think_open, self.think_close
        if None in tags and tags != (None, None):
            yield ("think_open", "think_close"), "think_open and think_close belong together; give both"
        if self.think_open is not None and self.think_open == self.think_close:
            text = f"think_open and think_close are both {self.think_open!r}; they must differ"
            yield ("think_open", "think_close"), text
        for role, excluded in (
            ("response", ("cot", "answer")),
            ("conversation", ("prompt", "cot", "answer", "response")),
        ):
            if role in self.columns and (double := [name for name in excluded if name in self.columns]):
                text = f"columns: {role} holds what {' and '.join(double)} would hold; name one of them"
                yield ("columns",), text
        # A reference answer may be the answer, and a teacher's name anything.
        parts = {role: name for role, name in self.columns.items() if role not in ("gold", "teacher")}
        for name in dict.fromkeys(parts.values()):
            roles = [role for role in parts if parts[role] == name]
            if len(roles) > 1:
                yield ("columns",), f"columns: {' and '.join(roles)} are all {name!r}; name the column of each"
