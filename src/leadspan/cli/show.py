"""How records and counts look in a terminal."""

from collections.abc import Iterator

from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from leadspan.data.examples import Examples
from leadspan.data.prepare import sections_of
from leadspan.data.supervision import ANSWER, COT, PROMPT, SECTION_NAMES, Layout
from leadspan.data.truncation import Sections
from leadspan.data.truncation.policy import CutCounts
from leadspan.tables import Block

_COLOURS = {PROMPT: "cyan", COT: "yellow", ANSWER: "green"}
_WEIGHTED, _CONTEXT, _CUT = "bold", "", "dim strike"


def legend() -> Text:
    """The meaning of colours and styles."""
    text = Text("sections: ")
    for section, colour in _COLOURS.items():
        text.append(f"{SECTION_NAMES[section]} ", style=colour)
    text.append("   kept with a loss: ").append("bold", style=_WEIGHTED)
    text.append("   kept as context: plain   cut: ").append("struck out", style=_CUT)
    return text


def record_panel(examples: Examples, index: int, tokenizer: PreTrainedTokenizerBase, max_chars: int) -> Panel:
    """One record: its whole text by section, with cut, kept and weighted parts marked.

    Args:
        examples: Examples under a policy.
        index: Which of them.
        tokenizer: Decodes the ids.
        max_chars: Long runs show this many characters of their two ends; 0 shows all.
    """
    row = examples.rows.with_format(None)[index % len(examples.rows)]
    sections, layout = sections_of(row), examples.layouts[index]
    body = Text()
    for start, end, section, face in _runs(sections, layout):
        text = str(tokenizer.decode(row["input_ids"][start:end]))
        body.append(_shortened(text, max_chars), style=f"{_COLOURS[section]} {face}")
        if max_chars and len(text) > max_chars:
            body.append(f" [{end - start} tokens] ", style="reverse")
    if layout.append_stop:
        body.append(str(tokenizer.decode([examples.stop_token_id])), style="magenta bold")
    title = f"{row['place']}: {layout.num_tokens} of {sections.num_tokens} tokens kept, {layout.num_weighted} weighted"
    return Panel(body, title=Text(title), title_align="left")


def counts_block(label: str, counts: CutCounts, left_out: dict[str, int]) -> Block:
    """Tokens by section before and after the cut, what was lost, and which examples were not used."""
    rows = [
        _share(f"{name} tokens", counts.section_tokens_after.get(name, 0), before)
        for name, before in counts.section_tokens_before.items()
    ]
    rows.append(_share("all tokens", counts.tokens_after, counts.tokens_before))
    rows.append(("weighted positions", "", f"{counts.weighted_tokens:,}", ""))
    for name in ("lost_question", "lost_think_end", "lost_answer", "lost_stop"):
        lost = getattr(counts, name)
        share = f"{lost / counts.num_kept:.1%}" if counts.num_kept else ""
        words = name.replace("_", " ").replace("think end", "end of thinking")
        rows.append((words, "", f"{lost:,} examples", share))
    if counts.without_steps:
        share = f"{counts.without_steps / counts.num_examples:.1%}"
        rows.append(("chain of thought is one step", "", f"{counts.without_steps:,} examples", share))
    for reason, number in {**counts.dropped, **left_out}.items():
        rows.append((f"left out: {reason}", "", f"{number:,} examples", ""))
    title = f"{label} on {counts.num_examples} training examples"
    return Block(title, ("", "before", "after", "kept"), tuple(rows))


def _share(name: str, after: int, before: int) -> tuple[str, str, str, str]:
    return name, f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else ""


def _runs(sections: Sections, layout: Layout) -> Iterator[tuple[int, int, int, str]]:
    """The whole sequence as runs of tokens with one section and one style."""
    at = 0
    for segment in layout.segments:
        yield from _cut_runs(at, segment.start, sections)
        yield segment.start, segment.end, segment.section, _WEIGHTED if segment.weight > 0 else _CONTEXT
        at = segment.end
    yield from _cut_runs(at, sections.num_tokens, sections)


def _cut_runs(start: int, end: int, sections: Sections) -> Iterator[tuple[int, int, int, str]]:
    borders = ((PROMPT, 0, sections.prompt_end), (COT, sections.prompt_end, sections.cot_end))
    for section, first, last in (*borders, (ANSWER, sections.cot_end, sections.num_tokens)):
        a, b = max(start, first), min(end, last)
        if a < b:
            yield a, b, section, _CUT


def _shortened(text: str, max_chars: int) -> str:
    if not max_chars or len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]} [...] {text[-half:]}"
