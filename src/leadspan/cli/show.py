"""How `preview` shows records, the losses of their tokens, and counts in a terminal."""

from collections.abc import Iterator

from rich.console import Group
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from leadspan.data.examples import Examples
from leadspan.data.prepare import sections_of
from leadspan.data.supervision import ANSWER, COT, PROMPT, SECTION_NAMES, Layout, Supervision
from leadspan.data.truncation import Full, Sections
from leadspan.data.truncation.policy import CutCounts
from leadspan.inputs import PreparedData
from leadspan.models.settings import ModelSettings
from leadspan.recipe import Recipe
from leadspan.tables import Block

_COLOURS = {PROMPT: "cyan", COT: "yellow", ANSWER: "green"}
_WEIGHTED, _CONTEXT, _CUT = "bold", "", "dim strike"
# Upper bounds in nats, which are probabilities of 90, 50, 10 and 1 per cent.
_LOSS_STYLES = ((0.1, "dim"), (0.7, ""), (2.3, "yellow"), (4.6, "red"), (float("inf"), "bold white on red"))
_MOST_SURPRISING = 8


def legend(has_styles: bool) -> Text:
    """The meaning of colours and styles, or of the marks where the output has none."""
    if not has_styles:
        return Text("[cut: ...] is what the policy cuts away; a terminal with colours shows sections and weights, too")
    text = Text("sections: ")
    for section, colour in _COLOURS.items():
        text.append(f"{SECTION_NAMES[section]} ", style=colour)
    text.append("   kept with a loss: ").append("bold", style=_WEIGHTED)
    text.append("   kept as context: plain   cut: ").append("struck out", style=_CUT)
    return text


def record_panel(
    examples: Examples, index: int, tokenizer: PreTrainedTokenizerBase, max_chars: int, has_styles: bool = True
) -> Panel:
    """One record: its whole text by section, with cut, kept and weighted parts marked.

    Args:
        examples: Examples under a policy.
        index: Which of them.
        tokenizer: Decodes the ids.
        max_chars: Long runs show this many characters of their two ends; 0 shows all.
        has_styles: Whether the output shows styles; else what is cut is put in brackets.
    """
    # Under a schedule there are several examples of each row, stage by stage.
    row = examples.rows.with_format(None)[index % len(examples.rows)]
    sections, layout = sections_of(row), examples.layouts[index]
    body = Text()
    for start, end, section, face in _runs(sections, layout):
        text = str(tokenizer.decode(row["input_ids"][start:end]))
        is_long = 0 < max_chars < len(text)
        # Both ends of a run show its borders, which is what a preview is for.
        half = max_chars // 2
        shown = f"{text[:half]} [...] {text[-half:]}" if is_long else text
        if face == _CUT and not has_styles:
            shown = f"[cut: {shown}]"
        body.append(shown, style=f"{_COLOURS[section]} {face}")
        if is_long:
            body.append(f" [{end - start} tokens] ", style="reverse")
    if layout.append_stop:
        body.append(str(tokenizer.decode([examples.stop_token_id])), style="magenta bold")
    title = f"{row['place']}: {layout.num_tokens} of {sections.num_tokens} tokens kept, {layout.num_weighted} weighted"
    return Panel(body, title=Text(title), title_align="left")


def loss_panels(recipe: Recipe, data: PreparedData, model: ModelSettings, num_records: int) -> list[Panel | Text]:
    """A legend, and the first training records, whole, each token coloured by its negative log-likelihood.

    Below each: the mean loss of its sections, and the tokens of highest loss. Nothing predicts the first token.
    """
    # Here, since a preview without losses takes half the time when it imports no models.
    import torch

    from leadspan.data.packing import on_device, pack
    from leadspan.losses.objective import token_losses
    from leadspan.models.loading import load_model, name_of
    from leadspan.teacher.targets import freeze
    from leadspan.training.process import process_device

    device = process_device()
    # In float32: a few records need no speed.
    loaded = freeze(load_model(model, torch.float32), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    uncut = Examples(data.splits.train, Full(), everything, data.renderer.stop_token_id, recipe.seed, "training set")
    legend = Text(f"-log likelihood of each token to {name_of(model)}, nats: ")
    for bound, style in _LOSS_STYLES:
        legend.append(f"below {bound:g}" if bound < float("inf") else "above", style=style).append("  ")
    panels: list[Panel | Text] = [legend]
    for index in range(min(num_records, len(uncut))):
        example = uncut[index]
        losses = token_losses(loaded, on_device(pack([example]), device)).tolist()
        # Token by token: decoded together, a byte-pair tokenizer would join neighbours.
        first, *texts = [str(data.renderer.tokenizer.decode([token])) for token in example.input_ids.tolist()]
        body = Text(first, style="dim")
        for text, loss in zip(texts, losses, strict=True):
            body.append(text, style=next(style for bound, style in _LOSS_STYLES if loss < bound))
        sections = example.section_ids[1:].tolist()
        means = []
        for number, name in enumerate(SECTION_NAMES):
            values = [loss for section, loss in zip(sections, losses, strict=True) if section == number]
            means += [f"{name} {sum(values) / len(values):.3f}"] if values else []
        dearest = sorted(zip(losses, texts, strict=True), reverse=True)[:_MOST_SURPRISING]
        shown = ", ".join(f"{text!r} {loss:.1f}" for loss, text in dearest)
        summary = Text(f"mean by section: {', '.join(means)}\nmost surprising: {shown}", style="italic")
        title = Text(str(uncut.rows.with_format(None)[index]["place"]))
        panels.append(Panel(Group(body, summary), title=title, title_align="left"))
    return panels


def counts_block(label: str, counts: CutCounts, left_out: dict[str, int]) -> Block:
    """Tokens by section before and after the cut, what was lost, and which examples were not used."""
    rows: list[tuple[str, ...]] = []
    before, after = counts.section_tokens_before, counts.section_tokens_after
    totals = {"all": (counts.tokens_before, counts.tokens_after)}
    for name, (old, new) in ({name: (number, after.get(name, 0)) for name, number in before.items()} | totals).items():
        rows.append((f"{name} tokens", f"{old:,}", f"{new:,}", f"{new / old:.1%}" if old else ""))
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
