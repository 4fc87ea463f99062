"""Joins stores of one teacher, tokenizer, template and codec into one, with one row for each distinct sequence."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from leadspan.errors import CacheError, TargetsError
from leadspan.files import checked_line, write_atomically
from leadspan.teacher.fill import claimed
from leadspan.teacher.manifest import (
    DRAWN_FILE,
    HEAD_FILE,
    MANIFEST_FILE,
    SHARDS_DIR,
    Manifest,
    check_same,
    read_manifest,
    write_manifest,
)
from leadspan.teacher.shards import ShardReader, ShardWriter
from leadspan.teacher.store import TargetStore, shard_paths


def merge_stores(paths: Sequence[Path], output: Path) -> Manifest:
    """Write a new store with the rows of all, and their rollouts where they have any.

    Every source is verified first; an interrupted join of the same stores is begun again. A shard of the result is a
    shard of a source without the rows that came before.

    Raises:
        TargetsError: They are not of one teacher, tokenizer, template and codec, their rollouts were drawn with other
            settings, or the output holds anything but an interrupted join of them.
        CacheError: A source is damaged.
    """
    stores = [TargetStore(path) for path in paths]
    first = stores[0].manifest
    for store in stores:
        check_same(store.manifest.identity(), first.identity(), f"{store.directory} and {stores[0].directory}")
        store.verify()
    if (output / MANIFEST_FILE).exists() and read_manifest(output).complete:
        raise TargetsError(f"{output}: it holds a complete store; give a new directory")
    rollouts = _joined_rollouts([path / DRAWN_FILE for path in paths])
    plans = hashlib.sha256(" ".join(store.manifest.plan_hash for store in stores).encode()).hexdigest()[:32]
    with claimed(output, first.model_copy(update={"plan_hash": plans, "complete": False, "shards": []})) as manifest:
        if first.head is not None:
            write_atomically(output / HEAD_FILE, (next(iter(stores[0].parts)) / HEAD_FILE).read_bytes())
        if rollouts:
            write_atomically(output / DRAWN_FILE, "".join(line + "\n" for line in rollouts))
        seen: set[bytes] = set()
        shards = [
            ShardReader(path, part_manifest)
            for store in stores
            for part, part_manifest in store.parts.items()
            for path in shard_paths(part, part_manifest)
        ]
        entries = []
        for shard in shards:
            new_rows: dict[int, list[tuple[int, bytes]]] = {}  # by record batch
            for batch, row, example_id in shard.sequences():
                if (key := shard.sequence_hash(batch, row)) not in seen:
                    seen.add(key)
                    new_rows.setdefault(batch, []).append((row, example_id))
            with ShardWriter(output / SHARDS_DIR, len(entries), manifest) as writer:
                for batch, rows in new_rows.items():
                    writer.write([example_id for _, example_id in rows], [shard.row(batch, row) for row, _ in rows])
                entries.append(writer.close())
        manifest = manifest.model_copy(
            update={
                "complete": True,
                "shards": entries,
                "num_sequences": sum(entry.num_rows for entry in entries),
                "num_positions": sum(entry.num_positions for entry in entries),
                "seconds": sum(store.manifest.seconds for store in stores),
                "flops": None,
            }
        )
        write_manifest(manifest, output)
    return manifest


def _joined_rollouts(paths: Sequence[Path]) -> list[str]:
    """The header that all files of rollouts share, and their lines, each once; nothing where there is no file."""
    files = {path: path.read_bytes().split(b"\n")[:-1] for path in paths if path.exists()}
    for path, lines in files.items():
        damaged = [number for number, line in enumerate(lines or [b""], 1) if checked_line(line) is None]
        if damaged:
            raise CacheError(f"{path}: line {damaged[0]} is damaged; run its `leadspan capture` again")
    headers = {lines[0].decode(): path for path, lines in files.items()}
    if len(headers) > 1:
        different = "; ".join(f"{path}: {header}" for header, path in headers.items())
        raise TargetsError(f"rollouts drawn with different settings cannot be joined: {different}")
    return list(dict.fromkeys(line.decode() for lines in files.values() for line in lines))
