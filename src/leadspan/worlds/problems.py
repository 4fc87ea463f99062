"""What a world is: problems drawn from a seed, each with a chain of thought that is right by construction."""

import hashlib
import random
import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from leadspan.errors import SettingsError
from leadspan.faults import Rule
from leadspan.settings import Settings

Split = Literal["train", "test"]
_EQUATION = re.compile(r"\d+ *[-+*/] *\d+ *= *\d+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its trace.

    Attributes:
        prompt: The question.
        cot: The chain of thought, lines separated by line feeds.
        answer: The value asked for.
        first_answer: Characters of the chain of thought through the first statement of the answer; None where it never
            states it.
        equations: What a right derivation has to say, in this order, where its words are free; else empty.
        reply: What follows the chain of thought; the answer alone where empty.
    """

    prompt: str
    cot: str
    answer: str
    first_answer: int | None
    equations: tuple[str, ...] = ()
    reply: str = ""

    @property
    def derivation(self) -> str:
        """The chain of thought through the first statement of the answer; all of it where it never states it."""
        return self.cot[: self.first_answer]

    def is_derived_in(self, text: str) -> bool:
        """Whether a text begins with the whole right derivation, whatever follows.

        Where words are free, its first equations are the right ones; else it begins with the very lines.
        """
        # The tag is in the text where the prompt does not open the thinking.
        lines = text.removeprefix("<think>").lstrip("\n")
        if self.equations:
            equations = [match.replace(" ", "") for match in _EQUATION.findall(lines)]
            return equations[: len(self.equations)] == [equation.replace(" ", "") for equation in self.equations]
        # The last line must end there: a derivation that ends in 4 is not one that ends in 42.
        return lines.startswith(self.derivation) and lines[len(self.derivation) :][:1] in ("", "\n", "<")


class World(Settings):
    """Base of the worlds: their shape is their settings."""

    remedy: ClassVar[str]
    """How this world is made larger."""
    ascending: ClassVar[tuple[str, ...]]
    """Settings none of which is above the next."""
    num_checks: int = Field(default=1, ge=0)
    """How often the chain of thought repeats its derivation; more of it moves the first answer forward in the trace."""

    def problems(self, number: int, seed: int, split: Split) -> list[Problem]:
        """Distinct problems of one split; every problem belongs to one split for good, by the hash of its prompt.

        Args:
            number: How many.
            seed: Seed of the draw.
            split: `test` is a tenth of all problems, `train` the rest.

        Raises:
            SettingsError: The world has too few distinct problems.
        """
        kind = str(getattr(self, "kind", ""))
        # Both splits draw the same stream and each takes its own, so neither depends on the other's size.
        rng = random.Random(f"{kind}:{seed}")
        by_prompt: dict[str, Problem] = {}
        num_in_vain = 0
        # Far more draws without a new problem than a world with enough of them has, few enough to end within seconds.
        while num_in_vain <= 100 * len(by_prompt) + 1000:
            if len(by_prompt) == number:
                return list(by_prompt.values())
            problem = self.draw(rng)
            is_new = problem.prompt not in by_prompt and split_of(problem.prompt) == split
            if is_new:
                by_prompt[problem.prompt] = problem
            num_in_vain = 0 if is_new else num_in_vain + 1
        raise SettingsError(
            f"{kind}: {number} distinct {split} problems were asked for and {len(by_prompt)} found; "
            f"{self.remedy}, or ask for fewer"
        )

    def conflicts(self) -> Iterator[Rule]:
        """Numbers are in order."""
        names, numbers = self.ascending, [getattr(self, name) for name in self.ascending]
        if numbers != sorted(numbers):
            shown = ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
            yield names, f"{shown}: they must ascend"

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """One problem."""


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to."""
    # 26 of 256: a tenth.
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 26 else "train"


def first_answer_share(problems: list[Problem]) -> float | None:
    """Mean share of the chain of thought, in characters, through the first statement of the answer.

    None where no problem states it.
    """
    shares = [p.first_answer / len(p.cot) for p in problems if p.first_answer is not None]
    return sum(shares) / len(shares) if shares else None
