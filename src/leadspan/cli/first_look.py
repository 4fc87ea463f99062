"""A first look at traces: a commented recipe for them (`init`), and their records with cut and losses (`preview`).

The commands import this module when they have checked their options.
"""

import itertools
import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from leadspan.costs.settings import DEVICES, recognise
from leadspan.data.examples import Examples
from leadspan.data.prepare import sections_of
from leadspan.data.sections import RenderedText, Renderer
from leadspan.data.settings import Rendering
from leadspan.data.supervision import ANSWER, COT, PROMPT, SECTION_NAMES, Layout, Supervision
from leadspan.data.truncation import Full, Sections
from leadspan.errors import ModelError
from leadspan.inputs import PreparedData
from leadspan.models.reading import check_vocabulary, load_tokenizer
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.recipe import Recipe
from leadspan.traces.files import Record
from leadspan.traces.formats import Layout as TraceLayout
from leadspan.traces.formats import detect, parse
from leadspan.traces.read import read_records
from leadspan.traces.records import Refusal, RefusalCounter, Trace
from leadspan.traces.settings import TraceSource
from leadspan.yaml_text import parse_yaml

NUM_SAMPLED = 256
"""Records that are read for a first look: enough for a median, few enough for seconds."""
_PLAIN = re.compile(r"[A-Za-z_./~][\w./~@-]*")
_COLOURS = {PROMPT: "cyan", COT: "yellow", ANSWER: "green"}
_WEIGHTED, _CONTEXT, _CUT = "bold", "", "dim strike"
# Upper bounds in nats, which are probabilities of 90, 50, 10 and 1 per cent.
_LOSS_STYLES = ((0.1, "dim"), (0.7, ""), (2.3, "yellow"), (4.6, "red"), (float("inf"), "bold white on red"))
_MOST_SURPRISING = 8


def recipe_text(
    source: TraceSource, student: Pretrained, teacher: Pretrained | None, task: dict[str, Any], name: str, schema: str
) -> str:
    """A recipe in YAML, with comments on the traces, the tokenizer and the machine; its first line names the schema."""
    from leadspan.evaluation.sampling import window_of
    from leadspan.models.loading import load_config

    traces, layout, counter = _read_sample(source)
    # The first of the models' tokenizers and of the ways to render that keeps a chain of thought.
    faults: list[ModelError] = []
    models = {"student": student} | ({"teacher": teacher} if teacher else {})
    for (role, model), turn in itertools.product(models.items(), ("template", "append")):
        try:
            renderer, whose = Renderer(load_tokenizer(model.tokenizer_path), Rendering(assistant_turn=turn)), role
            break
        except ModelError as error:
            faults.append(error)
    else:
        raise faults[0]
    if teacher is not None:
        try:
            check_vocabulary(renderer.tokenizer, "teacher", load_tokenizer(teacher.tokenizer_path), None)
        except ModelError as error:
            raise ModelError(f"{error}; or leave the teacher out, and train on the traces alone") from None
    rendered = [(text, trace) for trace in traces if isinstance(text := renderer.render(trace), RenderedText)]
    texts, uncut = zip(*rendered, strict=True) if rendered else ((), ())
    lengths = sorted(len(tokens.input_ids) for tokens in renderer.tokenise(texts, uncut))
    if not lengths:
        raise ModelError(f"{renderer.name}: its chat template can render none of the {len(traces):,} traces looked at")
    window = window_of(load_config(student))
    # The power of two above the length of 95 % of the traces; no longer than the window, as positions behind it were
    # never trained.
    longest = 2 ** max(6, (lengths[int(0.95 * (len(lengths) - 1))] - 1).bit_length())
    max_tokens = min(longest, window or longest)
    about_lengths = (
        f"  # The median of {len(lengths):,} traces is {lengths[len(lengths) // 2]:,} tokens, the longest is "
        f"{lengths[-1]:,}; traces longer\n  # than max_tokens are left out and counted"
    )
    template = string.Template((Path(__file__).parents[1] / "recipes/init/recipe.yaml").read_text("utf-8"))
    text = template.substitute(
        schema=schema,
        name=_quoted(name),
        output=_quoted(f"runs/{name}"),
        train=_quoted(
            {"path": source.path, "format": layout.form.name} | source.model_dump(mode="json", exclude_unset=True)
        ),
        lengths=about_lengths + (f" (the student's window: {window:,})." if window else "."),
        max_tokens=max_tokens,
        task=_quoted(task),
        max_new_tokens=max_tokens,
        thinking_budget=max_tokens // 2,
        **_about(models, layout, counter, renderer, whose),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _read_sample(source: TraceSource) -> tuple[list[Trace], TraceLayout, RefusalCounter]:
    """The first traces of a source, their most likely layout, and how many records were refused."""
    counter = RefusalCounter()
    records = list(itertools.islice(read_records(source), NUM_SAMPLED))
    rows = [record for record in records if isinstance(record, Record)]
    if not rows:
        for refusal in records:
            counter.add(refusal)
        counter.check(0.0, source.path)  # always raises: nothing usable was read
    # The recipe names the layout, so that a user can correct it.
    layout = detect(source, rows)[0]
    traces = list(counter.usable(r if isinstance(r, Refusal) else parse(r.row, layout, r.place) for r in records))
    if not traces:
        counter.check(0.0, source.path)
    return traces, layout, counter


def _about(
    models: dict[str, Pretrained], layout: TraceLayout, counter: RefusalCounter, renderer: Renderer, whose: str
) -> dict[str, str]:
    """What the template of a recipe says of the traces, the tokenizer, the models, the loss and this machine."""
    import torch

    columns = ", ".join(f"{role} in {column!r}" for role, column in layout.columns.items())
    records = [f"  # {counter.num_read:,} records looked at: {columns}."]
    for reason, number in counter.counts.most_common():
        records.append(f"  # {number:,} of them cannot be used: {reason}, e.g. {counter.examples[reason].place}.")
    form, tokenizer = renderer.rendering, renderer.tokenizer
    sizes = [len(tokenizer(tag, add_special_tokens=False)["input_ids"]) for tag in (form.think_open, form.think_close)]  # pyright: ignore[reportArgumentType]  # a list of ids
    rendering = (
        f"  # Thinking is written between {form.think_open} and {form.think_close}, {sizes[0]} and {sizes[1]} tokens "
        f"in this tokenizer; {tokenizer.convert_ids_to_tokens(renderer.stop_token_id)} ends a turn."
    )
    if form.assistant_turn == "append":
        rendering += "\n  # The chat template drops a chain of thought, so that it renders the prompt alone."
        rendering += "\n  rendering: {assistant_turn: append}"
    about_models: list[str] = []
    if whose == "teacher":
        about_models.append("# The student's tokenizer has no chat template that keeps a chain of thought.")
        about_models.append(f"tokenizer: {_quoted(models[whose].tokenizer_path)}")
    for role, model in models.items():
        values = model.model_dump(exclude_unset=True, exclude_none=True)
        about_models.append(f"{role}: {_quoted({'kind': 'pretrained', **values})}")
    loss = "loss: {kl_weight: 0, temperature: 1}   # no teacher: cross-entropy"
    if "teacher" in models:
        loss = "loss: {kl_weight: 0.5, temperature: 1}   # half KL from the teacher, half cross-entropy"
    if not torch.cuda.is_available():
        # As a comment: without a GPU here, the machine to plan for is not known.
        plan = (
            "# This machine has no GPU: `leadspan plan RECIPE --calibrate --cut '{kind: full}'` times a few steps; for "
            "another one:\n# plan: {device: rtx-4090, utilisation: 0.4}"
        )
    else:
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        device = recognise(name, memory)
        key = next((key for key, preset in DEVICES.items() if preset == device), None)
        plan = f"plan: {{device: {key}, utilisation: 0.4}}   # --calibrate measures it instead"
        if key is None:  # described by what it says of itself; its speed is for the user to fill in
            plan = f"# plan: {{device: {{name: {_quoted(name)}, peak_tflops: ..., memory_gb: {memory / 1e9:.0f}}}}}"
    texts = {"records": "\n".join(records), "models": "\n".join(about_models)}
    return {**texts, "rendering": rendering, "loss": loss, "plan": plan}


def _quoted(value: object) -> str:
    """A value as YAML has it in a flow mapping."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_quoted(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    # Some words and numbers look like text: `null`, `.5`.
    is_plain = _PLAIN.fullmatch(text) and parse_yaml(text, "a value") == text
    return text if is_plain else json.dumps(value, ensure_ascii=False)


def record_panels(data: PreparedData, num_records: int, max_chars: int, has_styles: bool) -> Iterator[Panel | Text]:
    """A legend, and the first training records: their whole text by section, with cut, kept and weighted parts marked.

    Long runs show `max_chars` characters of their two ends; 0 shows all. Where the output has no styles, what is cut is
    put in brackets.
    """
    legend = Text("[cut: ...] is what the policy cuts away; a terminal with colours shows sections and weights, too")
    if has_styles:
        legend = Text("sections: ")
        for section, colour in _COLOURS.items():
            legend.append(f"{SECTION_NAMES[section]} ", style=colour)
        legend.append("   kept with a loss: ").append("bold", style=_WEIGHTED)
        legend.append("   kept as context: plain   cut: ").append("struck out", style=_CUT)
    yield legend
    examples, tokenizer = data.examples, data.renderer.tokenizer
    # The first records: what is shown must be found again in the file.
    for index in range(min(num_records, len(examples))):
        # Under a schedule there are several examples of each row, stage by stage.
        row = examples.rows.with_format(None)[index % len(examples.rows)]
        sections, layout = sections_of(row), examples.layouts[index]
        body = Text()
        for start, end, section, face in _runs(sections, layout):
            text = str(tokenizer.decode(row["input_ids"][start:end]))
            is_long = 0 < max_chars < len(text)
            # Both ends of a run show its borders, which is what a preview is for.
            half = max_chars // 2
            shown = f"{text[:half]} [...] {text[len(text) - half :]}" if is_long else text
            shown = f"[cut: {shown}]" if face == _CUT and not has_styles else shown
            body.append(shown, style=f"{_COLOURS[section]} {face}")
            if is_long:
                body.append(f" [{end - start} tokens] ", style="reverse")
        if layout.append_stop:
            body.append(str(tokenizer.decode([examples.stop_token_id])), style="magenta bold")
        kept = f"{layout.num_tokens} of {sections.num_tokens} tokens kept, {layout.num_weighted} weighted"
        yield Panel(body, title=Text(f"{row['place']}: {kept}"), title_align="left")


def loss_panels(
    recipe: Recipe, data: PreparedData, model: ModelSettings, num_records: int, has_styles: bool
) -> list[Panel | Text]:
    """A legend, and the first training records, whole, each token coloured by its negative log-likelihood.

    Below each: the mean loss of its sections, and the tokens of highest loss. Nothing predicts the first token.
    """
    # Here, since a preview without losses takes half the time when it imports no models.
    import torch

    from leadspan.data.packing import on_device, pack
    from leadspan.losses.objective import token_losses
    from leadspan.models.loading import load_model, name_of
    from leadspan.ranks import process_device
    from leadspan.teacher.targets import freeze

    device = process_device()
    # In float32: a few records need no speed.
    loaded = freeze(load_model(model, torch.float32), device)
    everything = Supervision(prompt=1, cot=1, answer=1)
    uncut = Examples(data.splits.train, Full(), everything, data.renderer.stop_token_id, recipe.seed, "training set")
    legend = Text(f"loss of each token, -log p under {name_of(model)}, in nats")
    for bound, style in _LOSS_STYLES if has_styles else ():
        legend.append("   ").append(f"below {bound:g}" if bound < float("inf") else "above", style=style)
    if not has_styles:
        legend.append("; a terminal with colours shows it, here see the means and the largest ones below the text")
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


def _runs(sections: Sections, layout: Layout) -> Iterator[tuple[int, int, int, str]]:
    """The whole sequence as runs of tokens with one section and one style."""
    borders = (0, sections.prompt_end, sections.cot_end, sections.num_tokens)
    at = 0
    for segment in (*layout.segments, None):
        end = sections.num_tokens if segment is None else segment.start
        # What is cut before a segment, or behind the last one, may reach over several sections.
        for section, first, last in zip((PROMPT, COT, ANSWER), borders, borders[1:], strict=False):
            if max(at, first) < min(end, last):
                yield max(at, first), min(end, last), section, _CUT
        if segment is not None:
            yield segment.start, segment.end, segment.section, _WEIGHTED if segment.weight > 0 else _CONTEXT
            at = segment.end
