"""Print a script for shell completion of commands and options: `source <(leadspan completion bash)`."""

import argparse
from collections.abc import Iterator

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=_SHELLS, help="bash, zsh, or fish: leadspan completion fish | source")


def run(options: argparse.Namespace) -> None:
    """Print the script."""
    from leadspan.cli import build_parser
    from leadspan.text import print_plain

    actions = build_parser()._actions  # argparse has no public way to the commands of a parser
    commands = next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))
    if options.shell == "fish":
        for name, command in commands.items():
            summary = (command.description or "").splitlines()[0].replace("'", "")
            print_plain(f"complete -c leadspan -n __fish_use_subcommand -f -a {name} -d '{summary}'")
            for word in _words(command):
                kind = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
                print_plain(f"complete -c leadspan -n '__fish_seen_subcommand_from {name}' {kind}")
        return
    cases = (f'    {name}) words="{" ".join(_words(command))}" ;;' for name, command in commands.items())
    script = _BASH.format(commands=" ".join(commands), cases="\n".join(cases))
    print_plain((_ZSH_START if options.shell == "zsh" else "") + script)


def _words(command: argparse.ArgumentParser) -> Iterator[str]:
    """Options, and the choices of positional arguments."""
    for action in command._actions:
        # Long options alone: short ones need no completion.
        yield from (option for option in action.option_strings if option.startswith("--"))
        yield from () if action.option_strings else (str(choice) for choice in action.choices or ())
