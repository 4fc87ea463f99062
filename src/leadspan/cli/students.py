"""A trained student: evaluated, asked, described, uploaded; and the data and tasks of a recipe for other programs."""

import argparse
import re
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadspan.cli.options import (
    JSON,
    ReadModel,
    argument,
    check_tasks,
    command,
    load_libraries,
    local_or_hub,
    read_model,
    read_recipe,
    recipe_file,
    setting,
    show,
    status_line,
)
from leadspan.errors import LeadspanError, RunError, SettingsError
from leadspan.sources import check_output
from leadspan.text import print_plain

if TYPE_CHECKING:
    from leadspan.evaluation.settings import EvaluationSettings, SamplingSettings
    from leadspan.evaluation.subject import StoredSample

# Far fewer than in an evaluation: someone waits for the answer.
MAX_NEW_TOKENS = 1024
_SAMPLING = (
    local_or_hub("--against", action="append", default=[], metavar="RUN", help="further model to compare with"),
    argument("--thinking-budget", type=int, metavar="N", help="also answer with thinking closed after N tokens"),
    argument(
        "--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="tokens of an answer, at most (1024)"
    ),
    argument("--system", default="", help="system message before every prompt"),
    setting("a setting of sampling: temperature=0, seed=1, top_p=0.9"),
)


@command(
    local_or_hub("model", help="directory in Hugging Face form, Hub name, or a run directory"),
    local_or_hub(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="known benchmark (aime24, math500, gpqa, ...), BENCHMARK=FILE, file of problems, or Hub dataset name; "
        "also a setting, as with --set",
    ),
    argument(
        "--output",
        type=Path,
        required=True,
        help="directory for run.json and samples; after an interruption, the same command resumes",
    ),
    argument("--limit", type=int, help="evaluate only this many problems of each task"),
    JSON,
    argument("--label", help="name of the model in tables"),
    setting("a setting: sampling.temperature=0, tasks.0.instruction='...', rendering.assistant_turn=append"),
)
def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a model on tasks: accuracy, termination, token counts; every sample is stored."""
    check_output("--output", options.output)
    evaluated, settings = read_evaluation(options)
    load_libraries("leadspan.evaluation.evaluate")
    from leadspan.evaluation.evaluate import evaluate_model
    from leadspan.hub import write_card
    from leadspan.pipeline.directory import check_evaluation_output, claimed
    from leadspan.processes import environment
    from leadspan.report.write import run_summary
    from leadspan.results import RUN_FILE, RunResult, save_run
    from leadspan.training.result import STUDENT_DIR

    trained, model = evaluated.run, (evaluated.model, evaluated.tokenizer, evaluated.rendering)
    with claimed(options.output):
        # A finished evaluation is not resumed; an interrupted one has no run.json yet.
        if (options.output / RUN_FILE).exists():
            raise RunError(f"--output {options.output}: it holds a finished run; give another directory")
        check_evaluation_output(options.output)
        with status_line():
            results = evaluate_model(*model, settings, options.output)
        record = {"environment": environment(settings.sampling.seed), "evaluations": results}
        if trained is not None:
            result = trained.model_copy(update=record | ({"label": options.label} if options.label else {}))
        else:
            label = options.label or Path(options.model).name or Path(options.model).resolve().name  # `.` has no name
            result = RunResult(name=label, label=label, role="base", seed=settings.sampling.seed, recipe=None, **record)
        save_run(result, options.output)
        if trained is not None and (Path(options.model) / STUDENT_DIR).is_dir() and trained.train is not None:
            # What the run itself was evaluated on, with these results in place of those of the same tasks.
            tasks = {evaluation.task: evaluation for evaluation in (*trained.evaluations, *results)}
            try:
                with claimed(Path(options.model)):  # another evaluation of the run may be at its end, too
                    shown = trained.model_copy(update={"evaluations": list(tasks.values())})
                    print_plain(f"model card: {write_card(shown, Path(options.model))}", error=True)
            except (LeadspanError, OSError) as error:  # the results are there, whoever may write into the run
                again = shlex.join(["leadspan", "card", options.model, "--evaluated", str(options.output)])
                print_plain(f"model card: not renewed: {error}; then: {again}", error=True)
        parts = [run_summary(result), f"samples: {options.output / 'samples'}"]
        show(parts, result.model_dump(mode="json"), options.json, long_lines=True)


def read_evaluation(options: argparse.Namespace) -> "tuple[ReadModel, EvaluationSettings]":
    """The model and the settings that the options name, after a check that their files exist."""
    from leadspan.evaluation.settings import EvaluationSettings, task_values
    from leadspan.settings import apply_overrides, validate

    names = {*EvaluationSettings.model_fields, "rendering"}
    overrides = [word for word in options.tasks if "=" in word and re.split("[.=]", word)[0] in names]
    tasks = [task for task in options.tasks if task not in overrides]
    if not tasks:
        raise SettingsError(f"only settings are given ({' '.join(overrides)}), and no task; name a benchmark or a file")
    # Overrides change the tasks that the options name, so they come second.
    values: dict[str, Any] = {"tasks": [task_values(task, options.limit) for task in tasks]}
    apply_overrides(values, [*overrides, *options.overrides])
    evaluated = read_model(options.model, values.pop("rendering", None))
    # A student hears the system message that it was compared under in its own run.
    recipe = evaluated.run.recipe if evaluated.run else None
    values.setdefault("system", recipe.evaluation.system if recipe else "")
    settings = validate(EvaluationSettings, values, "settings")
    check_tasks("TASK", settings.tasks)
    return evaluated, settings


@command(
    local_or_hub("model", metavar="RUN", help="run directory, model directory or Hub name"),
    argument("prompts", nargs="+", metavar="PROMPT", help="prompt to answer"),
    *_SAMPLING,
    JSON,
)
def sample(options: argparse.Namespace) -> None:
    """Send prompts to trained students: the answers of several side by side, with and without a thinking budget."""
    models, settings, system = _read(options)
    from rich.table import Table
    from rich.text import Text

    from leadspan.evaluation.evaluate import ask
    from leadspan.status import report_status

    conversations = [[*system, {"role": "user", "content": prompt}] for prompt in options.prompts]
    with status_line():
        by_model: list[list[tuple[StoredSample, StoredSample | None]]] = []
        for model in models:
            report_status(f"asking {model.name}")
            by_model.append(ask(model.open(settings), conversations))
    tables: list[Table] = []
    for prompt, answers in zip(options.prompts, zip(*by_model, strict=True), strict=True):
        table = Table(title=prompt, title_justify="left", show_lines=True)
        for model in models:
            table.add_column(model.name, overflow="fold", ratio=1)
        table.add_row(*(Text.assemble(answer.drawn.text, "\n", (how_it_ended(answer), "dim")) for answer, _ in answers))
        # A second row only where the budget has closed a student's thinking.
        if any(closed for _, closed in answers):
            second_row = (
                Text.assemble(closed.drawn.text, "\n", (f"thinking closed: {how_it_ended(closed)}", "dim"))
                if closed
                else Text("as above: it closed its thinking itself", style="dim")
                for _, closed in answers
            )
            table.add_row(*second_row)
        tables.append(table)
    rows: list[dict[str, Any]] = []  # Any: plain values
    for model, answers in zip(models, by_model, strict=True):
        for prompt, pair in zip(options.prompts, answers, strict=True):
            rows.append({"model": model.name, "prompt": prompt})
            for name, sample in zip(("by_itself", "thinking_closed"), pair, strict=True):
                if sample is not None:
                    rows[-1][name] = {**asdict(sample.drawn), "thinking_closed": sample.thinking_closed}
    show(tables, rows, options.json)


def _read(options: argparse.Namespace) -> "tuple[list[ReadModel], SamplingSettings, list[dict[str, str]]]":
    """The students, the sampling and the system message that the options name; loads the libraries after them."""
    from leadspan.evaluation.settings import SamplingSettings
    from leadspan.settings import apply_overrides, validate

    values: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "thinking_budget": options.thinking_budget}
    apply_overrides(values, options.overrides)
    settings = validate(SamplingSettings, values, "sampling")
    models = [read_model(name) for name in (options.model, *options.against)]
    load_libraries("leadspan.evaluation.evaluate")
    return models, settings, [{"role": "system", "content": options.system}] if options.system else []


def how_it_ended(sample: "StoredSample") -> str:
    """Tokens, and whether the turn ended."""
    ended = "ended" if sample.drawn.finish_reason == "stop" else "not ended"
    loops = ", loops" if sample.drawn.loops else ""
    thinks = "" if sample.thinking_closed else ", still thinking"
    return f"{sample.drawn.num_tokens:,} tokens, {ended}{loops}{thinks}"


@command(local_or_hub("model", metavar="RUN", help="run directory, model directory or Hub name"), *_SAMPLING)
def chat(options: argparse.Namespace) -> None:
    """Talk to trained students on the terminal; /new starts a new conversation, /exit or Ctrl-D ends."""
    models, settings, begin = _read(options)
    from leadspan.evaluation.evaluate import ask
    from leadspan.status import PlainConsole

    console = PlainConsole()
    with status_line("loading"):
        subjects = {model.name: model.open(settings) for model in models}
    turns = {name: list(begin) for name in subjects}
    while (line := _line()) is not None and line not in ("/exit", "/quit"):
        if line == "/new":
            turns = {name: list(begin) for name in subjects}
        if line in ("", "/new"):
            continue
        for name, subject in subjects.items():
            turns[name].append({"role": "user", "content": line})
            try:
                with status_line("answering"):
                    [(by_itself, closed)] = ask(subject, [turns[name]])
            except LeadspanError as error:  # the window is full, or the line holds a control token
                turns[name].pop()
                print_plain(f"{error}; or begin anew with /new", error=True)
                continue
            # With a budget the closed answer is what a user would see, so it is the one shown and remembered.
            answer = closed or by_itself
            if len(subjects) > 1:
                console.print(name, style="bold", highlight=False)
            console.print(answer.drawn.text, highlight=False)
            console.print(f"({'thinking closed: ' * bool(closed)}{how_it_ended(answer)})", style="dim", highlight=False)
            # The thinking is left out of the next prompt, as chat templates leave it out.
            said = answer.drawn.text.rpartition(subject.renderer.rendering.think_close)[2].strip()
            turns[name].append({"role": "assistant", "content": said})


def _line() -> str | None:
    """The next line of the user; None at the end of input."""
    # `input` prints a prompt and edits the line, which a pipe does not need.
    if sys.stdin.isatty():
        try:
            return input("> ").strip()
        except EOFError:
            print_plain()
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None


@command(
    argument("run", type=Path, metavar="RUN", help="run directory of a trained student"),
    argument("--evaluated", type=Path, nargs="+", default=[], metavar="DIR", help="outputs of `leadspan evaluate RUN`"),
    argument(
        "--full", type=Path, metavar="RUN", help="run without the cut to compare with (one in a directory next to it)"
    ),
)
def card(options: argparse.Namespace) -> None:
    """Rewrite the model card of a run's student, with further evaluations and its retention against the uncut
    student.
    """  # noqa: D205  # the line of the help
    from leadspan.data.truncation import Full
    from leadspan.results import load_run

    result = load_run(options.run)
    if result.train is None or result.recipe is None:
        raise RunError(f"{options.run}: it has trained no student; give the directory of a `leadspan distill`")
    evaluations = {evaluation.task: evaluation for evaluation in result.evaluations}
    for directory in options.evaluated:
        later = load_run(directory)
        if later.recipe != result.recipe:
            text = f"{directory}: it evaluates a run other than {options.run}; give the output of `evaluate RUN`"
            raise RunError(text)
        # A later evaluation of a task replaces the one at the end of training.
        evaluations |= {evaluation.task: evaluation for evaluation in later.evaluations}
    full = load_run(options.full) if options.full else None
    if full is not None and not isinstance(full.policy, Full):
        text = f"--full {options.full}: its student was not trained on uncut traces; give one whose cut is full"
        raise RunError(text)
    shown = result.model_copy(update={"evaluations": list(evaluations.values())})
    # These import torch, which waits until the runs are known to be there.
    from leadspan.hub import write_card
    from leadspan.pipeline.directory import claimed

    # A run that is being written must not get a second writer.
    with claimed(options.run):
        print_plain(f"model card: {write_card(shown, options.run, full)}")


@command(
    argument("run", type=Path, metavar="RUN", help="run directory of a trained student"),
    argument("name", metavar="NAME", help="USER/MODEL on the Hub; created if it does not exist"),
    argument("--private", action="store_true", help="make a new repository private"),
)
def push(options: argparse.Namespace) -> None:
    """Upload a run's student with its model card to the Hugging Face Hub."""
    from leadspan.hub import check_push, push_student
    from leadspan.results import load_run
    from leadspan.training.result import STUDENT_DIR

    load_run(options.run)  # only a finished run is pushed: one that still trains has no student yet
    check_push(options.name)
    with status_line(f"uploading {options.run / STUDENT_DIR} to {options.name}"):
        # Without --private the Hub's own default holds for a new repository.
        commit = push_student(options.run / STUDENT_DIR, options.name, options.private or None)
    print_plain(f"pushed: {commit}")


@command(
    *recipe_file(),
    argument("--output", type=Path, required=True, metavar="DIR", help="directory to write"),
    argument(
        "--what",
        choices=("data", "tasks", "all"),
        default="all",
        help="the truncated training data, the evaluation tasks, or both (all)",
    ),
    argument("--model", help="model that the evaluation commands name (the student of the recipe's run)"),
)
def export(options: argparse.Namespace) -> None:
    """Write a recipe's truncated traces and tasks for other programs: TRL, Axolotl, LLaMA-Factory, lm-eval,
    lighteval.
    """  # noqa: D205  # the line of the help
    check_output("--output", options.output)
    recipe = read_recipe(options, ["data", "tasks"] if options.what == "all" else [options.what])
    load_libraries("leadspan.export.trainers")
    from datasets import disable_progress_bars

    from leadspan.export.harness import export_tasks
    from leadspan.export.trainers import export_data

    # Bars of the library would stand between the lines that say what was written.
    disable_progress_bars()
    if options.what != "tasks":
        data = export_data(recipe, options.output)
        print_plain(
            f"{data.num_train:,} training examples under {recipe.cut.label}: {data.num_tokens:,} tokens, "
            f"{data.num_labels:,} labels; {data.num_validation:,} validation examples, uncut"
        )
        for reason, number in {**data.counts.dropped, **data.left_out}.items():
            print_plain(f"left out: {number:,} x {reason}")
        print_plain("\n".join(f"wrote {file}" for file in data.files))
    # A recipe without tasks is fine, unless tasks alone were asked for.
    if options.what == "tasks" or (options.what == "all" and recipe.evaluation.tasks):
        tasks = export_tasks(recipe, options.output / "tasks", options.model or str(recipe.student_directory))
        print_plain("\n".join(f"wrote {file}" for file in tasks.files))
        print_plain(f"\nlm-evaluation-harness, in an environment that has leadspan too:\n  {tasks.harness}")
        if tasks.lighteval:
            print_plain(f"lighteval, in its own environment, with its own prompts and graders:\n  {tasks.lighteval}")
        if recipe.evaluation.sampling.thinking_budget is not None:
            print_plain("neither closes thinking after sampling.thinking_budget; their figures are without one")
        if tasks.without_lighteval:
            print_plain(f"not among lighteval's tasks: {', '.join(tasks.without_lighteval)}")
