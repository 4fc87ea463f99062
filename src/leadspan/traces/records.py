"""A trace, and the refusal of a record that cannot become one."""

from dataclasses import dataclass, field
from unicodedata import normalize


@dataclass(frozen=True, slots=True)
class Trace:
    """One training example as text.

    Attributes:
        messages: The conversation up to the assistant turn that is learnt: `{"role": ..., "content": ...}` each, with
            `name` and `reasoning_content` where a turn has them.
        cot: Chain of thought, without its tags.
        answer: Final answer text, without tags.
        gold: Reference answer, when the source has one.
        place: Where the record stands, e.g. `traces.jsonl:17`, for messages.
        teacher: Name of the teacher to learn it from, where the source says one.
        gold_fault: Why there is no reference answer although the source has a column for it, in a small set of phrases.
    """

    messages: tuple[dict[str, str], ...]
    cot: str
    answer: str
    gold: str | None = None
    place: str = ""
    teacher: str = ""
    gold_fault: str = field(default="", compare=False)

    @property
    def question(self) -> str:
        """The user's turns, for splits by question; system prompt and line breaks do not matter."""
        turns = (message["content"] for message in self.messages if message["role"] == "user")
        return "\0".join(" ".join(normalize("NFC", turn).split()) for turn in turns)


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
