r"""World `word_problems`: stories about how many things somebody has, for pre-trained models and their tokenizers.

A problem starts with an amount, changes it step by step, and asks for the last. Distractors are sentences with a number
that is about something else. The chain of thought first derives, one equation a step, and states the answer; then it
checks, in the way of R1's traces: `num_checks` checks, of four kinds (the sums again, backwards, the amounts in a row,
which numbers count), each in one of many phrasings. More checks move the first answer forward.

    prompt   Maya has 12 shells. She finds 7 more. Her sister is 9 years old. {...} How many shells ...?
    cot      Let me work through this step by step. / We begin at 12. / Plus 7: 12 + 7 = 19. / So the answer is 19.
             // Going the other way, from 19: 19 - 7 = 12. Back at 12, good. // Everything agrees.
    answer   The answer is \boxed{19}.

A derivation is right when its equations are, whatever the words between them.
"""

import random
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from leadspan.worlds import phrasings
from leadspan.worlds.problems import Problem, World

_BOX = "Give the number in \\boxed{}."
_UNDO = {"+": "-", "-": "+", "*": "/"}


@dataclass(frozen=True, slots=True)
class _Step:
    before: int
    operator: str
    number: int
    after: int

    def __str__(self) -> str:
        return f"{self.before} {self.operator} {self.number} = {self.after}"


class WordProblems(World):
    """Stories about amounts, in many phrasings."""

    remedy = "widen min_steps, max_steps, largest or largest_change"
    ascending = ("min_steps", "max_steps")
    kind: Literal["word_problems"] = "word_problems"
    """Tag."""
    min_steps: int = Field(default=2, ge=1)
    """Fewest changes of the amount."""
    max_steps: int = Field(default=3, ge=1, le=20)
    """Most changes of the amount."""
    max_distractors: int = Field(default=1, ge=0, le=7)
    """Most distractor sentences, whose number is irrelevant to the question."""
    largest: int = Field(default=99, ge=20)
    """No amount is above this."""
    largest_change: int = Field(default=15, ge=3)
    """No step adds or takes more than this; smaller sums are easier."""

    def draw(self, rng: random.Random) -> Problem:
        """A story, and one way to think about it."""
        steps = self._steps(rng)
        name, she, her = rng.choice(phrasings.PEOPLE)
        words = {"name": name, "she": she, "her": her, "She": she.title(), "Her": her.title()}
        words |= {"things": rng.choice(phrasings.THINGS), "s": steps[0].before, "a": steps[-1].after}
        # The numbers of distractors differ, so that each is named once.
        writer = _Writer(rng, words, steps, rng.sample(range(2, 20), rng.randint(0, self.max_distractors)))
        derivation = writer.derivation()
        checks = writer.checks(self.num_checks)
        cot = "\n\n".join([derivation, *checks, *([writer.say(phrasings.CONCLUSIONS)] if checks else [])])
        return Problem(
            prompt=writer.prompt(),
            cot=cot,
            answer=str(steps[-1].after),
            first_answer=len(derivation),
            equations=tuple(map(str, steps)),
            reply=writer.say(phrasings.REPLIES),
        )

    def _steps(self, rng: random.Random) -> list[_Step]:
        """Changes that stay between 1 and the largest amount, whose last amount has not been there before."""
        while True:
            amount = rng.randint(4, 20)
            steps: list[_Step] = []
            for _ in range(rng.randint(self.min_steps, self.max_steps)):
                # Products grow fast, so they are drawn once in seven.
                operator = rng.choice("+++---*")
                number = rng.randint(2, 3) if operator == "*" else rng.randint(2, self.largest_change)
                after = {"+": amount + number, "-": amount - number, "*": amount * number}[operator]
                steps.append(_Step(amount, operator, number, after))
                amount = after
            # An amount on the way that equals the last one would state the answer too early.
            if all(1 <= step.after <= self.largest for step in steps) and amount not in {s.before for s in steps}:
                return steps


@dataclass(frozen=True, slots=True)
class _Writer:
    """Puts one problem into words."""

    rng: random.Random
    words: dict[str, Any]
    steps: list[_Step]
    unused: list[int]

    def say(self, texts: list[str], **values: Any) -> str:
        return self.rng.choice(texts).format(**self.words, **values)

    def prompt(self) -> str:
        events = [self.say(phrasings.EVENTS[step.operator], n=step.number) for step in self.steps]
        for number, text in zip(self.unused, self.rng.sample(phrasings.DISTRACTORS, len(self.unused)), strict=True):
            events.insert(self.rng.randint(0, len(events)), text.format(**self.words, n=number))
        # The box is asked for last, where instructions of real data sets stand.
        start = self.say(phrasings.STARTS, n=self.steps[0].before)
        return " ".join([start, *events, self.say(phrasings.QUESTIONS), _BOX])

    def derivation(self) -> str:
        lines = [self.say(phrasings.OPENINGS), self.say(phrasings.FIRST_AMOUNTS)]
        lines += [f"{self.say(phrasings.STEPS[step.operator], n=step.number)}{step}." for step in self.steps]
        return "\n".join([*lines, self.say(phrasings.ANSWERS)])

    def checks(self, number: int) -> list[str]:
        """Checks of different kinds, as long as there are some."""
        # No kind comes again before all others have had their turn.
        kinds: list[str] = []
        while len(kinds) < number:
            kinds += self.rng.sample(list(phrasings.CHECKS), len(phrasings.CHECKS))
        texts: list[str] = []
        for kind in kinds[:number]:
            sentences = [self.say(phrasings.CHECKS[kind])]
            match kind:
                case "again":
                    sentences.append(f"{', '.join(map(str, self.steps))}.")
                case "backwards":
                    undone = [f"{s.after} {_UNDO[s.operator]} {s.number} = {s.before}" for s in reversed(self.steps)]
                    sentences.append(f"{', '.join(undone)}.")
                case "amounts":
                    sentences.append(f"{', '.join(str(step.before) for step in self.steps)}, {self.words['a']}.")
                case _:  # which numbers count
                    numbers = (self.steps[0].before, *(step.number for step in self.steps))
                    sentences.append(f"{self.say(phrasings.USED, used=', '.join(map(str, numbers)))}.")
                    sentences += [f"The {self.say(phrasings.UNUSED, unused=number)}" for number in self.unused]
            texts.append(" ".join([*sentences, self.say(phrasings.VERDICTS[kind])]))
        return texts
