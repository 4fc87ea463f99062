"""Send prompts to trained students: the answers of several side by side, with and without a thinking budget."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leadspan.cli.output import add_json, add_set, console_beside, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from leadspan.cli.reading import Asked
    from leadspan.evaluation.samples import StoredSample
    from leadspan.evaluation.settings import SamplingSettings

    Answers = tuple[StoredSample, StoredSample | None]

MAX_NEW_TOKENS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Student, prompts, and how answers are drawn."""
    parser.add_argument("model", metavar="RUN", help="run directory, model directory or Hub name")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="prompt to answer")
    add_sampling(parser)
    add_json(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Further students, and how answers are drawn."""
    parser.add_argument("--against", action="append", default=[], metavar="RUN", help="further model to compare with")
    parser.add_argument(
        "--thinking-budget", type=int, metavar="N", help="also answer with thinking closed after N tokens"
    )
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="cap (1024)")
    parser.add_argument("--system", default="", help="system message before every prompt")
    add_set(parser, "a setting of sampling: temperature=0, seed=1, top_p=0.9")


def run(options: argparse.Namespace) -> None:
    """Send every prompt to every student, and print the answers side by side."""
    models, settings = read(options)
    from leadspan.evaluation.asking import ask
    from leadspan.status import PlainConsole, StatusLine, report_status

    system = [{"role": "system", "content": options.system}] if options.system else []
    conversations = [[*system, {"role": "user", "content": prompt}] for prompt in options.prompts]
    answers: list[list[Answers]] = []
    with StatusLine(PlainConsole(stderr=True)):
        for asked in models:
            report_status(f"asking {asked.name}")
            answers.append(ask(asked.open(settings), conversations))
    names = [asked.name for asked in models]
    for number, prompt in enumerate(options.prompts):
        shown = _side_by_side(prompt, names, [of_model[number] for of_model in answers])
        console_beside(options.json).print(shown)
    rows = [
        {"model": name, "prompt": prompt, **_as_json(by_itself, "by_itself"), **_as_json(closed, "thinking_closed")}
        for name, of_model in zip(names, answers, strict=True)
        for prompt, (by_itself, closed) in zip(options.prompts, of_model, strict=True)
    ]
    write_json(rows, options.json)


def read(options: argparse.Namespace) -> "tuple[list[Asked], SamplingSettings]":
    """The students and the sampling that the options name."""
    from leadspan.cli.reading import read_model
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
    return f"{sample.drawn.num_tokens:,} tokens, {ended}{loops}" + (
        "" if sample.thinking_closed else ", still thinking"
    )


def _side_by_side(prompt: str, names: Sequence[str], answers: "list[Answers]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=prompt, title_justify="left", show_lines=True)
    for name in names:
        table.add_column(name, overflow="fold", ratio=1)
    table.add_row(*(Text.assemble(sample.drawn.text, "\n", (how_it_ended(sample), "dim")) for sample, _ in answers))
    if any(closed for _, closed in answers):
        table.add_row(
            *(
                Text.assemble(closed.drawn.text, "\n", (f"thinking closed: {how_it_ended(closed)}", "dim"))
                if closed
                else Text("as above: it closed its thinking itself", style="dim")
                for _, closed in answers
            )
        )
    return table


def _as_json(sample: "StoredSample | None", name: str) -> dict[str, Any]:
    from dataclasses import asdict

    return {} if sample is None else {name: {**asdict(sample.drawn), "thinking_closed": sample.thinking_closed}}
