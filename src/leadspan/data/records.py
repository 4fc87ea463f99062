"""The frozen types of the data stage, one at each border."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trace:
    """One training example as text.

    Attributes:
        messages: The conversation up to the assistant turn that is learnt: `{"role": ..., "content": ...}` each.
        cot: Chain of thought, without its tags.
        answer: Final answer text, without tags.
        gold: Reference answer, when the source has one.
        place: Where the record stands, e.g. `traces.jsonl:17`, for messages.
    """

    messages: tuple[dict[str, str], ...]
    cot: str
    answer: str
    gold: str | None = None
    place: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that cannot be used.

    Attributes:
        reason: One of a small set of phrases, so that refusals can be counted.
        detail: What is wrong with this record.
        place: Where the record stands.
    """

    reason: str
    detail: str
    place: str = ""
