"""Settings of the data stage: where traces come from and how they are rendered."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from leadspan.settings import Settings

FormatName = Literal[
    "openthoughts",
    "bespoke_stratos",
    "synthetic_1",
    "llama_nemotron",
    "openr1_math",
    "s1k",
    "messages",
    "columns",
    "gsm8k",
]


class TraceSource(Settings):
    """A local file, a directory of files, or a dataset on the Hub."""

    path: str
    """Local `.jsonl`, `.json`, `.parquet` or `.arrow` file, a directory of them, or a Hub dataset name."""
    format: FormatName | None = None
    """Format of the records; detected from the columns when absent."""
    columns: dict[Literal["prompt", "cot", "answer", "gold", "system"], str] = {}
    """Names of the columns for `format: columns`, where they differ from the usual ones."""
    subset: str | None = None
    """Hub configuration name."""
    split: str = "train"
    """Hub split."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many records."""


class HeldOutShare(Settings):
    """Validation questions held out of the training source; all traces of a question go to one side."""

    kind: Literal["share"] = "share"
    """Tag."""
    share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the questions."""


class HeldOutSource(Settings):
    """Validation traces of their own."""

    kind: Literal["source"] = "source"
    """Tag."""
    source: TraceSource
    """Where they are."""


class NoValidation(Settings):
    """No validation; the last weights are kept."""

    kind: Literal["none"] = "none"
    """Tag."""


Validation = Annotated[HeldOutShare | HeldOutSource | NoValidation, Field(discriminator="kind")]


class Rendering(Settings):
    """How a trace becomes one conversation text."""

    chat_template: Path | None = None
    """Jinja file that replaces the tokenizer's chat template."""
    assistant_turn: Literal["template", "append"] = "template"
    """`template`: the chat template renders the assistant turn. `append`: it renders the prompt with its generation
    header; the chain of thought in think tags, the answer and the end-of-sequence token follow (for templates that drop
    the chain of thought)."""
    think_open: str = Field(default="<think>", min_length=1)
    """Opening tag of the chain of thought in the rendered conversation."""
    think_close: str = Field(default="</think>", min_length=1)
    """Closing tag."""
    step_delimiter: str = Field(default="\n\n", min_length=1)
    """Text that separates steps of the chain of thought."""


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
    """More unusable records than this share of a source is an error."""
    num_workers: int = Field(default=1, ge=1)
    """Processes that render and tokenise; one process still uses every core through the tokenizer's own threads."""
    cache_dir: Path | None = None
    """Where tokenised traces are kept for reuse; `$LEADSPAN_CACHE` or `~/.cache/leadspan` when absent."""

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "DataSettings":
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}")
        return self
