"""The manifest of a store: one JSON file that names the teacher, the data's tokenizer, the codec and the shards."""

import errno
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from leadspan.errors import CacheError, SettingsError, TargetsError
from leadspan.files import checksum, write_atomically
from leadspan.settings import Settings
from leadspan.teacher.settings import Codec, Engine, Hidden, KeptTargets
from leadspan.text import shortened

MANIFEST_FILE, SHARDS_DIR, HEAD_FILE = "manifest.json", "shards", "head.safetensors"
DRAWN_FILE = "rollouts.jsonl"
"""Whole rollouts of the student, in a store of the teacher's targets on them."""
LOCK_FILE = "capture.lock"
# A file that was written, and whose process was killed before it gave it its name.
_UNNAMED = re.compile(rf"\.({re.escape(MANIFEST_FILE)}|{re.escape(DRAWN_FILE)})\.\d+\.tmp")
# A format is read by the version that wrote it, or refused: a store is cheap to make again, wrong targets are not.
_FORMAT: Literal[2] = 2
# Not part of what a store is: fields that change while a capture goes on, or between equal captures, and the name of
# the teacher, which is its weights, in any directory.
_NOT_COMPARED = {"complete", "shards", "versions", "kl_lost", "seconds", "flops", "plan_hash", "num_sequences"}
_NOT_COMPARED |= {"num_positions", "teacher", "teacher_revision"}
_ANEW = "what its shards are is not known, so remove the store and capture again, or give another capture.path"


class HeadEntry(Settings):
    """The teacher's head, for hidden states: `z = softcap tanh(scale h W^T / softcap)`."""

    sha256: str
    scale: float = 1.0
    """Factor on the product."""
    softcap: float | None = None


class ShardEntry(Settings):
    """One Arrow file."""

    name: str
    """File name; the part after the dash is the start of its SHA-256."""
    num_rows: int
    """Captured sequences in it."""
    num_positions: int
    num_bytes: int


class Manifest(Settings):
    """The store's own description."""

    format_version: Literal[2] = _FORMAT
    teacher: str
    """Path, Hub name or description of the teacher."""
    teacher_revision: str | None = None
    weights_hash: str
    """Hash of the teacher's weight files and config."""
    tokenizer_hash: str
    """Hash of the tokenizer that made the ids."""
    template_hash: str
    """Hash of the chat template and the rendering settings."""
    engine: Engine
    dtype: str
    """Type the teacher computed in."""
    codec: Codec
    hidden_dtype: str | None = None
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
    num_positions: int
    complete: bool = False
    """Whether all shards are there."""
    shards: list[ShardEntry] = []
    """The shards, once all are there."""
    kl_lost: float | None = None
    """KL the codec loses on a sample, nats per position, as `--dry-run` measures it; None when it was not measured."""
    seconds: float = 0.0
    """Wall time of the capture over all attempts, without the time that a killed one spent on an unfinished shard."""
    flops: int | None = None
    """Operations of the teacher's forward pass over all positions; None where its shape is not known."""
    versions: dict[str, str] = {}
    """Versions of the packages that wrote it."""

    @property
    def num_bytes(self) -> int:
        """Size of the shards."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def kept_targets(self) -> KeptTargets:
        """What is kept of a distribution; hidden states with the type they were written in."""
        codec = self.codec
        # `dtype: teacher` names no type; float16 and bfloat16 take the same memory and count as one.
        if isinstance(codec, Hidden) and self.hidden_dtype is not None:
            codec = Hidden(dtype="float32" if self.hidden_dtype == "float32" else "bfloat16")
        return KeptTargets(codec, tuple(self.temperatures), self.engine)

    def identity(self) -> dict[str, Any]:
        """The fields that identify a store, without its progress and the location of its teacher."""
        return self.model_dump(mode="json", exclude=_NOT_COMPARED)


def checked_for_capture(directory: Path | None) -> Path:
    """The directory that a capture fills: a store, or one that is empty but for what comes before a manifest.

    Raises:
        SettingsError: None is named.
        TargetsError: It holds something else.
    """
    if directory is None:
        raise SettingsError(
            "capture.path: missing; give the directory of the store there, or in targets: {kind: store, path: ...}"
        )
    # The lock may be there already, and rollouts may have been drawn before the capture.
    if directory.is_dir() and not (directory / MANIFEST_FILE).exists():
        names = {path.name for path in directory.iterdir()} - {LOCK_FILE, DRAWN_FILE}
        if not all(map(_UNNAMED.fullmatch, names)):
            raise TargetsError(f"{directory}: it is not empty and not a store; give another directory")
    return directory


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write `manifest.json` with a checksum of its own, atomically."""
    values = manifest.model_dump(mode="json")
    # The checksum is over the values, not the text, so that reformatting the file by hand does no harm.
    text = json.dumps(values | {"checksum": checksum(values)}, indent=1) + "\n"
    write_atomically(directory / MANIFEST_FILE, text)


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        TargetsError: There is none.
        CacheError: It is damaged, or of another version of the format.
    """
    path = directory / MANIFEST_FILE
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")  # a pipe would be waited for without end
        values = json.loads(path.read_bytes())
        stated = values.pop("checksum")
    except OSError as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise TargetsError(
            f"{path}: {reason}; give the directory of a store that `leadspan capture` has written"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CacheError(f"{path}: damaged (no JSON object with a checksum); {_ANEW}") from None
    if values.get("format_version") != _FORMAT:
        raise CacheError(f"{path}: format {values.get('format_version')}, this version reads {_FORMAT}; capture again")
    if stated != checksum(values):
        raise CacheError(f"{path}: damaged (its checksum is not that of its content); {_ANEW}")
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
    manifests = {path.parent: read_manifest(path.parent) for path in sorted(directory.glob(f"*/{MANIFEST_FILE}"))}
    # A part whose capture is incomplete serves nothing yet; the others do.
    complete = {path: manifest for path, manifest in manifests.items() if manifest.complete}
    if manifests and not complete:
        raise TargetsError(f"{directory}: its capture is incomplete; run the same command again to continue it")
    return complete or {directory: read_manifest(directory)}


def read_joined(*directories: Path) -> Manifest:
    """One manifest for all parts of one store or of several, their counts added up.

    Raises:
        TargetsError: There is none, or the parts are not of one teacher, tokenizer, template and codec.
        CacheError: One is damaged, or of another version of the format.
    """
    parts = {path: manifest for directory in directories for path, manifest in read_parts(directory).items()}
    # The parts differ in their sequences only, so the first one's description is that of all.
    (first_path, first), manifests = next(iter(parts.items())), list(parts.values())
    for path, manifest in parts.items():
        where = str(path) if len(directories) == 1 else f"{path} and {first_path}"
        check_same(manifest.identity(), first.identity(), where)
    if len(manifests) == 1:
        return first
    losses = [(m.kl_lost, m.num_positions) for m in manifests if m.kl_lost is not None]
    measured = sum(number for _, number in losses)
    return first.model_copy(
        update={
            "shards": [shard for m in manifests for shard in m.shards],
            "num_sequences": sum(m.num_sequences for m in manifests),
            "num_positions": sum(m.num_positions for m in manifests),
            # A mean over positions: parts count by their size.
            "kl_lost": sum(loss * number for loss, number in losses) / measured if measured else None,
            "seconds": sum(m.seconds for m in manifests),
            "flops": None if any(m.flops is None for m in manifests) else sum(m.flops or 0 for m in manifests),
        }
    )


def check_same(actual: dict[str, Any], expected: dict[str, Any], where: str) -> None:
    """Compare two identities.

    Raises:
        TargetsError: Names every field that differs, with both values.
    """
    differing = []
    for name, value in expected.items():
        if actual.get(name) != value:
            # A codec or a list of temperatures fits; a long text would hide the other fields.
            there, here = (shortened(json.dumps(either), 120) for either in (actual.get(name), value))
            differing.append(f"{name} is {there}, expected {here}")
    if differing:
        raise TargetsError(f"{where}: {'; '.join(differing)}; use a store of these settings, or capture a new one")
