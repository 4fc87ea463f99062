"""The command line. Parsing needs the standard library only; a command's own imports wait until it runs."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from leadspan.cli import (
    audit,
    capture,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    plan,
    power,
    preview,
    report,
    store,
    study,
    world,
)
from leadspan.errors import LeadspanError

COMMANDS = {
    "demo": demo,
    "world": world,
    "preview": preview,
    "audit": audit,
    "plan": plan,
    "capture": capture,
    "store": store,
    "doctor": doctor,
    "distill": distill,
    "evaluate": evaluate,
    "export": export,
    "study": study,
    "power": power,
    "report": report,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the command reference is made from it."""
    parser = argparse.ArgumentParser(
        prog="leadspan",
        description="Distil a large reasoning model into a small one on the lead span of its traces, "
        "and measure what was kept and what it cost.",
    )
    parser.add_argument("--version", action="version", version=f"leadspan {metadata.version('leadspan')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with `key=value` overrides allowed behind options too."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = "recipe" in options or "data" in options
    if rest and (not takes_overrides or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _leave_ranks() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from leadspan.training.process import leave_ranks

        leave_ranks()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 when something the user gave or left on disk is wrong, said in one message on standard error; 130 on
        interrupt.
    """
    options = parse(arguments)
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "140")  # tables in pipes and files are not squeezed into 80 characters
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("leadspan").setLevel(logging.INFO if int(os.environ.get("RANK", "0")) == 0 else logging.ERROR)
    try:
        COMMANDS[options.command].run(options)
        _leave_ranks()
    except LeadspanError as error:
        print(f"leadspan {options.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise  # not about a file of the user's
        print(f"leadspan {options.command}: {error.filename}: {error.strerror}; mend the path", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"leadspan {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0
