"""What the studies of the worlds ask, as comparisons of conditions by the names that the study gives them.

The questions are those of Chen et al. (arXiv 2512.21002) and of what was written after it; saturation in p and the
break point are asked of all mixes and need no list.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Claim:
    """What is asked of two conditions; `loses less than`: each against the uncut run that it is compared with."""

    left: str
    kind: Literal["better than", "like", "loses less than"]
    right: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what decides it, and further conditions to show."""

    text: str
    claims: tuple[Claim, ...]
    shown: tuple[str, ...] = ()


LEAD, MIX = "lead 0.5", "mix 0.9 lead 0.5"
COT_ALONE = "mix 0.9 lead_cot 1"
"""Nine tenths of the traces end with the chain of thought, a tenth has an answer, so that students end theirs."""


def _against(kind: str) -> tuple[Claim, Claim]:
    return Claim(MIX, "better than", f"mix 0.9 {kind} 0.5"), Claim(LEAD, "better than", f"{kind} 0.5")


LEFT_OR_RIGHT = Question("Is left better than right, with the question kept?", _against("tail"), ("full",))
WINDOW = Question("Does `lead` beat `random_window`?", _against("random_window"))
TOKENS = Question(
    "What do equal tokens change?",
    (
        Claim(f"{MIX}, equal tokens", "better than", MIX),
        Claim(f"{LEAD}, equal tokens", "better than", LEAD),
        Claim(f"{MIX}, equal tokens", "like", "full"),
    ),
    ("full",),
)
TEACHER = Question("Does the teacher matter?", (Claim(MIX, "better than", f"{MIX}, cross-entropy"),))
ALIKE = Question(
    "Are all supervisions with CoT alike, and above the answer alone?",
    (
        *(Claim(f"full, {name}", "like", "full") for name in ("CoT", "P+CoT", "P+CoT+A")),
        Claim(COT_ALONE, "like", "full"),
        Claim("full", "better than", "full, A"),
    ),
)
UNSTATED = Question(
    "Does CoT alone fail where the answer is not in it?",
    (
        Claim("full, CoT+A, unstated", "better than", "full, CoT, unstated"),
        Claim("full, CoT+A, unstated", "better than", "full, P+CoT, unstated"),
        Claim("full, CoT+A, unstated", "better than", "full, A, unstated"),
        Claim("full, P+CoT+A, unstated", "like", "full, CoT+A, unstated"),
        Claim(COT_ALONE, "better than", f"{COT_ALONE}, unstated"),
    ),
    ("full, CoT", "full, P+CoT", "full"),
)
SMALL = Question(
    "Do small students flatten?",
    tuple(
        Claim(f"mix 0.9 lead {p}, small student", "loses less than", f"mix 0.9 lead {p}")
        for p in ("0.25", "0.5", "0.9")
    ),
    ("full, small student", "full"),
)

QUESTIONS: dict[str, tuple[Question, ...]] = {
    "checked": (ALIKE, LEFT_OR_RIGHT, SMALL, WINDOW, TOKENS, TEACHER),
    "stated": (ALIKE, UNSTATED, LEFT_OR_RIGHT, SMALL, WINDOW, TOKENS, TEACHER),
}
"""Questions by the first task of a study."""
