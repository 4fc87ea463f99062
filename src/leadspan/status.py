"""What is being done, on a terminal and elsewhere."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from leadspan.text import plain

STATUS_SECONDS = 0.2
"""A stage that counts reports its status this often: fast enough to look alive, too seldom to cost time."""
LOG_SECONDS = 30.0
"""Where nothing moves, a line of a stage that goes on is written this often."""
_BAR_WIDTH = 24
_logger = logging.getLogger("leadspan.status")
_logger.setLevel(logging.INFO)
_logger.propagate = False  # several lines a second: they are for a status line, not for a log file


class PlainConsole(Console):
    """A console on which text is shown as it is: brackets are no markup, and `leadspan.text.plain` has gone over it."""

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


def report_status(text: str) -> None:
    """Log what is being done, as `stage: detail`; nothing is shown unless a `StatusHandler` is open."""
    _logger.info("%s", text)


def report_detail(text: str) -> None:
    """Log how far the step is that was reported last, to be shown behind it."""
    _logger.info("%s", text, extra={"is_detail": True})


class Progress:
    """How far a stage is, and the time left; reported a few times a second at most, and where it ends."""

    def __init__(self, stage: str, total: int | None, unit: str, done: int = 0):
        """Start the clock.

        Args:
            stage: What is done.
            total: How many there are of what is counted; None where nobody knows.
            unit: What is counted.
            done: How many were done before.
        """
        self.stage, self.total, self.unit = stage, total, unit
        self._begun, self._start, self._reported_at = done, time.perf_counter(), -math.inf

    def report(self, done: int, detail: str = "") -> None:
        """Report that so many are done; what is left is expected to take as long a piece as what was done here."""
        now = time.perf_counter()
        if now - self._reported_at < STATUS_SECONDS and done != self.total:
            return
        self._reported_at = now
        if not self.total:
            report_status(f"{self.stage}: {done:,} {self.unit}{detail}")
            return
        new = done - self._begun
        seconds = (now - self._start) * (self.total - done) / new if new > 0 else 0.0
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
        self._show(text)

    def __enter__(self) -> Self:
        _logger.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _logger.removeHandler(self)


class StatusLine(StatusHandler):
    """A line that moves on a terminal, with a bar where the end is known; elsewhere a line a stage, now and then."""

    def __init__(self, console: Console, title: str = ""):
        super().__init__(self._update)
        self.console = console
        self.title = f"{title}: " if title else ""
        self.status = console.status(Text(title)) if console.is_terminal else None
        self._stages: set[str] = set()
        self._printed_at = 0.0

    def __enter__(self) -> Self:
        if self.status:
            self.status.start()
        elif self.title:
            self.console.print(self.title.removesuffix(": "), highlight=False)
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self.status:
            self.status.stop()

    def _update(self, text: str) -> None:
        if self.status:
            line = Table.grid(padding=(0, 1))
            bar = [] if self.share is None else [ProgressBar(total=1, completed=self.share, width=_BAR_WIDTH)]
            line.add_row(*bar, Text(self.title + text))
            self.status.update(line)
            return
        stage, now = text.partition(":")[0], time.perf_counter()
        is_new, is_due = stage not in self._stages, now - self._printed_at >= LOG_SECONDS
        if is_new or is_due:
            self._stages.add(stage)
            self._printed_at = now
            shown = text if is_due and not is_new else stage
            self.console.print(f"  {shown}" if self.title else shown, style="dim", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in words; seconds only below ten minutes.

    >>> duration(75), duration(600), duration(7384)
    ('1 min 15 s', '10 min', '2 h 3 min')
    """
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"
