"""Trackers that mirror a run: its name, recipe and losses while it trains, then its evaluation and its cost."""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from transformers import TrainerCallback, TrainerState
from transformers.integrations.integration_utils import rewrite_logs

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.ranks import process_state
from leadspan.recipe import Recipe
from leadspan.results import Prediction, RunResult, predicted_and_measured
from leadspan.settings import dump_yaml, flat
from leadspan.text import first_line

logger = logging.getLogger(__name__)

PROJECT = "leadspan"
"""Project (in MLflow: experiment) of a run where `WANDB_PROJECT` or `MLFLOW_EXPERIMENT_NAME` names no other."""
TRACKERS_FILE = "trackers.json"
"""File in the run directory with the id that each tracker gave the run, under which a resumed run continues."""


_HPARAMS = (
    "label",
    "seed",
    "cut.",
    "student.path",
    "teacher.path",
    "supervision.",
    "loss.kl_weight",
    "loss.temperature",
    "loss.divergence.kind",
    "training.epochs",
    "training.steps",
    "training.learning_rate",
    "training.batching.",
)
"""What the settings in TensorBoard's HParams tab begin with."""
_COSTS = ("cost/tokens", "cost/flops", "cost/seconds", "cost/peak_memory_bytes")


class Trackers(TrainerCallback, AbstractContextManager["Trackers"]):
    """The trackers of one run, from its first step to its evaluation.

    The record of a run is `metrics.jsonl` and `run.json`. A tracker that cannot be opened ends the run before its first
    step; one that fails later is dropped with a warning.
    """

    def __init__(self, recipe: Recipe, prediction: Prediction | None = None) -> None:
        self.recipe, self.prediction = recipe, prediction
        self._open: dict[str, GeneralTracker] = {}

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        """Close the trackers, and report a failure to those that show how a run ended."""
        for name, tracker in self._open.items():
            try:
                match tracker:
                    case TensorBoardTracker():
                        if error is None:
                            from torch.utils.tensorboard.summary import hparams

                            # That the run has ended well.
                            tracker.tracker._get_file_writer().add_summary(hparams({}, {})[2])
                        tracker.finish()
                    case WandBTracker():
                        tracker.tracker.finish(exit_code=int(error is not None))
                    case MLflowTracker():
                        import mlflow  # pyright: ignore[reportMissingImports]  # not among our dependencies

                        mlflow.end_run("FINISHED" if error is None else "FAILED")
                    case _:
                        tracker.finish()
            except Exception as fault:  # an error of a tracker must not fail the run
                _warn(name, fault)
        self._open = {}

    def start(self, step: int = 0) -> None:
        """Open the trackers, on the first rank; after `step` steps that are trained already they continue their run.

        Raises:
            RunError: A tracker cannot be opened, or their ids are damaged.
        """
        if not process_state().is_main_process:
            return
        # A run that begins again at step 0 is a new one for the trackers.
        file = self.recipe.output / TRACKERS_FILE
        ids: dict[str, str] = {}
        if step and file.exists():
            try:
                ids.update(json.loads(file.read_bytes()))
            except (ValueError, TypeError):
                raise RunError(f"{file}: damaged; remove it, and the trackers begin runs of their own") from None
        for name in self.recipe.training.report_to:
            try:
                ids[name] = self._begin(name, ids.get(name), step)
            except Exception as error:  # each tracker raises its own kinds
                raise RunError(
                    f"training.report_to: {name} cannot be opened: {first_line(error)}; correct that, work without a "
                    f"server (WANDB_MODE=offline, no MLFLOW_TRACKING_URI), or leave {name} out"
                ) from None
        if ids:
            write_atomically(file, json.dumps(ids, indent=1) + "\n")
        if (prediction := self.prediction) is not None:
            costs = {
                "tokens": prediction.num_tokens,
                "flops": prediction.flops.total,
                "peak_memory_bytes": prediction.memory.total,
                "seconds": prediction.seconds,
                "money": prediction.money,
            }
            self.log({f"cost/{name}_planned": float(v) for name, v in costs.items() if v is not None}, step)

    def _begin(self, name: str, known_id: str | None, step: int) -> str:
        """Open a tracker, and give it the recipe unless it has it; returns the id that it gives the run."""
        recipe, config = self.recipe, {"label": self.recipe.label, **self.recipe.model_dump(mode="json")}
        study, is_new = recipe.trial.study if recipe.trial else None, known_id is None
        match name:
            case "tensorboard":
                # Points after the checkpoint are removed: the resumed run writes them again.
                tracker = TensorBoardTracker("", recipe.output / name, purge_step=step + 1 if step else None)
            case "wandb":
                project = os.environ.get("WANDB_PROJECT", PROJECT)
                of_run = {"name": recipe.name, "group": study, "config": config, "id": known_id, "resume": "allow"}
                tracker = WandBTracker(project, **of_run, dir=os.environ.get("WANDB_DIR") or str(recipe.output))
            case "trackio":
                resume = "never" if is_new else "must"
                tracker = TrackioTracker(PROJECT, name=recipe.name, group=study, config=config, resume=resume)
            case "mlflow":
                tags = {"study": study} if study else None
                tracker = MLflowTracker(PROJECT, run_name=recipe.name, run_id=known_id, tags=tags)
            case _:
                raise AssertionError(f"training.report_to names {name}")
        tracker.start()
        if isinstance(tracker, TrackioTracker) and known_id not in (None, tracker.tracker.id):
            # Trackio resumes the last run of a name, which may be that of another seed.
            tracker.finish()
            tracker.init_kwargs["resume"] = "never"
            tracker.start()
        self._open[name] = tracker
        if isinstance(tracker, MLflowTracker):
            if is_new:
                import mlflow  # pyright: ignore[reportMissingImports]

                tracker.store_init_configuration(dict(flat(config)))
                mlflow.log_text(dump_yaml(recipe), "recipe.yaml")
            return tracker.tracker.info.run_id
        if not isinstance(tracker, TensorBoardTracker):  # the others got the recipe when they were set up
            return tracker.tracker.id
        text = "".join(f"    {line}\n" for line in dump_yaml(recipe).splitlines())
        tracker.tracker.add_text("recipe", f"{recipe.name}: {recipe.label}\n\n{text}", 0)
        if is_new:
            from torch.utils.tensorboard.summary import hparams  # needs tensorboard

            # A row of the HParams tab: main settings, and by name the figures that the run will log.
            settings = {
                setting: value if isinstance(value, str | int | float) else str(value)
                for setting, value in flat(config)
                if setting.startswith(_HPARAMS) and value is not None
            }
            tasks = [task.name.replace(",", "") for task in recipe.evaluation.tasks]
            metrics = [f"{task}/{figure}" for task in tasks for figure in ("accuracy", "termination_rate")]
            summaries = hparams(settings, dict.fromkeys([*metrics, *_COSTS], 0.0))
            for summary in summaries[:2]:  # the third says that the run has ended
                tracker.tracker._get_file_writer().add_summary(summary)
        return ""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send figures to all open trackers."""
        for name, tracker in list(self._open.items() if values else []):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:  # a server that is gone must not end hours of training
                del self._open[name]
                _warn(name, error)

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Open the trackers where training begins."""
        self.start(state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Mirror a line of `metrics.jsonl`, under the names that Transformers gives: `train/NAME`, `eval/NAME`."""
        self.log(rewrite_logs(logs or {}), state.global_step)


def outcome(result: RunResult) -> dict[str, float]:
    """The known results of a run: tokens kept, costs, and figures of each task."""
    figures: dict[str, float | None] = {}
    if result.cut is not None and result.cut.tokens_before:
        figures["cut/tokens_kept"] = result.cut.tokens_after / result.cut.tokens_before
        figures["cut/lost_stop"] = result.cut.lost_stop / max(result.cut.num_kept, 1)
    if result.train is not None:
        costs = predicted_and_measured(result.prediction, result.train)
        figures |= {f"cost/{name}": measured for name, (_, measured) in costs.items()}
        figures["cost/energy_joules"] = result.train.energy_joules
    for evaluation in result.evaluations:
        task = evaluation.task.replace(",", "")  # MLflow takes no comma
        figures |= {
            f"{task}/accuracy": evaluation.accuracy_strict.value,
            f"{task}/accuracy_low": evaluation.accuracy_strict.low,
            f"{task}/accuracy_high": evaluation.accuracy_strict.high,
            f"{task}/accuracy_flexible": evaluation.accuracy_flexible.value,
            f"{task}/termination_rate": evaluation.termination_rate.value,
            f"{task}/tokens_mean": evaluation.tokens_mean,
        }
    return {name: float(value) for name, value in figures.items() if value is not None}


def _warn(name: str, error: Exception) -> None:
    logger.warning(
        "training.report_to: %s: %s; it receives nothing more; metrics.jsonl and run.json are complete",
        name, first_line(error),
    )  # fmt: skip
