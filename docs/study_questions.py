"""What the studies ask, as comparisons of conditions by the names that the study gives them.

The questions are those of Chen et al. (arXiv 2512.21002) and of what was written after it; saturation in p and the
break point are asked of all mixes and need no list.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Claim:
    """What is asked of two conditions; `keeps more than`: as a share of the uncut run that each is compared with."""

    left: str
    kind: Literal["better than", "like", "keeps more than"]
    right: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what decides it, and further conditions to show."""

    text: str
    claims: tuple[Claim, ...]
    shown: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of all conditions that it needs."""
        asked = [name for claim in self.claims for name in (claim.left, claim.right)]
        return tuple(dict.fromkeys([*asked, *self.shown]))


COT_ALONE = "mix 0.9 lead_cot 1"
"""Nine tenths of the traces end with the chain of thought, a tenth has an answer, so that students end theirs."""


def _better(pairs: tuple[tuple[str, str], ...]) -> tuple[Claim, ...]:
    return tuple(Claim(left, "better than", right) for left, right in pairs)


def _left_or_right(*pairs: tuple[str, str]) -> Question:
    return Question("Is left better than right, with the question kept?", _better(pairs), ("full",))


def _window(*pairs: tuple[str, str]) -> Question:
    return Question("Does `lead` beat `random_window`?", _better(pairs), ("full",))


def _small(*shares: str) -> Question:
    """What a cut keeps of each student's own uncut accuracy."""
    claims = (Claim(f"mix 0.9 lead {p}, small student", "keeps more than", f"mix 0.9 lead {p}") for p in shares)
    return Question("Do small students flatten?", tuple(claims), ("full, small student", "full"))


def _equal_tokens(*policies: str) -> Question:
    longer = _better(tuple((f"{policy}, equal tokens", policy) for policy in policies))
    like_full = Claim(f"{policies[0]}, equal tokens", "like", "full")
    return Question("What do equal tokens change?", (*longer, like_full), ("full",))


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
        Claim("full, CoT", "keeps more than", "full, CoT, unstated"),
        Claim(COT_ALONE, "keeps more than", f"{COT_ALONE}, unstated"),
    ),
    ("full", "full, CoT+A, unstated", "full, P+CoT+A, unstated"),
)
SHARES = ("0.98", "0.95", "0.9", "0.75")
"""Shares of the traces that are cut, in the mixes of the pre-trained study; the rest of each is whole."""
WHOLE_TRACES = Question(
    "How many whole traces do endings take?",
    _better(tuple((f"mix {share} lead 0.5", "lead 0.5") for share in SHARES)),
    ("full", "base"),
)
ANSWERS = Question(
    "Does an answer after the cut replace whole traces?",
    _better((("lead_answer 0.5", "lead 0.5"), ("lead_answer 0.5", "mix 0.9 lead 0.5"))),
    ("full",),
)
TRAINING = Question(
    "Do the learning rate and adapters change what a cut keeps?",
    tuple(Claim(f"lead 0.5, {name}", "keeps more than", "lead 0.5") for name in ("a fifth of the rate", "LoRA")),
    ("full", "full, a fifth of the rate", "full, LoRA"),
)
OWN_TEACHER = Question(
    "Does a teacher change what a cut keeps?",
    (Claim("lead 0.5, teacher", "keeps more than", "lead 0.5"),),
    ("full", "full, teacher"),
)
COT = Question("Does supervision of the chain of thought alone keep it?", (Claim("full, CoT", "like", "full"),))
TEACHER = Question(
    "Does the teacher matter?", (Claim("mix 0.9 lead 0.5", "better than", "mix 0.9 lead 0.5, cross-entropy"),)
)

SHORT = "full, horizon 80"
"""Half of a trace's length; rollouts are compared by what they learn from, so their cut is `full`."""
HORIZONS = Question(
    "Does a short horizon keep what full rollouts gain?",
    tuple(Claim(f"full, horizon {tokens}", "like", "full, horizon 200") for tokens in ("16", "80", "16 to 160")),
    ("base", "teacher"),
)
OFF_POLICY = Question(
    "Are rollouts better than traces, at equal steps?",
    _better((("full, horizon 200", "full"), (SHORT, "lead 0.5"), (SHORT, "mix 0.9 lead 0.5"))),
)
CUT_THEN_PREFIX = Question(
    "Is a cut and then a prefix better than either?",
    _better(tuple(("mix 0.9 lead 0.5, then horizon 80", other) for other in ("mix 0.9 lead 0.5", SHORT))),
    ("full", "full, horizon 200"),
)
WHOLE_ROLLOUTS = Question(
    "Does a share of full rollouts, or of traces, matter?",
    _better(tuple((f"{SHORT}, {share}", SHORT) for share in ("a tenth whole", "half traces"))),
    ("full, horizon 200", "full"),
)
MORE_STEPS = Question(
    "What do equal tokens change for a horizon?",
    (
        Claim(f"{SHORT}, equal tokens", "better than", SHORT),
        Claim(f"{SHORT}, equal tokens", "like", "full, horizon 200"),
    ),
)

PRETRAINED_HORIZONS = Question(
    "What do rollouts keep of a pre-trained student, and traces of the same number?",
    (
        Claim("full, horizon 64", "like", "full, horizon 300"),
        *_better(tuple(("full, horizon 300", other) for other in ("base", "full"))),
        *_better((("full, horizon 64, half traces", "full, horizon 64"), ("lead 0.5", "full, horizon 64"))),
    ),
    ("mix 0.75 lead 0.5", "teacher"),
)

QUESTIONS: dict[str, tuple[Question, ...]] = {
    "stories": (
        WHOLE_TRACES,
        ANSWERS,
        _window(("lead 0.5", "random_window 0.5")),
        _equal_tokens("lead 0.5", "mix 0.9 lead 0.5"),
        TRAINING,
        OWN_TEACHER,
        COT,
        PRETRAINED_HORIZONS,
    ),
    "long problems": (
        HORIZONS,
        OFF_POLICY,
        CUT_THEN_PREFIX,
        WHOLE_ROLLOUTS,
        MORE_STEPS,
        _window(("lead 0.5", "random_window 0.5"), ("mix 0.9 lead 0.5", "mix 0.9 random_window 0.5")),
        _equal_tokens("lead 0.5", "mix 0.9 lead 0.5"),
    ),
    "checked": (
        ALIKE,
        _left_or_right(("mix 0.9 lead 0.5", "mix 0.9 tail 0.5")),
        _small("0.5"),
        _window(("mix 0.9 lead 0.5", "mix 0.9 random_window 0.5")),
        _equal_tokens("mix 0.9 lead 0.5"),
        TEACHER,
    ),
    "stated": (
        ALIKE,
        UNSTATED,
        _left_or_right(*((f"mix 0.9 lead {p}", f"mix 0.9 tail {p}") for p in ("0.5", "0.9"))),
        _small("0.9"),
        _window(*((f"mix 0.9 lead {p}", f"mix 0.9 random_window {p}") for p in ("0.5", "0.9"))),
        _equal_tokens("mix 0.9 lead 0.5"),
    ),
}
"""Questions by the first task of a study."""
