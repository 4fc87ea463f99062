"""The capture job of one recipe, or of several that share a store: the sequences that their teacher must run over."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from leadspan.data.examples import Examples
from leadspan.data.sections import Renderer
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.errors import DataError, SettingsError
from leadspan.evaluation.settings import Vllm
from leadspan.inputs import prepare_data, prepare_splits, training_examples
from leadspan.models.loading import load_model
from leadspan.models.shapes import uses_bf16
from leadspan.ranks import process_device, process_state
from leadspan.recipe import Recipe, check_capture
from leadspan.rollout.record import drawn_rollouts, rollout_rows, stored_rollouts
from leadspan.rollout.settings import RolloutSettings
from leadspan.stages import rollout_inputs
from leadspan.status import report_status
from leadspan.teacher.capture import CaptureJob
from leadspan.teacher.capture_plan import longest_sequences, plan_capture
from leadspan.teacher.fill import Ranks, store_locked
from leadspan.teacher.manifest import DRAWN_FILE
from leadspan.teacher.settings import LiveTargets
from leadspan.teacher.store import TargetStore

# A store serves every supervision: all positions of its sequences are captured.
_EVERYTHING = Supervision(prompt=1, cot=1, answer=1)


def prepare_capture(
    recipe: Recipe,
    cuts: Sequence[Policy] = (),
    other_recipes: Sequence[Recipe] = (),
    stored: Sequence[TargetStore] = (),
    draws: bool = True,
) -> CaptureJob:
    """Find the sequences to capture, and plan them; the rollouts of a recipe that has some are drawn first.

    Args:
        recipe: The recipe; validation traces are captured uncut, since validation uses them so.
        cuts: Cuts that the store must serve; the recipe's `capture.cuts`, or its own cut, when empty.
        other_recipes: Further recipes to serve, each with its own data, seed and cut; of the same teacher and
            tokenizer, and with rollouts, the same draws.
        stored: Stores whose sequences are left out.
        draws: Whether to draw rollouts; else those that are not there yet are counted in the job.

    Raises:
        LeadspanError: The recipes or the data cannot be used, or a loss is not defined on what the store would keep.
    """
    check_capture(recipe)
    assert recipe.teacher is not None, "checked above"
    settings = recipe.capture
    if any(o.draws != recipe.draws or (recipe.rollout and o.student != recipe.student) for o in other_recipes):
        raise SettingsError(
            "rollout: recipes of one store draw the same rollouts: student, seed, and rollout.prompts, "
            "samples_per_prompt, temperature and max_new_tokens must be equal; capture one for each"
        )
    for served in (recipe, *other_recipes):
        served.check_losses(settings.kept_targets, f"capture.codec {settings.codec.label}")
    needs = [(recipe, policy) for policy in cuts or settings.cuts or [recipe.cut]]
    needs += [(other_recipe, other_recipe.cut) for other_recipe in other_recipes]
    directory = settings.path or recipe.store_path
    renderer, sources = _sources(needs)
    _check_one_teacher(sources)
    undrawn: list[int] = []
    # Recipes of equal data have the same rollouts.
    for served in {r.model_dump_json(include={"data"}): r for r in (*other_recipes[::-1], recipe)}.values():
        if served.rollout is not None:
            drawn, lacking = _rollouts(served, served.rollout, directory, draws)
            sources[:0] = drawn
            undrawn += lacking
    sequences, state = longest_sequences(sources), process_state()
    for store in stored:
        sequences = sequences.without(store)
    return CaptureJob(
        settings=settings,
        teacher=recipe.teacher,
        student=recipe.student,
        renderer=renderer,
        sequences=sequences,
        plan=plan_capture(sequences, settings, recipe.seed),
        dtype=torch.bfloat16 if uses_bf16(recipe.training.precision, recipe.student) else torch.float32,
        device=process_device(),
        ranks=Ranks(state.process_index, state.num_processes, state.wait_for_everyone),
        seed=recipe.seed,
        directory=directory,
        undrawn=undrawn,
    )


def _rollouts(
    recipe: Recipe, settings: RolloutSettings, directory: Path | None, draws: bool
) -> tuple[list[Examples], list[int]]:
    """Whole rollouts of the untrained student, drawn by the first rank and written into the store.

    Where nothing is to be drawn those that are there, and the most positions of each that is not.
    """
    if directory is None:
        raise SettingsError("capture.path: missing; rollouts are kept in the store when they are drawn")
    if isinstance(settings.engine, Vllm):
        raise SettingsError("rollout.engine: a capture draws with Transformers; leave vllm out")
    data = prepare_data(recipe)
    # As with a live teacher: the inputs of a stored run would look for the rollouts that are drawn here.
    inputs = rollout_inputs(recipe.model_copy(update={"targets": LiveTargets()}), data, settings)

    def load_student() -> PreTrainedModel:
        report_status("drawing rollouts")
        student = load_model(recipe.student, torch.float32, for_training=False).eval()
        return cast(PreTrainedModel, cast(torch.nn.Module, student).to(process_device()))

    path, use_bf16, lacking = directory / DRAWN_FILE, uses_bf16(recipe.training.precision, recipe.student), []
    with process_state().main_process_first():
        if not draws:
            new_ids, lacking = drawn_rollouts(inputs, path, None, use_bf16)
        elif process_state().is_main_process:
            with store_locked(directory):
                new_ids, _ = drawn_rollouts(inputs, path, load_student, use_bf16)
        else:
            new_ids = stored_rollouts(inputs, path)
    if not new_ids:  # in a dry run
        return [], lacking
    rows = rollout_rows(inputs, new_ids)
    return [Examples(rows, Full(), _EVERYTHING, data.renderer.stop_token_id, recipe.seed, "rollouts")], lacking


def _sources(needs: Sequence[tuple[Recipe, Policy]]) -> tuple[Renderer, list[Examples]]:
    """Training traces under each cut, all positions weighted, and validation traces whole; equal ones once."""
    first = needs[0][0]
    by_data: dict[str, tuple[Recipe, dict[Policy, None]]] = {}
    for recipe, policy in needs:
        if recipe.teacher != first.teacher:
            raise SettingsError(f"{recipe.name}: its teacher is not that of {first.name}; capture a store of its own")
        key = f"{recipe.tokenizer_path} {recipe.tokenizer_revision} {recipe.model_dump_json(include={'data', 'seed'})}"
        # Recipes that differ in loss or training alone need the same sequences.
        policies = by_data.setdefault(key, (recipe, {}))[1]
        policies |= dict.fromkeys([policy] if recipe.has_traces else [])
    sources: list[Examples] = []
    renderers: list[Renderer] = []
    for recipe, policies in by_data.values():
        renderer, splits = prepare_splits(recipe)
        renderers.append(renderer)
        for name in ("tokenizer_hash", "template_hash"):
            if getattr(renderer, name) != getattr(renderers[0], name):
                raise SettingsError(
                    f"{recipe.name}: its {name} is not that of {first.name}; capture a store of its own"
                )
        for cut in policies:
            try:
                sources.append(training_examples(recipe, splits, renderer, cut, _EVERYTHING))
            except DataError:
                # One cut among several that leaves nothing is skipped: its own trial fails, and the others need theirs.
                if len(needs) == 1:
                    raise
        if splits.validation is not None:
            sources.append(
                Examples(splits.validation, Full(), _EVERYTHING, renderer.stop_token_id, recipe.seed, "validation set")
            )
    return renderers[0], sources


def _check_one_teacher(sources: Sequence[Examples]) -> None:
    """Refuse a trace that names two teachers: a store distinguishes traces by their tokens alone."""
    teachers: dict[str, str] = {}
    for example_id, name in ((i, name) for s in sources for i, name in zip(s.example_ids, s.teachers, strict=True)):
        if teachers.setdefault(example_id, name) != name:
            raise DataError(
                f"example {example_id}: its trace names the teachers {teachers[example_id]!r} and {name!r}, and a "
                "store keeps one answer to a text; leave one of the two out, or train with the teachers live"
            )
