"""The page of results, made from the stored records alone."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT, Outcome, RecordError
from benchmarks.registry import ORDER, summary

PAGE = ROOT / "docs" / "benchmarks.md"
MEASURED = "measured"
"""How a part of `gpu` ends that has a record of its own."""
HEAD = """# Benchmarks

Made by `python -m benchmarks table` from the files in `benchmarks/results`; change those, not this page.

To measure again, on an idle machine:

```
pip install -c constraints.txt -e '.[bench]'
python -m benchmarks list        # what there is
python -m benchmarks cut_step    # one of them: prints its figures and writes its JSON file
python -m benchmarks all         # all of them, each in a process of its own, and this page
```

`prepare`, `audit`, `packing`, `cut_step`, `plan_time` and `plan_memory` read real traces and the Qwen3 tokenizer from
`../shared/data` next to the checkout.
`cut_step` and `gkd_step` take a GPU when there is one. All of a GPU, in nine minutes at most:

```
python -m benchmarks gpu             # every part in a process of its own with a time limit; then this page
python -m benchmarks gpu --tiny      # the same parts on a CPU with tiny sizes, into build/gpu-tiny
```

A file keeps the commit (`+`: with changes), versions, settings,
the load of the machine, and median and quartiles of every side; figures below are ratios unless a unit is given, and
those without a target are there for comparison.
"""


def write(page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Write the page of some results."""
    page.write_text(render(results), encoding="utf-8")
    return page


def show(name: str, outcome: Outcome) -> None:
    """Print the figures of a benchmark beside their targets."""
    stored = rows({**asdict(figure), "is_reached": figure.is_reached} for figure in outcome.figures)
    widths = [max(map(len, column)) for column in zip(*stored, ("", "", "target", "reached"), strict=True)]
    print(name)
    for row in (("", "", "target", "reached"), *stored):
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def render(folder: Path) -> str:
    """The page for the records in a folder.

    Raises:
        RecordError: There are none.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise RecordError(f"{folder.name}: holds no records; run python -m benchmarks all")
    records.sort(key=lambda r: ORDER.index(r["name"]))
    return "\n".join([HEAD, *(line for record in records for line in _part(record))])


def rows(figures: Iterable[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Figure, value, target and whether it was reached, as text."""
    return [_row(figure) for figure in figures]


def _part(record: dict[str, Any]) -> list[str]:
    device = record["device"]
    where = device["gpu"] or f"{device['cpu']}, {device['cores']} cores"
    load = record["load_average"]
    details = record["details"]
    absent = [f"{part}: {end}" for part, end in details.get("ends", {}).items() if end != MEASURED]
    absent += details.get("skipped", [])
    lines = [
        f"## {record['name']}",
        "",
        summary(record["name"]),
        "",
        "| figure | value | target | reached |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows(record["figures"])),
        "",
        *_sides(record["sides"]),
        f"{where}; commit {record['commit']}; {record['date'][:10]}; load average {load['before'][0]:g} before, "
        f"{load['after'][0]:g} after.",
        "",
        *([f"Not measured: {'; '.join(absent)}.", ""] if absent else []),
    ]
    return lines


def _sides(sides: dict[str, Any]) -> list[str]:
    if not sides:
        return []
    header = ["| side | median | quartiles | repeats |", "|---|---|---|---|"]
    return [*header, *(_side(name, side) for name, side in sides.items()), ""]


def _row(figure: dict[str, Any]) -> tuple[str, str, str, str]:
    if figure["target"] is None:
        return figure["name"], _number(figure["value"], figure["unit"]), "", ""
    sign = ">=" if figure["better"] == "higher" else "<="
    target = f"{sign} {_number(figure['target'], figure['unit'])}"
    return figure["name"], _number(figure["value"], figure["unit"]), target, "yes" if figure["is_reached"] else "no"


def _side(name: str, side: dict[str, Any]) -> str:
    unit = side["unit"]
    quartiles = f"{side['first_quartile']:.3g} to {_number(side['third_quartile'], unit)}"
    return f"| {name} | {_number(side['median'], unit)} | {quartiles} | {side['repeats']} |"


def _number(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".rstrip()
