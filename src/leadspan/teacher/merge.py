"""Joins stores of one teacher, tokenizer, template and codec into one, with one row for each distinct sequence."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from leadspan.errors import TargetsError
from leadspan.files import write_atomically
from leadspan.teacher.claim import claimed
from leadspan.teacher.manifest import HEAD_FILE, SHARDS_DIR, Manifest, check_same, write_manifest
from leadspan.teacher.shards import ShardReader, ShardWriter
from leadspan.teacher.store import TargetStore, shard_paths


def merge_stores(paths: Sequence[Path], output: Path) -> Manifest:
    """Write a new store with the rows of all.

    Every source is verified first. A shard of the result is a shard of a source without the rows that came before.

    Raises:
        TargetsError: They are not of one teacher, tokenizer, template and codec, or the output is not empty.
        CacheError: A source is damaged.
    """
    stores = [TargetStore(path) for path in paths]
    first = stores[0].manifest
    for store in stores:
        check_same(store.manifest.identity(), first.identity(), f"{store.directory} and {stores[0].directory}")
        store.verify()
    if output.exists() and any(output.iterdir()):
        raise TargetsError(f"{output}: not empty; give a new directory")
    plans = hashlib.sha256(" ".join(store.manifest.plan_hash for store in stores).encode()).hexdigest()[:32]
    with claimed(output, first.model_copy(update={"plan_hash": plans, "complete": False, "shards": []})) as manifest:
        if first.head is not None:
            write_atomically(output / HEAD_FILE, (next(iter(stores[0].parts)) / HEAD_FILE).read_bytes())
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
