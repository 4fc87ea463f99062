"""The elements of a report. Markdown omits the figures, and the elements that only the page has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from leadspan.tables import Block


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph: the answer, plain text, a warning, or a note under a table or figure."""

    text: str
    style: Literal["lead", "text", "warning", "note"] = "text"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Radio buttons above a figure.

    Attributes:
        name: Identifier of the buttons in the page's script.
        title: What a reader chooses.
        options: Value to words; the first one is chosen in a new page.
        draws: Identifiers of the figures that are drawn again, separated by spaces.
    """

    name: str
    title: str
    options: Mapping[str, str]
    draws: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page; its numbers are in a table of their own.

    Attributes:
        kind: Which figure, see `assets/figures.js`.
        index: Which of that kind.
        label: What it shows, for screen readers.
        caption: How to read it, and what it was measured on.
        choices: What a reader can choose.
        group: Name of its legend; empty without one.
        policies: Entries of the legend, in order.
        num_shown: How many of them a new page draws.
        bar_parts: Parts of stacked bars to their names, for a legend of their colours.
    """

    kind: str
    index: int | str
    label: str
    caption: str
    choices: tuple[Choice, ...] = ()
    group: str = ""
    policies: tuple[str, ...] = ()
    num_shown: int = 1000  # more than any study has: all of them
    bar_parts: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Elements behind a summary that a reader can open."""

    summary: str
    elements: "tuple[Element, ...]"
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class PageOnly:
    """An element with its own template, which Markdown omits: `pairs` of samples, or all `runs`."""

    template: Literal["pairs", "runs"]


Element = Prose | Bullets | Plot | Heading | Block | Fold | PageOnly


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page, with its entry in the table of contents; an empty entry is not listed."""

    anchor: str
    title: str
    entry: str
    elements: tuple[Element, ...]
