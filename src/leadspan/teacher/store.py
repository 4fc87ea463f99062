"""Reading a store: the targets of any example whose tokens begin a captured sequence, in any order, from any process.

A row is found by example id and compared token by token: position `t` of a causal teacher depends on tokens `0 .. t`
alone, so a captured sequence serves every sequence that begins like it, and nothing else is served.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from leadspan.data.examples import Example
from leadspan.data.packing import SparseRows, StoredRows
from leadspan.errors import CacheError, TargetsError
from leadspan.files import file_hash
from leadspan.models.heads import LogitTransform
from leadspan.teacher.codecs import Arrays, decode, logsumexp_column, outside_column
from leadspan.teacher.manifest import HEAD_FILE, SHARDS_DIR, read_joined, read_parts
from leadspan.teacher.settings import Hidden
from leadspan.teacher.shards import REMEDY, ShardReader, borders_of, damaged, has_hash_of_name, sequence_hash
from leadspan.teacher.targets import DenseTargets, SparseTargets, Targets

Location = tuple[ShardReader, int, int]
"""A captured sequence: its shard, its record batch, and its row in that."""


class TargetStore:
    """A complete store, mapped into memory. Pickles as its path, so that workers map it themselves."""

    def __init__(self, directory: Path):
        """Open a store, or the parts of one: read manifests, look for every shard, list the captured sequences.

        Raises:
            TargetsError: There is no store, or its capture has not ended.
            CacheError: The manifest is damaged, or a shard is missing, cut short or damaged.
        """
        self.directory = directory
        self.manifest = read_joined(directory)
        if not self.manifest.complete:
            raise TargetsError(f"{directory}: its capture is incomplete; run `leadspan capture` again to continue it")
        self.parts = read_parts(directory)
        self.shards: list[ShardReader] = []
        for part, manifest in self.parts.items():
            for entry in manifest.shards:
                path = part / SHARDS_DIR / entry.name
                if not path.exists():
                    raise CacheError(f"{path}: missing; {REMEDY}")
                if path.stat().st_size != entry.num_bytes:
                    raise damaged(path, f"{path.stat().st_size} bytes instead of {entry.num_bytes}")
                self.shards.append(ShardReader(path, manifest))
        # Several rows of one trace: a cut that changes the context has a sequence of its own.
        self._rows: dict[bytes, list[Location]] = defaultdict(list)
        for shard in self.shards:
            for batch, row, example_id in shard.sequences():
                self._rows[example_id].append((shard, batch, row))
        # Rows are read once an epoch; their checksum is compared the first time only.
        self._checked: set[Location] = set()
        num_rows = sum(map(len, self._rows.values()))
        if num_rows != self.manifest.num_sequences:
            raise CacheError(
                f"{directory}: {num_rows} rows, the manifest says {self.manifest.num_sequences}; capture again"
            )

    def __reduce__(self) -> tuple[type["TargetStore"], tuple[Path]]:
        return TargetStore, (self.directory,)

    def read(self, example: Example, positions: np.ndarray) -> Arrays:
        """Stored columns of some positions of an example; views of the mapped file where positions are consecutive.

        Positions are ascending, and each is before the last token of the example, after any cut.

        Raises:
            TargetsError: No captured sequence begins with the example's tokens.
            CacheError: The row is damaged.
        """
        shard, *location = self.find(example)
        row = shard.row(*location)
        following = row.pop("input_ids")[1:]
        # Consecutive positions are one slice of each column.
        runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1) if len(positions) else []
        columns: Arrays = {}
        for name, values in row.items():
            borders = borders_of(row, name, len(following))
            slices = [values[borders[run[0]] : borders[run[-1] + 1]] for run in runs] or [values[:0]]
            columns[name] = slices[0] if len(slices) == 1 else np.concatenate(slices)
        if "label_log_prob" in columns:
            # The stored value is that of the token that followed in the capture. Where a cut appends an end of turn,
            # the label is another token, whose log-probability is not known.
            is_same = following[positions] == example.input_ids[positions + 1]
            columns["label_log_prob"] = np.where(is_same, columns["label_log_prob"], np.float32(np.nan))
        return columns

    def find(self, example: Example) -> Location:
        """The sequence that begins with all of an example's tokens but the last.

        The last token is only predicted: it is not the context of any position with a loss. The row is checked against
        its checksum when it is first found.

        Raises:
            TargetsError: There is none; names the example and both hashes.
            CacheError: The row is damaged.
        """
        if (location := self.location(example)) is not None:
            if location not in self._checked:
                shard, batch, row = location
                shard.check(batch, row)
                self._checked.add(location)
            return location
        context, locations = example.input_ids[:-1], self._rows.get(bytes.fromhex(example.example_id), [])
        what = f"{self.directory}: example {example.example_id}, first {len(context)} tokens"
        digest, remedy = f"(hash {sequence_hash(context).hex()})", "capture with this cut in capture.cuts"
        if not locations:
            raise TargetsError(
                f"{what} {digest}: no sequence of this trace was captured; {remedy}, "
                "from these traces with this tokenizer and template"
            )
        shard, batch, row = locations[0]
        captured = shard.values(batch, row, "input_ids")
        common = min(len(captured), len(context))
        differ = np.flatnonzero(captured[:common] != context[:common])
        length = f"{len(captured)} tokens, hash {shard.key(batch, row, 'sequence_hash').hex()}"
        rule = "is shorter than what is needed"
        if len(differ):
            rule = (
                f"differs from it at token {differ[0]}: a cut that changes the context "
                "(tail, middle, random_window, a changed mix) has outputs of its own"
            )
        raise TargetsError(f"{what} {digest}: the captured sequence ({length}) {rule}; {remedy}")

    def location(self, example: Example) -> Location | None:
        """As `find`; None where there is none."""
        context = example.input_ids[:-1]
        for shard, batch, row in self._rows.get(bytes.fromhex(example.example_id), []):
            captured = shard.values(batch, row, "input_ids")
            # Longer by one at least: the last token of a captured sequence has no position of its own.
            if len(captured) > len(context) and np.array_equal(captured[: len(context)], context):
                return shard, batch, row
        return None

    def collate(self, examples: Sequence[Example]) -> StoredRows:
        """Stored targets at the weighted positions of a batch, as tensors in the order of `pack`."""
        # Position t predicts token t + 1, so a weighted token is looked up one position before it.
        rows = [self.read(example, np.flatnonzero(example.weights > 0) - 1) for example in examples]
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        manifest, codec = self.manifest, self.manifest.codec
        if isinstance(codec, Hidden):
            # bfloat16 was written as its bits; the view gives them their type back.
            hidden = torch.from_numpy(columns["hidden"]).view(getattr(torch, str(manifest.hidden_dtype)))
            return {"hidden": hidden.view(-1, manifest.hidden_size)}
        tensors = cast(SparseRows, {name: torch.from_numpy(a) for name, a in decode(columns, codec).items()})
        # An engine that returns log p only leaves the logits free up to a constant: log p serves as logits, with a
        # normaliser of 0.
        zeros = np.zeros(len(columns["label_log_prob"]), np.float32)
        normalisers = {t: columns.get(logsumexp_column(t), zeros) for t in manifest.temperatures}
        tensors["logsumexp"] = {t: torch.from_numpy(values) for t, values in normalisers.items()}
        tensors["tail_mass"] = {
            t: torch.from_numpy(columns[outside_column(t)]) for t in manifest.kept_targets.tail_temperatures
        }
        if "entropy" in columns:
            tensors["entropy"] = torch.from_numpy(columns["entropy"].astype(np.float32))
        tensors["label_log_probs"] = torch.from_numpy(columns["label_log_prob"].astype(np.float32))
        return tensors

    def targets(self, stored: StoredRows, head: torch.Tensor | None) -> Targets:
        """Targets for the loss, from the tensors of `collate` (on any device) and the teacher's head."""
        if "hidden" in stored:
            entry = self.manifest.head
            assert entry is not None and head is not None, "checked by load_head"
            return DenseTargets(stored["hidden"].to(head.dtype), head, LogitTransform(entry.scale, entry.softcap))
        return SparseTargets(**stored)

    def load_head(self, part: Path | None = None) -> torch.Tensor | None:
        """The teacher's head, [V, d], from the first part of the store or a named one; None for sparse codecs.

        Raises:
            CacheError: Its file is missing or damaged.
        """
        if not isinstance(self.manifest.codec, Hidden):
            return None
        path = (next(iter(self.parts)) if part is None else part) / HEAD_FILE
        try:
            if self.manifest.head is None or file_hash(path) != self.manifest.head.sha256:
                raise CacheError(f"{path}: damaged (its SHA-256 is not that of the manifest); capture again")
            return load_file(path)["weight"]
        except (OSError, SafetensorError, KeyError) as error:
            raise CacheError(f"{path}: cannot be read ({error}); capture again") from None

    def verify(self) -> int:
        """Hash every file and check every row against its checksum and its sequence hash.

        Returns:
            Rows checked.

        Raises:
            CacheError: Names every damaged file.
        """
        faults: list[str] = []
        for shard in self.shards:
            if not has_hash_of_name(shard.path, file_hash(shard.path)):
                faults.append(str(damaged(shard.path, "its SHA-256 is not that of its name")))
                continue
            try:
                for batch, row, _ in shard.sequences():
                    shard.check(batch, row)
                    if sequence_hash(shard.values(batch, row, "input_ids")) != shard.key(batch, row, "sequence_hash"):
                        raise damaged(
                            shard.path, f"row {row} of record batch {batch}: its token ids do not have their hash"
                        )
            except CacheError as error:
                faults.append(str(error))
        for part in self.parts:
            try:
                self.load_head(part)
            except CacheError as error:
                faults.append(str(error))
        if faults:
            raise CacheError("\n  ".join([f"{self.directory}: {len(faults)} damaged", *faults]))
        return self.manifest.num_sequences
