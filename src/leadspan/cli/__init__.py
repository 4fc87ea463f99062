"""The command line. Parsing needs the standard library only; a command's own imports wait until it runs."""

import argparse
import difflib
import errno
import importlib
import io
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from leadspan.cli.options import REGISTERED, STANDARD_OUTPUT, argument, command
from leadspan.errors import LeadspanError
from leadspan.files import full_disk_reported
from leadspan.processes import EXIT_CODE, Terminated, interrupt_kept, listening
from leadspan.sources import check_figures
from leadspan.text import LogFormatter, plain, print_plain

_SHELLS = ("bash", "zsh", "fish")
# `-o default` completes file names where no word fits.
_BASH = """\
_leadspan() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else case "${{COMP_WORDS[1]}}" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _leadspan leadspan"""
_ZSH_START = "autoload -U +X compinit && compinit -i\nautoload -U +X bashcompinit && bashcompinit\n"

_NAMES = """
demo init recipes world preview audit plan capture store doctor distill evaluate sample chat card push export study
power report schema completion
"""
"""Commands in the order of the help; each is a function of this name."""
GO_ON = {"distill": ("--resume",), "evaluate": (), "capture": (), "study": (), "demo": ()}
"""Commands that resume what an interrupted one has left, with the flags that they need for it."""
_LESS_MEMORY = {
    **dict.fromkeys(("evaluate", "sample", "chat"), "lower sampling.batch_size or sampling.max_new_tokens"),
    "capture": "lower capture.tokens_per_batch",
    "distill": "see `leadspan plan`; lower data.max_tokens or the examples or tokens of training.batching, set "
    "training.gradient_checkpointing: true, or read targets from a store",
}
"""Remedies when a command runs out of memory; for all others, the remedy is that of training."""
_ELSEWHERE = {
    **dict.fromkeys(("train", "sft", "gkd", "fit", "finetune", "fine-tune", "run"), "distill"),
    **dict.fromkeys(("eval", "test", "benchmark"), "evaluate"),
    **dict.fromkeys(("generate", "inference", "infer", "predict"), "sample"),
    **dict.fromkeys(("preprocess", "prepare", "show"), "preview"),
    **dict.fromkeys(("new", "fetch", "create"), "init"),
    **dict.fromkeys(("sweep", "tune"), "study"),
    **dict.fromkeys(("compare", "plot"), "report"),
    **dict.fromkeys(("upload", "publish"), "push"),
    "check": "doctor",
    "help": "--help",
    "version": "--version",
}
"""Names of similar commands in other programs."""


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("a path must not be empty; write . for the current directory")
    # bash expands it in `--output ~/runs`, not in `--output=~/runs`.
    return Path(os.path.expanduser(text))


class _Parser(argparse.ArgumentParser):
    """Reports faults of the arguments in plain text, with the command that was probably meant."""

    def error(self, message: str) -> NoReturn:
        if invalid := re.match(r"argument COMMAND: invalid choice: '(.*)' \(", message):
            near = difflib.get_close_matches(invalid[1].lower(), [*COMMANDS, *_ELSEWHERE], n=1)
            hint = f"did you mean leadspan {_ELSEWHERE.get(near[0], near[0])}?" if near else ""
            message = f"there is no command {invalid[1]!r}; " + (hint or f"there are {', '.join(COMMANDS)}")
        elif message.endswith("required: COMMAND"):
            message = "name a command; `leadspan init` writes a recipe for your traces, `leadspan --help` lists all"
        super().error(plain(message))


@command(argument("shell", choices=_SHELLS, help="bash, zsh, or fish: leadspan completion fish | source"))
def completion(options: argparse.Namespace) -> None:
    """Print a script for shell completion of commands and options: `source <(leadspan completion bash)`."""
    actions = build_parser()._actions  # argparse has no public way to the commands of a parser
    commands = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    if options.shell == "fish":
        for name, parser in commands.items():
            summary = (parser.description or "").splitlines()[0].replace("'", "")
            print_plain(f"complete -c leadspan -n __fish_use_subcommand -f -a {name} -d '{summary}'")
            for word in _words(parser):
                kind = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
                print_plain(f"complete -c leadspan -n '__fish_seen_subcommand_from {name}' {kind}")
        return
    cases = (f'    {name}) words="{" ".join(_words(parser))}" ;;' for name, parser in commands.items())
    script = _BASH.format(commands=" ".join(commands), cases="\n".join(cases))
    print_plain((_ZSH_START if options.shell == "zsh" else "") + script)


def _words(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options, and the choices of positional arguments."""
    for action in parser._actions:
        # Long options alone: short ones need no completion.
        yield from (option for option in action.option_strings if option.startswith("--"))
        yield from () if action.option_strings else (str(choice) for choice in action.choices or ())


# A module registers its commands when it is imported.
for _module in ("starting", "before", "runs", "students"):
    importlib.import_module(f"leadspan.cli.{_module}")
COMMANDS = {name: REGISTERED[name] for name in _NAMES.split()}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the command reference is made from it."""
    parser = _Parser(
        prog="leadspan",
        description="Distil a large reasoning model into a small one on the lead span of its traces, "
        "and measure what was kept and what it cost.",
    )
    parser.add_argument("--version", action="version", version=f"leadspan {metadata.version('leadspan')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, registered in COMMANDS.items():
        of_command = commands.add_parser(name, help=registered.summary, description=registered.summary)
        of_command.register("type", Path, _path)
        for names, options in registered.arguments:
            of_command.add_argument(*names, **options)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with `key=value` overrides allowed behind options too."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    takes_overrides = "recipe" in options or "data" in options
    if "overrides" in options:  # `--set a=1 b=2`
        takes_overrides |= all(re.match(r"[\w.]+=", word) for word in rest)
    if rest and (not takes_overrides or any(word.startswith("-") for word in rest)):
        hint = ""
        name, _, value = next((word for word in rest if word.startswith("--")), "")[2:].partition("=")
        words = [word for names, _ in COMMANDS[options.command].arguments for word in names]
        if near := difflib.get_close_matches(f"--{name}", words, n=1, cutoff=0.75):
            hint = f"; did you mean {near[0]}?"
        elif "overrides" in options:  # a setting that was given as an option, as in other programs
            from leadspan.other_tools import OTHER_NAMES

            key = OTHER_NAMES.get(name.replace("-", "_").lower()) or (name if "." in name else "")
            is_setting = key and " " not in key
            example = f"{key.partition(',')[0]}={value or '...'}" if is_setting else "training.learning_rate=1e-5"
            hint = f"; settings have no dashes: {example}"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        options.overrides = [*options.overrides, *rest]  # the list of the default is that of every later call
    return options


def _leave_ranks() -> None:
    if ranks := sys.modules.get("leadspan.ranks"):  # not imported where no command has joined any
        ranks.leave_ranks()


def _refuse(command: str, message: str) -> int:
    print_plain(f"leadspan {command}: {message.removeprefix(f'{command}: ')}", error=True)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 when the user's input or a file is at fault, with one message on standard error; 130 on Ctrl-C and 143 on
        SIGTERM or SIGHUP, with the command that resumes; 141 where nobody reads standard output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by what started this; the next file would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process
    options = parse(arguments)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what reads a line says what is wrong with it
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as of stderr: a terminal that is not UTF-8 lacks characters
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "140")  # tables in pipes and files are not squeezed into 80 characters
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries, such as Transformers' of a GGUF file; ours say more
    # Without a GPU, torch says so in its own words where it first compiles.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for library in ("huggingface_hub", "datasets"):  # which print their log lines themselves
        logging.getLogger(library).propagate = False
    logging.getLogger("leadspan").setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    written = list(sys.argv[1:] if arguments is None else arguments)
    if any("\0" in word for word in written):  # no shell passes one on, Python does
        return _refuse(options.command, "an argument contains the character U+0000; remove it")
    with listening():
        code = _run(options, written)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the code says it; the interpreter would try to write the rest at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    try:
        figures = getattr(options, "json", None)
        if figures is not None and str(figures) != STANDARD_OUTPUT:
            check_figures("--json", figures)
        with interrupt_kept(), full_disk_reported(getattr(options, "output", None)):
            COMMANDS[options.command].run(options)
            sys.stdout.flush()
        _leave_ranks()
    except LeadspanError as error:
        return _refuse(options.command, str(error))
    except UnicodeEncodeError as error:
        character = f"U+{ord(error.object[error.start]):04X}, which {error.encoding} has not"
        return _refuse(options.command, f"a path or a text holds {character}; rename it")
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("WORLD_SIZE", "1") != "1" and "Connection closed by peer" in str(error):
            return _refuse(options.command, "another rank has ended; its message says why")  # of gloo's collectives
        if not is_out_of_memory(error):
            raise
        remedy = _LESS_MEMORY.get(options.command, _LESS_MEMORY["distill"])
        return _refuse(options.command, f"out of memory ({str(error).strip().partition(chr(10))[0]}); {remedy}")
    except OSError as error:
        if error.filename is None and error.errno == errno.EPIPE:
            return 128 + signal.SIGPIPE  # nobody reads standard output any more
        nameless = {
            errno.ENOENT: "the current directory has been removed; change to another",  # os.getcwd names no file
            errno.EIO: f"{error.strerror}: a disk fails, or the terminal has closed",
        }
        if error.filename is None and error.errno not in nameless:
            raise  # not about one of the user's files
        fault = f"{error.filename}: {error.strerror}; correct the path"
        return _refuse(options.command, fault if error.filename is not None else nameless[error.errno or 0])
    except KeyboardInterrupt:
        print_plain(f"leadspan {options.command}: interrupted{_how_to_go_on(options.command, arguments)}", error=True)
        return 130
    except Terminated as ended:
        said = (f" ({ended})" if str(ended) else "") + _how_to_go_on(options.command, arguments)
        print_plain(f"leadspan {options.command}: ended by a signal{said}", error=True)
        _leave_ranks()
        return EXIT_CODE
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, on a GPU or on a CPU."""
    # By the name of torch's class: importing torch here would slow down every command that fails.
    is_of_device = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_of_device or "can't allocate memory" in str(error)


def _how_to_go_on(command: str, arguments: list[str]) -> str:
    """The command line that resumes, for commands that can."""
    if command not in GO_ON:
        return ""
    flags = [flag for flag in GO_ON[command] if flag not in arguments]
    return f"; continue with: {shlex.join(['leadspan', *arguments, *flags])}"
