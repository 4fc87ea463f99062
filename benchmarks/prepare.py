"""Preparing real traces against the bare tokenizer call on the same texts.

The bare side is one call of the tokenizer per 64 rendered texts, ids only. The `in memory` side starts from parsed
traces: render each with the chat template, check that the chain of thought survived, make that same tokenizer call, map
the section borders to tokens, hash the ids, cut at `lead` 0.5 and weigh. The `through the data stage` side starts from
the JSON lines: fingerprint, read and parse them, do all of the above, write the rows to Arrow and read them back.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.timing import alternate, paired_ratio
from benchmarks.traces import ALL_TRACES, batches_of, examples, prepared, qwen3_renderer, trace_source
from leadspan.data.sections import RenderedText, Renderer
from leadspan.data.supervision import Supervision, lay_out
from leadspan.data.truncation import Lead, cut_example
from leadspan.traces.read import read_traces
from leadspan.traces.records import Trace

BATCH = 64
ROUNDS = 7
TARGET = 0.8


def run() -> Outcome:
    renderer = qwen3_renderer()
    traces, texts = _usable(renderer)
    seconds = alternate(
        {
            "tokenizer": lambda: _tokenise(renderer, texts),
            "in memory": lambda: _in_memory(renderer, traces),
            "through the data stage": lambda: _through_stage(renderer),
        },
        ROUNDS,
    )
    bare = seconds["tokenizer"]
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={
            "traces": list(ALL_TRACES),
            "num_traces": len(traces),
            "characters": sum(map(len, texts)),
            "tokenizer": "Qwen3",
            "texts_per_call": BATCH,
            "policy": "lead 0.5",
            "num_workers": 1,
        },
        sides={name: Spread.of(values) for name, values in seconds.items()},
        figures=[
            Figure("speed in memory / tokenizer", paired_ratio(bare, seconds["in memory"]), TARGET, "higher"),
            Figure(
                "speed through the data stage / tokenizer",
                paired_ratio(bare, seconds["through the data stage"]),
                TARGET,
                "higher",
            ),
        ],
    )


def _usable(renderer: Renderer) -> tuple[list[Trace], list[str]]:
    traces, texts = [], []
    for trace in read_traces(trace_source()):
        rendered = renderer.render(trace) if isinstance(trace, Trace) else trace
        if isinstance(trace, Trace) and isinstance(rendered, RenderedText):
            traces.append(trace)
            texts.append(rendered.text)
    return traces, texts


def _tokenise(renderer: Renderer, texts: Sequence[str]) -> None:
    for batch in batches_of(texts, BATCH):
        renderer.tokenizer(list(batch), add_special_tokens=False, return_attention_mask=False, verbose=False)


def _in_memory(renderer: Renderer, traces: Sequence[Trace]) -> None:
    for batch in batches_of(traces, BATCH):
        rendered = [text for trace in batch if isinstance(text := renderer.render(trace), RenderedText)]
        for row in renderer.tokenise(rendered, batch):
            lay_out(row.sections, cut_example(Lead(p=0.5), row.sections, row.example_id, 0), Supervision())


def _through_stage(renderer: Renderer) -> None:
    with tempfile.TemporaryDirectory() as cache:
        examples(prepared(trace_source(), renderer, Path(cache)), Lead(p=0.5), renderer)
