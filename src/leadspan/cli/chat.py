"""Talk to trained students on the terminal; /new starts a new conversation, Ctrl-D ends."""

import argparse
import sys

from leadspan.cli.output import load_libraries
from leadspan.cli.sample import add_sampling, how_it_ended, read
from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Student, and how answers are drawn."""
    parser.add_argument("model", metavar="RUN", help="run directory, model directory or Hub name")
    add_sampling(parser)


def run(options: argparse.Namespace) -> None:
    """Answer line by line; each student sees its own answers, without their thinking."""
    models, settings = read(options)
    load_libraries()
    from leadspan.evaluation.evaluate import ask
    from leadspan.status import PlainConsole, StatusLine, report_status

    console, errors = PlainConsole(), PlainConsole(stderr=True)
    with StatusLine(errors):
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
            with StatusLine(errors):
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
