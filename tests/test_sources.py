"""Paths and Hub names that are not there: one error that names the nearest, before anything large is loaded."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from leadspan import sources
from leadspan.cli import main
from leadspan.errors import SettingsError
from leadspan.sources import Source, check_sources

RECIPE = """
name: mine
output: out
data: {train: {path: traces.jsonl}}
student: {kind: pretrained, path: models/small}
teacher: {kind: pretrained, path: models/large}
training: {steps: 1}
evaluation: {tasks: [{name: sums, path: problems/sums.jsonl}]}
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Has the model `lab/small`, lets no stranger see `lab/gated`, is out of order for `lab/broken`."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").removeprefix("/api/datasets/")
        status, code = {"lab/small": (200, ""), "lab/gated": (403, "GatedRepo"), "lab/broken": (503, "")}.get(
            name, (404, "RepoNotFound")
        )
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(json.dumps({"id": name, "modelId": name, "siblings": []}).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    sources._hub_absence.cache_clear()
    yield
    sources._hub_absence.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a recipe whose sources are all there."""
    for name in ("traces.jsonl", "problems/sums.jsonl", "models/small/config.json", "models/large/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(name: str, kind: str = "model", must_answer: bool = True) -> str:
    try:
        check_sources([Source("key", name, kind)], "recipe.yaml", must_answer)  # type: ignore[arg-type]  # a Literal
    except SettingsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        pytest.param("trace.jsonl", "dataset", "no such file or directory; did you mean 'traces.jsonl'?", id="file"),
        pytest.param("problem/sums.jsonl", "dataset", "did you mean 'problems/sums.jsonl'?", id="folder of a file"),
        pytest.param("./models/smal", "model", "no such file or directory; did you mean 'models/small'?", id="dot"),
        pytest.param("a/b/c", "model", "no such file or directory; correct the path", id="too deep for the Hub"),
        pytest.param("/nowhere/x", "model", "no such file or directory", id="absolute"),
        pytest.param("~nobody-at-all/x", "model", "is not a path", id="no home"),
        pytest.param("a\0b", "model", "no such file or directory", id="NUL"),
        pytest.param("x" * 5000, "model", "is not a path", id="too long"),
        pytest.param("two words", "dataset", "no such file or directory", id="blank"),
        pytest.param("lab--x", "model", "no such file or directory", id="no Hub name"),
        pytest.param("lab/small", "path", "no such file or directory", id="what is local only"),
        pytest.param("models/smal", "model", "not in the Hub's cache.*; did you mean 'models/small'?", id="offline"),
    ],
)
def test_what_is_not_there_is_refused(folder: Path, name: str, kind: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("?", r"\?")):
        check_sources([Source("key", name, kind)], "recipe.yaml")  # type: ignore[arg-type]  # a Literal


def test_a_link_to_nothing_is_not_proposed_in_its_own_place(folder: Path) -> None:
    (folder / "dangling").symlink_to("nowhere")
    with pytest.raises(SettingsError) as caught:
        check_sources([Source("key", "./dangling", "dataset")], "recipe.yaml")
    assert "no such file or directory; correct the path" in str(caught.value)


@pytest.mark.parametrize("name", ["lab/small", "lab/gated", "lab/broken"])
def test_what_the_hub_may_have_is_left_to_the_loaders(folder: Path, hub: None, name: str) -> None:
    assert refusal(name) == ""


def test_what_the_hub_has_not_is_refused(folder: Path, hub: None) -> None:
    assert "the Hub shows no model of this name" in refusal("models/smal", must_answer=False)
    assert "the Hub shows no data set of this name" in refusal("lab/nothing", "dataset")


def test_a_hub_that_is_not_there_is_asked_once_and_forgiven_in_a_dry_run(
    folder: Path, hub: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached" in refusal("lab/small")
    assert refusal("lab/small", must_answer=False) == ""
    assert "not checked: key = 'lab/small'" in caplog.text


def test_what_was_downloaded_is_taken_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources._hub_absence.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))
    (folder / "models--lab--cached").mkdir()
    (folder / "lab___prepared").mkdir()
    assert refusal("lab/cached") == refusal("lab/prepared", "dataset") == ""
    assert "not in the Hub's cache" in refusal("lab/cached", "dataset")
    sources._hub_absence.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["distill", "--dry-run"], ["data.train.path", "student.path", "teacher.path", "evaluation.tasks.0.path"]),
        (["distill"], ["data.train.path", "student.path", "teacher.path", "evaluation.tasks.0.path"]),
        (["plan"], ["data.train.path", "student.path", "teacher.path"]),
        (["doctor"], ["data.train.path", "student.path", "teacher.path"]),
        (["capture"], ["data.train.path", "student.path", "teacher.path"]),
        (["preview"], ["data.train.path", "student.path"]),
        (["audit"], ["data.train.path", "student.path", "evaluation.tasks.0.path"]),
        (["export", "--output", "e"], ["data.train.path", "student.path", "evaluation.tasks.0.path"]),
    ],
)
def test_every_command_names_what_it_lacks_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], keys: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    wrong = ["data.train.path=trace.jsonl", "student.path=./smal", "teacher.path=./larg"]
    wrong += ["evaluation.tasks.0.path=sum.jsonl"]
    command, *options = arguments
    assert main([command, "recipe.yaml", *wrong, *options]) == 2
    faults = capsys.readouterr().err.splitlines()[1:]
    assert [fault.split(" = ")[0].strip() for fault in faults] == keys
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "models/smal", "gsm8k"], "MODEL = 'models/smal': .*; did you mean 'models/small'"),
        (["evaluate", "models/small", "AIME-2024"], "TASK = 'AIME-2024': .*; did you mean 'aime24'"),
        (["evaluate", "models/small", "aime2025"], "did you mean 'aime25'"),
        (["evaluate", "models/small", "mmlu-pro"], "did you mean 'mmlu_pro'"),
        (["evaluate", "models/small", "problems/sum.jsonl"], "did you mean 'problems/sums.jsonl'"),
        (["evaluate", "models/small", "zzz"], "known names: aime24, aime25"),
        (["evaluate", "models/small", "gsm8k=gsm.jsonl"], "no such file or directory"),
    ],
)
def test_models_and_tasks_of_an_evaluation(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([*arguments, "--output", "out"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_mistyped_recipe_loads_no_torch_in_any_command(folder: Path) -> None:
    commands = [["distill"], ["plan"], ["doctor"], ["capture"], ["preview"], ["audit"], ["export", "--output", "e"]]
    calls = [
        [command, "recipe.yaml", wrong, *options]
        for command, *options in commands
        for wrong in ("training.stps=1", "data.train.path=trace.jsonl")
    ]
    calls += [
        ["study", "recipe.yaml"],
        ["world", "recipe.yaml"],
        ["evaluate", "./models/x", "t.jsonl", "--output", "o"],
    ]
    code = (
        "import sys, leadspan.cli as c\n"
        f"codes = [c.main(call) for call in {calls!r}]\n"
        "print(set(codes), [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{2} []\n"
