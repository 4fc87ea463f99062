"""The findings of an audit as plain data: written as JSON, shown in the terminal and in reports. Loads no torch."""

from pathlib import Path

from pydantic import Field

from leadspan.data.truncation.policy import CutCounts
from leadspan.errors import RunError
from leadspan.settings import Amount, Count, Settings, load_json
from leadspan.statistics.intervals import Interval

AUDIT_FILE = "audit.json"
MOST_EXAMPLES = 5
"""Locations that an audit names for each finding."""


class Distribution(Settings):
    """Values of one figure over the traces: summary and histogram."""

    count: Count
    """Values."""
    mean: float
    """Their mean."""
    p10: float
    """10th percentile (linear interpolation, as all the others)."""
    p50: float
    """Median."""
    p90: float
    """90th percentile."""
    p99: float
    """99th percentile."""
    edges: list[float] = Field(min_length=2)
    """Edges of the bins, one more than bins; the last bin holds what lies on its upper edge too."""
    counts: list[Count] = Field(min_length=1)
    """Values in each bin."""


class CutShare(Settings):
    """Share of traces that a lead cut leaves without a derivation."""

    p: float
    """Lead-span proportion."""
    without_derivation: Interval
    """Share of traces whose first statement of the answer is cut, of those that have one; mean over questions."""


class FirstAnswers(Settings):
    """Where the chains of thought first state the right answer."""

    outcomes: dict[str, Count]
    """Traces by outcome: `found`, `not found`, `no gold`."""
    gold_sources: dict[str, Count]
    """Where the right answer was taken from: `record`, `own boxed answer`, `own answer`, `none`."""
    num_undecided: Count = 0
    """Candidate expressions that algebra could not compare within its limits; they count as different."""
    position_tokens: Distribution | None = None
    """Tokens of the chain of thought before the statement."""
    share_of_cot: Distribution | None = None
    """The same as a share f of the chain of thought."""
    lsp_star: Interval | None = None
    """Predicted break point of a lead cut: (|P| + f |CoT|) / T, mean over questions of that of their traces."""
    lsp_star_values: Distribution | None = None
    """The same for every trace."""
    cuts: list[CutShare] = []
    """Share of traces that each p leaves without a derivation."""

    @property
    def num_traces(self) -> int:
        """Traces that were searched."""
        return sum(self.outcomes.values())


class Entailment(Settings):
    """Proxies of the condition under which a chain of thought alone suffices: it says what prompt and answer say.

    Source: Chen et al., arXiv 2512.21002, the supervision ablation.
    """

    prompt_numbers: float | None
    """Share of the prompt's distinct numbers that the chain of thought repeats, mean over traces that have any."""
    all_prompt_numbers: float | None
    """Share of those traces whose chain of thought repeats every one."""
    prompt_words: float | None
    """Share of the prompt's distinct content words that the chain of thought repeats, mean over traces."""
    answer_stands: float | None
    """Share of traces whose own final answer occurs in the chain of thought, stated or not, of those that have one."""


class PolicyLoss(Settings):
    """What one policy does to the traces."""

    label: str
    """The policy."""
    is_own: bool = False
    """Whether it is the policy of the recipe."""
    counts: CutCounts
    """Tokens kept, and how many traces lose the question, the end of thinking, the answer, the stop, or all weight."""


class Repetition(Settings):
    """Loops: the same tokens again and again."""

    num_loops: Count
    """Traces with a loop in their chain of thought."""
    examples: list[str] = []
    """Locations of some of them."""
    repeated_sentences: float
    """Share of sentences of at least five words that repeat an earlier one of their trace, mean over traces."""


class Duplicates(Settings):
    """Traces that occur more than once."""

    num_questions: Count
    """Distinct questions."""
    num_exact: Count
    """Traces whose tokens equal those of an earlier one."""
    num_near: Count
    """Other traces that are near duplicates of an earlier one."""
    threshold: float
    """Jaccard similarity of near duplicates."""
    examples: list[tuple[str, str]] = []
    """Some pairs: the trace and the earlier one."""


class SharedQuestion(Settings):
    """A question of a task that shares n-grams with a prompt."""

    problem_id: str
    """Problem of the task."""
    start: str
    """How it begins."""
    place: str
    """The trace that shares most with it."""
    share: float
    """Share of the question's n-grams that occur in that prompt."""


class Contamination(Settings):
    """One evaluation task against the prompts of the traces."""

    task: str
    """Task name."""
    num_questions: Count
    """Questions of the task."""
    num_too_short: Count
    """Questions with fewer than five words, which are not searched for."""
    num_shared: Count
    """Questions that share an n-gram with a prompt."""
    num_traces: Count
    """Traces whose prompt shares an n-gram with a question of the task."""
    ngram_words: Count
    """Words of an n-gram; shorter questions are searched for as a whole."""
    examples: list[SharedQuestion] = []
    """Questions that share most."""


class AuditResult(Settings):
    """All that an audit found."""

    source: str
    """Source that was audited."""
    tokenizer: str
    """Tokenizer that counted the tokens."""
    num_read: Count
    """Records read."""
    num_traces: Count
    """Traces that could be used."""
    refused: dict[str, Count] = {}
    """Records that could not, by reason; lengths out of bounds included."""
    refusal_examples: dict[str, str] = {}
    """Location and detail of one record of each reason."""
    num_unclosed: Count = 0
    """Refused records whose chain of thought never closes."""
    stops_training: str | None = None
    """Why a run on these records would refuse to start, if it would."""
    tokens: dict[str, Distribution]
    """Tokens per section: `prompt`, `cot`, `answer`, and `all` of them."""
    steps: Distribution | None = None
    """Steps of each chain of thought."""
    num_without_steps: int = 0
    """Traces whose chain of thought is one step, so that no policy can cut it between steps."""
    gold_faults: dict[str, int] = {}
    """Traces without a reference answer although their source has a column for it, by the kind of its content."""
    first_answers: FirstAnswers
    """First-answer positions and the predicted break point."""
    entailment: Entailment
    """Whether the chain of thought says what prompt and answer say."""
    policies: list[PolicyLoss]
    """Losses per policy."""
    repetition: Repetition
    """Loops."""
    duplicates: Duplicates
    """Exact and near duplicates."""
    contamination: list[Contamination] = []
    """Overlap with evaluation tasks."""
    seconds: Amount = 0.0
    """Wall time of the audit."""


def load_audit(path: Path) -> AuditResult:
    """Read a result that `leadspan audit --json` has written.

    Raises:
        RunError: There is none, or it is another kind of file.
    """
    return load_json(AuditResult, path, "write it with `leadspan audit --json`", RunError)
