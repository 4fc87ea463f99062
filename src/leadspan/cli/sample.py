"""Send prompts to trained students: the answers of several side by side, with and without a thinking budget."""

import argparse
from typing import TYPE_CHECKING, Any

from leadspan.cli.output import add_json, add_set, console_beside, load_libraries, write_json
from leadspan.cli.reading import ReadModel, read_model

if TYPE_CHECKING:
    from leadspan.evaluation.samples import StoredSample
    from leadspan.evaluation.settings import SamplingSettings

# Far fewer than in an evaluation: someone waits for the answer.
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
    load_libraries()
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from leadspan.evaluation.evaluate import ask
    from leadspan.status import PlainConsole, StatusLine, report_status

    system = [{"role": "system", "content": options.system}] if options.system else []
    conversations = [[*system, {"role": "user", "content": prompt}] for prompt in options.prompts]
    with StatusLine(PlainConsole(stderr=True)):
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


def read(options: argparse.Namespace) -> "tuple[list[ReadModel], SamplingSettings]":
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
