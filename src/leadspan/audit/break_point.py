"""First-answer positions over all traces, and the break point they predict for a lead cut.

A lead cut of p keeps the first `kept = max(1, floor(p T))` tokens. It keeps the derivation of a trace when it keeps the
token at which the chain of thought first states the answer. With f the share of the chain of thought in front of that
token, its place is `|P| + f |CoT|`, and the break point is LSP* = (|P| + f |CoT|) / T: below it this trace teaches no
derivation. For a set of traces LSP* is the mean, and the share of traces without a derivation at p is its distribution.

Source: the project's own prediction, from the observation of Chen et al. (arXiv 2512.21002) that the first correct
derivation falls near the middle of a trace.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from leadspan.audit.config import AuditSettings
from leadspan.audit.distributions import distribution, mean_by_question
from leadspan.audit.examine import Examined
from leadspan.audit.findings import CutShare, FirstAnswers
from leadspan.audit.first_answer import resolve
from leadspan.data.truncation import kept_tokens
from leadspan.evaluation.grading import MathGrader

logger = logging.getLogger(__name__)
PROPORTIONS = tuple(round(0.1 * step, 1) for step in range(1, 11))


@dataclass(frozen=True, slots=True)
class Stated:
    """A trace whose chain of thought states the answer.

    Attributes:
        position: Token of the whole sequence at which it does.
        trace: The trace.
    """

    position: int
    trace: Examined

    @property
    def lsp_star(self) -> float:
        """`(|P| + f |CoT|) / T`, which is the position as a share of the sequence."""
        return self.position / self.trace.sections.num_tokens

    @property
    def share_of_cot(self) -> float:
        """`f`: tokens of the chain of thought before the statement, as a share of it, tags included."""
        sections = self.trace.sections
        return (self.position - sections.prompt_end) / (sections.cot_end - sections.prompt_end)


def summarise_first_answers(traces: Sequence[Examined], settings: AuditSettings, num_workers: int) -> FirstAnswers:
    """Settle the open comparisons, and summarise.

    Args:
        traces: Every trace with its candidates.
        settings: Limit of a comparison, seed of the bootstrap.
        num_workers: Math-Verify workers.
    """
    with MathGrader(num_workers, settings.item_seconds) as grader:
        first, num_undecided = resolve([trace.candidates for trace in traces], grader)
    stated = [Stated(t.token_positions[i], t) for t, i in zip(traces, first, strict=True) if i is not None]
    num_without_gold = sum(trace.candidates.gold.source == "none" for trace in traces)
    outcomes = {
        "found": len(stated),
        "not found": len(traces) - len(stated) - num_without_gold,
        "no gold": num_without_gold,
    }
    sources = Counter(trace.candidates.gold.source for trace in traces)
    if not stated:
        return FirstAnswers(outcomes=outcomes, gold_sources=dict(sources), num_undecided=num_undecided)
    questions = [s.trace.question_id for s in stated]
    return FirstAnswers(
        outcomes=outcomes,
        gold_sources=dict(sources),
        num_undecided=num_undecided,
        position_tokens=distribution([s.position - s.trace.sections.prompt_end for s in stated]),
        share_of_cot=distribution([s.share_of_cot for s in stated], 0, 1),
        lsp_star=mean_by_question([s.lsp_star for s in stated], questions, settings.seed),
        lsp_star_values=distribution([s.lsp_star for s in stated], 0, 1),
        cuts=[_cut_share(p, stated, questions, settings.seed) for p in PROPORTIONS],
    )


def _cut_share(p: float, stated: Sequence[Stated], questions: Sequence[str], seed: int) -> CutShare:
    lost = [float(s.position >= kept_tokens(p, s.trace.sections.num_tokens)) for s in stated]
    return CutShare(p=p, without_derivation=mean_by_question(lost, questions, seed))
