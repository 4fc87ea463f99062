"""What a world is: problems drawn from a seed, each with a chain of thought that is right by construction."""

import hashlib
import itertools
import random
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from leadspan.errors import SettingsError
from leadspan.settings import Settings

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its trace.

    Attributes:
        prompt: The question.
        cot: The chain of thought, lines separated by line feeds.
        answer: The value asked for.
        first_answer: Characters of the chain of thought through the first statement of the answer; None where it never
            states it.
    """

    prompt: str
    cot: str
    answer: str
    first_answer: int | None

    @property
    def derivation(self) -> str:
        """The chain of thought through the first statement of the answer; all of it where it never states it."""
        return self.cot[: self.first_answer]


class World(Settings):
    """Base of the worlds: their shape is their settings."""

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
        rng = random.Random(f"{self.label}:{seed}")
        found: dict[str, Problem] = {}
        for tried in itertools.count():
            if len(found) == number:
                return list(found.values())
            if tried > 100 * number + 1000:
                break
            problem = self.draw(rng)
            if split_of(problem.prompt) == split:
                found.setdefault(problem.prompt, problem)
        raise SettingsError(
            f"{self.label}: {number} distinct {split} problems were asked for and {len(found)} found; {self.remedy}, "
            "or ask for fewer"
        )

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """One problem."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the world; part of the seed of its draws."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """How this world is made larger."""


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] < 26 else "train"


def first_answer_share(problems: list[Problem]) -> float | None:
    """Mean share of the chain of thought, in characters, through the first statement of the answer.

    None where no problem states it.
    """
    shares = [p.first_answer / len(p.cot) for p in problems if p.first_answer is not None]
    return sum(shares) / len(shares) if shares else None
