"""Show, check or join stores of teacher targets."""

import argparse
from pathlib import Path
from typing import Any

from leadspan.cli.output import add_json, console_beside, write_json
from leadspan.text import print_plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, the stores, and where to."""
    parser.add_argument(
        "action",
        choices=("inspect", "verify", "merge"),
        help="inspect: print the manifest of a store; verify: check every file, row and hash; "
        "merge: join stores of one teacher and codec",
    )
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE", help="directory of a store")
    parser.add_argument("--output", type=Path, help="directory of the joined store (merge)")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Inspect, verify or merge."""
    from leadspan.errors import SettingsError
    from leadspan.tables import Block, rich_table
    from leadspan.teacher.manifest import read_joined

    if (options.action == "merge") != (options.output is not None):
        raise SettingsError(f"{options.action}: --output goes with merge, and merge needs it")
    if options.json is not None and options.action != "inspect":
        raise SettingsError(f"{options.action}: --json goes with inspect")
    if options.action == "inspect":
        manifests: dict[str, Any] = {}  # Any: plain values
        for store in options.stores:
            manifest = read_joined(store)
            each = manifest.num_bytes / max(1, manifest.num_positions)
            took = f"{manifest.seconds:,.0f} s" + (f", {manifest.flops:.3g} operations" if manifest.flops else "")
            rows = {
                "complete": "yes" if manifest.complete else "no: run `leadspan capture` again to continue",
                "teacher": manifest.teacher + (f" at {manifest.teacher_revision}" if manifest.teacher_revision else ""),
                "weights": manifest.weights_hash,
                "tokenizer": manifest.tokenizer_hash,
                "template": manifest.template_hash,
                "codec": manifest.codec.model_dump_json(),
                "engine": f"{manifest.engine}, {manifest.dtype}",
                "temperatures": ", ".join(f"{t:g}" for t in manifest.temperatures),
                "vocabulary": f"{manifest.num_tokens:,}",
                "sequences": f"{manifest.num_sequences:,}",
                "positions": f"{manifest.num_positions:,}",
                "shards": f"{len(manifest.shards):,}",
                "bytes": f"{manifest.num_bytes:,} ({each:.1f} a position)",
                "capture": took,
                "KL lost": "not measured" if manifest.kl_lost is None else f"{manifest.kl_lost:.3g} nats a position",
                "versions": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
            }
            manifests[str(store)] = manifest.model_dump(mode="json")
            console_beside(options.json).print(rich_table(Block(str(store), (), tuple(rows.items()))))
        write_json(manifests, options.json)
        return
    # `inspect` needs no torch.
    from leadspan.teacher.merge import merge_stores
    from leadspan.teacher.store import TargetStore

    if options.action == "verify":
        for path in options.stores:
            store = TargetStore(path)
            shards = f"{len(store.manifest.shards):,} shard{'s' if len(store.manifest.shards) > 1 else ''}"
            print_plain(f"{path}: {store.verify():,} rows in {shards} are whole")
        return
    merged = merge_stores(options.stores, options.output)
    print_plain(f"store: {options.output}: {merged.num_sequences:,} sequences, {merged.num_positions:,} positions")
