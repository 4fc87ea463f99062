import importlib.util
import json
import shutil
import sqlite3
import struct
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leadspan.errors import RunError
from leadspan.pipeline.run import run, run_untrained
from leadspan.pipeline.tracking import PROJECT, TRACKERS_FILE, Trackers
from leadspan.recipe import Recipe
from leadspan.yaml_text import parse_yaml
from recipes import metrics, toy_recipe
from studies import EVALUATION, toy_task

INSTALLED = [name for name in ("tensorboard", "wandb", "trackio", "mlflow") if importlib.util.find_spec(name)]
LOGGED = {
    "loss": "train/loss",
    "divergence/cot": "train/divergence/cot",
    "eval_loss": "eval/loss",
    "eval_cross_entropy/answer": "eval/cross_entropy/answer",
}
"""Names in `metrics.jsonl`, and in trackers."""


@dataclass
class Record:
    """What a tracker has of a run: scalars by name and step, its name, its settings."""

    scalars: dict[str, dict[int, float]]
    name: str
    config: dict[str, Any]
    num_runs: int = 1


@pytest.fixture(autouse=True)
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)


def tracked_recipe(directory: Path, *trackers: str, **changes: object) -> Recipe:
    evaluation = {"tasks": [toy_task(directory)], **EVALUATION}
    return toy_recipe(directory, report_to=list(trackers), evaluation=evaluation, **changes)


def tensorboard_record(directory: Path) -> Record:
    record = EventAccumulator(str(directory / "run" / "tensorboard")).Reload()
    scalars = {name: {e.step: e.value for e in record.Scalars(name)} for name in record.Tags()["scalars"]}
    text = record.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    title, _, recipe = text.partition("\n\n")
    name, _, label = title.partition(": ")
    return Record(scalars, name, {"label": label, **parse_yaml(textwrap.dedent(recipe), "recipe")})


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run: LevelDB's log format behind seven bytes (blocks of 32 KiB, a record in fragments)."""
    from wandb.proto.wandb_internal_pb2 import Record as Message

    content, position, fragments = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # no header fits in the rest of a block
            position += 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", content, position)
        fragments += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last fragment
            yield Message.FromString(fragments)
            fragments = b""


def wandb_record(directory: Path) -> Record:
    scalars: dict[str, dict[int, float]] = {}
    config: dict[str, Any] = {}
    runs: dict[str, str] = {}
    for file in sorted(directory.glob("run/wandb/offline-run-*/*.wandb")):
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                runs[record.run.run_id] = record.run.display_name
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                scalars.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
    return Record(scalars, next(iter(runs.values())), config, len(runs))


def trackio_record(directory: Path) -> Record:
    with sqlite3.connect(directory / "trackio" / f"{PROJECT}.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'toy'").fetchall()
        runs = database.execute("select run_name, config from configs").fetchall()
    scalars: dict[str, dict[int, float]] = {}
    for step, values in rows:
        for name, value in json.loads(values).items():
            scalars.setdefault(name, {})[step] = value
    return Record(scalars, runs[0][0], json.loads(runs[0][1]), len(runs))


def mlflow_record(directory: Path) -> Record:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(PROJECT)
    runs = client.search_runs([experiment.experiment_id])
    scalars = {
        name: {point.step: point.value for point in client.get_metric_history(runs[0].info.run_id, name)}
        for name in runs[0].data.metrics
    }
    params = runs[0].data.params
    config = {"label": params["label"], "cut": {"kind": params["cut.kind"], "p": float(params["cut.p"])}}
    assert runs[0].info.status == "FINISHED"
    return Record(scalars, runs[0].info.run_name, config, len(runs))


READ = {
    "tensorboard": tensorboard_record,
    "wandb": wandb_record,
    "trackio": trackio_record,
    "mlflow": mlflow_record,
}


@pytest.mark.slow
@pytest.mark.parametrize("tracker", INSTALLED)
def test_a_tracker_has_recipe_losses_costs_and_accuracy(tracker: str, tmp_path: Path) -> None:
    recipe = tracked_recipe(tmp_path, tracker, steps=4, checkpoint_every=2)
    result = run(recipe)
    assert result.prediction is not None and result.train is not None
    record = READ[tracker](tmp_path)
    assert (record.name, record.config["label"], record.config["cut"]["p"]) == ("toy", "lead 0.7", 0.7)
    assert "per_device_train_batch_size" not in record.config
    for line in metrics(recipe.output):
        for name, shown in LOGGED.items():
            if name in line:
                assert record.scalars[shown][int(line["step"])] == pytest.approx(line[name], rel=1e-6)
    assert set(LOGGED.values()) <= record.scalars.keys()
    assert record.scalars["cost/flops_planned"] == {0: pytest.approx(result.prediction.flops.total)}
    assert record.scalars["cost/flops"] == {4: pytest.approx(result.train.flops.total)}
    (task,) = result.evaluations
    assert record.scalars["toy/accuracy"] == {4: pytest.approx(task.accuracy_strict.value)}
    assert record.scalars["toy/termination_rate"] == {4: pytest.approx(task.termination_rate.value)}

    shutil.rmtree(recipe.output / "checkpoints" / "checkpoint-4")
    (recipe.output / "run.json").unlink()
    run(recipe, resume=True)  # from step 2
    again = READ[tracker](tmp_path)
    assert again.num_runs == 1 and again.scalars["train/loss"] == record.scalars["train/loss"]
    assert again.scalars["toy/accuracy"] == record.scalars["toy/accuracy"]


@pytest.mark.slow
def test_a_model_that_is_evaluated_only_is_tracked_too(tmp_path: Path) -> None:
    recipe = tracked_recipe(tmp_path, "wandb").model_copy(update={"role": "base"})
    (task,) = run_untrained(recipe).evaluations
    record = wandb_record(tmp_path)
    assert record.config["role"] == "base"
    assert record.scalars["toy/accuracy_flexible"] == {0: pytest.approx(task.accuracy_flexible.value)}


def test_a_tracker_that_cannot_be_opened_ends_the_run_and_one_that_fails_later_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    recipe = tracked_recipe(tmp_path, "wandb", "tensorboard")
    with Trackers(recipe) as trackers:
        trackers.start()
        wandb.finish()  # as a callback of somebody else's might
        trackers.log({"loss": 1.0}, 1)
        trackers.log({"loss": 2.0}, 2)
    (warning,) = [record.getMessage() for record in caplog.records if "receives nothing more" in record.getMessage()]
    assert warning.startswith("training.report_to: wandb: ") and "finished" in warning
    assert tensorboard_record(tmp_path).scalars["loss"] == {1: 1.0, 2: 2.0}
    wandb.teardown()  # so that it reads its settings anew
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with (
        pytest.raises(RunError, match=r"wandb cannot be opened: .*; correct that, work without a server"),
        Trackers(recipe) as it,
    ):
        it.start()


@pytest.mark.parametrize("content", [b"{", b"7", b"\xff"])
def test_damaged_ids_of_trackers_are_one_error(tmp_path: Path, content: bytes) -> None:
    recipe = toy_recipe(tmp_path)
    recipe.output.mkdir()
    (recipe.output / TRACKERS_FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"trackers\.json: damaged; remove it, and the trackers begin runs"):
        Trackers(recipe).start(step=2)


def test_a_resumed_run_continues_its_run_of_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in, since Trackio is no dependency: without an id a resumed run would begin a new one."""
    begun: list[str] = []
    ids = iter(("7", "7", "8", "9", "10"))

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options["resume"])
        return SimpleNamespace(id=next(ids), log=lambda *_, **__: None, finish=lambda: begun.append("finished"))

    stand_in = ModuleType("trackio")
    vars(stand_in)["init"] = init
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    recipe = tracked_recipe(tmp_path, "trackio")
    for step in (0, 3):
        with Trackers(recipe) as trackers:
            trackers.start(step)
    assert begun == ["never", "finished", "must", "finished"]
    begun.clear()
    with Trackers(recipe) as trackers:
        trackers.start(6)  # the last run of its name is another's by now
    assert begun == ["must", "finished", "never", "finished"]
    begun.clear()
    with Trackers(recipe) as trackers:
        trackers.start()
    assert begun == ["never", "finished"]


def test_tensorboard_has_a_row_of_settings_and_figures(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    recipe = tracked_recipe(tmp_path, "tensorboard")
    with Trackers(recipe) as trackers:
        trackers.start()
    record = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    plugin = {
        name: HParamsPluginData.FromString(content) for name, content in record.PluginTagToContent("hparams").items()
    }
    assert set(plugin) == {
        "_hparams_/experiment",
        "_hparams_/session_start_info",
        "_hparams_/session_end_info",
    }
    settings = plugin["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["label"].string_value == "lead 0.7"
    assert (settings["cut.p"].number_value, settings["loss.kl_weight"].number_value) == (0.7, 0.5)
    assert settings["training.learning_rate"].number_value == 1e-2
    assert "output" not in settings and "training.log_every" not in settings
    figures = [info.name.tag for info in plugin["_hparams_/experiment"].experiment.metric_infos]
    assert figures == [
        "toy/accuracy",
        "toy/termination_rate",
        "cost/tokens",
        "cost/flops",
        "cost/seconds",
        "cost/peak_memory_bytes",
    ]
