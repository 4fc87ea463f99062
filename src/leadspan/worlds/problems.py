"""What a world is: problems drawn from a seed, each with a chain of thought that is right by construction.

The worlds over digits follow. World `derive_and_verify` has short programs, derived line by line, then verified: a list
of assignments modulo a small number, of which the last variable is asked for. The chain of thought first derives: every
line restates its equation, substitutes and evaluates it. The answer is first stated at the end of that. Then it
verifies: every line again, the list of all values, and the value asked for. So the share of the chain of thought before
the first correct answer is known, and with it where a lead cut should start to hurt.

    prompt   c=3;d=c+4;f=d+d;f?
    cot      c=3 / d=c+4=3+4=2 / f=d+d=2+2=4 / check / c=3. / d=c+4=3+4=2. / f=d+d=2+2=4. / c=3,d=2,f=4 / f=4
    answer   4

Source: that the first correct derivation falls near the middle of a trace is what Chen et al. (arXiv 2512.21002)
observe of real traces; the world makes it a setting.

World `multiplication` has long multiplication to a small base, place by place, whose last sum may stay out of the chain
of thought. Digits are written from the lowest place up; those of the multiplier and of the product each follow the
letter of their place. The step of a place multiplies by its digit and adds the running sum of the places before, of
which the lowest digit is then settled: the digit of the product at that place. After the last place the settled digits
and the last running sum are the product. So a step depends on its place, and the chain of thought holds all that is
needed for the answer whether or not it states it.

    prompt   34*a2b1?                     (base 5: 43 times 12 is 1121)
    cot      a34*2=141+00=141 / b34*1=340+41=211 / =a1b2c1d1
    answer   a1b2c1d1

Source: Chen et al. find that supervising the chain of thought alone suffices where it contains what the answer says;
with `answer_in_cot: false` it does not.
"""

import hashlib
import random
import string
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import ClassVar, Literal

from pydantic import Field

from leadspan.errors import SettingsError
from leadspan.faults import Rule
from leadspan.settings import Settings

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its trace."""

    prompt: str
    cot: str  # lines separated by line feeds
    answer: str  # the value asked for
    first_answer: int | None  # characters of `cot` through the first statement of the answer; None where there is none
    equations: tuple[str, ...] = ()  # what a right derivation has to say, in this order, where its words are free
    reply: str = ""  # what follows the chain of thought; the answer alone where empty

    @property
    def derivation(self) -> str:
        """The chain of thought through the first statement of the answer; all of it where it never states it."""
        return self.cot[: self.first_answer]


class World(Settings):
    """Base of the worlds: their shape is their settings."""

    remedy: ClassVar[str]
    """How this world is made larger."""
    ascending: ClassVar[tuple[str, ...]]
    """Settings none of which is above the next."""
    num_checks: int = Field(default=1, ge=0)
    """How often the chain of thought repeats its derivation; repeats make the first answer come earlier in it."""

    def problems(self, number: int, seed: int, split: Split) -> list[Problem]:
        """Distinct problems of one split; every problem belongs to one split for good, by the hash of its prompt.

        The split `test` is a tenth of all problems, `train` the rest.

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
            # The first byte is below 26 of 256: a tenth.
            is_test = hashlib.sha256(problem.prompt.encode()).digest()[0] < 26
            is_new = problem.prompt not in by_prompt and is_test == (split == "test")
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


def first_answer_share(problems: list[Problem]) -> float | None:
    """Mean share of the chain of thought, in characters, through the first statement of the answer.

    None where no problem states it.
    """
    shares = [p.first_answer / len(p.cot) for p in problems if p.first_answer is not None]
    return sum(shares) / len(shares) if shares else None


class DeriveAndVerify(World):
    """Short programs over digits."""

    remedy = "widen min_variables, max_variables or num_names"
    ascending = ("min_variables", "max_variables", "num_names")
    kind: Literal["derive_and_verify"] = "derive_and_verify"
    min_variables: int = Field(default=2, ge=2)
    """Fewest assignments."""
    max_variables: int = Field(default=5, ge=2)
    """Most assignments."""
    modulus: int = Field(default=5, ge=2, le=10)
    """Values are digits below this."""
    num_names: int = Field(default=8, ge=2, le=26)
    """Variables are drawn in order from this many letters."""

    def draw(self, rng: random.Random) -> Problem:
        """A list of assignments, each from the variable before."""
        number = rng.randint(self.min_variables, self.max_variables)
        names = sorted(rng.sample(string.ascii_lowercase[: self.num_names], number))
        first = rng.randrange(self.modulus)
        values, equations, lines = [first], [f"{names[0]}={first}"], [f"{names[0]}={first}"]
        for name, before in zip(names[1:], names, strict=False):
            operand, operator = values[-1], rng.choice("+-*")
            # Different values get different results, so that all answers are equally frequent; and no line tells the
            # answer by itself, as `x-x` and `x*0` would.
            if operator == "*":
                # Only factors with an inverse keep different values different.
                digit = rng.choice([n for n in range(1, self.modulus) if gcd(n, self.modulus) == 1])
            elif operator == "+" and self.modulus % 2 and rng.random() < 0.5:
                digit = None  # the variable itself: `x+x` keeps them different modulo odd numbers alone
            else:
                digit = rng.randrange(self.modulus)
            right = operand if digit is None else digit
            values.append(evaluate(operand, operator, right) % self.modulus)
            equations.append(f"{name}={before}{operator}{before if digit is None else digit}")
            lines.append(f"{equations[-1]}={operand}{operator}{right}={values[-1]}")
        derivation = "\n".join(lines)
        cot = [derivation]
        for _ in range(self.num_checks):
            cot += ["check", *(f"{line}." for line in lines)]
        cot.append(",".join(f"{name}={value}" for name, value in zip(names, values, strict=True)))
        cot.append(f"{names[-1]}={values[-1]}")
        prompt = ";".join([*equations, f"{names[-1]}?"])
        return Problem(prompt, "\n".join(cot), str(values[-1]), first_answer=len(derivation))


def evaluate(operand: int, operator: str, right: int) -> int:
    """`operand operator right` for `+`, `-` and `*`.

    >>> evaluate(1, "-", 3)
    -2
    """
    return {"+": operand + right, "-": operand - right, "*": operand * right}[operator]


class Multiplication(World):
    """Long multiplication."""

    remedy = "widen min_digits, max_digits, multiplicand_digits or base"
    ascending = ("min_digits", "max_digits")
    kind: Literal["multiplication"] = "multiplication"
    min_digits: int = Field(default=2, ge=1)
    """Fewest digits of the multiplier; each is a step."""
    max_digits: int = Field(default=4, ge=1, le=20)
    """Most digits of the multiplier."""
    multiplicand_digits: int = Field(default=2, ge=1, le=6)
    """Digits of the number that is multiplied."""
    base: int = Field(default=5, ge=2, le=10)
    """Base of all numbers."""
    num_checks: int = Field(default=0, ge=0)
    """How often the chain of thought repeats its derivation; repeats make the first answer come earlier in it."""
    answer_in_cot: bool = True
    """Whether the chain of thought ends with the product; otherwise only the answer states it."""

    def draw(self, rng: random.Random) -> Problem:
        """A multiplicand and a multiplier, neither with a leading zero."""
        multiplicand = rng.randrange(self.base ** (self.multiplicand_digits - 1), self.base**self.multiplicand_digits)
        num_digits = rng.randint(self.min_digits, self.max_digits)
        return self._write(multiplicand, rng.randrange(self.base ** (num_digits - 1), self.base**num_digits))

    def _write(self, multiplicand: int, multiplier: int) -> Problem:
        lines: list[str] = []
        carried, shown = 0, self._padded(multiplicand)
        # One line for each place; its last number is the running sum, in units of that place.
        for letter, digit in zip(string.ascii_lowercase, digits(multiplier, self.base), strict=False):
            # Padded to one digit more than the multiplicand has: a product with one digit, and the sum, may carry.
            partial = multiplicand * int(digit)
            running = partial + carried
            numbers = f"{self._padded(partial, 1)}+{self._padded(carried)}={self._padded(running, 1)}"
            lines.append(f"{letter}{shown}*{digit}={numbers}")
            carried = running // self.base
        product = lettered(digits(multiplicand * multiplier, self.base))
        derivation = "\n".join([*lines, f"={product}"] if self.answer_in_cot else lines)
        # A check repeats the derivation, answer and all, so the answer is first stated before any check.
        cot = "\n".join([derivation, *(f"check\n{derivation}" for _ in range(self.num_checks))])
        prompt = f"{shown}*{lettered(digits(multiplier, self.base))}?"
        return Problem(prompt, cot, product, first_answer=len(derivation) if self.answer_in_cot else None)

    def _padded(self, number: int, more: int = 0) -> str:
        # The lowest digit comes first, so zeros at the end do not change the number.
        return digits(number, self.base).ljust(self.multiplicand_digits + more, "0")


def digits(number: int, base: int) -> str:
    """The digits of a number from the lowest up.

    >>> digits(43, 5)
    '331'
    """
    text = ""
    while number or not text:
        number, digit = divmod(number, base)
        text += str(digit)
    return text


def lettered(text: str) -> str:
    """Digits from the lowest up, each after the letter of its place.

    >>> lettered("331")
    'a3b3c1'
    """
    return "".join(letter + digit for letter, digit in zip(string.ascii_lowercase, text, strict=False))
