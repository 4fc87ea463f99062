"""`python -m leadspan`, and what `torchrun -m leadspan` starts on every rank."""

import sys

from leadspan.cli import main

if __name__ == "__main__":
    sys.exit(main())
