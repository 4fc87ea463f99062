"""The process that runs chat templates: jinja's sandbox as Transformers sets it up, within limits of time and size.

A chat template is a program from elsewhere. It runs here, in a process of its own that its caller can lose: processor
time beyond the limit ends the process, whatever it is doing, and memory beyond the limit is refused by the system.
The process imports jinja and the standard library alone, so that it starts at once, and it never reads the clock: what
a template learns of time or chance is the same on every day.

**Source**: `transformers.utils.chat_template_utils`, whose environment, filters and names these are; a test compares
the two.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 0.5  # real templates take milliseconds
CHARACTERS_PER_SECOND = 10_000_000  # more time for what is long: real templates read it some hundred times as fast
MEMORY_BYTES = 1 << 29  # beyond what the process has when it starts
FREE_CHARACTERS = 100_000  # what a template may add of its own; real ones add some thousands
GROWTH = 8  # and how often it may repeat what it is given; escapes of JSON take up to six characters for one
# Compiled templates in memory: one per template and date, a few in any run.
_NUM_TEMPLATES = 64
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, with which some templates mark what the model writes; the text inside stays as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(now: str) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        # As Transformers sets them; other values move line ends, and with them token ids.
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = datetime.fromisoformat(now).strftime
    return environment


@lru_cache(maxsize=_NUM_TEMPLATES)
def _compiled(template: str, now: str) -> jinja2.Template:
    return _environment(now).from_string(template)


def _names_read(tree: nodes.Template) -> dict[str, list[str]]:
    """The names that a template reads without setting them, each with the texts that it compares it with."""
    compared: dict[str, list[str]] = {}
    for comparison in tree.find_all(nodes.Compare):
        sides = [comparison.expr, *(operand.expr for operand in comparison.ops)]
        constants = [part for side in sides for part in (side, *side.find_all(nodes.Const))]
        texts = [part.value for part in constants if isinstance(part, nodes.Const) and isinstance(part.value, str)]
        for name in (side.name for side in sides if isinstance(side, nodes.Name)):
            compared[name] = list(dict.fromkeys([*compared.get(name, []), *texts]))
    names = jinja2.meta.find_undeclared_variables(tree)  # last: it folds the constants of the tree
    return {name: compared.get(name, []) for name in sorted(names)}


def answer(request: dict[str, Any]) -> tuple[str, Any]:
    """Answer one request.

    Args:
        request: `template`, `now` (an ISO date), and either `conversations` (pairs of messages and whether the
            generation header follows) with `variables`, or nothing more.

    Returns:
        The outcome and its content: `texts`, one for each conversation; `names`, those that the template reads
        and does not set, with the texts it compares them with; `refused` or `too large`, with a message.
    """
    try:
        if "conversations" not in request:
            environment = _environment(request["now"])
            del environment.globals["strftime_now"]  # to be named too; jinja names nothing that the environment gives
            return "names", _names_read(environment.parse(request["template"]))
        template, texts = _compiled(request["template"], request["now"]), []
        for messages, add_generation_prompt in request["conversations"]:
            # The `random` filter of jinja draws from this generator.
            random.seed(0)
            prepared: list[dict[str, Any]] = []
            for message in messages:  # without nulls, and with its reasoning under each key that templates read
                turn = {key: value for key, value in message.items() if value is not None}
                reasoning = next((turn[key] for key in _REASONING_KEYS if key in turn), None)
                if reasoning is not None:
                    turn = {"thinking": reasoning, **turn, "reasoning_content": reasoning}
                prepared.append(turn)
            standard = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
            text = template.render({"messages": prepared, **standard, **request["variables"]})
            limit = FREE_CHARACTERS + GROWTH * len(str(messages))
            if len(text) > limit:
                raise MemoryError(f"it writes {len(text)} characters, more than {limit} for this conversation")
            text.encode()  # raises where the template writes one half of a surrogate pair
            texts.append(text)
        return "texts", texts
    except MemoryError as error:
        return "too large", str(error)
    except jinja2.TemplateSyntaxError as error:
        return "refused", f"line {error.lineno}: {error.message}"
    except jinja2.TemplateError as error:
        return "refused", str(error.message)
    except Exception as error:  # whatever a program from elsewhere comes to
        return "refused", f"{type(error).__name__}: {error}"


def main(descriptor: int) -> None:
    """Limit the memory of this process, and answer requests until the caller is gone."""
    with contextlib.suppress(FileNotFoundError, PermissionError), open("/proc/self/statm") as file:
        # Only Linux tells what is used; elsewhere the limit of the text's size is left.
        used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    caller, connection = os.getppid(), Connection(descriptor)
    with contextlib.suppress(EOFError, OSError):  # the caller is gone
        while os.getppid() == caller:
            if not connection.poll(1.0):  # a caller that was killed may leave its end open in a process it had forked
                continue
            request = connection.recv()
            seconds = CPU_SECONDS + len(str(request)) / CHARACTERS_PER_SECOND
            signal.setitimer(signal.ITIMER_PROF, seconds)  # unhandled, so it ends the process wherever it is
            reply = answer(request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(reply)


if __name__ == "__main__":
    main(int(sys.argv[1]))
