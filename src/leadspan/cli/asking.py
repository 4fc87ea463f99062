"""Prompts to trained students: answers side by side, or a conversation."""

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    ReadModel,
    argument,
    command,
    console_beside,
    load_libraries,
    read_model,
    setting,
    status_line,
    write_json,
)
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.evaluation.samples import StoredSample
    from leadspan.evaluation.settings import SamplingSettings

# Far fewer than in an evaluation: someone waits for the answer.
MAX_NEW_TOKENS = 1024


_SAMPLING = (
    argument("--against", action="append", default=[], metavar="RUN", help="further model to compare with"),
    argument("--thinking-budget", type=int, metavar="N", help="also answer with thinking closed after N tokens"),
    argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="cap (1024)"),
    argument("--system", default="", help="system message before every prompt"),
    setting("a setting of sampling: temperature=0, seed=1, top_p=0.9"),
)


@command(
    "Send prompts to trained students: the answers of several side by side, with and without a thinking budget.",
    argument("model", metavar="RUN", help="run directory, model directory or Hub name"),
    argument("prompts", nargs="+", metavar="PROMPT", help="prompt to answer"),
    *_SAMPLING,
    JSON,
)
def sample(options: argparse.Namespace) -> None:
    """Send every prompt to every student, and print the answers side by side."""
    models, settings = _read(options)
    load_libraries()

    from rich.table import Table
    from rich.text import Text

    from leadspan.evaluation.evaluate import ask
    from leadspan.status import report_status

    system = [{"role": "system", "content": options.system}] if options.system else []
    conversations = [[*system, {"role": "user", "content": prompt}] for prompt in options.prompts]
    with status_line():
        by_model: list[list[tuple[StoredSample, StoredSample | None]]] = []
        for model in models:
            report_status(f"asking {model.name}")
            by_model.append(ask(model.open(settings), conversations))
    for prompt, answers in zip(options.prompts, zip(*by_model, strict=True), strict=True):
        table = Table(title=prompt, title_justify="left", show_lines=True)
        for model in models:
            table.add_column(model.name, overflow="fold", ratio=1)
        table.add_row(*(Text.assemble(answer.drawn.text, "\n", (how_it_ended(answer), "dim")) for answer, _ in answers))
        # A second row only where the budget has closed a student's thinking.
        if any(closed for _, closed in answers):
            second_row = (
                Text.assemble(closed.drawn.text, "\n", (f"thinking closed: {how_it_ended(closed)}", "dim"))
                if closed
                else Text("as above: it closed its thinking itself", style="dim")
                for _, closed in answers
            )
            table.add_row(*second_row)
        console_beside(options.json).print(table)
    rows: list[dict[str, Any]] = []  # Any: plain values
    for model, answers in zip(models, by_model, strict=True):
        for prompt, pair in zip(options.prompts, answers, strict=True):
            rows.append({"model": model.name, "prompt": prompt})
            for name, sample in zip(("by_itself", "thinking_closed"), pair, strict=True):
                if sample is not None:
                    rows[-1][name] = {**asdict(sample.drawn), "thinking_closed": sample.thinking_closed}
    write_json(rows, options.json)


def _read(options: argparse.Namespace) -> "tuple[list[ReadModel], SamplingSettings]":
    """The students and the sampling that the options name."""
    from leadspan.evaluation.settings import SamplingSettings
    from leadspan.settings import apply_overrides, validate

    values: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "thinking_budget": options.thinking_budget}
    apply_overrides(values, options.overrides)
    settings = validate(SamplingSettings, values, "sampling")
    return [read_model(name) for name in (options.model, *options.against)], settings


def how_it_ended(sample: "StoredSample") -> str:
    """Tokens, and whether the turn ended."""
    ended = "ended" if sample.drawn.finish_reason == "stop" else "not ended"
    loops = ", loops" if sample.drawn.loops else ""
    thinks = "" if sample.thinking_closed else ", still thinking"
    return f"{sample.drawn.num_tokens:,} tokens, {ended}{loops}{thinks}"


@command(
    "Talk to trained students on the terminal; /new starts a new conversation, Ctrl-D ends.",
    argument("model", metavar="RUN", help="run directory, model directory or Hub name"),
    *_SAMPLING,
)
def chat(options: argparse.Namespace) -> None:
    """Answer line by line; each student sees its own answers, without their thinking."""
    models, settings = _read(options)
    load_libraries()
    from leadspan.evaluation.evaluate import ask
    from leadspan.status import PlainConsole, report_status

    console = PlainConsole()
    with status_line():
        report_status("loading")
        subjects = {model.name: model.open(settings) for model in models}
    begin = [{"role": "system", "content": options.system}] if options.system else []
    turns = {name: list(begin) for name in subjects}
    while (line := _line()) is not None:
        if line == "/new":
            turns = {name: list(begin) for name in subjects}
        if not line or line == "/new":
            continue
        for name, subject in subjects.items():
            turns[name].append({"role": "user", "content": line})
            with status_line():
                report_status("answering")
                # With a budget the closed answer is what a user would see, so it is the one shown and remembered.
                [(by_itself, closed)] = ask(subject, [turns[name]])
            answer = closed or by_itself
            if len(subjects) > 1:
                console.print(name, style="bold", highlight=False)
            console.print(answer.drawn.text, highlight=False)
            console.print(
                f"({'thinking closed: ' if closed else ''}{how_it_ended(answer)})", style="dim", highlight=False
            )
            # The thinking is left out of the next prompt, as chat templates leave it out.
            said = answer.drawn.text.rpartition(subject.renderer.rendering.think_close)[2].strip()
            turns[name].append({"role": "assistant", "content": said})


def _line() -> str | None:
    """The next line of the user; None at the end of input."""
    # `input` prints a prompt and edits the line, which a pipe does not need.
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            print_plain()
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None
