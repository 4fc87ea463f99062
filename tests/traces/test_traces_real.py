"""Real traces, and benchmarks that are none; the numbers were counted by hand in the files."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from leadspan.errors import DataError
from leadspan.traces.read import read_traces
from leadspan.traces.records import RefusalCounter, Trace
from leadspan.traces.settings import TraceSource
from leadspan.traces.turns import THINK_TAGS

pytestmark = pytest.mark.shared

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
UNCLOSED = "chain of thought never closed"
TWICE = "think tags more than once"


def counted(name: str) -> tuple[list[Trace], RefusalCounter]:
    counter = RefusalCounter()
    return list(counter.usable(read_traces(TraceSource(path=str(SHARED / name))))), counter


REAL = [
    pytest.param("traces/deepseek_r1.jsonl", 1036, {UNCLOSED: 3}, 50, id="deepseek_r1"),
    pytest.param("traces/qwq_32b.jsonl", 736, {}, 50, id="qwq_32b"),
    pytest.param("traces/sky_t1_students.jsonl", 800, {UNCLOSED: 191, TWICE: 1}, 0, id="sky_t1_students"),
    pytest.param("benchmarks/gsm8k_train.jsonl", 7473, {}, 0, id="gsm8k_train"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_read", "refused", "num_without_gold"), REAL)
def test_real_files_hold_what_was_counted_by_hand(
    name: str, num_read: int, refused: dict[str, int], num_without_gold: int
) -> None:
    traces, counter = counted(name)
    assert (counter.num_read, counter.counts) == (num_read, Counter(refused))
    assert len(traces) == num_read - sum(refused.values())
    assert sum(trace.gold is None for trace in traces) == num_without_gold
    marks = ["<<", "####"] if name.startswith("benchmarks") else []
    for trace in traces:
        assert trace.cot == trace.cot.strip() != ""
        assert trace.answer == trace.answer.strip() != ""
        left_over = [tag for tag in itertools.chain(*THINK_TAGS, marks) if tag in trace.cot + trace.answer]
        assert not left_over, trace.place


def test_the_students_that_never_stop_thinking_are_too_many() -> None:
    _, counter = counted("traces/sky_t1_students.jsonl")
    with pytest.raises(DataError) as caught:
        counter.check(0.05, "sky_t1_students.jsonl")
    head, unclosed, twice, _ = str(caught.value).split("\n")
    assert head.startswith("sky_t1_students.jsonl: 192 of 800 records (24.00 %) cannot be used")
    assert unclosed == f"  191 x {UNCLOSED}, e.g. sky_t1_students.jsonl:5: 'finished' is false"
    assert twice.startswith(f"  1 x {TWICE}, e.g. sky_t1_students.jsonl:506: <|begin_of_thought|> in 'answer'")


@pytest.mark.parametrize("name", ["aime24", "aime25", "amc23", "math500", "minerva_math", "olympiadbench", "svamp"])
def test_benchmarks_without_a_chain_of_thought_are_no_traces(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.jsonl:1: the columns .* are not those of any known format"):
        counted(f"benchmarks/{name}.jsonl")
