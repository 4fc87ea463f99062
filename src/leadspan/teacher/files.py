"""The files of a complete store: its shards and the teacher's head."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from leadspan.errors import CacheError
from leadspan.teacher.manifest import HEAD_FILE, SHARDS_DIR, Manifest, file_hash
from leadspan.teacher.shards import REMEDY, damaged


def shard_paths(directory: Path, manifest: Manifest) -> list[Path]:
    """The shards of a complete store.

    Raises:
        CacheError: One is missing or has another size.
    """
    paths = [directory / SHARDS_DIR / shard.name for shard in manifest.shards]
    for path, shard in zip(paths, manifest.shards, strict=True):
        if not path.exists():
            raise CacheError(f"{path}: missing; {REMEDY}")
        if path.stat().st_size != shard.num_bytes:
            raise damaged(path, f"{path.stat().st_size} bytes instead of {shard.num_bytes}")
    return paths


def read_head(directory: Path, manifest: Manifest) -> torch.Tensor:
    """The teacher's head of a `hidden` store.

    Raises:
        CacheError: Its file is missing or damaged.
    """
    path = directory / HEAD_FILE
    try:
        if manifest.head is None or file_hash(path) != manifest.head.sha256:
            raise CacheError(f"{path}: damaged (its SHA-256 is not that of the manifest); capture again")
        return load_file(path)["weight"]
    except (OSError, SafetensorError, KeyError) as error:
        raise CacheError(f"{path}: cannot be read ({error}); capture again") from None
