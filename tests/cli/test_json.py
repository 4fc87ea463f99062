"""Figures that commands print are on standard output as JSON, alone, where that is asked for."""

import json
from pathlib import Path

import pytest

from leadspan.cli import main
from recipes import toy_recipe, write_recipe
from stores import capture_recipe


def test_a_preview_as_json_has_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path), tmp_path / "r.yaml")
    assert main(["preview", str(path), "--records", "1", "--json", "-"]) == 0
    shown = capsys.readouterr()
    figures = json.loads(shown.out)
    assert (figures["counts"]["num_examples"], figures["left_out"]) == (32, {})
    assert "lead 0.7 on 32 training examples" in shown.err


def test_an_inspected_store_as_json_is_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(capture_recipe(tmp_path, codec={"kind": "top_k", "k": 5}), tmp_path / "r.yaml")
    assert main(["capture", str(path)]) == 0
    capsys.readouterr()
    store = str(tmp_path / "store")
    assert main(["store", "inspect", store, "--json", "-"]) == 0
    shown, written = json.loads(capsys.readouterr().out)[store], (tmp_path / "store" / "manifest.json").read_text()
    assert {**shown, "checksum": json.loads(written)["checksum"]} == json.loads(written)
    assert main(["store", "verify", store, "--json", "-"]) == 2
    assert "verify: --json works with inspect only" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_as_json_is_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(toy_recipe(tmp_path, steps=1), tmp_path / "r.yaml")
    assert main(["distill", str(path), "--dry-run", "--json", "-"]) == 2
    assert "a dry run prints the recipe" in capsys.readouterr().err
    assert main(["distill", str(path), "--json", "-"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["train"]["num_steps"] == 1
    assert "training.keep_checkpoints=false keeps none" in shown.err
