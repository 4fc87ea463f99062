"""Studies whose trials share one capture of the teacher."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leadspan.cli import main
from leadspan.errors import CacheError, SettingsError, TargetsError
from leadspan.pipeline.run import prepare_capture, run
from leadspan.recipe import Recipe
from leadspan.settings import dump_yaml
from leadspan.status import StatusHandler
from leadspan.study.record import load_study
from leadspan.study.settings import LocalExecutor
from leadspan.study.shared_stores import capture_shared, missing
from leadspan.study.study import _whole_machine, plan_study, run_study
from leadspan.study.trials import SharedStore
from leadspan.teacher.capture import run_capture
from leadspan.teacher.settings import StoredTargets
from leadspan.teacher.store import TargetStore
from recipes import metrics
from studies import toy_study
from toys import tiny

QUIET = Console(quiet=True)
LEADS = [{"kind": "full"}, {"kind": "lead"}]
OTHERS = [
    {"kind": "tail", "p": 0.5},
    {"kind": "schedule", "policy": {"kind": "middle"}, "start": 0.4, "end": 0.8, "num_stages": 2},
]


def losses(study: Path) -> dict[str, list[float]]:
    """All logged losses of every trial by its title."""
    names = ("loss", "eval_loss", "divergence/cot")
    return {
        trial.title: [line[k] for line in metrics(study / trial.directory) for k in names if k in line]
        for trial in load_study(study).trials
    }


def shards(study: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in study.glob("store/*/*/shards/*.arrow")}


def with_store(directory: Path, **changes: Any) -> tuple[Any, Path]:
    store = {"codec": {"kind": "hidden"}, "positions_per_shard": 800, "tokens_per_batch": 400}
    return toy_study(directory, store=store | changes.pop("store", {}), **changes)


@pytest.mark.slow
def test_trials_from_one_capture_are_those_of_a_live_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uncut, and a tail and a schedule that change the context; two seeds, so two splits."""
    axes = {"cut": [{"kind": "full"}, *OTHERS]}
    executor = {"kind": "local", "trials_at_once": 2}
    changes: dict[str, Any] = {"axes": axes, "seeds": [0, 1], "executor": executor}
    study, place = with_store(tmp_path, **changes)
    place.write_text(dump_yaml(study))
    assert main(["study", str(place), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "hidden: serves 6 trials" in shown and "of them for cuts that change the context" in shown
    assert not (tmp_path / "study").exists()
    assert main(["study", str(place)]) == 0
    assert "hidden: served 6 trials" in capsys.readouterr().out
    live, _ = toy_study(tmp_path, **changes, output=str(tmp_path / "live"))
    run_study(live, place, QUIET)
    found, expected = losses(study.output), losses(live.output)
    assert found.keys() == expected.keys() and len(found) == 6
    for title, values in expected.items():
        assert found[title] == pytest.approx(values, rel=1e-5), title
    (capture,) = load_study(study.output).captures
    assert capture.state == "done" and capture.num_trials == 6 and capture.seconds and capture.flops
    store = TargetStore(study.output / capture.directory)
    assert store.verify() == store.manifest.num_sequences and capture.num_positions == store.manifest.num_positions
    assert load_study(live.output).captures == []


@pytest.mark.slow
def test_a_capture_is_made_once_mended_and_added_to(tmp_path: Path) -> None:
    study, place = with_store(tmp_path)
    beside = study.output / "checkpoints" / "of another run"  # below the directory that the recipe names
    beside.mkdir(parents=True)
    assert [t.state for t in run_study(study, place, QUIET).trials] == ["done", "done"] and beside.exists()
    before = shards(study.output)
    runs = {path: path.stat().st_mtime_ns for path in study.output.glob("trials/*/run.json")}
    assert len(before) > 2
    assert run_study(study, place, QUIET).captures[0].state == "done" and shards(study.output) == before
    # a smaller cut needs nothing, another context only its own sequences, and what is done stays done
    study, place = with_store(tmp_path, axes={"cut": [*LEADS, OTHERS[0]], "p": [0.3, 0.5]})
    (store,) = plan_study(study, place).stores
    job = missing(store)
    assert job is not None and job.sequences.num_apart == len(job.sequences) > 0
    gone = sorted(before)[1]
    next(study.output.glob(f"store/*/*/shards/{gone}")).unlink()
    with pytest.raises(Exception, match=f"{gone}: missing"):
        TargetStore(store.directory)
    small, _ = with_store(tmp_path, axes={"cut": LEADS, "p": [0.3, 0.5]})
    record = run_study(small, place, QUIET)
    assert {t.state for t in record.trials} == {"done"}
    assert {name for name, time in shards(study.output).items() if time != before[name]} == {gone}
    record = run_study(study, place, QUIET)
    assert {t.state for t in record.trials} == {"done"} and before.keys() < shards(study.output).keys()
    assert TargetStore(store.directory).verify() == TargetStore(store.directory).manifest.num_sequences
    assert len(TargetStore(store.directory).parts) == 2
    assert runs.items() <= {path: path.stat().st_mtime_ns for path in study.output.glob("trials/*/run.json")}.items()
    assert missing(store) is None
    shutil.rmtree(store.directory)  # trials that are done need no store
    captures = run_study(study, place, QUIET).captures
    assert captures == [record.captures[0]] and not store.directory.exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "flipped", "manifest"])
def test_a_damaged_part_is_replaced_when_the_study_grows(tmp_path: Path, damage: str) -> None:
    def store_of(cuts: list[dict[str, Any]]) -> SharedStore:
        (store,) = plan_study(*with_store(tmp_path, axes={"cut": cuts})).stores
        return store

    lead, tail = {"kind": "lead", "p": 0.5}, {"kind": "tail", "p": 0.5}
    capture_shared(store_of([lead]))
    directory = store_of([lead]).directory
    (first,) = (path.parent for path in directory.glob("*/manifest.json"))
    capture_shared(store_of([lead, tail]))
    assert len(TargetStore(directory).parts) == 2
    kept = {path: path.stat().st_mtime_ns for path in directory.glob("*/shards/*.arrow") if first not in path.parents}
    bad = first / "manifest.json" if damage == "manifest" else sorted(first.glob("shards/*.arrow"))[0]
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 4
    bad.unlink() if damage == "gone" else bad.write_bytes(content)
    with pytest.raises(CacheError):
        TargetStore(directory).verify()
    grown = store_of([{"kind": "lead", "p": 0.8}, tail])
    said: list[str] = []
    with StatusHandler(said.append):
        capture_shared(grown)
    assert f"{first}: damaged, set aside as {directory / 'damaged' / f'0-{first.name}'}" in said
    assert not first.exists()
    assert TargetStore(directory).verify() and len(TargetStore(directory).parts) == 2
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in kept}.items()
    assert missing(grown) is None and missing(store_of([lead, tail])) is None


@pytest.mark.slow
def test_a_failed_capture_stops_the_study_with_one_message(tmp_path: Path) -> None:
    study, place = with_store(tmp_path, store={"codec": {"kind": "top_k", "k": 3}})
    (store,) = plan_study(study, place).stores
    job = missing(store)
    assert job is not None
    job.directory.mkdir(parents=True)
    (job.directory / "mine.txt").write_text("not a store")
    place.write_text(dump_yaml(study))
    assert main(["study", str(place)]) == 2
    record = load_study(study.output)
    assert record.captures[0].state == "failed" and "not empty and not a store" in record.captures[0].message
    assert {t.state for t in record.trials} == {"waiting"}
    (job.directory / "mine.txt").unlink()
    assert {t.state for t in run_study(study, place, QUIET).trials} == {"done"}


@pytest.mark.slow
def test_two_ranks_capture_together(tmp_path: Path) -> None:
    study, place = with_store(tmp_path, executor={"kind": "local", "ranks_per_trial": 2})
    (store,) = plan_study(study, place).stores
    from leadspan.study.executors.local import run_in_process
    from leadspan.study.trials import Trial

    run_in_process(Trial(store.recipes[0], task="capture", store=store), num_ranks=2)
    assert missing(store) is None and TargetStore(store.directory).verify()


@pytest.mark.slow
def test_trials_go_by_what_their_store_keeps_not_by_where_it_lies(tmp_path: Path) -> None:
    def fingerprints(**store: Any) -> set[str]:
        study, place = with_store(tmp_path, store=store)
        return {trial.fingerprint for trial in plan_study(study, place).trials}

    known = fingerprints()
    assert known == fingerprints(path=str(tmp_path / "elsewhere"), positions_per_shard=70)
    others = [
        fingerprints(codec={"kind": "top_k", "k": 5}),
        fingerprints(codec={"kind": "top_k", "k": 6}),
        fingerprints(temperatures=[1.0, 2.0]),
        {trial.fingerprint for trial in plan_study(*toy_study(tmp_path)).trials},
    ]
    assert len(known.union(*others)) == 10  # two trials each, none alike


def test_teachers_have_stores_of_their_own_and_students_share_one(tmp_path: Path) -> None:
    another = f"teacher={json.dumps(tiny(hidden=48, seed=5).model_dump())}"
    axes = {
        "cut": [{"kind": "full"}],
        "settings": {"one": ["training.log_every=9"], "two": [another]},
        "student": {"small": tiny(seed=1).model_dump(), "large": tiny(hidden=40, seed=1).model_dump()},
    }
    study, place = with_store(tmp_path, axes=axes)
    plan = plan_study(study, place)
    assert [len(store.recipes) for store in plan.stores] == [2, 2]
    assert len({store.directory for store in plan.stores}) == 2
    assert {t.recipe.targets.path for t in plan.trials if isinstance(t.recipe.targets, StoredTargets)} == {
        store.directory for store in plan.stores
    }


def test_what_a_store_cannot_serve_is_refused_when_the_study_is_planned(tmp_path: Path) -> None:
    axes = {"cut": [{"kind": "full"}], "loss": {"hot": {"temperature": 2.0}}}
    with pytest.raises(TargetsError, match=r"store\.codec top_k 5, full, hot, seed 0: loss\.temperature is 2"):
        plan_study(*with_store(tmp_path, axes=axes, store={"codec": {"kind": "top_k", "k": 5}}))
    plan = plan_study(*with_store(tmp_path, axes=axes))  # hidden states serve any temperature
    assert len(plan.stores) == 1
    targets = f"targets={{kind: store, path: {tmp_path}}}"
    with pytest.raises(SettingsError, match=r"full, seed 0 reads \S+ already \(targets\); leave one of the two out"):
        plan_study(*with_store(tmp_path, axes={"cut": [{"kind": "full"}]}, settings=[targets]))


@pytest.mark.slow
def test_a_study_of_recipes_with_a_store_goes_by_its_manifest(tmp_path: Path) -> None:
    from stores import captured

    recipe, store = captured(tmp_path / "one", cut={"kind": "full"})
    shutil.copytree(store.directory, tmp_path / "copy")
    _, sparse = captured(tmp_path / "two", cut={"kind": "full"}, codec={"kind": "top_k", "k": 9})
    found = []
    for path in (store.directory, tmp_path / "copy", sparse.directory):
        axes = {"cut": [{"kind": "full"}], "loss": {"kl": {}, "ce": {"kl_weight": 0}}}
        settings = [f"targets={{kind: store, path: {path}}}", f"data.cache_dir={recipe.data.cache_dir}"]
        trials = plan_study(*toy_study(tmp_path / "study", axes=axes, settings=settings)).trials
        found.append({t.recipe.name: t.fingerprint for t in trials})
        assert [t.recipe.targets.kind for t in trials] == ["store", "live"]  # without a teacher none is read
    assert found[0] == found[1] and found[0]["full, kl"] != found[2]["full, kl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetsError, match=r"manifest\.json: not found"):
        plan_study(*toy_study(tmp_path / "study", settings=[f"targets={{kind: store, path: {tmp_path / 'empty'}}}"]))


def test_a_capture_has_what_trials_at_one_time_have() -> None:
    each = LocalExecutor(trials_at_once=4, gpus_per_trial=2, ranks_per_trial=2)
    assert _whole_machine(each) == LocalExecutor(trials_at_once=1, gpus_per_trial=8, ranks_per_trial=8)
    assert _whole_machine(LocalExecutor(trials_at_once=2)) == LocalExecutor()
    assert _whole_machine(LocalExecutor(trials_at_once=3, threads_per_trial=2)) == LocalExecutor(threads_per_trial=6)


ON_POLICY = "loss={kl_weight: 1, divergence: {kind: reverse_kl}}"
HORIZONS = {
    name: [ON_POLICY, f"rollout={{max_new_tokens: 12, horizon: {{kind: fixed, tokens: {tokens}}}{more}}}"]
    for name, tokens, more in (("horizon 3", 3, ", trace_share: 0.25"), ("horizon 8", 8, ""))
}


@pytest.mark.slow
def test_whole_rollouts_are_drawn_once_for_every_horizon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each trial is what a capture and a run of its recipe alone are."""
    axes = {"cut": [{"kind": "full"}], "settings": HORIZONS}
    study, place = with_store(tmp_path, axes=axes, more_axes=[{"cut": LEADS[:1]}], seeds=[0, 1])
    place.write_text(dump_yaml(study))
    assert main(["study", str(place), "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "32 rollouts to draw, with at most" in shown and shown.count("serves 2 trials") == 3
    assert not (tmp_path / "study").exists()
    plan = plan_study(study, place)
    drawing = [store for store in plan.stores if store.recipes[0].rollout]
    assert [len(store.recipes) for store in plan.stores] == [2, 2, 2] and len(drawing) == 2
    # A capture that was killed while it drew goes on: half of a file, and half of its last line, are there.
    capture_shared(drawing[0])
    drawn = (drawing[0].directory / "rollouts.jsonl").read_text()
    assert len(drawn.splitlines()) == 1 + 32
    shutil.rmtree(drawing[0].directory)
    drawing[0].directory.mkdir()
    (drawing[0].directory / "rollouts.jsonl").write_text(drawn[: len(drawn) // 2])
    part = missing(drawing[0], draws=False)
    assert part is not None and 0 < len(part.undrawn) < 32
    assert {trial.state for trial in run_study(study, place, QUIET).trials} == {"done"}
    assert (drawing[0].directory / "rollouts.jsonl").read_text() == drawn
    assert main(["study", str(place), "--dry-run"]) == 0 and "nothing to capture" in capsys.readouterr().out
    for trial in plan.trials:
        if trial.recipe.rollout is None:
            continue
        store = tmp_path / f"alone-{trial.recipe.seed}"
        alone = trial.recipe.model_copy(update={"output": tmp_path / "alone", "targets": StoredTargets(path=store)})
        if not store.exists():
            values = alone.model_dump() | {"capture": {"path": store, "codec": {"kind": "hidden"}}}
            # The store of one recipe: that of the traces too, which one of the trials mixes in.
            mixed = values | {"rollout": {**values["rollout"], "trace_share": 0.25}}
            run_capture(prepare_capture(Recipe.model_validate(mixed)))
        run(alone)
        for name in ("rollouts.jsonl", "samples.jsonl"):
            assert [p.read_text() for p in alone.output.rglob(name)] == [
                p.read_text() for p in trial.recipe.output.rglob(name)
            ]
        assert metrics(alone.output)[0]["loss"] == pytest.approx(metrics(trial.recipe.output)[0]["loss"], rel=1e-6)
        shutil.rmtree(alone.output)


def test_rollouts_that_cannot_be_stored_ones_are_refused_when_the_study_is_planned(tmp_path: Path) -> None:
    axes = {"cut": LEADS[:1], "settings": {"x": [ON_POLICY, "rollout={steps_per_draw: 2}"]}}
    with pytest.raises(SettingsError, match=r"full, x, seed 0(.|\n)*set steps_per_draw: 1"):
        plan_study(*with_store(tmp_path, axes=axes))
