"""Functions for worker processes, which import the module that has them: this one imports next to nothing."""

import os
import signal
import time


def killed_at_17(items: list[int]) -> int:
    if 17 in items:
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(items)


def slept(seconds: list[float]) -> None:
    time.sleep(sum(seconds))
