"""A world on disk: traces, tasks and a tokenizer, in the formats everybody reads."""

import json
from collections.abc import Iterable
from pathlib import Path

from leadspan.worlds.derive_and_verify import Problem


def write_traces(problems: Iterable[Problem], path: Path) -> Path:
    """Traces as JSON lines with the columns prompt, cot, answer and gold."""
    return _write(path, ({"prompt": p.prompt, "cot": p.cot, "answer": p.answer, "gold": p.answer} for p in problems))


def write_task(problems: Iterable[Problem], path: Path) -> Path:
    """Problems as JSON lines with the columns problem and answer."""
    return _write(path, ({"problem": p.prompt, "answer": p.answer} for p in problems))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return path
