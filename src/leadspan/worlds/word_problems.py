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

from leadspan.errors import SettingsError
from leadspan.worlds.problems import Problem, World, evaluate

# Many ways to say each thing, so that a student cannot learn one by heart. Fields in braces: `name`, `she`, `her`,
# `She`, `Her` of the person, `things`, `n` a number of the text, `s` the amount at the start, `a` the answer.
PEOPLE = [
    *((name, "she", "her") for name in ("Maya", "Lena", "Amara", "Sofia", "Ruth", "Nadia", "Clara", "Priya")),
    *((name, "he", "his") for name in ("Tom", "Ravi", "Omar", "Jonas", "Felix", "Diego", "Karim", "Hugo")),
]
THINGS = [
    "shells",
    "marbles",
    "stickers",
    "apples",
    "coins",
    "cards",
    "buttons",
    "pencils",
    "beads",
    "stamps",
    "candles",
    "tickets",
]

STARTS = [
    "{name} has {n} {things}.",
    "In the morning {name} counts {n} {things}.",
    "{name} begins the week with {n} {things}.",
    "There are {n} {things} in {name}'s box.",
    "{name} owns {n} {things}.",
]
EVENTS = {
    "+": [
        "{She} finds {n} more.",
        "Then {name} buys another {n} {things}.",
        "A friend gives {name} {n} {things}.",
        "Later {she} wins {n} {things} in a game.",
        "{n} more {things} arrive by post.",
        "{She} adds {n} that {she} had forgotten.",
    ],
    "-": [
        "{She} gives {n} to a friend.",
        "Then {name} loses {n} {things}.",
        "{n} of them break.",
        "{She} sells {n} {things} at the market.",
        "{Her} brother takes {n}.",
        "{She} leaves {n} {things} at school.",
    ],
    "*": [
        "Then the number of {things} grows to {n} times what it was.",
        "{She} trades them for {n} times as many {things}.",
        "An uncle brings enough for {name} to have {n} times as many.",
        "A lucky draw multiplies {her} {things} by {n}.",
    ],
}
DISTRACTORS = [
    "{Her} sister is {n} years old.",
    "It is {n} degrees outside.",
    "The walk home takes {n} minutes.",
    "{n} children are watching.",
    "A bag to keep things in costs {n} dollars.",
    "{name} lives at number {n}.",
    "There are {n} books on the shelf.",
]
QUESTIONS = [
    "How many {things} does {name} have now?",
    "How many {things} are there in the end?",
    "What is the number of {things} that {name} ends with?",
    "With how many {things} does {name} end?",
]

OPENINGS = [
    "Okay, step by step.",
    "Let me work it out.",
    "Alright, I follow the {things}.",
    "First, what is asked? The {things} at the end.",
    "Let me see what happens.",
    "Hmm, one change at a time.",
]
FIRST_AMOUNTS = [
    "{name} starts with {s}.",
    "At the start there are {s} {things}.",
    "We begin at {s}.",
    "The first amount is {s}.",
]
STEPS = {
    "+": ["{She} gets {n}: ", "Plus {n}: ", "Then {n} come in, so ", "Add the {n}. Now ", "Next a gain of {n}. "],
    "-": ["{She} gives up {n}: ", "Minus {n}: ", "Then {n} go away, so ", "Take off {n}. Now ", "Next a loss of {n}. "],
    "*": ["Times {n}: ", "It grows {n} times: ", "Now {n} times as many, so ", "Multiply by {n}. "],
}
ANSWERS = [
    "So the answer is {a}.",
    "That makes {a} {things}.",
    "So {name} ends with {a} {things}.",
    "The result is {a}.",
    "That leaves {a} in the end.",
]

CHECKS = {
    "again": [
        "Wait, let me go through it again.",
        "Let me redo the sums to be sure.",
        "Hmm, better to compute it once more.",
        "Let me repeat the steps slowly.",
    ],
    "backwards": [
        "Let me also check it backwards from {a}.",
        "Going the other way, from {a}:",
        "To verify, undo the steps, starting at {a}.",
        "Does it come back to the start? From {a}:",
    ],
    "amounts": [
        "Another look, at the amounts one after the other:",
        "The amounts in a row are",
        "As a list of what there was each time:",
        "Writing down only the amounts:",
    ],
    "numbers": [
        "Did I use the right numbers?",
        "Let me reread the question for numbers that I missed.",
        "Which numbers of the text count?",
        "Wait, is every number accounted for?",
    ],
}
VERDICTS = {
    "again": ["It is {a} again.", "Same result, {a}.", "Still {a}.", "So {a} holds."],
    "backwards": [
        "That is the {s} from the start, so it fits.",
        "Back at {s}, good.",
        "And {s} is where we began.",
        "It returns to {s}, as it should.",
    ],
    "amounts": ["The last one is {a}.", "It ends at {a}.", "So {a} is last.", "The end of it is {a}."],
    "numbers": ["So {a} stands.", "The answer stays {a}.", "Nothing changes, {a}.", "Then {a} is right."],
}
USED = ["The ones that count are {used}", "I used {used}", "Those for the {things} are {used}"]
UNUSED = [
    "{unused} is about something else.",
    "{unused} does not matter here.",
    "{unused} has nothing to do with {things}.",
]
CONCLUSIONS = [
    "I am sure now.",
    "Everything agrees.",
    "Good, all of it fits together.",
    "That settles it.",
    "No mistake that I can see.",
]
REPLIES = [
    "{name} has \\boxed{{{a}}} {things}.",
    "The answer is \\boxed{{{a}}}.",
    "There are \\boxed{{{a}}} {things}.",
    "In the end {name} has \\boxed{{{a}}} {things}.",
]

_BOX = "Give the number in \\boxed{}."
# Stories that are drawn for one that fits: seconds, where real settings need some ten.
_MOST_DRAWS = 100_000
_UNDO = {"+": "-", "-": "+", "*": "/"}


@dataclass(frozen=True, slots=True)
class _Step:
    before: int
    operator: str
    number: int
    after: int
    equation: str


class WordProblems(World):
    """Stories about amounts, in many phrasings."""

    remedy = "widen min_steps, max_steps, largest or largest_change"
    ascending = ("min_steps", "max_steps")
    kind: Literal["word_problems"] = "word_problems"
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
        """A story, and one way to think about it.

        Raises:
            SettingsError: Hardly a story fits the settings.
        """
        steps = self._steps(rng)
        name, she, her = rng.choice(PEOPLE)
        words = {"name": name, "she": she, "her": her, "She": she.title(), "Her": her.title()}
        words |= {"things": rng.choice(THINGS), "s": steps[0].before, "a": steps[-1].after}
        # The numbers of distractors differ, so that each is named once.
        unused = rng.sample(range(2, 20), rng.randint(0, self.max_distractors))

        def say(texts: list[str], **values: Any) -> str:
            return rng.choice(texts).format(**words, **values)

        lines = [say(OPENINGS), say(FIRST_AMOUNTS)]
        lines += [f"{say(STEPS[step.operator], n=step.number)}{step.equation}." for step in steps]
        derivation = "\n".join([*lines, say(ANSWERS)])
        numbers = [str(steps[0].before), *(str(step.number) for step in steps)]
        checked = {
            "again": ", ".join(step.equation for step in steps),
            "backwards": ", ".join(f"{s.after} {_UNDO[s.operator]} {s.number} = {s.before}" for s in reversed(steps)),
            "amounts": ", ".join(str(amount) for amount in (*(step.before for step in steps), steps[-1].after)),
        }
        # No kind of check comes again before all others have had their turn.
        kinds: list[str] = []
        while len(kinds) < self.num_checks:
            kinds += rng.sample(list(CHECKS), len(CHECKS))
        checks: list[str] = []
        for kind in kinds[: self.num_checks]:
            sentences = [say(CHECKS[kind])]
            if kind == "numbers":
                sentences.append(f"{say(USED, used=', '.join(numbers))}.")
                sentences += [f"The {say(UNUSED, unused=number)}" for number in unused]
            else:
                sentences.append(f"{checked[kind]}.")
            checks.append(" ".join([*sentences, say(VERDICTS[kind])]))
        cot = "\n\n".join([derivation, *checks, *([say(CONCLUSIONS)] if checks else [])])
        events = [say(EVENTS[step.operator], n=step.number) for step in steps]
        for number, text in zip(unused, rng.sample(DISTRACTORS, len(unused)), strict=True):
            events.insert(rng.randint(0, len(events)), text.format(**words, n=number))
        # The box is asked for last, where instructions of real data sets stand.
        prompt = " ".join([say(STARTS, n=steps[0].before), *events, say(QUESTIONS), _BOX])
        equations = tuple(step.equation for step in steps)
        return Problem(prompt, cot, str(steps[-1].after), len(derivation), equations, reply=say(REPLIES))

    def _steps(self, rng: random.Random) -> list[_Step]:
        """Changes that stay between 1 and the largest amount, whose last amount has not been there before."""
        for _ in range(_MOST_DRAWS):
            amount = rng.randint(4, 20)
            steps: list[_Step] = []
            for _ in range(rng.randint(self.min_steps, self.max_steps)):
                # Products grow fast, so they are drawn once in seven.
                operator = rng.choice("+++---*")
                number = rng.randint(2, 3) if operator == "*" else rng.randint(2, self.largest_change)
                after = evaluate(amount, operator, number)
                steps.append(_Step(amount, operator, number, after, f"{amount} {operator} {number} = {after}"))
                amount = after
            # An amount on the way that equals the last one would state the answer too early.
            if all(1 <= step.after <= self.largest for step in steps) and amount not in {s.before for s in steps}:
                return steps
        raise SettingsError(
            f"{self.kind}: {_MOST_DRAWS:,} drawn stories of {self.min_steps} to {self.max_steps} steps have amounts "
            f"above {self.largest}, below 1, or twice; raise largest, or lower min_steps or largest_change"
        )
