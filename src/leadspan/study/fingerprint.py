"""What identifies a trial: its resolved settings and the content of the local files it reads."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from leadspan.data.config import HeldOutSource, TraceSource
from leadspan.data.files import digest_file
from leadspan.data.traces import fingerprint as fingerprint_traces
from leadspan.models.config import ModelSettings, Pretrained
from leadspan.recipe import Recipe
from leadspan.teacher.config import StoredTargets
from leadspan.teacher.manifest import read_joined

_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 16, 64


class Fingerprints:
    """Fingerprints of recipes; each file is read once."""

    def __init__(self, made_before: Mapping[Path, str]):
        """Start with nothing read.

        Args:
            made_before: Run directories of recipes that the study runs first, and stores it captures, with their
                fingerprints. What lies below one of them is identified by how it is made, whether it has been made yet
                or not.
        """
        self.made_before = dict(made_before)
        self._known: dict[str, str] = {}

    def of(self, recipe: Recipe) -> str:
        """SHA-256 over a recipe, its name and place aside, and over the local data, models and tokenizers it names.

        A store goes by what its manifest says of teacher, tokenizer, template and codec, wherever it lies.

        Models and tokenizers go by the names, sizes and evenly spaced samples (4 MiB in all) of their files: any
        training changes every part of them.

        Raises:
            DataError: A trace file cannot be read.
            TargetsError: There is no store where the recipe names one.
        """
        sources = [recipe.data.train]
        if isinstance(recipe.data.validation, HeldOutSource):
            sources.append(recipe.data.validation.source)
        paths = [recipe.tokenizer, *(_path(model) for model in (recipe.student, recipe.teacher) if model)]
        paths += [task.path for task in recipe.evaluation.tasks]
        paths.append(str(recipe.data.rendering.chat_template or ""))
        is_stored = isinstance(recipe.targets, StoredTargets)
        parts = [recipe.model_dump_json(exclude={"name", "output"} | ({"targets"} if is_stored else set()))]
        parts += [self._store(recipe.targets.path)] if isinstance(recipe.targets, StoredTargets) else []
        parts += [self._traces(source) for source in sources]
        parts += [self._content(Path(path)) for path in paths if path]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _traces(self, source: TraceSource) -> str:
        if source.path not in self._known:
            self._known[source.path] = fingerprint_traces(source) if Path(source.path).exists() else ""
        return self._known[source.path]

    def of_model(self, model: ModelSettings) -> str:
        """A hash of a model's settings and, of one on disk, of its files."""
        path = _path(model)
        return model.model_dump_json() + (self._content(Path(path)) if path else "")

    def _store(self, path: Path) -> str:
        made = self.made_before.get(path)
        return json.dumps(read_joined(path).identity(), sort_keys=True) if made is None else made

    def _content(self, path: Path) -> str:
        """A hash of what is there, or of how it will be made; nothing for a name on the Hub."""
        made = next((made for place, made in self.made_before.items() if _is_below(path, place)), None)
        if made is not None:
            return made
        if str(path) not in self._known:
            self._known[str(path)] = _content(path)
        return self._known[str(path)]


def _path(model: ModelSettings) -> str | None:
    return model.path if isinstance(model, Pretrained) else None


def _is_below(path: Path, directory: Path) -> bool:
    return path.absolute().is_relative_to(directory.absolute())


def _content(path: Path) -> str:
    if path.is_file():
        return digest_file(path).hex()
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else []:
        if file.is_file():
            digest.update(file.name.encode() + _sampled(file))
    return digest.hexdigest()


def _sampled(file: Path) -> bytes:
    """Hash of the size and of samples; a small file is read whole."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(_NUM_SAMPLES):
            opened.seek(max(0, size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
            digest.update(opened.read(_SAMPLE_BYTES))
    return digest.digest()
