"""Settings of the data stage: where traces come from and how they are rendered."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from leadspan.faults import Rule
from leadspan.settings import Settings
from leadspan.traces.settings import TraceSource


class HeldOutShare(Settings):
    """Validation questions held out of the training source; all traces of a question go to one side."""

    kind: Literal["share"] = "share"
    share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the questions."""


class HeldOutSource(Settings):
    """Validation traces of their own."""

    kind: Literal["source"] = "source"
    source: TraceSource
    """Where they are."""


class NoValidation(Settings):
    """No validation; the last weights are kept."""

    kind: Literal["none"] = "none"


Validation = Annotated[HeldOutShare | HeldOutSource | NoValidation, Field(discriminator="kind")]


# Names under which every template gets its input; no setting may replace them.
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt"}
# Without the white space around it, which the template writes, and of which a model may write less.
ThinkTag = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Rendering(Settings):
    """How a trace becomes one conversation text."""

    chat_template: Path | None = None
    """Jinja file that replaces the tokenizer's chat template."""
    assistant_turn: Literal["template", "append"] = "template"
    """`template`: the chat template renders the assistant turn. `append`: it renders the prompt with its generation
    header; the chain of thought in think tags, the answer and the template's end-of-turn token follow (for templates
    that drop the chain of thought)."""
    template_variables: dict[str, bool | int | float | str] = {}
    """Variables that the chat template reads, for training and evaluation, e.g. `{enable_thinking: true}`."""
    date: datetime.date = datetime.date(2025, 1, 1)
    """Date for a template that reads today's date; the clock is never read, so that data, stores and
    evaluations are the same on every day."""
    think_open: ThinkTag = "<think>"
    """Opening tag of the chain of thought in the rendered conversation: the one that the template writes."""
    think_close: ThinkTag = "</think>"
    """Closing tag, including all that the template writes between chain of thought and answer. White space around a tag
    does not count."""
    end_of_turn: str | None = Field(default=None, min_length=1)
    """Special token that ends the assistant turn, for templates that write none."""
    step_delimiter: str = Field(default="\n\n", min_length=1)
    """Text that separates steps of the chain of thought; its line ends match those of any system, and blanks before
    them are ignored."""

    def conflicts(self) -> Iterator[Rule]:
        """The tags differ; template variables are names that a template reads, and not those that leadspan gives it."""
        if self.think_open == self.think_close:
            text = f"think_open and think_close are both {self.think_open!r}; they must differ"
            yield ("think_open", "think_close"), text
        for name in self.template_variables:
            if name in _GIVEN:
                yield ("template_variables",), f"template_variables: {name!r} is given by leadspan; leave it out"
            elif not name.isidentifier():
                yield ("template_variables",), f"template_variables: {name!r} is no name that a template could read"


class DataSettings(Settings):
    """Traces, validation and rendering."""

    train: TraceSource
    """Training traces."""
    validation: Validation = HeldOutShare()
    """Validation traces; never cut."""
    rendering: Rendering = Rendering()
    """How a trace becomes text."""
    min_tokens: int = Field(default=1, ge=1)
    """Shorter rendered conversations are left out (counted)."""
    max_tokens: int | None = Field(default=None, ge=2)
    """Longer rendered conversations are left out (counted), before any cut."""
    num_train: int | None = Field(default=None, ge=1)
    """Use this many training traces, drawn by the seed."""
    num_validation: int | None = Field(default=None, ge=1)
    """Use this many validation traces, drawn by the seed."""
    max_refused_share: float = Field(default=0.05, ge=0, le=1)
    """More unusable records than this share of a source are an error."""
    num_workers: int = Field(default=1, ge=1)
    """Processes that render and tokenise; one process still uses every core through the tokenizer's own threads."""
    cache_dir: Path | None = None
    """Where tokenised traces are stored for reuse; `$LEADSPAN_CACHE` or `~/.cache/leadspan` when absent."""

    def conflicts(self) -> Iterator[Rule]:
        """Lengths are in order, and validation traces come from somewhere."""
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            yield ("max_tokens", "min_tokens"), f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}"
        if self.num_validation is not None and self.validation.kind == "none":
            fault = f"num_validation {self.num_validation}: there is no validation set; leave it out, or set validation"
            yield ("num_validation", "validation"), fault
