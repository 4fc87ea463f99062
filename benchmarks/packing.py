"""Best-fit packs of real traces against filling packs in the order of the file.

All three files of traces, tokenised with Qwen3's tokenizer, those of at most 8,192 tokens; the plan is the one training
makes (`plan_by_tokens`). The share filled is tokens over packs times budget. The naive side puts the next trace into
the open pack, or opens a new one. Padding is what one trace per row of the longest's length would fill, in rows of 8.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.timing import alternate
from benchmarks.traces import ALL_TRACES, batches_of, examples, prepared, qwen3_renderer, trace_source
from leadspan.data.packing import plan_by_tokens
from leadspan.data.truncation import Full, Lead

BUDGET = 8192
TARGET = 0.97
ROUNDS = 9


def run() -> Outcome:
    full, lead = _lengths()
    seconds = alternate(
        {
            "best fit": lambda: plan_by_tokens(full, BUDGET, 0),
            "in file order": lambda: _in_order(full),
        },
        ROUNDS,
    )
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"traces": list(ALL_TRACES), "tokenizer": "Qwen3", "budget": BUDGET, "num_traces": len(full)},
        sides={name: Spread.of(values) for name, values in seconds.items()},
        figures=[
            Figure("share filled, whole traces", _filled(full), TARGET, "higher"),
            Figure("share filled, lead 0.5", _filled(lead), TARGET, "higher"),
            Figure("share filled in file order", sum(full) / (_in_order(full) * BUDGET), None, "higher"),
            Figure("share filled by padding batches of 8", _padded(full), None, "higher"),
        ],
        details={"num_tokens": sum(full), "num_packs": len(plan_by_tokens(full, BUDGET, 0))},
    )


def _lengths() -> tuple[list[int], list[int]]:
    """Tokens of the traces that fit the budget whole, whole and under `lead` 0.5."""
    renderer = qwen3_renderer()
    with tempfile.TemporaryDirectory() as cache:
        found = prepared(trace_source(), renderer, Path(cache))
        fitting = [i for i, n in enumerate(found.rows["num_tokens"][:]) if n <= BUDGET]
        return tuple(examples(found, policy, renderer, fitting).lengths for policy in (Full(), Lead(p=0.5)))


def _filled(lengths: Sequence[int]) -> float:
    return sum(lengths) / (len(plan_by_tokens(lengths, BUDGET, 0)) * BUDGET)


def _in_order(lengths: Sequence[int]) -> int:
    """Packs of a pass in file order."""
    packs, free = 0, 0
    for length in lengths:
        if length > free:
            packs, free = packs + 1, BUDGET
        free -= length
    return packs


def _padded(lengths: Sequence[int]) -> float:
    return sum(lengths) / sum(len(batch) * max(batch) for batch in batches_of(lengths, 8))
