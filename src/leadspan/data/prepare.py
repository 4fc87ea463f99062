"""Traces to tokenised, sectioned rows in Arrow: once per source, tokenizer and template, then reused by fingerprint."""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from leadspan.data.questions import column_blocks, same_questions
from leadspan.data.sections import Renderer
from leadspan.data.settings import DataSettings, HeldOutShare, HeldOutSource
from leadspan.data.truncation import Sections
from leadspan.errors import CacheError, DataError
from leadspan.files import DIGESTS_FILE, fault, full_disk_reported, is_sealed, seal
from leadspan.processes import in_batches
from leadspan.status import Progress
from leadspan.traces.read import fingerprint, list_source, read_traces
from leadspan.traces.records import Refusal, RefusalCounter, Trace
from leadspan.traces.settings import TraceSource

logger = logging.getLogger(__name__)

# Part of the cache key: raised whenever the meaning of a column changes, so that older caches are not read.
_SCHEMA = "10"
# Traces that are rendered and tokenised in one call, and sent to a worker at once.
_BATCH = 64
# Arrow batches of the cache end at either: each takes 6 kB of memory wherever the cache is opened.
_ROWS_PER_BATCH, _LARGE_BATCH = 1_000, 32 << 20
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        **dict.fromkeys(("prompt_end", "think_end", "cot_end", "stop"), Value("int32")),
        "steps": List(Value("int32")),
        "num_tokens": Value("int32"),
        **dict.fromkeys(("example_id", "question_id", "question", "place", "gold", "teacher"), Value("string")),
    }
)


@dataclass(frozen=True)
class Prepared:
    """Tokenised rows of one source, with the columns of `FEATURES`, and how many records were read and refused why."""

    rows: Dataset
    refused: dict[str, int]
    num_read: int


@dataclass(frozen=True)
class Splits:
    """Training and validation rows, and how many records and rows were left out for which reason."""

    train: Dataset
    validation: Dataset | None
    left_out: dict[str, int]


def prepare(source: TraceSource, renderer: Renderer, settings: DataSettings) -> Prepared:
    """Read, render and tokenise a source, or reuse an earlier result of exactly the same.

    Raises:
        DataError: The source cannot be read, or more than `settings.max_refused_share` of it is unusable.
        CacheError: The result cannot be written.
        RunError: The disk is full.
    """
    # The names of files, too: rows say where their records stand.
    listing = list_source(source)
    names = [] if listing is None else [os.fsencode(file.name).hex() for file in listing.files]
    content = fingerprint(source)
    decisive = (_SCHEMA, content, *names, source.model_dump_json(), renderer.fingerprint)
    key = hashlib.sha256("\0".join(decisive).encode()).hexdigest()[:32]
    directory = cache_root(settings) / "traces" / key
    # Checked before each use: a disk that lost bytes would otherwise change tokens in silence.
    if directory.exists() and (wrong := fault(directory) if is_sealed(directory) else f"{DIGESTS_FILE} is missing"):
        logger.warning("%s: %s; tokenised again", directory, wrong)
        # Renamed first, because deleting many files takes time in which another process could read half of them; one
        # that reads it now keeps its open files.
        doomed = directory.with_name(f"{directory.name}.{os.getpid()}.damaged")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    try:
        if not directory.exists():
            with full_disk_reported(directory):
                _write(source, content, renderer, settings, directory)
    except OSError as error:  # those of the source are DataErrors
        raise CacheError(f"{directory}: cannot be written ({error.strerror or error}); set data.cache_dir") from error
    summary = json.loads((directory / "summary.json").read_text())
    rows = Dataset.from_file(str(directory / "rows.arrow"))
    counter = RefusalCounter(summary["num_read"], Counter(summary["refused"]))
    counter.examples |= {reason: Refusal(reason, *example) for reason, example in summary["examples"].items()}
    counter.check(settings.max_refused_share, source.path)  # the limit is no part of the key
    return Prepared(rows, dict(counter.counts), counter.num_read)


def split(settings: DataSettings, renderer: Renderer, seed: int) -> Splits:
    """Prepare the training source, hold out the validation part, and draw the requested numbers.

    Raises:
        DataError: A part is empty or has fewer traces than requested.
        CacheError: What was tokenised cannot be written.
    """
    prepared = prepare(settings.train, renderer, settings)
    left_out, held_out = dict(prepared.refused), dict[str, int]()
    train, validation = _of_fitting_length(prepared.rows, settings, left_out), None
    if isinstance(settings.validation, HeldOutShare):
        # By question: those with the lowest hash of (seed, question). So the order of the source does not matter, and
        # added traces move few questions.
        questions = same_questions(train)
        distinct = np.unique(questions)
        hashes = array("Q")
        for ids in column_blocks(train.select(distinct), "question_id"):
            digests = (hashlib.sha256(f"{seed}:{question}".encode()).digest() for question in ids)
            hashes.extend(int.from_bytes(digest[:8], "big") for digest in digests)
        # One question at least, however small the share.
        number = max(1, round(settings.validation.share * len(distinct)))
        is_held_out = np.isin(questions, distinct[np.argsort(np.frombuffer(hashes, dtype=np.uint64))[:number]])
        if is_held_out.size and is_held_out.all():
            raise DataError(
                f"data.validation: the {len(distinct)} questions of {len(train)} traces are held out, so that none is "
                "left to train on; give more traces, a smaller share, or data.validation: {kind: none}"
            )
        validation = train.select(np.flatnonzero(is_held_out))
        train = train.select(np.flatnonzero(~is_held_out))
    elif isinstance(settings.validation, HeldOutSource):
        prepared_validation = prepare(settings.validation.source, renderer, settings)
        held_out = dict(prepared_validation.refused)
        validation = _of_fitting_length(prepared_validation.rows, settings, held_out)
        in_train, questions = np.split(same_questions(concatenate_datasets([train, validation])), [len(train)])
        # A loss on questions that are trained on is no validation loss.
        if shared := len(np.intersect1d(in_train, questions)):
            path, number = settings.validation.source.path, len(np.unique(questions))
            logger.warning("%s: %d of its %d questions are in the training source too", path, shared, number)
    train = _draw(train, settings.num_train, seed, "data.num_train", left_out)
    if validation is not None:
        validation = _draw(validation, settings.num_validation, seed, "data.num_validation", held_out)
    left_out |= {f"validation: {reason}": number for reason, number in held_out.items()}
    return Splits(train, validation, left_out)


def sections_of(row: Mapping[str, Any]) -> Sections:
    """The section borders stored in a row, with its first answer where one was searched for."""
    borders = (int(row[name]) for name in ("prompt_end", "think_end", "cot_end", "num_tokens", "stop"))
    return Sections(*borders, steps=tuple(row["steps"]), first_answer=row.get("first_answer"))


def cache_root(settings: DataSettings) -> Path:
    """Directory of everything that is derived from traces and can be derived again."""
    if settings.cache_dir is not None:
        return settings.cache_dir
    return Path(os.environ.get("LEADSPAN_CACHE") or "~/.cache/leadspan").expanduser()


def _write(source: TraceSource, content: str, renderer: Renderer, settings: DataSettings, directory: Path) -> None:
    """Fill a cache directory; it appears under its name only when complete, and of the content that named it."""
    # With the process id in its name, so that two processes may fill the same cache at once; the first one wins.
    staged = directory.with_name(f"{directory.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    counter = RefusalCounter()
    try:
        progress = Progress(f"tokenising {source.path}", None, "records")
        with ArrowWriter(path=str(staged / "rows.arrow"), features=FEATURES) as writer:
            render, waiting = functools.partial(_render_batch, renderer), list[pa.Table]()
            for columns, refused in in_batches(render, read_traces(source), _BATCH, settings.num_workers):
                for item in (*refused, *columns["place"]):  # a place for each record that can be used
                    counter.add(item)
                waiting.append(pa.table(columns, schema=FEATURES.arrow_schema))
                is_large = sum(table.nbytes for table in waiting) >= _LARGE_BATCH
                if is_large or sum(table.num_rows for table in waiting) >= _ROWS_PER_BATCH:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting.clear()
                progress.report(counter.num_read)
            if sum(table.num_rows for table in waiting):
                writer.write_table(pa.concat_tables(waiting))
            writer.finalize()
        if fingerprint(source) != content:
            raise DataError(f"{source.path}: changed while it was read; run the command again when it is complete")
        counter.check(settings.max_refused_share, source.path)
        examples = {reason: [refusal.detail, refusal.place] for reason, refusal in counter.examples.items()}
        summary = {"num_read": counter.num_read, "refused": dict(counter.counts), "examples": examples}
        (staged / "summary.json").write_text(json.dumps(summary))
        # Hashes come last and the directory appears by a rename, so a directory under this name is complete.
        seal(staged)
        if not directory.exists():
            staged.rename(directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    logger.info("tokenised %s: %d records, %d refused", source.path, counter.num_read, sum(counter.counts.values()))


def _render_batch(renderer: Renderer, batch: list[Trace | Refusal]) -> tuple[dict[str, list[object]], list[Refusal]]:
    """The columns of the traces that can be used, and the refusals; runs in the worker processes."""
    traces, texts, refused = renderer.render_all(batch)
    rendered = renderer.tokenise(texts, traces)
    borders: list[object] = [conversation.sections for conversation in rendered]
    others: dict[str, Sequence[object]] = dict.fromkeys(
        ("input_ids", "example_id", "question_id", "question"), rendered
    )
    others |= dict.fromkeys(("place", "gold", "teacher"), traces)
    return {name: [getattr(item, name) for item in others.get(name, borders)] for name in FEATURES}, refused


def _of_fitting_length(rows: Dataset, settings: DataSettings, left_out: dict[str, int]) -> Dataset:
    lengths = np.fromiter((n for block in column_blocks(rows, "num_tokens") for n in block), dtype=np.int32)
    ceiling = settings.max_tokens or int(lengths.max(initial=0))
    is_short, is_long = lengths < settings.min_tokens, lengths > ceiling
    reasons = {
        f"shorter than {settings.min_tokens} tokens": int(is_short.sum()),
        f"longer than {ceiling} tokens": int(is_long.sum()),
    }
    left_out |= {reason: number for reason, number in reasons.items() if number}
    return rows.select(np.flatnonzero(~is_short & ~is_long))


def _draw(rows: Dataset, number: int | None, seed: int, name: str, left_out: dict[str, int]) -> Dataset:
    if len(rows) < (number or 1):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "nothing"
        widen = f"left out so far: {reasons}; give more traces, or widen data.min_tokens and data.max_tokens"
        if len(rows) == 0:
            raise DataError(f"{name.replace('num_', '')}: no trace is left; {widen}")
        raise DataError(f"{name} = {number}: only {len(rows)} traces can be used; lower it; {widen}")
    if number is None:
        return rows
    if len(rows) > number:
        left_out["not drawn"] = left_out.get("not drawn", 0) + len(rows) - number
    # As `Dataset.shuffle` draws, which would keep the order in a file beside the rows that no digest protects.
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:number])
