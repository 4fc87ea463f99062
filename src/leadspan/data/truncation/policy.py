"""What every policy is: section borders in, kept token ranges out."""

import functools
import math
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from leadspan.faults import Rule
from leadspan.settings import Count, Settings


class StageCounts(Settings):
    """What one stage of a policy that changes over training leaves of the examples."""

    number: Count
    """Which stage it is, from 1."""
    num_examples: Count
    """Examples before its cut."""
    num_kept: Count
    """Examples left with at least one weighted position."""
    dropped: dict[str, Count]
    """Examples dropped, by reason."""


class CutCounts(Settings):
    """What a policy and a supervision did to a set of examples, counted before training.

    Under a policy that changes over training every example is counted once for each of its stages.
    """

    num_examples: Count
    """Examples before the cut."""
    num_stages: Count = 1
    """Stages of the policy, in each of which every trace is an example."""
    worst_stage: StageCounts | None = None
    """Of several stages the one that leaves the fewest examples, the first of such."""
    num_kept: Count
    """Examples left with at least one weighted position."""
    dropped: dict[str, Count] = {}
    """Examples dropped, by reason."""
    tokens_before: Count
    """Tokens of all examples before the cut."""
    tokens_after: Count
    """Tokens that enter the forward pass, all examples once."""
    weighted_tokens: Count
    """Positions with a loss, all examples once."""
    section_tokens_before: dict[str, Count] = {}
    """Tokens per section before the cut."""
    section_tokens_after: dict[str, Count] = {}
    """Tokens per section after the cut."""
    lost_question: Count = 0
    """Kept examples that lost part of the prompt."""
    lost_think_end: Count = 0
    """Kept examples without the closing think tag."""
    lost_answer: Count = 0
    """Kept examples that lost part of the answer."""
    lost_stop: Count = 0
    """Kept examples without an end-of-turn token."""
    without_steps: int = 0
    """Examples whose chain of thought is one step, since no border of steps is in it."""

    def plus(self, counts: "CutCounts") -> "CutCounts":
        """Both sets of examples together."""

        def summed(mine: Any, theirs: Any) -> Any:  # a number, or numbers by name
            if isinstance(mine, dict):
                return {name: mine.get(name, 0) + theirs.get(name, 0) for name in {**mine, **theirs}}
            return mine + theirs

        names = CutCounts.model_fields.keys() - {"num_stages", "worst_stage"}
        sums = {name: summed(getattr(self, name), getattr(counts, name)) for name in names}
        return CutCounts(**sums, num_stages=self.num_stages)


def of_stages(counts: Sequence[CutCounts]) -> CutCounts:
    """The counts of all stages of a policy together, and the worst of several stages by itself."""
    total = functools.reduce(CutCounts.plus, counts)
    number, worst = min(enumerate(counts, 1), key=lambda stage: stage[1].num_kept)
    stage = StageCounts(number=number, num_examples=worst.num_examples, num_kept=worst.num_kept, dropped=worst.dropped)
    return total.model_copy(update={"num_stages": len(counts), "worst_stage": stage if len(counts) > 1 else None})


FEW_ENDS = 0.05
"""Share of examples that keep their end of turn below which a cut draws a warning: of the demo's students only the one
that saw 10 % of such examples ended its answers."""
STOP_REMEDY = (
    "leave a share of the traces whole (cut: {kind: mix, policy: ..., whole_share: 0.25}; 0.1 was too little for "
    "two of three pre-trained students) or keep the answer after the cut (cut: {kind: lead_answer, p: ...}), and "
    "see with sampling.thinking_budget what a student answers where its thinking is closed for it"
)


def shows_few_ends(counts: CutCounts) -> bool:
    """Whether fewer than `FEW_ENDS` of the kept examples keep their end of turn."""
    return bool(counts.num_kept) and counts.num_kept - counts.lost_stop < FEW_ENDS * counts.num_kept


def stop_warning(counts: Mapping[str, CutCounts]) -> str:
    """What happened to students of cuts (by label) that hardly show an end of turn, and the remedy; "" if none does.

    Source: `leadspan demo` and docs/studies: none of a plain lead cut ever ended, trained from scratch or pre-trained.
    """
    few = [label for label, of_cut in counts.items() if shows_few_ends(of_cut)]
    if not few:
        return ""
    return (
        f"{', '.join(few)}: hardly a training example keeps its end of turn, and students of such cuts have been seen "
        f"never to end their answers; {STOP_REMEDY}."
    )


STATES_NO_ANSWER = "the chain of thought states no known answer"
"""Why a cut at the first right answer drops a trace."""
FEW_DROPPED = 0.1
"""Share of the examples that a cut may drop without a warning."""


def drop_warning(counts: Mapping[str, CutCounts]) -> str:
    """Which cuts (by label) drop more than `FEW_DROPPED` of their examples, and why; "" if none does.

    Of a policy that changes over training, its worst stage counts: a sum over stages is what no stage shows.
    """
    left, reasons = list[str](), set[str]()
    for label, cut in counts.items():
        worst = cut.worst_stage or cut
        if worst.num_kept < (1 - FEW_DROPPED) * worst.num_examples:
            stage = f" in stage {cut.worst_stage.number} of {cut.num_stages}" if cut.worst_stage else ""
            why = ", ".join(f"{number:,} x {reason}" for reason, number in worst.dropped.items())
            left.append(f"{label} leaves {worst.num_kept:,} of {worst.num_examples:,} examples{stage} ({why})")
            reasons |= worst.dropped.keys()
    if not left:
        return ""
    remedies = ["keep more tokens, or cut the chain of thought alone (cut: {kind: lead_cot, p: ...})"]
    if STATES_NO_ANSWER in reasons:
        remedies = [*(remedies if len(reasons) > 1 else []), "keep traces without a known answer whole (cut.if_absent)"]
    return (
        f"{'; '.join(left)}. A run of as many steps repeats those that are left, so it differs from other cuts in its "
        f"examples too; {'; '.join(remedies)}."
    )


def cut_warnings(counts: Mapping[str, CutCounts]) -> list[str]:
    """What is known to go wrong with the students of these cuts: `drop_warning` and `stop_warning`."""
    return [warning for warning in (drop_warning(counts), stop_warning(counts)) if warning]


Span = tuple[int, int]
Proportion = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True)
class Sections:
    """Borders of the sections of one rendered conversation, in tokens."""

    prompt_end: int  # PROMPT is `[0, prompt_end)`: everything through the assistant header
    think_end: int  # first token of the closing think tag
    cot_end: int  # COT is `[prompt_end, cot_end)`, from the opening think tag through the closing one
    num_tokens: int  # ANSWER is `[cot_end, num_tokens)`, end-of-turn included
    stop: int  # index of the end-of-turn token
    steps: tuple[int, ...] = ()  # first token of every step of the chain of thought after the first, ascending
    # Last token of the chain of thought's first statement of the right answer; None where no reference answer is known
    # or none is stated.
    first_answer: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """What a policy keeps of one sequence."""

    spans: tuple[Span, ...]  # kept token ranges, ascending, not overlapping
    append_stop: bool = False  # whether an end-of-turn token follows the last kept token, with a hard target only
    unweighted: Span | None = None  # a kept range that gets no loss whatever the supervision
    dropped: str | None = None  # why the policy has no use for the sequence, where it keeps nothing for its own reason


class Policy(Settings):
    """Base of the policies: one rule, `spans`, and what is known of it without any trace."""

    # Of the policy that cuts. Those of a mix or a schedule are its inner policy's.
    _keeps_answer: ClassVar[bool] = True
    _needs_first_answer: ClassVar[bool] = False
    _needs_steps: ClassVar[bool] = False
    # Settings that say in different ways how much is kept.
    _amounts: ClassVar[tuple[str, ...]] = ()

    def conflicts(self) -> Iterator[Rule]:
        """Exactly one amount is given, where there are several ways to give it."""
        names = self._amounts
        given = [name for name in names if getattr(self, name) is not None]
        if names and len(given) != 1:
            shown = " and ".join(names) if len(names) == 2 else ", ".join(names)
            yield names, f"give exactly one of {shown} (given: {', '.join(given) or 'none'})"

    @abstractmethod
    def spans(self, sections: Sections, rng: random.Random) -> tuple[Span, ...]:
        """Token ranges to keep; empty ones are allowed and dropped by `cut`."""

    @property
    def label(self) -> str:
        """Short name with the parameters that matter, for tables."""
        p = "" if self.proportion is None else f" {self.proportion:g}"
        return f"{getattr(self, 'kind', '')}{p}{'' if getattr(self, 'keep_prompt', True) else ' no prompt'}"

    @property
    def family(self) -> str:
        """The label without the proportion: what policies that differ in it alone share."""
        return f"{getattr(self, 'kind', '')}{'' if getattr(self, 'keep_prompt', True) else ' no prompt'}"

    @property
    def proportion(self) -> float | None:
        """Its `p` (of a mix, that of the inner policy); None if it has none, or if it is drawn or changes."""
        return getattr(self, "p", None)

    @property
    def inner(self) -> "Policy":
        """The policy that cuts: the innermost one of a mix or a schedule, else itself."""
        policy: Policy | None = getattr(self, "policy", None)
        return self if policy is None else policy.inner

    @property
    def keeps_answer(self) -> bool:
        """Whether it keeps the answer at a proportion of 1."""
        return self.inner._keeps_answer

    @property
    def nears_full(self) -> bool:
        """Whether the cut approaches the uncut trace as `p` approaches 1; not so where every `p` < 1 loses the stop."""
        return self.keeps_answer

    @property
    def stages(self) -> "tuple[Policy, ...]":
        """The policies of a run's equal parts, in order; itself unless it changes over training."""
        return (self,)

    @property
    def needs_first_answer(self) -> bool:
        """Whether the sections must say where the right answer is first stated."""
        return self.inner._needs_first_answer

    @property
    def needs_steps(self) -> bool:
        """Whether it cuts at the borders of steps."""
        return self.inner._needs_steps or getattr(self.inner, "align", None) == "step"

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy to one sequence."""
        return Cut(tidy(self.spans(sections, rng)))


class EndsEarly(Policy):
    """A policy whose result usually lacks the end of the conversation."""

    stop: Literal["none", "append_eos"] = "none"
    """`append_eos`: where the end-of-turn token was cut, append one with a hard target (cross-entropy only, since the
    teacher would not stop there)."""

    @property
    def nears_full(self) -> bool:
        """Not as it is, as every `p` below 1 loses the end-of-turn token; with an appended one it does."""
        return self.keeps_answer and self.stop != "none"

    def cut(self, sections: Sections, rng: random.Random) -> Cut:
        """Apply the policy; append an end-of-turn token if the settings say so and it was lost."""
        spans = tidy(self.spans(sections, rng))
        lost = not any(start <= sections.stop < end for start, end in spans)
        return Cut(spans, append_stop=lost and self.stop == "append_eos")


def kept_tokens(p: float, num_tokens: int) -> int:
    """`max(1, floor(p * num_tokens))`, the rule of the paper, exact for the decimal that `p` was written as.

    >>> kept_tokens(0.5, 7), kept_tokens(0.1, 3), kept_tokens(1.0, 7), kept_tokens(0.7, 10_600)
    (3, 1, 7, 7420)
    """
    # 0.7 * 10_600 is 7419.999... in binary. repr gives the shortest decimal that reads back as p, so what was written.
    return max(1, math.floor(Decimal(repr(p)) * num_tokens))


def align_end(end: int, sections: Sections, align: Literal["token", "step"]) -> int:
    """Move a cut inside the chain of thought back to a step border, or to the end of the prompt.

    The last step ends where the closing tag begins.
    """
    if align == "token" or not sections.prompt_end < end < sections.cot_end:
        return end
    borders = (sections.prompt_end, *sections.steps, sections.think_end)
    return max(border for border in borders if border <= end)


def tidy(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Drop empty spans and join adjacent ones."""
    joined: list[Span] = []
    for start, end in spans:
        if start >= end:
            continue
        # Adjacent spans join too, so that a whole sequence is one span and counts as uncut.
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return tuple(joined)
