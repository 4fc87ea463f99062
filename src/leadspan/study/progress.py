"""What is being done, on a terminal and elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console


class Progress:
    """A status line that moves on a terminal; one plain line per stage elsewhere.

    Call it with `stage: detail`; usable as the `say` of a run.
    """

    def __init__(self, console: Console, title: str = ""):
        self.console = console
        self.title = f"{title}: " if title else ""
        self.status = console.status(title) if console.is_terminal else None
        self.stage = ""

    def __enter__(self) -> Self:
        if self.status:
            self.status.start()
        elif self.title:
            self.console.print(self.title.removesuffix(": "), highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status:
            self.status.stop()

    def __call__(self, text: str) -> None:
        """Show what is being done."""
        stage = text.partition(":")[0]
        if self.status:
            self.status.update(self.title + text)
        elif stage != self.stage:
            self.console.print(f"  {stage}" if self.title else stage, style="dim", highlight=False)
        self.stage = stage
