"""What a capture is made of: the sequences that one recipe, or several, need of their teacher, and the plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leadspan.data.examples import Examples
from leadspan.data.sections import Renderer
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.errors import DataError, SettingsError
from leadspan.inputs import prepare_splits, training_rows
from leadspan.losses.defined import check_codec, check_selection
from leadspan.models.config import ModelSettings
from leadspan.recipe import Recipe
from leadspan.teacher.capture_plan import CapturePlan, plan_capture
from leadspan.teacher.config import StoredTargets
from leadspan.teacher.sequences import Sequences, longest_sequences
from leadspan.teacher.store import TargetStore
from leadspan.training.arguments import uses_bf16

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
    stored: Sequence[TargetStore] = (),
) -> Capture:
    """Find the sequences to capture, and plan them.

    Args:
        recipe: The recipe; validation is captured whole, as it is validated.
        cuts: Cuts the store is to serve; the recipe's `capture.cuts`, or its own cut, when empty.
        others: Further recipes to serve, each with its own data, seed and cut, of the same teacher and tokenizer.
        stored: What these stores serve already is left out.

    Raises:
        LeadspanError: Whatever is wrong with the recipes or the data; a store that its own loss could not use.
    """
    if recipe.teacher is None:
        raise SettingsError("teacher: missing; a capture runs the teacher, so the recipe must name it")
    settings = recipe.capture
    place = f"capture.codec {settings.codec.label}"
    for served in (recipe, *others):
        check_codec(served.loss, settings.codec, settings.temperatures, settings.temperatures, place)
        check_selection(served.supervision.token_selection, settings.engine, place)
    asked = [(recipe, policy) for policy in cuts or settings.cuts or [recipe.cut]]
    asked += [(other, other.cut) for other in others]
    renderer, sources = _sources(asked)
    sequences = longest_sequences(sources)
    for store in stored:
        sequences = sequences.without(store)
    plan = plan_capture(sequences, settings, recipe.seed)
    dtype = torch.bfloat16 if uses_bf16(recipe.training) else torch.float32
    return Capture(recipe, recipe.teacher, renderer, sequences, plan, dtype)


def _sources(asked: Sequence[tuple[Recipe, Policy]]) -> tuple[Renderer, list[Examples]]:
    """Training traces under each cut, all positions weighted, and validation traces whole; equal ones once.

    One cut among several that leaves nothing is left out: its own trial will say so.
    """
    first = asked[0][0]
    by_data: dict[str, dict[Policy, Recipe]] = {}
    for recipe, policy in asked:
        if recipe.teacher != first.teacher:
            raise SettingsError(f"{recipe.name}: its teacher is not that of {first.name}; capture a store of its own")
        key = f"{recipe.tokenizer_path} {recipe.tokenizer_revision} {recipe.model_dump_json(include={'data', 'seed'})}"
        by_data.setdefault(key, {}).setdefault(policy, recipe)
    sources: list[Examples] = []
    renderers: list[Renderer] = []
    for by_policy in by_data.values():
        recipe = next(iter(by_policy.values()))
        renderer, splits = prepare_splits(recipe)
        renderers.append(renderer)
        for name in ("tokenizer_hash", "template_hash"):
            if getattr(renderer, name) != getattr(renderers[0], name):
                raise SettingsError(
                    f"{recipe.name}: its {name} is not that of {first.name}; capture a store of its own"
                )
        stop, seed = renderer.stop_token_id, recipe.seed
        for cut in by_policy:
            try:
                rows = training_rows(recipe, splits, renderer, cut)
                sources.append(Examples(rows, cut, _EVERYTHING, stop, seed, "training set"))
            except DataError:
                if len(asked) == 1:
                    raise
        if splits.validation is not None:
            sources.append(Examples(splits.validation, Full(), _EVERYTHING, stop, seed, "validation set"))
    return renderers[0], sources
