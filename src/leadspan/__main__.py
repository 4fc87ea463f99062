"""`leadspan`, `python -m leadspan`, and what `torchrun -m leadspan` starts on every rank."""

import signal
import sys


def main() -> int:
    """Run a command; Ctrl-C while Python still reads the program, or ends itself, prints no traceback either."""
    try:
        from leadspan.cli import main as run_command

        return run_command()
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written, and what runs at the end takes a moment


if __name__ == "__main__":
    sys.exit(main())
