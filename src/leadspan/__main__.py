"""`leadspan`, `python -m leadspan`, and what `torchrun -m leadspan` starts on every rank.

Ctrl-C prints no traceback from the first line here; while Python starts itself, what it prints is Python's.
"""

import os
import sys

try:
    import signal

    handler = signal.getsignal(signal.SIGINT)
    if handler == signal.default_int_handler:
        # Imports swallow exceptions in places, and there is nothing to leave in good order yet.
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    from leadspan.cli import main as run_command

    signal.signal(signal.SIGINT, handler)
except KeyboardInterrupt:
    sys.exit(130)


def main() -> int:
    """Run a command; Ctrl-C while Python ends itself prints no traceback either."""
    try:
        return run_command()
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written, and what runs at the end takes a moment


if __name__ == "__main__":
    sys.exit(main())
