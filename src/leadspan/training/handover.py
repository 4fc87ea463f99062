"""State that a process leaves in a checkpoint for the process that resumes from it, in addition to Transformers'.

It holds the sums since the last log line, so that the next line is a mean over the same steps as in a run without a
break.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FILE = "handover.json"


@dataclass(frozen=True)
class Handover:
    """The state.

    Attributes:
        loss: Sum of the losses of the steps since the last log line, the mean over ranks.
        last_logged: Step of the last log line.
        totals: Row quantities by section and tenth since the last log line, over all ranks.
        peak_memory_bytes: Peak memory of training up to the checkpoint, on the first rank.
        steps: State of a `StepSource`: what it has made for later steps.
    """

    loss: float
    last_logged: int
    totals: list[list[float]]
    peak_memory_bytes: int
    steps: dict[str, Any]

    def write(self, checkpoint: Path) -> None:
        """Add it to a checkpoint."""
        (checkpoint / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def of(cls, checkpoint: Path) -> "Handover":
        """Read that of a complete checkpoint."""
        return cls(**json.loads((checkpoint / _FILE).read_text(encoding="utf-8")))
