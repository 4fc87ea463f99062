"""What identifies a run of a study: its settings without names and paths, and the content of what lies at the paths."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leadspan.costs.settings import PlanSettings
from leadspan.data.settings import HeldOutSource
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe
from leadspan.rollout.settings import TaskPrompts
from leadspan.teacher.manifest import read_joined
from leadspan.teacher.settings import NO_ACCESS, AnyTeacher
from leadspan.traces.files import digest_file
from leadspan.traces.read import fingerprint as fingerprint_traces
from leadspan.traces.settings import TraceSource

# 4 MiB a file: training changes every part of a weights file, so samples show it, at a fraction of the time.
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 16, 64
# Names, paths and prices change no number; what lies at the paths enters by its content, in `Fingerprints.of`.
_PLACES: dict[str, Any] = {
    **dict.fromkeys(("name", "output", "tokenizer", "trial", "push", "plan"), True),
    "student": {"path"},
    "teacher": {"path": True, **NO_ACCESS},
    "targets": {"path"},
    "data": {"cache_dir": True, "train": {"path"}, "validation": {"source": {"path"}}, "rendering": {"chat_template"}},
    "training": {"keep_checkpoints"},
    "evaluation": {"tasks": {"__all__": {"path"}}},
    "rollout": {"prompts": {"task": {"path"}}},
}


def without_places(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe without its name, its plan, and the paths that it writes to and reads from."""
    return recipe.model_dump(mode="json", exclude=_PLACES)


class Fingerprints:
    """Fingerprints of recipes; each file is read once.

    Args:
        made_before: Run directories of recipes that the study runs first, and stores it captures, with their
            fingerprints. Files below one of them are identified by the recipe that makes them, whether they exist yet
            or not.
    """

    def __init__(self, made_before: Mapping[Path, str]):
        self.made_before = dict(made_before)
        self._known: dict[str, str] = {}

    def of(self, recipe: Recipe) -> str:
        """SHA-256 over a recipe without names, plan and paths, and over the local data, models and tokenizers it names.

        Files on disk enter by their content, so that a study can be moved; anything else enters by its name. A store
        enters by the teacher, tokenizer, template and codec of its manifest; models and tokenizers by the names, sizes
        and evenly spaced samples (4 MiB in all) of their files: any training changes every part of them.

        Raises:
            DataError: A trace file cannot be read.
            TargetsError: There is no store where the recipe names one.
        """
        sources = [recipe.data.train]
        if isinstance(recipe.data.validation, HeldOutSource):
            sources.append(recipe.data.validation.source)
        paths = [recipe.tokenizer, *(m.path for m in (recipe.student, recipe.teacher) if isinstance(m, Pretrained))]
        # A store counts by what its manifest says, wherever it lies.
        store, settings = recipe.store_path, without_places(recipe)
        if store is not None:
            del settings["targets"]
        # The plan of a new recipe, so that the fingerprints of studies without settings of a plan stay what they were.
        settings["plan"] = PlanSettings().model_dump(mode="json")
        contents = [json.dumps(settings, sort_keys=True)]
        if store is not None:
            contents.append(self.made_before.get(store) or json.dumps(read_joined(store).identity(), sort_keys=True))
        contents += [self._records(source) for source in sources]
        contents += [self._content(Path(path)) for path in paths if path]
        for task in recipe.evaluation.tasks:
            # Of a directory with splits or subsets, those that the task reads.
            has_parts = task.subset is not None or task.path in {source.path for source in sources}
            is_read = Path(task.path).is_dir() and has_parts
            contents.append(self._records(task.source, "test") if is_read else self._content(Path(task.path)))
        prompts = recipe.rollout and recipe.rollout.prompts
        if isinstance(prompts, TaskPrompts):
            contents.append(self._records(prompts.task.source, "test"))
        if recipe.data.rendering.chat_template:
            contents.append(self._content(Path(recipe.data.rendering.chat_template)))
        return hashlib.sha256("\0".join(contents).encode()).hexdigest()

    def of_model(self, model: AnyTeacher) -> str:
        """A hash of a model's settings and, of one on disk, of its files."""
        path = model.path if isinstance(model, Pretrained) else None
        return model.model_dump_json(exclude={"path": True, **NO_ACCESS}) + (self._content(Path(path)) if path else "")

    def _records(self, source: TraceSource, usual_split: str = "train") -> str:
        """A hash of the records that are read of a source; a name on the Hub itself."""
        path = Path(source.path)
        # A directory may hold several splits.
        key = f"{path} {source.split or usual_split} {source.subset}" if path.is_dir() else source.path
        if key not in self._known:
            self._known[key] = fingerprint_traces(source, usual_split) if path.exists() else source.path
        return self._known[key]

    def _content(self, path: Path) -> str:
        """A hash of what is there, or of how it will be made; a name on the Hub itself."""
        # Trained weights may differ in their last bits from machine to machine; the recipe that makes them does not.
        for directory, fingerprint in self.made_before.items():
            if path.absolute().is_relative_to(directory.absolute()):
                return fingerprint
        key = str(path)
        if key not in self._known:
            if not path.exists():
                self._known[key] = key
            elif path.is_file():
                self._known[key] = digest_file(path).hex()
            else:
                digest = hashlib.sha256()
                for file in sorted(path.iterdir()):
                    if file.is_file():
                        digest.update(file.name.encode() + _sampled(file))
                self._known[key] = digest.hexdigest()
        return self._known[key]


def _sampled(file: Path) -> bytes:
    """Hash of the size and of samples; a small file is read whole."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(_NUM_SAMPLES):
            opened.seek(max(0, size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
            digest.update(opened.read(_SAMPLE_BYTES))
    return digest.digest()
