"""`leadspan`, `python -m leadspan`, and what `torchrun -m leadspan` starts on every rank."""

import sys


def main() -> int:
    """Run a command; Ctrl-C while Python still reads the program ends it without a traceback, too."""
    try:
        from leadspan.cli import main as run_command

        return run_command()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
