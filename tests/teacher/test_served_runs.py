"""Captures, runs and checks with a served teacher, held against the same teacher run here."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leadspan.doctor.doctor import examine
from leadspan.errors import RunError, SettingsError, TargetsError
from leadspan.inputs import prepare_data
from leadspan.models.loading import load_model
from leadspan.pipeline.run import prepare_capture, run
from leadspan.planning.prediction import cost_model_of
from leadspan.recipe import Recipe
from leadspan.stages import checked_teacher, training_inputs
from leadspan.teacher import server as client
from leadspan.teacher.capture import run_capture
from leadspan.teacher.store import TargetStore
from recipes import toy_recipe, without_times
from servers import TeacherOnLoopback, serving
from stores import capture_recipe, stored
from toys import character_tokenizer, tiny

CODEC = {"kind": "top_k", "k": 12, "precision": "float32"}


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherOnLoopback]:
    monkeypatch.setattr(client, "_FIRST_WAIT", 0.01)
    model = load_model(tiny(hidden=48, seed=2), torch.float32, for_training=False)
    with serving(model, character_tokenizer()) as server:
        yield server


def of_server(server: TeacherOnLoopback, **changes: Any) -> dict[str, Any]:
    return {"kind": "server", "url": server.url, "model": "big", "k": 12, "retries": 1, **changes}


def close(found: Path, expected: Path) -> bool:
    lines = [without_times(path) for path in (found, expected)]
    values = [[line[key] for line in lines[0] for key in line if key in other] for other in lines[1]]
    assert all(values) and len(lines[0]) == len(lines[1])
    return all(
        np.isclose(line[name], other[name], rtol=1e-3, atol=1e-4)
        for line, other in zip(*lines, strict=True)
        for name in line.keys() & other.keys()
        if "loss" in name or "divergence" in name
    )


def test_costs_are_without_a_served_teacher_and_an_engine_belongs_to_it(tmp_path: Path) -> None:
    served = {"kind": "server", "url": "http://localhost:1", "model": "big"}
    recipe = toy_recipe(tmp_path, teacher=served)
    model = cost_model_of(recipe, prepare_data(recipe).renderer)
    assert model.teacher is None and model.memory.teacher_activations is None
    with pytest.raises(SettingsError, match=r"capture\.engine is transformers with teacher\.kind server"):
        prepare_capture(recipe)
    with pytest.raises(SettingsError, match=r"capture\.engine is server with teacher\.kind random_init"):
        prepare_capture(toy_recipe(tmp_path, capture={"engine": "server"}))


@pytest.mark.slow
def test_a_capture_and_a_run_are_those_of_the_teacher_run_here(loopback: TeacherOnLoopback, tmp_path: Path) -> None:
    local = capture_recipe(tmp_path, codec=CODEC, path=str(tmp_path / "local"), steps=3)
    run_capture(prepare_capture(local))
    capture = {**local.capture.model_dump(), "path": tmp_path / "served", "engine": "server"}
    served = Recipe.model_validate(local.model_dump() | {"teacher": of_server(loopback), "capture": capture})
    manifest = run_capture(prepare_capture(served))
    assert manifest.weights_hash == "served as big" and manifest.flops is None
    stores = [TargetStore(tmp_path / name) for name in ("local", "served")]
    assert stores[0].manifest.num_sequences == stores[1].manifest.num_sequences > 0
    for example in [prepare_data(served).examples[i] for i in range(5)]:
        expected, found = (store.read(example, np.arange(len(example.input_ids) - 1)) for store in stores)
        assert np.array_equal(expected["token_ids"], found["token_ids"])
        for name in ("log_probs", "outside", "label_log_prob"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
    run(stored(local, tmp_path / "from-local"))
    run(stored(served, tmp_path / "from-served"))
    run(Recipe.model_validate(served.model_dump() | {"output": tmp_path / "live"}))
    assert close(tmp_path / "from-served", tmp_path / "from-local") and close(
        tmp_path / "live", tmp_path / "from-local"
    )


@pytest.mark.slow
def test_rollouts_learn_from_a_server_and_go_on_when_it_has_come_back(
    loopback: TeacherOnLoopback, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "loss": {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}, "stop": "tokens"},
        "rollout": {"max_new_tokens": 8, "horizon": {"kind": "fixed", "tokens": 4}, "trace_share": 0.25},
        "data": {**toy_recipe(tmp_path).data.model_dump(), "validation": {"kind": "none"}},
        "steps": 3,
        "checkpoint_every": 1,
        "keep": "last",
    }
    recipe = toy_recipe(tmp_path, teacher=of_server(loopback, retries=0), **changes)
    run(recipe)
    assert len(loopback.asked) >= 24
    whole = recipe.output.rename(tmp_path / "whole")
    num_good = 2 * 8  # requests of two steps
    loopback.faults[:] = [lambda answer: answer] * num_good + [lambda answer: (500, "gone")] * 20
    with pytest.raises(TargetsError, match="failed 1 times, at last with status 500: gone"):
        run(recipe)
    loopback.faults.clear()
    moved = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"timeout": 60.0})})
    run(moved, resume=True)
    assert (recipe.output / "rollouts.jsonl").read_text() == (whole / "rollouts.jsonl").read_text()
    shutil.rmtree(recipe.output / "student")
    (recipe.output / "run.json").unlink()
    other = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"model": "bigger"})})
    with pytest.raises(RunError, match=r"teacher\.model was \"big\", is \"bigger\""):
        run(other, resume=True)


def test_rollouts_and_captures_beyond_the_servers_window_are_refused_before_training(
    loopback: TeacherOnLoopback, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"loss": {"kl_weight": 1}, "cut": {"kind": "full"}, "teacher": of_server(loopback)}

    def checked(rollout: dict[str, Any]) -> None:
        recipe = toy_recipe(tmp_path, rollout={"max_new_tokens": 500, **rollout}, **changes)
        training_inputs(recipe, prepare_data(recipe), checked_teacher(recipe))

    vars(loopback.model.config)["max_position_embeddings"] = 300  # more than any trace has
    short = {"horizon": {"kind": "fixed", "tokens": 16}}
    checked(short)
    for longer in ({**short, "whole_share": 0.1}, {"horizon": {"kind": "fixed", "tokens": 300}}):
        with pytest.raises(TargetsError, match=r"window has 300 tokens, .*longest prompt and new tokens are 299, or"):
            checked(longer)
    vars(loopback.model.config)["max_position_embeddings"] = 60
    served = toy_recipe(tmp_path, **changes, capture={"path": str(tmp_path / "s"), "codec": CODEC, "engine": "server"})
    with pytest.raises(TargetsError, match=r"window has 60 tokens, and an example up to \d+ .* have 59: data\.max_tok"):
        run_capture(prepare_capture(served))


@pytest.mark.slow
def test_stored_rollouts_of_one_prompt_keep_to_the_teacher_of_their_trace(
    loopback: TeacherOnLoopback, tmp_path: Path
) -> None:
    toy_recipe(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()[:8]]
    both = [{**row, "answer": f"{row['answer']} {by}", "by": by} for by in ("one", "two") for row in rows]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))
    other = load_model(tiny(hidden=32, seed=7), torch.float32, for_training=False)
    with serving(other, character_tokenizer()) as server:
        urls = {"one": loopback.url, "two": server.url}
        by_name = {name: {"url": url, "model": name, "k": 12} for name, url in urls.items()}
        live = toy_recipe(
            tmp_path,
            teacher={"kind": "servers", "by_name": by_name},
            loss={"kl_weight": 1, "divergence": {"kind": "reverse_kl"}},
            rollout={"max_new_tokens": 8, "horizon": {"kind": "fixed", "tokens": 8}},
            data={
                "train": {"path": str(tmp_path / "both.jsonl"), "columns": {"teacher": "by"}},
                "validation": {"kind": "none"},
                "cache_dir": str(tmp_path / "cache"),
            },
            capture={"path": str(tmp_path / "store"), "codec": CODEC, "engine": "server"},
            batching={"kind": "examples", "examples_per_step": 16, "examples_per_batch": 4},
            steps=1,
        )
        assert run_capture(prepare_capture(live)).num_sequences == 16  # eight prompts of each teacher
        expected = run(live).train
    found = run(stored(live, tmp_path / "from-store")).train
    assert found is not None and expected is not None
    # One step over all prompts, by the student that drew what was stored.
    assert found.final_loss == pytest.approx(expected.final_loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_stop_is_one_event_with_a_server_as_with_the_teacher_run_here(
    loopback: TeacherOnLoopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    """With all tokens listed it is the live teacher's loss; with all ends and most tokens it is little below that."""
    monkeypatch.setattr("leadspan.stages.load_end_ids", lambda settings: [5, 9])  # of models that have none
    changes: dict[str, Any] = {
        "loss": {"kl_weight": 1, "divergence": {"kind": "reverse_kl"}},
        "rollout": {"max_new_tokens": 8, "trace_share": 0.25, "horizon": {"kind": "fixed", "tokens": 4}},
        "data": {**toy_recipe(tmp_path).data.model_dump(), "validation": {"kind": "none"}},
        "steps": 2,
    }
    live = toy_recipe(tmp_path, teacher=tiny(hidden=48, seed=2).model_dump(), **changes)
    served = live.model_copy(update={"output": tmp_path / "served"})
    k = loopback.model.config.vocab_size - (6 if api == "sglang" else 0)
    served = Recipe.model_validate(served.model_dump() | {"teacher": of_server(loopback, k=k, api=api)})
    tokens = Recipe.model_validate(served.model_dump() | {"loss": {**changes["loss"], "stop": "tokens"}})
    run(live)
    run(served)
    losses = [without_times(recipe.output)[0]["loss"] for recipe in (live, served)]
    if api == "sglang":
        assert 0.9 * losses[0] < losses[1] < losses[0]
        return
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    shutil.rmtree(served.output)
    run(tokens)
    assert without_times(tokens.output)[0]["loss"] > 1.001 * losses[0]


@pytest.mark.slow
def test_the_doctor_asks_the_server(loopback: TeacherOnLoopback, tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, teacher=of_server(loopback, k=80))
    checks = {check.name: check for check in examine(recipe, 4)}
    assert (
        checks["served teacher answers"].verdict == "ok" and "80 likeliest" in checks["served teacher answers"].figure
    )
    assert not [check for check in checks.values() if check.verdict == "failed"]
    name, on_policy = "served teacher names all ends of a turn", {"kl_weight": 1, "stop": "event"}
    for api, k, verdict in (("vllm", 12, "warning"), ("sglang", 12, "ok")):
        asked = toy_recipe(tmp_path, teacher=of_server(loopback, k=k, api=api, end_ids=[5]), loss=on_policy)
        assert {check.name: check for check in examine(asked, 4)}[name].verdict == verdict
    loopback.faults[:] = [lambda answer: (401, "no key")] * 20
    failed = {check.name: check for check in examine(recipe, 4)}["served teacher answers"]
    assert failed.verdict == "failed" and "status 401" in failed.figure
