"""Rollouts of a store against rollouts that are drawn while training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_on_policy import lines, on_policy
from torch.optim.optimizer import register_optimizer_step_pre_hook

from leadspan.errors import CacheError, SettingsError, TargetsError
from leadspan.files import with_checksum
from leadspan.pipeline.run import prepare_capture, run
from leadspan.recipe import Recipe
from leadspan.settings import validate
from leadspan.teacher.capture import run_capture
from leadspan.teacher.fill import merge_stores, store_locked
from toys import tiny

HIDDEN = {"codec": {"kind": "hidden"}}


def with_changes(recipe: Recipe, **changes: Any) -> Recipe:
    return validate(Recipe, recipe.model_dump(mode="json") | changes, "toy")


@pytest.mark.slow
def test_training_from_stored_rollouts_is_live_training_on_them_at_every_horizon(tmp_path: Path) -> None:
    """In the first step the live student draws what was stored: it is the student as it begins."""
    live = on_policy(tmp_path, {"whole_share": 0.25, "trace_share": 0.25}, steps=1)
    store = tmp_path / "store"
    stored = with_changes(live, output=str(tmp_path / "stored"), targets={"kind": "store", "path": str(store)})
    run_capture(prepare_capture(with_changes(live, capture={"path": str(store), **HIDDEN})))
    gradients: list[torch.Tensor] = []

    def keep(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))

    for horizon in (2, 9):
        rollout = {**live.model_dump(mode="json")["rollout"], "horizon": {"kind": "fixed", "tokens": horizon}}
        results, records = [], []
        gradients.clear()
        for recipe in (live, stored):
            handle = register_optimizer_step_pre_hook(keep)
            result = run(with_changes(recipe, rollout=rollout))
            handle.remove()
            records.append(lines(recipe.output))
            results.append(result.train)
            shutil.rmtree(recipe.output)
        assert records[0] == records[1]
        assert {line["cap"] for line in records[0]} == {horizon, 24}
        assert results[0].final_loss == pytest.approx(results[1].final_loss, rel=1e-5)
        assert results[1].flops.rollout == results[1].flops.teacher_body == 0
        # Not the weights: Adam's first step divides a gradient by its size, and near 0 that shows rounding.
        ours, theirs = gradients
        assert (ours - theirs).norm() < 1e-5 * ours.norm()


@pytest.mark.slow
def test_a_capture_that_was_killed_goes_on_drawing_and_what_a_store_lacks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    recipe = on_policy(tmp_path, capture={"path": str(store), **HIDDEN})
    whole = prepare_capture(recipe).sequences
    drawn = (store / "rollouts.jsonl").read_text()
    assert len(drawn.splitlines()) == 1 + 32 and len(whole) == 32 + 8  # 32 prompts, 8 traces to validate on
    (store / "rollouts.jsonl").write_text(drawn[: len(drawn) * 2 // 3])
    assert prepare_capture(recipe).sequences.content_hash == whole.content_hash
    again = [json.loads(line) for line in (store / "rollouts.jsonl").read_text().splitlines()]
    assert again == [json.loads(line) for line in drawn.splitlines()]
    rollout = recipe.model_dump(mode="json")["rollout"]
    longer = with_changes(recipe, rollout={**rollout, "max_new_tokens": 25})
    for draws in (True, False):
        with pytest.raises(TargetsError, match=r"drawn with .*24"):
            prepare_capture(longer, draws=draws)
    run_capture(prepare_capture(recipe))
    lines_drawn = drawn.splitlines(keepends=True)
    for number in (0, 7):  # a line that says how they were drawn, and one of them
        bits = bytearray(lines_drawn[number].encode())
        bits[-1 - len(lines_drawn[number]) // 2] ^= 1
        damaged = [*lines_drawn[:number], bits.decode(), *lines_drawn[number + 1 :]]
        (store / "rollouts.jsonl").write_text("".join(damaged))
        with pytest.raises(CacheError, match=f"damaged in 1 lines, first line {number + 1}; run `leadspan capture`"):
            run(with_changes(recipe, targets={"kind": "store", "path": str(store)}))
        assert prepare_capture(recipe).sequences.content_hash == whole.content_hash
        assert f"damaged in 1 lines, first line {number + 1}; drawn again" in caplog.text
        assert (store / "rollouts.jsonl").read_text() == drawn
    with store_locked(store), pytest.raises(TargetsError, match=r"another process .* captures into it"):
        prepare_capture(recipe)
    (store / "manifest.json").rename(store / "metrics.jsonl")  # such as of a run, whose rollouts are no store's
    (store / "rollouts.jsonl").write_text("ours")
    with pytest.raises(TargetsError, match="not empty and not a store"):
        prepare_capture(recipe)
    assert (store / "rollouts.jsonl").read_text() == "ours"
    (store / "rollouts.jsonl").write_text(drawn)
    (store / "metrics.jsonl").rename(store / "manifest.json")
    for changes, message in (
        ({"max_new_tokens": 25}, "max_new_tokens no greater"),
        ({"temperature": 0.5}, "temperature must be the same"),
        ({"samples_per_prompt": 2}, "32 of 64 rollouts are not there"),
    ):
        targets = {"kind": "store", "path": str(store)}
        with pytest.raises(TargetsError, match=message):
            run(with_changes(recipe, rollout=rollout | changes, targets=targets))


@pytest.mark.slow
def test_joined_stores_keep_their_rollouts(tmp_path: Path) -> None:
    stores = []
    for samples, name in enumerate(("first", "second"), 1):
        capture = {"path": str(tmp_path / name), **HIDDEN}
        run_capture(prepare_capture(on_policy(tmp_path, {"samples_per_prompt": samples}, capture=capture)))
        stores.append(tmp_path / name)
    merge_stores(stores, tmp_path / "both")
    texts = [(path / "rollouts.jsonl").read_text() for path in (*stores, tmp_path / "both")]
    assert set(texts[2].splitlines()) == set(texts[1].splitlines()) > set(texts[0].splitlines())
    assert len(texts[2].splitlines()) == 1 + 2 * 32
    header, rest = texts[0].split("\n", 1)
    other = {key: value for key, value in json.loads(header).items() if key != "checksum"} | {"temperature": 0.5}
    (stores[0] / "rollouts.jsonl").write_text(with_checksum(other) + rest)
    with pytest.raises(TargetsError, match=r"rollouts drawn with different settings.*first.*0\.5"):
        merge_stores(stores, tmp_path / "never")
    for damaged, line in ((texts[0].replace('"ids": [', '"ids": [7, ', 1), 2), ("", 1)):
        (stores[0] / "rollouts.jsonl").write_text(damaged)
        with pytest.raises(CacheError, match=rf"first.rollouts\.jsonl: line {line} is damaged"):
            merge_stores(stores, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_store_is_shared_by_recipes_that_draw_alike(tmp_path: Path) -> None:
    recipe = on_policy(tmp_path, capture={"path": str(tmp_path / "store"), **HIDDEN})
    rollout = recipe.model_dump(mode="json")["rollout"]
    for changes in (
        {"rollout": rollout | {"temperature": 0.5}},
        {"rollout": None, "loss": {"kl_weight": 0.5}},
        {"seed": 3},
        {"student": tiny(seed=5).model_dump(mode="json")},
    ):
        with pytest.raises(SettingsError, match="recipes of one store draw the same rollouts"):
            prepare_capture(recipe, other_recipes=[with_changes(recipe, **changes)])
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_divergence_of_a_cold_start_that_a_store_does_not_define_is_refused_before_models_are_loaded(
    tmp_path: Path,
) -> None:
    sparse = {"path": str(tmp_path / "store"), "codec": {"kind": "top_k", "k": 10}}
    plain = on_policy(tmp_path, {"cold_start": {"steps": 1}}, capture=sparse)
    run_capture(prepare_capture(plain))
    cold = {"steps": 1, "divergence": {"kind": "alpha_beta"}}
    other = with_changes(plain, rollout={**plain.model_dump(mode="json")["rollout"], "cold_start": cold})
    message = r", rollout\.cold_start: loss\.divergence is alpha_beta, which is not defined with the tail"
    with pytest.raises(TargetsError, match="capture.codec top_k 10" + message):
        prepare_capture(other)
    with pytest.raises(TargetsError, match="store" + message):
        run(with_changes(other, targets={"kind": "store", "path": str(tmp_path / "store")}))
    assert not (tmp_path / "run").exists()
