import json
from pathlib import Path

import pytest

from leadspan.cli import main
from recipes import write_recipe
from stores import capture_recipe


def test_capture_inspect_verify_and_merge_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(capture_recipe(tmp_path, codec={"kind": "top_k", "k": 5}), tmp_path / "r.yaml")
    store, merged = str(tmp_path / "store"), str(tmp_path / "merged")
    figures = tmp_path / "estimate.json"
    assert main(["capture", str(path), "--dry-run", "--sample", "200", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["codecs"][0]["codec"]["k"] == 5
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("top_k 5", "hidden", "sampled 50", "KL lost", "positions", "tokens/s"))
    assert not (tmp_path / "store").exists()
    assert main(["capture", str(path)]) == 0
    assert "top_k 5, 40 sequences" in capsys.readouterr().out
    assert main(["store", "inspect", store]) == 0
    assert "random qwen3 (seed 2)" in capsys.readouterr().out
    assert main(["store", "verify", store]) == 0
    assert "40 rows in" in capsys.readouterr().out
    assert main(["store", "merge", store, store, "--output", merged]) == 0
    assert "40 sequences" in capsys.readouterr().out
    shard = next((tmp_path / "store" / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(bytes(content))
    assert main(["store", "verify", store]) == 2
    error = capsys.readouterr().err
    assert shard.name in error and "moves damaged shards aside" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["store", "inspect", "none"], "none/manifest.json: not found"),
        (["store", "merge", "none"], "--output goes with merge"),
        (["capture", "{recipe}", "capture.codec={kind: top_k, k: 0}"], "capture.codec.k = 0"),
        (["capture", "{recipe}", "teacher=null", "loss.kl_weight=0"], "teacher: missing"),
        (["capture", "{recipe}", "--dry-run", "--sample", "1"], "give at least 2 positions"),
        (["distill", "{recipe}", "targets={kind: store, path: none}"], "targets.path = 'none': no such file"),
        (
            ["distill", "{recipe}", "targets={kind: store, path: none}", "loss.kl_weight=0"],
            "the store of targets is not",
        ),
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = write_recipe(capture_recipe(tmp_path), tmp_path / "r.yaml")
    assert main([a.replace("{recipe}", str(path)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
