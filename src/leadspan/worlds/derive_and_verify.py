"""World `derive_and_verify`: short programs over digits, derived line by line, then verified.

A problem is a list of assignments modulo a small number and asks for the last variable. The chain of thought first
derives: every line restates its equation, substitutes and evaluates it. The answer is first stated at the end of that.
Then it verifies: every line again, the list of all values, and the value asked for. So the share of the chain of
thought before the first correct answer is known, and with it where a lead cut should start to hurt.

    prompt   c=3;d=c+4;f=d+d;f?
    cot      c=3 / d=c+4=3+4=2 / f=d+d=2+2=4 / check / c=3. / d=c+4=3+4=2. / f=d+d=2+2=4. / c=3,d=2,f=4 / f=4
    answer   4

Source: that the first correct derivation falls near the middle of a trace is what Chen et al. (arXiv 2512.21002)
observe of real traces; the world makes it a setting.
"""

import random
import string
from math import gcd
from typing import Literal

from pydantic import Field

from leadspan.worlds.problems import Problem, World


class DeriveAndVerify(World):
    """Short programs over digits."""

    remedy = "widen min_variables, max_variables or num_names"
    ascending = ("min_variables", "max_variables", "num_names")
    kind: Literal["derive_and_verify"] = "derive_and_verify"
    """Tag."""
    min_variables: int = Field(default=2, ge=2)
    """Fewest assignments."""
    max_variables: int = Field(default=5, ge=2)
    """Most assignments."""
    modulus: int = Field(default=5, ge=2, le=10)
    """Values are digits below this."""
    num_names: int = Field(default=8, ge=2, le=26)
    """Variables are drawn in order from so many letters."""

    def draw(self, rng: random.Random) -> Problem:
        """A list of assignments, each from the variable before."""
        number = rng.randint(self.min_variables, self.max_variables)
        names = sorted(rng.sample(string.ascii_lowercase[: self.num_names], number))
        first = rng.randrange(self.modulus)
        values, equations, lines = [first], [f"{names[0]}={first}"], [f"{names[0]}={first}"]
        for name, before in zip(names[1:], names, strict=False):
            operand = values[-1]
            operator, digit = self._step(rng)
            right = operand if digit is None else digit
            value = evaluate(operand, operator, right, self.modulus)
            equations.append(f"{name}={before}{operator}{before if digit is None else digit}")
            lines.append(f"{equations[-1]}={operand}{operator}{right}={value}")
            values.append(value)
        derivation = "\n".join(lines)
        cot = [derivation]
        for _ in range(self.num_checks):
            cot += ["check", *(f"{line}." for line in lines)]
        cot.append(",".join(f"{name}={value}" for name, value in zip(names, values, strict=True)))
        cot.append(f"{names[-1]}={values[-1]}")
        prompt = ";".join([*equations, f"{names[-1]}?"])
        return Problem(prompt, "\n".join(cot), str(values[-1]), first_answer=len(derivation))

    def _step(self, rng: random.Random) -> tuple[str, int | None]:
        """An operator and a digit, or None for the variable itself, which give different values different results."""
        # So all answers are equally frequent, and no line tells the answer by itself, as `x-x` and `x*0` would.
        operator = rng.choice("+-*")
        if operator == "*":
            # Only what has an inverse keeps different values different.
            return operator, rng.choice([n for n in range(1, self.modulus) if gcd(n, self.modulus) == 1])
        # `x+x` does so modulo odd numbers alone.
        if operator == "+" and self.modulus % 2 and rng.random() < 0.5:
            return operator, None
        return operator, rng.randrange(self.modulus)


def evaluate(operand: int, operator: str, right: int, modulus: int) -> int:
    """`left operator right` modulo `modulus`.

    >>> evaluate(1, "-", 3, 5)
    3
    """
    match operator:
        case "+":
            return (operand + right) % modulus
        case "-":
            return (operand - right) % modulus
        case "*":
            return (operand * right) % modulus
    raise ValueError(f"operator {operator!r} is none of + - *")
