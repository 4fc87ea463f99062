"""First-answer positions over all traces, and the break point they predict for a lead cut.

A lead cut of p keeps the first `kept = max(1, floor(p T))` tokens. It keeps the derivation of a trace when it keeps the
token at which the chain of thought first states the answer. With f the share of the chain of thought in front of that
token, it is at `|P| + f |CoT|`, and the break point is LSP* = (|P| + f |CoT|) / T: below it this trace teaches no
derivation. For a set of traces LSP* is the mean, and the share of traces without a derivation at p is the distribution
function of the single values.

Source: the project's own prediction, from the observation of Chen et al. (arXiv 2512.21002) that the first correct
derivation falls near the middle of a trace.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from leadspan.audit.distributions import distribution, mean_by_question
from leadspan.audit.findings import CutShare, FirstAnswers
from leadspan.audit.locate import Answered
from leadspan.data.truncation import Lead, Policy, cut_example
from leadspan.statistics.intervals import Interval

# Rounded, since 3 * 0.1 is not 0.3 in binary.
PROPORTIONS = tuple(round(0.1 * step, 1) for step in range(1, 11))


@dataclass(frozen=True, slots=True)
class Stated:
    """A trace whose chain of thought states the answer.

    Attributes:
        position: Token of the whole sequence at which it does.
        trace: The trace.
    """

    position: int
    trace: Answered

    @property
    def lsp_star(self) -> float:
        """`(|P| + f |CoT|) / T`, which is the position as a share of the sequence."""
        return self.position / self.trace.sections.num_tokens

    @property
    def share_of_cot(self) -> float:
        """`f`: tokens of the chain of thought before the statement, as a share of it, tags included."""
        sections = self.trace.sections
        return (self.position - sections.prompt_end) / (sections.cot_end - sections.prompt_end)


def summarise_first_answers(traces: Sequence[Answered], num_undecided: int, seed: int) -> FirstAnswers:
    """Outcomes, positions, LSP*, and the share of traces that each p leaves without a derivation.

    Args:
        traces: Every trace.
        num_undecided: Comparisons that broke the limits.
        seed: Seed of the bootstrap.
    """
    stated = _stated(traces)
    num_without_gold = sum(trace.source == "none" for trace in traces)
    counts = FirstAnswers(
        outcomes={
            "found": len(stated),
            "not found": len(traces) - len(stated) - num_without_gold,
            "no gold": num_without_gold,
        },
        gold_sources=dict(Counter(trace.source for trace in traces)),
        num_undecided=num_undecided,
    )
    if not stated:
        return counts
    cuts = [(p, without_derivation(Lead(p=p), traces, seed)) for p in PROPORTIONS]
    # Shares have bins from 0 to 1, so that the histograms of two audits compare.
    shares = {
        "position_tokens": distribution([s.position - s.trace.sections.prompt_end for s in stated]),
        "share_of_cot": distribution([s.share_of_cot for s in stated], 0, 1),
        "lsp_star": mean_by_question([s.lsp_star for s in stated], [s.trace.question_id for s in stated], seed),
        "lsp_star_values": distribution([s.lsp_star for s in stated], 0, 1),
        "cuts": [CutShare(p=p, without_derivation=share) for p, share in cuts if share is not None],
    }
    return counts.model_copy(update=shares)


def without_derivation(policy: Policy, traces: Sequence[Answered], seed: int) -> Interval | None:
    """Share of traces whose first statement of the answer a policy cuts, of those that have one; None where none has.

    Under a policy that changes over training, the mean over its stages.
    """
    stated = _stated(traces)
    if not stated:
        return None
    # 1 where a stage cuts the statement, else 0.
    lost: list[float] = []
    for stage in policy.stages:
        cuts = [cut_example(stage, s.trace.sections, s.trace.example_id, seed) for s in stated]
        lost += [
            float(not any(start <= s.position < end for start, end in cut.spans))
            for s, cut in zip(stated, cuts, strict=True)
        ]
    # Stage after stage, as `lost` is.
    return mean_by_question(lost, [s.trace.question_id for s in stated] * len(policy.stages), seed)


def _stated(traces: Sequence[Answered]) -> list[Stated]:
    return [Stated(trace.position, trace) for trace in traces if trace.position is not None]
