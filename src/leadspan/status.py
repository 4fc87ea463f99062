"""Status of the work in progress, for a terminal and for logs."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from leadspan.text import plain

STATUS_SECONDS = 0.2
"""Interval between reports of a stage that counts: short enough to look alive, long enough to cost no time."""
LOG_SECONDS = 30.0
"""Interval between lines of a running stage where the output is no terminal."""
_BAR_WIDTH = 24
_logger = logging.getLogger("leadspan.status")
_logger.setLevel(logging.INFO)
_logger.propagate = False  # several lines a second: they are for a status line, not for a log file


class PlainConsole(Console):
    """A console that shows text literally: brackets are no markup, and `leadspan.text.plain` cleans it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, text made plain before it is wrapped; rich's own codes are control segments."""
        if isinstance(renderable, str):
            renderable = plain(renderable)
        elif isinstance(renderable, Text) and plain(renderable.plain) != renderable.plain:
            renderable = renderable.copy()
            renderable.plain = plain(renderable.plain)
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Where nobody reads any more: show nothing from then on, and raise `BrokenPipeError` for standard output."""
        self.quiet = True
        if not self.stderr:
            raise


def report_status(text: str) -> None:
    """Log the current stage as `stage: detail`; nothing is shown unless a `StatusHandler` is open."""
    _logger.info("%s", text)


def report_detail(text: str) -> None:
    """Log the progress within the stage that was reported last, to be shown after it."""
    _logger.info("%s", text, extra={"is_detail": True})


class Progress:
    """Reports the progress of a stage and the time left, a few times per second at most, and at its end."""

    def __init__(self, stage: str, total: int | None, unit: str, done: int = 0, work: Sequence[float] | None = None):
        """Start the clock; `done` units were done before, and the total is None where it is unknown.

        `work` is that of each unit, where some take longer than others; empty where it is not known, and then no time
        left is shown.
        """
        self.stage, self.total, self.unit, self._work = stage, total, unit, work
        self._begun, self._start, self._reported_at = done, time.perf_counter(), -math.inf

    def report(self, done: int, detail: str = "") -> None:
        """Report the units done; the time left assumes that the rest is as fast as what was done since the start."""
        now = time.perf_counter()
        if now - self._reported_at < STATUS_SECONDS and done != self.total:
            return
        self._reported_at = now
        if not self.total:
            report_status(f"{self.stage}: {done:,} {self.unit}{detail}")
            return
        new, left = done - self._begun, self.total - done
        if self._work is not None:
            new, left = sum(self._work[self._begun : done]), sum(self._work[done:])
        seconds = (now - self._start) * left / new if new > 0 else 0.0
        remaining = f", {duration(seconds)} left" if seconds else ""
        text = f"{self.stage}: {done:,}/{self.total:,} {self.unit}{detail}{remaining}"
        _logger.info("%s", text, extra={"share": done / self.total})


class StatusHandler(logging.Handler):
    """Hands every status line to a function while it is open, with the detail that was reported since."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__()
        self._show = show
        self._doing = ""
        self.share: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Show a line."""
        text = record.getMessage()
        if getattr(record, "is_detail", False):
            text = f"{self._doing}; {text}" if self._doing else text
        else:
            self._doing, self.share = text, getattr(record, "share", None)
        with contextlib.suppress(OSError):  # a terminal that has closed is no reason to end the work
            self._show(text)

    def __enter__(self) -> Self:
        _logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        _logger.removeHandler(self)


class StatusLine(StatusHandler):
    """A live line on a terminal, with a bar where the total is known; elsewhere a line per stage and now and then."""

    def __init__(self, console: Console):
        super().__init__(self._update)
        self.console = console
        self.status = console.status("") if console.is_terminal else None
        self._stages: set[str] = set()
        self._printed_at = 0.0

    def __enter__(self) -> Self:
        if self.status:
            self.status.start()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self.status:
            self.status.stop()

    def _update(self, text: str) -> None:
        if self.status:
            line = Table.grid(padding=(0, 1))
            bar = [] if self.share is None else [ProgressBar(total=1, completed=self.share, width=_BAR_WIDTH)]
            line.add_row(*bar, Text(text))
            self.status.update(line)
            return
        stage, now = text.partition(":")[0], time.perf_counter()
        is_new, is_due = stage not in self._stages, now - self._printed_at >= LOG_SECONDS
        if is_new or is_due:
            self._stages.add(stage)
            self._printed_at = now
            shown = text if is_due and not is_new else stage
            self.console.print(shown, style="dim", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in words; seconds are shown below ten minutes only.

    >>> duration(75), duration(600), duration(7384)
    ('1 min 15 s', '10 min', '2 h 3 min')
    """
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"
