"""What a store says of itself: one JSON file that names the teacher, the data's tokenizer, the codec and the shards."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from leadspan.errors import CacheError, TargetsError
from leadspan.files import write_atomically
from leadspan.settings import Settings
from leadspan.teacher.config import Codec, Hidden

MANIFEST_FILE, SHARDS_DIR, HEAD_FILE = "manifest.json", "shards", "head.safetensors"
_FORMAT: Literal[2] = 2
_READ = (1, 2)
_PROGRESS = (
    "complete",
    "shards",
    "versions",
    "plan_hash",
    "num_sequences",
    "num_positions",
    "kl_lost",
    "seconds",
    "flops",
)
_NAMES = ("teacher", "teacher_revision")  # a teacher is its weights, wherever they lie


class HeadEntry(Settings):
    """The teacher's head, for hidden states: `z = softcap tanh(scale h W^T / softcap)`."""

    sha256: str
    """SHA-256 of the file."""
    scale: float = 1.0
    """Factor on the product."""
    softcap: float | None = None
    """Cap of the logits, or None."""


class ShardEntry(Settings):
    """One Arrow file."""

    name: str
    """File name; the part behind the dash is the start of its SHA-256."""
    num_rows: int
    """Captured sequences in it."""
    num_positions: int
    """Positions in it."""
    num_bytes: int
    """Size of the file."""


class Manifest(Settings):
    """The store's own description."""

    format_version: Literal[1, 2] = _FORMAT
    """Version of the format; 1 lacks the outside mass at temperatures other than 1."""
    teacher: str
    """Path, Hub name or description of the teacher."""
    teacher_revision: str | None = None
    """Hub revision."""
    weights_hash: str
    """Hash of the teacher's weight files and config."""
    tokenizer_hash: str
    """Hash of the tokenizer that made the ids."""
    template_hash: str
    """Hash of the chat template and the rendering settings."""
    engine: Literal["transformers", "vllm"]
    """What ran the teacher."""
    dtype: str
    """Type the teacher computed in."""
    codec: Codec
    """What is kept of a distribution."""
    hidden_dtype: str | None = None
    """Type of stored hidden states."""
    temperatures: list[float]
    """Temperatures whose normalisers are kept."""
    num_tokens: int
    """Size of the vocabulary the distributions are over."""
    hidden_size: int
    """Width of the teacher's final hidden states."""
    head: HeadEntry | None = None
    """The teacher's head, with the `hidden` codec."""
    plan_hash: str
    """Hash of all sequences to capture, their packs and shards."""
    num_sequences: int
    """Sequences."""
    num_positions: int
    """Positions."""
    complete: bool = False
    """Whether all shards are there."""
    shards: list[ShardEntry] = []
    """The shards, once all are there."""
    kl_lost: float | None = None
    """KL the codec loses on a sample, nats per position, as `--dry-run` measures it; None when it was not measured."""
    seconds: float = 0.0
    """Wall time of the capture, all attempts, without what a killed one did after its last whole shard."""
    flops: int | None = None
    """Operations of the teacher's forward pass over all positions; None where its shape is not known."""
    versions: dict[str, str] = {}
    """Versions of the packages that wrote it."""

    @property
    def tail_temperatures(self) -> list[float]:
        """Temperatures at which the mass outside the support is kept; a drawn support has no use for it."""
        if self.format_version == 1 or self.codec.kind == "sampled":
            return [1.0]
        return self.temperatures

    def identity(self) -> dict[str, Any]:
        """What a store is, without how far it is and where its teacher lies."""
        return self.model_dump(mode="json", exclude={*_PROGRESS, *_NAMES})

    def kept(self) -> dict[str, Any]:
        """What two parts of one store must agree on; of their formats, the temperatures of the tails they keep."""
        tails = {} if isinstance(self.codec, Hidden) else {"tail_temperatures": self.tail_temperatures}
        return {name: value for name, value in self.identity().items() if name != "format_version"} | tails


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write `manifest.json` with a checksum of its own, atomically."""
    values = manifest.model_dump(mode="json")
    text = json.dumps(values | {"checksum": _checksum(values)}, indent=1) + "\n"
    write_atomically(directory / MANIFEST_FILE, text)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        TargetsError: There is none.
        CacheError: It is damaged, or of another version of the format.
    """
    path = directory / MANIFEST_FILE
    try:
        values = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
    except OSError:
        raise TargetsError(
            f"{path}: not found; give the directory of a store that `leadspan capture` has written"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CacheError(f"{path}: damaged (no JSON object with a checksum); capture again") from None
    if values.get("format_version") not in _READ:
        known = " and ".join(map(str, _READ))
        raise CacheError(f"{path}: format {values.get('format_version')}, this version reads {known}; capture again")
    if checksum != _checksum(values):
        raise CacheError(f"{path}: damaged (its checksum is not that of its content); capture again")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise CacheError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; capture again") from None


def read_parts(directory: Path) -> dict[Path, Manifest]:
    """The manifest of a store; of a directory of stores, those that are complete, by directory.

    Raises:
        TargetsError: There is none.
        CacheError: One is damaged, or of another version of the format.
    """
    if (directory / MANIFEST_FILE).exists():
        return {directory: read_manifest(directory)}
    found = {path.parent: read_manifest(path.parent) for path in sorted(directory.glob(f"*/{MANIFEST_FILE}"))}
    complete = {path: manifest for path, manifest in found.items() if manifest.complete}
    if found and not complete:
        raise TargetsError(f"{directory}: its capture has not ended; run the same command again, it goes on")
    return complete or {directory: read_manifest(directory)}


def read_joined(directory: Path) -> Manifest:
    """One manifest for all parts of a store, their counts added up.

    Raises:
        TargetsError: There is none, or the parts are not of one teacher, tokenizer, template and codec.
        CacheError: One is damaged, or of another version of the format.
    """
    parts = read_parts(directory)
    manifests = list(parts.values())
    first = manifests[0]
    for path, manifest in parts.items():
        check_same(manifest.kept(), first.kept(), str(path))
    if len(manifests) == 1:
        return first
    lost = [(m.kl_lost, m.num_positions) for m in manifests if m.kl_lost is not None]
    measured = sum(number for _, number in lost)
    return first.model_copy(
        update={
            "shards": [shard for m in manifests for shard in m.shards],
            "num_sequences": sum(m.num_sequences for m in manifests),
            "num_positions": sum(m.num_positions for m in manifests),
            "kl_lost": sum(loss * number for loss, number in lost) / measured if measured else None,
            "seconds": sum(m.seconds for m in manifests),
            "flops": None if any(m.flops is None for m in manifests) else sum(m.flops or 0 for m in manifests),
        }
    )


def check_same(found: dict[str, Any], wanted: dict[str, Any], place: str) -> None:
    """Compare two identities.

    Raises:
        TargetsError: Names every field that differs, with both values.
    """
    differing = [
        f"{name} is {_shown(found.get(name))}, wanted {_shown(value)}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise TargetsError(f"{place}: {'; '.join(differing)}; take the store of these settings, or capture anew")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
