"""World `multiplication`: long multiplication, place by place, whose last sum may stay out of the chain of thought.

A problem asks for the product of two numbers to a small base. Digits are written from the lowest place up; those of the
multiplier and of the product each follow the letter of their place. The step of a place multiplies by its digit
and adds the running sum of the places before, of which the lowest digit is then settled: the digit of the product at
that place. After the last place the settled digits and the last running sum are the product. So a step depends on its
place, and the chain of thought holds all that is needed for the answer whether or not it states it.

    prompt   34*a2b1?                     (base 5: 43 times 12 is 1121)
    cot      a34*2=141+00=141 / b34*1=340+41=211 / =a1b2c1d1
    answer   a1b2c1d1

Source: Chen et al. (arXiv 2512.21002) find that supervising the chain of thought alone suffices where it contains what
the answer says; with `answer_in_cot: false` it does not.
"""

import random
import string
from typing import Literal

from pydantic import Field

from leadspan.worlds.problems import Problem, World


class Multiplication(World):
    """Long multiplication."""

    remedy = "widen min_digits, max_digits, multiplicand_digits or base"
    ascending = ("min_digits", "max_digits")
    kind: Literal["multiplication"] = "multiplication"
    """Tag."""
    min_digits: int = Field(default=2, ge=1)
    """Fewest digits of the multiplier; each is a step."""
    max_digits: int = Field(default=4, ge=1, le=20)
    """Most digits of the multiplier."""
    multiplicand_digits: int = Field(default=2, ge=1, le=6)
    """Digits of the number that is multiplied."""
    base: int = Field(default=5, ge=2, le=10)
    """Base of all numbers."""
    num_checks: int = Field(default=0, ge=0)
    """How often the chain of thought repeats its derivation; more of it moves the first answer forward in the trace."""
    answer_in_cot: bool = True
    """Whether the chain of thought ends with the product; otherwise only the answer states it."""

    def draw(self, rng: random.Random) -> Problem:
        """A multiplicand and a multiplier, neither with a leading zero."""
        multiplicand = self._number(rng, self.multiplicand_digits)
        multiplier = self._number(rng, rng.randint(self.min_digits, self.max_digits))
        return self._write(multiplicand, multiplier)

    def _number(self, rng: random.Random, num_digits: int) -> int:
        return rng.randrange(self.base ** (num_digits - 1), self.base**num_digits)

    def _write(self, multiplicand: int, multiplier: int) -> Problem:
        product = lettered(digits(multiplicand * multiplier, self.base))
        steps = "\n".join(self._steps(multiplicand, digits(multiplier, self.base)))
        derivation = f"{steps}\n={product}" if self.answer_in_cot else steps
        # A check repeats the derivation, answer and all, so the answer is first stated before any check.
        cot = "\n".join([derivation, *(f"check\n{derivation}" for _ in range(self.num_checks))])
        prompt = f"{self._padded(multiplicand)}*{lettered(digits(multiplier, self.base))}?"
        return Problem(prompt, cot, product, first_answer=len(derivation) if self.answer_in_cot else None)

    def _steps(self, multiplicand: int, multiplier: str) -> list[str]:
        """One line for each place; its last number is the running sum, in units of that place."""
        lines: list[str] = []
        carried, shown = 0, self._padded(multiplicand)
        for letter, digit in zip(string.ascii_lowercase, multiplier, strict=False):
            # Padded to one digit more than the multiplicand has: a product with one digit, and the sum, may carry.
            partial = multiplicand * int(digit)
            running = partial + carried
            numbers = f"{self._padded(partial, 1)}+{self._padded(carried)}={self._padded(running, 1)}"
            lines.append(f"{letter}{shown}*{digit}={numbers}")
            carried = running // self.base
        return lines

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
