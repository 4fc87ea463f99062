"""Settings of a world's files: the sets of problems and where they are written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from leadspan.faults import Rule
from leadspan.settings import Settings
from leadspan.worlds.problems import DeriveAndVerify, Multiplication
from leadspan.worlds.word_problems import WordProblems

AnyWorld = Annotated[DeriveAndVerify | Multiplication | WordProblems, Field(discriminator="kind")]
# A set's name is that of its files, with `_test` behind it for those held out.
SetName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class ProblemSet(Settings):
    """Problems of one shape: traces to train on, and problems that are held out."""

    world: AnyWorld
    """The world and the shape of its problems."""
    num_traces: int = Field(default=8000, ge=1, le=10_000_000)
    """Traces, written to `NAME.jsonl` with the columns prompt, cot, answer and gold."""
    num_problems: int = Field(default=0, ge=0, le=10_000_000)
    """Held-out problems, written to `NAME_test.jsonl` with the columns problem and answer; 0 writes none."""


class WorldFiles(Settings):
    """A world on disk."""

    output: Path
    """Directory of the files."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw; no problem of it or of any other seed is in both a `NAME.jsonl` and a `NAME_test.jsonl`."""
    sets: dict[SetName, ProblemSet] = Field(min_length=1)
    """Sets of problems by name."""

    def conflicts(self) -> Iterator[Rule]:
        """No two files have one name."""
        for name, problem_set in self.sets.items():
            if problem_set.num_problems and f"{name}_test" in self.sets:
                text = f"sets: {name}_test.jsonl is the file of {name}'s held-out problems, and of the set {name}_test"
                yield ("sets",), f"{text}; give that set another name"
