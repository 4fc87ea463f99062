"""What a capture is made of: the sequences that one recipe, or several, need of their teacher, and the plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leadspan.data.examples import Examples
from leadspan.data.sections import Renderer
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.errors import SettingsError
from leadspan.losses.defined import check_codec
from leadspan.models.config import ModelSettings
from leadspan.pipeline import PreparedData, prepare_data, training_rows
from leadspan.recipe import Recipe
from leadspan.teacher.capture_plan import CapturePlan, plan_capture
from leadspan.teacher.config import StoredTargets
from leadspan.teacher.sequences import Sequences, longest_sequences
from leadspan.teacher.store import TargetStore
from leadspan.training.train import uses_bf16

_EVERYTHING = Supervision(prompt=1, cot=1, answer=1)


@dataclass(frozen=True)
class Capture:
    """What a capture is made of.

    Attributes:
        recipe: The recipe.
        teacher: Its teacher's settings.
        renderer: Tokenizer and template of the data.
        sequences: What the teacher runs over.
        plan: Its packs and shards.
        dtype: Type the teacher computes in.
    """

    recipe: Recipe
    teacher: ModelSettings
    renderer: Renderer
    sequences: Sequences
    plan: CapturePlan
    dtype: torch.dtype

    @property
    def directory(self) -> Path:
        """The store.

        Raises:
            SettingsError: The recipe names none.
        """
        if self.recipe.capture.path is not None:
            return self.recipe.capture.path
        if isinstance(self.recipe.targets, StoredTargets):
            return self.recipe.targets.path
        raise SettingsError(
            "capture.path: missing; give the directory of the store there, or in targets: {kind: store, path: ...}"
        )


def prepare_capture(
    recipe: Recipe,
    cuts: Sequence[Policy] = (),
    others: Sequence[Recipe] = (),
    stored: TargetStore | None = None,
) -> Capture:
    """Find the sequences to capture, and plan them.

    Args:
        recipe: The recipe; validation is captured whole, as it is validated.
        cuts: Cuts the store is to serve; the recipe's `capture.cuts`, or its own cut, when empty.
        others: Further recipes to serve, each with its own data, seed and cut, of the same teacher and tokenizer.
        stored: What this store serves already is left out.

    Raises:
        LeadspanError: Whatever is wrong with the recipes or the data; a store that its own loss could not use.
    """
    if recipe.teacher is None:
        raise SettingsError("teacher: missing; a capture runs the teacher, so the recipe must name it")
    settings = recipe.capture
    place = f"capture.codec {settings.codec.label}"
    for served in (recipe, *others):
        check_codec(served.loss, settings.codec, settings.temperatures, settings.temperatures, place)
    data = prepare_data(recipe)
    sources = _sources(recipe, data, cuts or settings.cuts or [recipe.cut])
    for other in _distinct(recipe, others):
        if other.teacher != recipe.teacher:
            raise SettingsError(f"{other.name}: its teacher is not that of {recipe.name}; capture a store of its own")
        more = prepare_data(other)
        for name in ("tokenizer_hash", "template_hash"):
            if getattr(more.renderer, name) != getattr(data.renderer, name):
                raise SettingsError(
                    f"{other.name}: its {name} is not that of {recipe.name}; capture a store of its own"
                )
        sources += _sources(other, more, [other.cut])
    sequences = longest_sequences(sources)
    if stored is not None:
        sequences = sequences.without(stored)
    plan = plan_capture(sequences, settings, recipe.seed)
    dtype = torch.bfloat16 if uses_bf16(recipe.training) else torch.float32
    return Capture(recipe, recipe.teacher, data.renderer, sequences, plan, dtype)


def _sources(recipe: Recipe, data: PreparedData, cuts: Sequence[Policy]) -> list[Examples]:
    """Training traces under each cut, all positions weighted, and validation traces whole."""
    stop, seed = data.renderer.stop_token_id, recipe.seed
    sources = [
        Examples(training_rows(recipe, data.splits, data.renderer, cut), cut, _EVERYTHING, stop, seed, "training set")
        for cut in cuts
    ]
    if data.splits.validation is not None:
        sources.append(Examples(data.splits.validation, Full(), _EVERYTHING, stop, seed, "validation set"))
    return sources


def _distinct(recipe: Recipe, others: Sequence[Recipe]) -> list[Recipe]:
    """Other recipes once per data, seed and cut: what else differs asks for the same sequences."""

    def key(of: Recipe) -> str:
        return f"{of.tokenizer_path} {of.model_dump_json(include={'data', 'seed', 'cut'})}"

    found = {key(other): other for other in others}
    if not recipe.capture.cuts:
        found.pop(key(recipe), None)
    return list(found.values())
