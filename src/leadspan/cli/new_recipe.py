"""A first recipe for a user's traces and models: examines them, and writes a commented recipe."""

import itertools
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from leadspan.costs.settings import DEVICES, recognise
from leadspan.data.sections import RenderedText, Renderer
from leadspan.data.settings import Rendering
from leadspan.errors import ModelError
from leadspan.evaluation.sampling import window_of
from leadspan.models.loading import load_config
from leadspan.models.settings import Pretrained
from leadspan.models.tokenizers import check_vocabulary, load_tokenizer
from leadspan.traces.detection import detect
from leadspan.traces.files import Record
from leadspan.traces.formats import Layout, parse
from leadspan.traces.read import RefusalCounter, read_records
from leadspan.traces.records import Refusal, Trace
from leadspan.traces.settings import TraceSource

NUM_SAMPLED = 256
"""Records that are read for a first look: enough for a median, few enough for seconds."""
_PLAIN = re.compile(r"[A-Za-z_./~][\w./~@-]*")


@dataclass(frozen=True, slots=True)
class RecipeChoices:
    """The user's choices for a recipe.

    Attributes:
        traces: Local path or Hub name.
        student: Starting weights of the student.
        teacher: The teacher, or None for cross-entropy alone.
        task: Settings of an evaluation task.
        name: Name of the run.
    """

    traces: str
    student: Pretrained
    teacher: Pretrained | None
    task: dict[str, Any]  # Any: plain values
    name: str


def recipe_text(choices: RecipeChoices, schema: str) -> str:
    """A recipe in YAML, with comments on the traces, the tokenizer and the machine.

    Args:
        choices: Traces, models and task.
        schema: Path or address of the JSON schema, for the first line.

    Raises:
        DataError: The traces cannot be read, or none of those looked at can be used.
        ModelError: A model cannot be read, no chat template at hand keeps a chain of thought, or the two models have
            different tokenizers.
    """
    traces, layout, counter = _read_sample(choices.traces)
    renderer, whose = _renderer(choices)
    if choices.teacher is not None:
        teacher = load_tokenizer(choices.teacher.tokenizer_path)
        try:
            check_vocabulary(renderer.tokenizer, "teacher", teacher, None)
        except ModelError as error:
            raise ModelError(f"{error}; or leave the teacher out, and train on the traces alone") from None
    lengths = sorted(_lengths(traces, renderer))
    if not lengths:
        raise ModelError(f"{renderer.name}: its chat template can render none of the {len(traces):,} traces looked at")
    window = window_of(load_config(choices.student))
    # The power of two above the length of 95 % of the traces.
    longest = 2 ** max(6, (lengths[int(0.95 * (len(lengths) - 1))] - 1).bit_length())
    # No longer than the window: positions behind it were never trained.
    max_tokens = min(longest, window or longest)
    columns = ", ".join(f"{role} in {column!r}" for role, column in layout.columns.items())
    about_records = [f"  # {counter.num_read:,} records looked at: {columns}."]
    for reason, number in counter.counts.most_common():
        place = counter.examples[reason].place
        about_records.append(f"  # {number:,} of them cannot be used: {reason}, e.g. {place}.")
    template = string.Template((Path(__file__).parents[1] / "recipes/init/recipe.yaml").read_text("utf-8"))
    text = template.substitute(
        schema=schema,
        name=_quoted(choices.name),
        output=_quoted(f"runs/{choices.name}"),
        records="\n".join(about_records),
        train=f"{{path: {_quoted(choices.traces)}, format: {layout.form.name}}}",
        lengths=f"  # Of {len(lengths):,} traces the median has {lengths[len(lengths) // 2]:,} tokens, the longest "
        f"{lengths[-1]:,}; longer ones than\n  # max_tokens are left out and counted"
        + (f" (the student's window: {window:,})." if window else "."),
        max_tokens=max_tokens,
        rendering="\n".join(_about_rendering(renderer)),
        models="\n".join(_models(choices, whose)),
        loss=(
            "loss: {kl_weight: 0.5, temperature: 1}   # half KL from the teacher, half cross-entropy"
            if choices.teacher
            else "loss: {kl_weight: 0, temperature: 1}   # no teacher: cross-entropy"
        ),
        task=_mapping(choices.task),
        max_new_tokens=max_tokens,
        thinking_budget=max_tokens // 2,
        plan=_plan(),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _read_sample(path: str) -> tuple[list[Trace], Layout, RefusalCounter]:
    """The first traces of a source, their layout, and how many records were refused."""
    source = TraceSource(path=path)
    records = list(itertools.islice(read_records(source), NUM_SAMPLED))
    rows = [record for record in records if isinstance(record, Record)]
    # What is refused is shown in the recipe, with an example.
    counter = RefusalCounter()
    if not rows:
        for refusal in records:
            counter.add(refusal)
        counter.check(0.0, path)  # always raises: nothing usable was read
    # The most likely layout; the recipe names it, so that a user can correct it.
    layout = detect(source, rows)[0]
    items = (r if isinstance(r, Refusal) else parse(r.row, layout, r.place) for r in records)
    traces = list(counter.usable(items))
    if not traces:
        counter.check(0.0, path)
    return traces, layout, counter


def _renderer(choices: RecipeChoices) -> tuple[Renderer, str]:
    """The first of the models' tokenizers and of the ways to render that keeps a chain of thought, and whose it is."""
    fault: ModelError | None = None
    for role, model in (("student", choices.student), ("teacher", choices.teacher)):
        for turn in ("template", "append") if model is not None else ():
            assert model is not None, "see above"
            try:
                tokenizer = load_tokenizer(model.tokenizer_path)
                return Renderer(tokenizer, Rendering(assistant_turn=turn)), role
            except ModelError as error:
                fault = fault or error
    assert fault is not None, "there is a student"
    raise fault


def _lengths(traces: list[Trace], renderer: Renderer) -> Iterator[int]:
    rendered = [(text, trace) for trace in traces if isinstance(text := renderer.render(trace), RenderedText)]
    texts, uncut = zip(*rendered, strict=True) if rendered else ((), ())
    return (len(tokens.input_ids) for tokens in renderer.tokenise(texts, uncut))


def _about_rendering(renderer: Renderer) -> Iterator[str]:
    form = renderer.rendering
    tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
    sizes = [len(tokenizer(tag, add_special_tokens=False)["input_ids"]) for tag in (form.think_open, form.think_close)]  # pyright: ignore[reportArgumentType]  # a list of ids
    yield (
        f"  # Thinking stands between {form.think_open} and {form.think_close}, {sizes[0]} and {sizes[1]} tokens to "
        f"this tokenizer; {tokenizer.convert_ids_to_tokens(renderer.stop_token_id)} ends a turn."
    )
    if form.assistant_turn == "append":
        yield "  # The chat template drops a chain of thought, so that it renders the prompt alone."
        yield "  rendering: {assistant_turn: append}"


def _models(choices: RecipeChoices, whose: str) -> Iterator[str]:
    if whose == "teacher" and choices.teacher is not None:
        yield "# The student's tokenizer has no chat template that keeps a chain of thought."
        yield f"tokenizer: {_quoted(choices.teacher.tokenizer_path)}"
    for role, model in (("student", choices.student), ("teacher", choices.teacher)):
        if model is not None:
            values = model.model_dump(exclude_unset=True, exclude_none=True)
            yield f"{role}: {_mapping({'kind': 'pretrained', **values})}"


def _plan() -> str:
    # As a comment: without a GPU here, the machine to plan for is not known.
    if not torch.cuda.is_available():
        return (
            "# This machine has no GPU: `leadspan plan --calibrate` measures the time of a few real steps here; for "
            "another one:\n# plan: {device: rtx-4090, utilisation: 0.4}"
        )
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    device = recognise(name, memory)
    key = next((key for key, preset in DEVICES.items() if preset == device), None)
    # A device without a preset is described by what it says of itself; its speed is for the user to fill in.
    if key is None:
        return f"# plan: {{device: {{name: {_quoted(name)}, peak_tflops: ..., memory_gb: {memory / 1e9:.0f}}}}}"
    return f"plan: {{device: {key}, utilisation: 0.4}}   # --calibrate measures it instead"


def _mapping(values: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_quoted(value)}" for key, value in values.items()) + "}"


def _quoted(value: object) -> str:
    """A value as YAML has it in a flow mapping."""
    text = str(value)
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in ("true", "false", "null", "~", ".inf", ".nan")
    return text if is_plain else json.dumps(value, ensure_ascii=False)
