"""The loss of every token of a record, in colours."""

import torch
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from leadspan.data.examples import Example, Examples
from leadspan.data.packing import on_device, pack
from leadspan.data.supervision import SECTION_NAMES, Supervision
from leadspan.data.truncation import Full
from leadspan.inputs import PreparedData
from leadspan.losses.objective import token_losses
from leadspan.models.loading import load_model, name_of
from leadspan.models.settings import ModelSettings
from leadspan.recipe import Recipe
from leadspan.teacher.live import freeze
from leadspan.training.process import process_device

# Upper bounds in nats, which are probabilities of 90, 50, 10 and 1 per cent.
_STEPS = ((0.1, "dim"), (0.7, ""), (2.3, "yellow"), (4.6, "red"), (float("inf"), "bold white on red"))
_MOST_SURPRISING = 8


def loss_panels(recipe: Recipe, data: PreparedData, model: ModelSettings, num_records: int) -> list[Panel | Text]:
    """A legend, and the first training records, whole, each token coloured by its negative log-likelihood."""
    device = process_device()
    loaded = freeze(load_model(model, torch.float32), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    stop = data.renderer.stop_token_id
    uncut = Examples(data.splits.train, Full(), everything, stop, recipe.seed, "training set")
    legend = Text(f"-log likelihood of each token to {name_of(model)}, nats: ")
    for bound, style in _STEPS:
        legend.append(f"below {bound:g}" if bound < float("inf") else "above", style=style).append("  ")
    panels: list[Panel | Text] = [legend]
    for index in range(min(num_records, len(uncut))):
        losses = token_losses(loaded, on_device(pack([uncut[index]]), device)).tolist()
        title = Text(str(uncut.rows.with_format(None)[index]["place"]))
        panels.append(Panel(_coloured(uncut[index], losses, data), title=title, title_align="left"))
    return panels


def _coloured(example: Example, losses: list[float], data: PreparedData) -> Group:
    """The text, the mean loss of each section, and the tokens of highest loss; nothing predicts the first token."""
    texts = [str(data.renderer.tokenizer.decode([token])) for token in example.input_ids.tolist()]
    body = Text(texts[0], style="dim")
    for text, loss in zip(texts[1:], losses, strict=True):
        body.append(text, style=next(style for bound, style in _STEPS if loss < bound))
    sections = example.section_ids[1:].tolist()
    means = []
    for number, name in enumerate(SECTION_NAMES):
        values = [loss for section, loss in zip(sections, losses, strict=True) if section == number]
        means += [f"{name} {sum(values) / len(values):.3f}"] if values else []
    dearest = sorted(zip(losses, texts[1:], strict=True), reverse=True)[:_MOST_SURPRISING]
    shown = ", ".join(f"{text!r} {loss:.1f}" for loss, text in dearest)
    return Group(body, Text(f"mean by section: {', '.join(means)}\nmost surprising: {shown}", style="italic"))
