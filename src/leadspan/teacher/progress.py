"""How far a capture is, in words."""

import math
import time
from collections.abc import Callable

_TELL_SECONDS = 0.2


class Progress:
    """Positions, tokens per second and time left, a few times a second; other ranks are taken to be as fast."""

    def __init__(self, say: Callable[[str], None], num_positions: int, num_ranks: int):
        """Start the clock.

        Args:
            say: Told about it.
            num_positions: To do, all ranks.
            num_ranks: Ranks at work.
        """
        self.say, self.total, self.ranks = say, num_positions, num_ranks
        self.done, self.start, self._told = 0, time.perf_counter(), -math.inf

    def add(self, positions: int) -> None:
        """Count positions as done."""
        self.done = min(self.total, self.done + positions * self.ranks)
        now = time.perf_counter()
        if now - self._told < _TELL_SECONDS and self.done < self.total:
            return
        self._told = now
        speed = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / speed
        self.say(f"capture: {self.done:,}/{self.total:,} positions, {speed:,.0f} tokens/s, {duration(left)} left")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in words.

    >>> duration(75), duration(7384)
    ('1 min 15 s', '2 h 3 min')
    """
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"
