"""Settings of an audit: its inputs and its thresholds."""

from pydantic import Field

from leadspan.data.settings import DataSettings
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import AnyPolicy, Full, Lead, LeadAnswer, LeadCot, Mix, RandomWindow, Tail
from leadspan.evaluation.settings import TaskSettings
from leadspan.settings import Settings

DEFAULT_POLICIES: tuple[AnyPolicy, ...] = (
    Full(),
    *(Lead(p=p) for p in (0.25, 0.5, 0.75)),
    LeadCot(p=0.5),
    LeadAnswer(p=0.5),
    Mix(policy=Lead(p=0.5), whole_share=0.1),
    Tail(p=0.5),
    RandomWindow(p=0.5),
)
"""Policies that an audit shows by default, in addition to that of a recipe."""


class AuditSettings(Settings):
    """One audit: traces, tokenizer, cuts, tasks, thresholds."""

    data: DataSettings
    """Traces and rendering; only the training source is audited, whole."""
    tokenizer: str
    """Tokenizer that counts the tokens."""
    revision: str | None = None
    """Hub revision of the tokenizer."""
    cut: AnyPolicy | None = None
    """The cut of a recipe, shown first."""
    policies: list[AnyPolicy] = list(DEFAULT_POLICIES)
    """Further cuts whose losses are counted."""
    supervision: Supervision = Supervision()
    """Weights by which a position counts as weighted."""
    tasks: list[TaskSettings] = []
    """Evaluation tasks whose problems are searched for among the prompts."""
    seed: int = 0
    """Seed of random cuts and of the bootstrap."""
    ngram_words: int = Field(default=13, ge=5)
    """Words of an n-gram that counts as shared with a task (13: Brown et al., arXiv 2005.14165, appendix C)."""
    near_duplicate: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of word 5-grams from which two traces are near duplicates (Lee et al., arXiv 2107.06499)."""
    loop_repeats: int = Field(default=4, ge=2)
    """How often in a row the same tokens must occur to be a loop."""
    loop_tokens: int = Field(default=64, ge=2)
    """Tokens that a loop must cover in total."""
    item_seconds: float = Field(default=2.0, gt=0)
    """Limit for comparing one candidate answer by algebra."""
