"""The model card of a student, and the upload of both to the Hugging Face Hub or a server of its protocol.

The card says what the student was trained on and with which cut, its accuracy and retention, its cost, and how to use
it. It is `README.md` in the student's directory, in the form that the Hub reads (its metadata through
`huggingface_hub`), and shows no path of this machine: a local file or directory appears by its name. `HF_ENDPOINT`
names another server.
"""

import logging
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import EvalResult as CardResult
from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from leadspan.data.truncation import Full
from leadspan.data.truncation.policy import shows_few_ends
from leadspan.errors import RunError, SettingsError
from leadspan.evaluation.result import EvalResult
from leadspan.files import DIGESTS_FILE, fault, renew
from leadspan.models.settings import ModelSettings, Pretrained
from leadspan.recipe import Recipe
from leadspan.results import RUN_FILE, RunResult, load_run, predicted_and_measured
from leadspan.rollout.settings import TaskPrompts
from leadspan.sources import may_be_hub_name
from leadspan.statistics.intervals import retention
from leadspan.tables import Block, markdown_table, markdown_text, percent, percent_interval, points, quantity
from leadspan.teacher.settings import Served
from leadspan.text import first_line, plain
from leadspan.training.result import STUDENT_DIR

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
_USE = """```python
from transformers import pipeline

generate = pipeline("text-generation", model="DIRECTORY OR NAME")
print(generate([{"role": "user", "content": "What is 7 times 8?"}], max_new_tokens=1024)[0]["generated_text"][-1])
```

It can be served like any other Transformers model, for example with `vllm serve NAME`."""
_COST_WORDS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "time", "peak_memory_bytes": "peak memory"}


def write_card(result: RunResult, directory: Path, full: RunResult | None = None) -> Path:
    """Write the card of a run's student into its directory, and renew the digest of the card.

    `full` is the run whose student learnt from uncut traces, for the retention; when absent, the one beside it.
    """
    full = full or uncut_beside(result, directory)
    student = directory / STUDENT_DIR
    renew(student, CARD_FILE, str(model_card(result, full)).encode())
    return student / CARD_FILE


def uncut_beside(result: RunResult, directory: Path) -> RunResult | None:
    """The run of the same recipe without its cut, in a directory beside a run's; the first by name, None without one.

    Names, tasks and what changes no weights may differ.
    """
    if result.recipe is None or isinstance(result.policy, Full):
        return None
    ours = _but_for_the_cut(result.recipe)
    runs = (file.parent for file in sorted(directory.absolute().parent.glob(f"*/{RUN_FILE}")))
    for run in (run for run in runs if (run / STUDENT_DIR).is_dir()):  # others evaluate a run, and repeat its recipe
        try:
            other = load_run(run)
            if isinstance(other.policy, Full) and other.recipe and _but_for_the_cut(other.recipe) == ours:
                return other
        except RunError as error:
            logger.warning("not looked at for the uncut run: %s", error)
    return None


def _but_for_the_cut(recipe: Recipe) -> dict[str, Any]:
    """The settings that two students of one comparison share."""
    # Names, places, logs and processes change no weight; the cut is what the comparison is about.
    return recipe.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(("name", "output", "cut", "evaluation", "plan", "push", "trial", "capture"), True),
            "data": {"cache_dir", "num_workers"},
            "training": {"report_to", "keep_checkpoints", "checkpoint_every", "log_every", "num_workers", "profile"},
        },
    )


def model_card(result: RunResult, full: RunResult | None = None) -> ModelCard:
    """The card of a run's student; `full` as in `write_card`."""
    recipe = result.recipe
    assert recipe is not None, "a student has a recipe"
    # The Hub groups results by data set, so a task with a public source goes by the name of that.
    tasks = recipe.evaluation.tasks
    public = {task.name: task.path for task in tasks if not (task.generated or _is_local(task.path))}
    source, student = _source(recipe), recipe.student
    results = [
        CardResult(
            task_type="text-generation",
            dataset_type=public.get(evaluation.task, evaluation.task),
            dataset_name=evaluation.task,
            metric_type="accuracy",
            metric_name=f"avg@{evaluation.samples_per_problem}, {evaluation.answering}",
            metric_value=round(evaluation.accuracy_strict.value, 4),
        )
        for evaluation in result.evaluations
    ]
    # Names are plain text on the Hub too: the metadata is YAML that others' programs read.
    data = ModelCardData(
        base_model=student.path if isinstance(student, Pretrained) and not _is_local(student.path) else None,
        datasets=None if _is_local(source) else [source],
        eval_results=results or None,
        library_name="transformers",
        model_name=plain(result.name),
        pipeline_tag="text-generation",
        tags=["leadspan", "knowledge-distillation", "reasoning", plain(result.label)],
    )
    # The Hub reads the metadata between the dashes, and shows the rest.
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(_sections(result, recipe, full)) + "\n")


def _sections(result: RunResult, recipe: Recipe, full: RunResult | None) -> Iterator[str]:
    yield f"# {markdown_text(result.name)}"
    imitated = f"`{recipe.teacher.identity}`" if isinstance(recipe.teacher, Served) else "stored targets"
    imitated = imitated if recipe.local_teacher is None else _model_name(recipe.local_teacher)
    trained = f"distilled from {imitated}" if recipe.has_teacher else "fine-tuned"
    on = f"traces under the cut `{result.label}`"
    if recipe.rollout is not None:
        on = f"its own rollouts{' and on traces' if recipe.has_traces else ''} (`{result.label}`)"
    version = result.environment.get("leadspan", "")
    yield f"This is {_model_name(recipe.student)}, {trained} on {on} with leadspan {version}."
    yield "## Data and cut"
    source, cut = _source(recipe), result.cut
    rows = [
        ("traces" if recipe.has_traces else "prompts", Path(source).name if _is_local(source) else source),
        ("cut" if recipe.rollout is None else "learnt from", result.label),
    ]
    if cut is not None:
        share = f" ({percent(cut.tokens_after / cut.tokens_before)})" if cut.tokens_before else ""
        rows += [
            ("examples", f"{cut.num_kept:,} of {cut.num_examples:,}"),
            ("tokens kept", f"{cut.tokens_after:,} of {cut.tokens_before:,}{share}"),
            ("examples that keep their end of turn", f"{cut.num_kept - cut.lost_stop:,} of {cut.num_kept:,}"),
            ("examples that keep their whole answer", f"{cut.num_kept - cut.lost_answer:,} of {cut.num_kept:,}"),
        ]
    yield markdown_table(Block("", ("", ""), tuple(rows), num_text=2))
    if warning := result.end_warning(result.label):
        yield f"**{markdown_text(warning)}**"
    if result.evaluations:
        yield "## Accuracy and termination"
        yield _evaluations(result, full)
    if result.train is not None:
        yield "## Cost of training"
        costs = [
            (_COST_WORDS[name], "" if planned is None else quantity(name, planned), quantity(name, measured))
            for name, (planned, measured) in predicted_and_measured(result.prediction, result.train).items()
        ]
        if result.train.energy_joules is not None:
            costs.append(("energy", "", quantity("energy_joules", result.train.energy_joules)))
        yield markdown_table(Block("", ("", "planned", "measured"), tuple(costs)))
        yield f"{result.train.num_steps:,} optimiser steps on {markdown_text(result.train.device)}, seed {result.seed}."
    yield f"## Use\n\n{_USE}"
    budgets = [evaluation.sampling.get("thinking_budget") for evaluation in result.evaluations]
    budget = next((budget for budget in budgets if budget), None)
    # Where few examples end, the student may think on for ever; the warning of a report draws the same line.
    if cut is not None and recipe.rollout is None and shows_few_ends(cut):
        yield (
            "Few of its examples showed where an answer ends, so give it a thinking budget, after which its thinking "
            f"is closed and it answers: `leadspan chat NAME --thinking-budget {budget or 512}`."
        )
    elif budget:
        yield (
            f"It was evaluated with its thinking closed after {budget:,} tokens, too: "
            f"`leadspan chat NAME --thinking-budget {budget}` does so."
        )
    yield "## Versions"
    yield ", ".join(f"{name} {markdown_text(value)}" for name, value in result.environment.items() if name != "seed")


def _source(recipe: Recipe) -> str:
    """Where the traces that a student learns from are read, or else the prompts of its rollouts."""
    prompts = None if recipe.rollout is None or recipe.has_traces else recipe.rollout.prompts
    return prompts.task.path if isinstance(prompts, TaskPrompts) else recipe.data.train.path


def _evaluations(result: RunResult, full: RunResult | None) -> str:
    """A row for each task; of a cut with the retention, where the uncut student was evaluated on the same problems."""
    # An uncut student is the reference itself, and has no column for it.
    is_cut = not isinstance(result.policy, Full)
    # Tasks are matched by name; `_retention` checks that their problems are the same.
    references = {reference.task: reference for reference in (full.evaluations if full else [])}
    rows: list[tuple[str, ...]] = []
    for evaluation in result.evaluations:
        size = f"{evaluation.num_problems} x {evaluation.samples_per_problem}"
        retained = [_retention(evaluation, references.get(evaluation.task))] if is_cut else []
        rates = (percent_interval(evaluation.accuracy_strict), *retained, percent_interval(evaluation.termination_rate))
        rows.append((evaluation.task, size, *rates, f"{evaluation.tokens_mean:,.0f}"))
    columns = ["accuracy", *(["of the uncut student's"] if is_cut else []), "ended by itself", "tokens"]
    note = "Accuracy is the mean over problems and samples of finished, right answers. Brackets: 95 % intervals."
    if is_cut and full is None:
        note += " No uncut student is known to compare with (`leadspan card --full RUN`)."
    elif full is not None:
        note += f" The uncut student is that of the run {markdown_text(full.name)}."
    return f"{markdown_table(Block('', ('task', 'problems x samples', *columns), tuple(rows)))}\n\n{note}"


def _retention(evaluation: EvalResult, reference: EvalResult | None) -> str:
    # Without single answers, or on other problems, the two cannot be paired.
    if reference is None or reference.correct.keys() != evaluation.correct.keys() or not evaluation.correct:
        return ""
    share = retention([evaluation.correct], [reference.correct])
    return points(share.difference) if share.ratio is None else percent_interval(share.ratio)


def _model_name(model: ModelSettings) -> str:
    if isinstance(model, Pretrained):
        return f"`{Path(model.path).name}`" if _is_local(model.path) else model.path
    return f"a {model.config.get('model_type', '')} model from random weights"


def _is_local(path: str) -> bool:
    # A path that exists no longer, or not here, is mostly still known by how it looks.
    return Path(path).expanduser().exists() or not may_be_hub_name(path)


def check_push(name: str) -> None:
    """Refuse a name that is not valid on the Hub, and an upload without a token.

    Raises:
        SettingsError: The name is not valid, or no token is stored.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise SettingsError(f"push: {name!r} is no valid name on the Hub ({error}); write it as USER/MODEL") from None
    if get_token() is None:
        raise SettingsError(f"push: {name}: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN")


def push_student(student: Path, name: str, private: bool | None = None) -> str:
    """Upload a student's directory without its digests to `USER/MODEL`, created if needed; the address of the commit.

    A new repository is private or public as the account's default says, unless `private` does.

    Raises:
        SettingsError: As in `check_push`.
        RunError: The student is missing or damaged, or the Hub refuses it or cannot be reached; no local file changes.
    """
    # Again, though the command has asked before: a token may go while a run trains.
    check_push(name)
    if wrong := fault(student) if student.is_dir() else "there is no such directory":
        raise RunError(f"{student}: {wrong}; only an undamaged student can be pushed: `distill --resume` makes it anew")
    api = HfApi(library_name="leadspan")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=student,
            # Digests guard the local files, the Hub has its own; what a kill has left of a file is none.
            ignore_patterns=[DIGESTS_FILE, ".*.tmp"],
            commit_message="Student and model card",
        )
    # Before the errors of the network, of which it is one.
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it"
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = f"; use a token that may write to {name}" if status in (401, 403) else ""
        reason = f"refused ({status}: {error.server_message or first_line(error)}){remedy}"
    except (httpx2.HTTPError, OSError, ValueError) as error:
        reason = f"{api.endpoint} cannot be reached ({first_line(error)}); check the network and HF_ENDPOINT"
    else:
        return commit.commit_url
    again = shlex.join(["leadspan", "push", str(student.parent), name])
    raise RunError(f"push {name}: {reason}; the local files are unchanged, try again with: {again}") from None
