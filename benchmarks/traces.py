"""The real traces and the real tokenizer the benchmarks share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks.record import SHARED, RecordError
from leadspan.data.examples import Examples
from leadspan.data.prepare import Prepared, prepare
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings, NoValidation, Rendering
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Policy
from leadspan.models.reading import load_tokenizer
from leadspan.traces.settings import TraceSource

ItemT = TypeVar("ItemT")
ALL_TRACES = ("deepseek_r1", "qwq_32b", "sky_t1_students")


def qwen3_renderer() -> Renderer:
    """Qwen3's tokenizer and chat template."""
    return Renderer(load_tokenizer(str(there("tokenizer-qwen3"))), Rendering())


def trace_source(name: str | None = None) -> TraceSource:
    """One file of traces, or the folder of all three."""
    return TraceSource(path=str(there("traces") if name is None else there(f"traces/{name}.jsonl")))


def prepared(source: TraceSource, renderer: Renderer, cache: Path) -> Prepared:
    """Through the data stage; records it refuses (an unclosed chain of thought, mostly) are left out."""
    settings = DataSettings(train=source, validation=NoValidation(), max_refused_share=1, cache_dir=cache)
    return prepare(source, renderer, settings)


def examples(found: Prepared, policy: Policy, renderer: Renderer, keep: Sequence[int] | None = None) -> Examples:
    """Prepared rows (or some of them) under a policy and the default supervision: chain of thought and answer."""
    rows = found.rows if keep is None else found.rows.select(keep)
    return Examples(rows, policy, Supervision(), renderer.stop_token_id, 0, "benchmark")


def batches_of(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Consecutive pieces of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def there(name: str) -> Path:
    """A file or folder of the data beside the checkout."""
    path = SHARED / name
    if not path.exists():
        raise RecordError(f"../shared/data/{name}: not there; this benchmark needs the data folder beside the checkout")
    return path
