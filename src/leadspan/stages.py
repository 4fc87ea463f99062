"""What the stages after the data get of a recipe: its teacher, training and rollout inputs. Decides nothing itself."""

from dataclasses import replace

from leadspan.data.sections import Renderer
from leadspan.data.supervision import RandomTokens, ScoredSelection
from leadspan.errors import SettingsError
from leadspan.evaluation.sampling import window_of
from leadspan.evaluation.settings import Vllm
from leadspan.inputs import PreparedData
from leadspan.models.loading import load_config, load_end_ids
from leadspan.ranks import process_state
from leadspan.recipe import Recipe
from leadspan.rollout.drawing import RolloutInputs
from leadspan.rollout.record import stored_rollouts
from leadspan.rollout.rows import Course, RowMaker, rollout_prompts
from leadspan.rollout.settings import RolloutSettings
from leadspan.rollout.source import Rollouts
from leadspan.rollout.vllm_engine import check_can_draw
from leadspan.status import report_status
from leadspan.teacher.manifest import DRAWN_FILE
from leadspan.teacher.settings import Served
from leadspan.teacher.source import LiveTeacher, NoTeacher, RemoteTeacher, StoredTeacher, TeacherSource
from leadspan.training.settings import ByExamples
from leadspan.training.steps import plan_steps
from leadspan.training.train import TrainingInputs


def training_inputs(recipe: Recipe, data: PreparedData, teacher: TeacherSource) -> TrainingInputs:
    """What the training stage gets of a recipe, its teacher's targets looked up."""
    if teacher.kept_targets is not None:
        report_status("looking up targets")
    check_served(teacher, recipe, data)
    teacher.end_ids = merged_ends(recipe, data.renderer)
    steps = None
    if recipe.rollout is not None:
        inputs = replace(rollout_inputs(recipe, data, recipe.rollout), collate=teacher.collator)
        longest = max(len(prompt.ids) for prompt in inputs.prompts) + recipe.rollout.longest(inputs.course.num_steps)
        remedy = "set rollout.max_new_tokens so low that the longest prompt and new tokens are {}"
        teacher.check_window(longest if inputs.window is None else min(longest, inputs.window), remedy)
        steps = Rollouts(inputs)
    return TrainingInputs(
        student=recipe.student,
        teacher=teacher,
        renderer=data.renderer,
        examples=data.examples,
        validation=data.validation,
        directory=recipe.output,
        seed=recipe.seed,
        device=recipe.plan.found_device,
        selection=scored_selection(recipe),
        end_ids=teacher.end_ids,
        steps=steps,
    )


def rollout_inputs(recipe: Recipe, data: PreparedData, settings: RolloutSettings) -> RolloutInputs:
    """What the rollouts of a recipe are made of.

    Raises:
        SettingsError: A cold start leaves no step for them, or vLLM is to draw and cannot here.
        DataError: A prompt leaves no room in the student's window, or the task of the prompts cannot be read.
        TargetsError: The store that the recipe trains from lacks one of them.
        CacheError: What it has of them is damaged.
    """
    if isinstance(settings.engine, Vllm):
        check_can_draw()
    window = window_of(load_config(recipe.student))
    prompts = rollout_prompts(settings, data.splits.train, data.renderer, window)
    batching, seed = recipe.training.batching, recipe.seed
    assert isinstance(batching, ByExamples), "checked with the recipe"
    # Every prompt counts as length 1: steps are counted in examples, and no length is known yet.
    plan = plan_steps(recipe.training, [1] * len(prompts) * settings.samples_per_prompt, 1, seed)
    traces, cold = data.examples.usable, settings.cold_start
    if settings.num_cold_steps >= plan.num_steps:
        raise SettingsError(
            f"rollout.cold_start.steps = {settings.num_cold_steps}: the run has {plan.num_steps} steps, so that none "
            "would have a rollout; lower it or train longer"
        )
    inputs = RolloutInputs(
        course=Course(settings, len(prompts), traces, batching.examples_per_step, plan.num_steps, seed),
        prompts=prompts,
        traces=data.examples,
        rows=RowMaker(data.renderer, recipe.supervision, settings.max_new_tokens, seed),
        stop_ids=end_ids(recipe, data.renderer),
        student=recipe.student,
        directory=recipe.output,
        examples_per_batch=batching.examples_per_batch,
        window=window,
        cold_loss=cold and recipe.loss.model_copy(update={"kl_weight": cold.kl_weight, "divergence": cold.divergence}),
    )
    store = recipe.store_path
    return inputs if store is None else replace(inputs, stored=stored_rollouts(inputs, store / DRAWN_FILE))


def end_ids(recipe: Recipe, renderer: Renderer) -> tuple[int, ...]:
    """Every token that ends a turn for the data, the student or the teacher, the data's first.

    Raises:
        ModelError: The config of a model cannot be read.
    """
    # All of them, since a model may end turns with a token that the data do not use.
    models = [recipe.student, *([] if recipe.local_teacher is None else [recipe.local_teacher])]
    of_models = [token for model in models for token in load_end_ids(model)]
    of_server = recipe.teacher.end_ids if isinstance(recipe.teacher, Served) else []
    ids = dict.fromkeys([*renderer.end_of_turn_ids(), *of_models, *of_server])
    return tuple(token for token in ids if token < renderer.num_ids)  # others take part in no loss


def merged_ends(recipe: Recipe, renderer: Renderer) -> tuple[int, ...]:
    """The tokens that are one outcome in the divergence; empty where each is its own outcome."""
    ids = end_ids(recipe, renderer) if recipe.merges_stops else ()
    return ids if len(ids) > 1 else ()  # a single token is its own outcome either way


def scored_selection(recipe: Recipe) -> ScoredSelection | None:
    """A token selection that needs the models' outputs."""
    selection = recipe.supervision.token_selection
    # A random selection is drawn with the examples, before any model is asked.
    return None if isinstance(selection, RandomTokens) else selection


def teacher_source(recipe: Recipe) -> TeacherSource:
    """The source of a recipe's targets; of a store, only the manifest is read."""
    if recipe.store_path is not None:
        return StoredTeacher(recipe.store_path)
    if isinstance(recipe.teacher, Served):
        return RemoteTeacher(recipe.teacher)
    return NoTeacher() if recipe.teacher is None else LiveTeacher(recipe.teacher)


def checked_teacher(recipe: Recipe) -> TeacherSource:
    """The source of a recipe's targets, checked to define the recipe's loss and token selection.

    Raises:
        TargetsError: There is no store where the recipe names one, or it does not keep what these need.
        CacheError: Its manifest is damaged.
    """
    # The recipe's own rules cover live and served teachers; what a store keeps shows in its manifest.
    source = teacher_source(recipe)
    if recipe.store_path is not None:  # of a served teacher the recipe has been checked by itself
        recipe.check_losses(source.kept_targets, str(recipe.store_path))
    return source


def check_served(teacher: TeacherSource, recipe: Recipe, data: PreparedData) -> None:
    """Check that a teacher's targets belong to a recipe's data, and that they cover this rank's examples.

    Raises:
        TargetsError: They belong to other data, or an example has none.
        CacheError: A row of the store that an example needs is damaged.
    """
    teacher.check_origin(data.renderer, recipe.teacher)
    state = process_state()
    # Without traces among the rollouts no target of them is read.
    for examples in (data.examples if recipe.has_traces else None, data.validation):
        if examples is not None:
            teacher.check_serves(examples, examples.usable[state.process_index :: state.num_processes])
