import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from leadspan.cli import main
from leadspan.errors import RunError, SettingsError
from leadspan.settings import load_json, validate
from leadspan.worlds.files import WORLD_FILE, WorldFiles, WorldRecord, write_world

WORLD = """
output: {output}
sets:
  stated: {{world: {{kind: multiplication, base: 4}}, num_traces: 12, num_problems: 3}}
  unstated: {{world: {{kind: multiplication, base: 4, answer_in_cot: false}}, num_traces: 5}}
"""


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    values = {"output": tmp_path, "sets": {name: {"world": {"kind": "multiplication"}} for name in ("a", "a_test")}}
    validate(WorldFiles, values, "world")
    values["sets"]["a"]["num_problems"] = 1
    with pytest.raises(
        SettingsError, match=r"a_test\.jsonl is the file of a's held-out problems, and of the set a_test"
    ):
        validate(WorldFiles, values, "world")


def test_a_world_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = tmp_path / "world.yaml", tmp_path / "world"
    file.write_text(WORLD.format(output=output))
    assert main(["world", str(file), "seed=3"]) == 0
    shown = capsys.readouterr().out
    assert "100 % of it" in shown and "never" in shown
    traces, held_out = rows(output / "stated.jsonl"), rows(output / "stated_test.jsonl")
    assert len(traces) == 12 and len(held_out) == 3 and len(rows(output / "unstated.jsonl")) == 5
    assert not (output / "unstated_test.jsonl").exists()
    assert not {row["prompt"] for row in traces} & {row["problem"] for row in held_out}
    assert AutoTokenizer.from_pretrained(output / "tokenizer").eos_token == "<|im_end|>"
    record = load_json(WorldRecord, output / WORLD_FILE)
    assert (record.seed, record.sets["stated"].first_answer, record.sets["unstated"].first_answer) == (3, 1.0, None)
    assert record.sets["stated"].settings.world.kind == "multiplication"


def test_the_same_world_again_is_the_same_and_another_is_refused(tmp_path: Path) -> None:
    wanted = WorldFiles.model_validate(
        {"output": tmp_path, "sets": {"a": {"world": {"kind": "derive_and_verify"}, "num_traces": 9}}}
    )
    assert write_world(wanted) == write_world(wanted)
    before = (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"world\.json: the directory holds a world of other settings; give another"):
        write_world(wanted.model_copy(update={"seed": 1}))
    assert (tmp_path / "a.jsonl").read_bytes() == before
    (tmp_path / WORLD_FILE).unlink()
    write_world(wanted)  # as after a kill
    (tmp_path / WORLD_FILE).unlink()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("mine")
    with pytest.raises(RunError, match=r"tokenizer\.json: exists already, with other content"):
        write_world(wanted)
    (tmp_path / "a.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"a\.jsonl: exists already, with other content; give another output"):
        write_world(wanted)
    assert (tmp_path / "a.jsonl").read_text() == "mine"


def test_a_world_that_is_interrupted_has_whole_files_and_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {"a": {"world": {"kind": "multiplication", "base": 4}, "num_traces": 9, "num_problems": 2}}
    wanted = WorldFiles.model_validate({"output": tmp_path / "w", "sets": sets})
    renamed = Path.replace
    for number in range(6):  # a file of traces, one of problems, three of the tokenizer, the record
        left = [number]

        def stopped(staged: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return renamed(staged, target)

        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(Path, "replace", stopped)
            write_world(wanted)
        assert not (wanted.output / WORLD_FILE).exists()
        assert len([path for path in wanted.output.rglob("[!.]*") if path.is_file()]) == number
    write_world(wanted)
    assert load_json(WorldRecord, wanted.output / WORLD_FILE).seed == 0 and len(rows(wanted.output / "a.jsonl")) == 9


def test_a_set_that_cannot_be_drawn_leaves_nothing_behind(tmp_path: Path) -> None:
    small = {"kind": "multiplication", "base": 2, "min_digits": 1, "max_digits": 1}
    sets = {"a": {"world": {"kind": "derive_and_verify"}, "num_traces": 50}, "b": {"world": small, "num_traces": 50}}
    wanted = {"output": tmp_path / "w", "sets": sets}
    with pytest.raises(SettingsError, match="50 distinct train problems were asked for and"):
        write_world(validate(WorldFiles, wanted, "world"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("sets.stated.world.modulus=4", "modulus: unknown key", id="a key of another world"),
        pytest.param("sets.stated.world.kind=chess", "chess", id="no such world"),
        pytest.param("sets.Stated={world: {kind: multiplication}}", "sets.Stated", id="a name that is no file name"),
        pytest.param("sets={}", "sets = {}", id="no set"),
    ],
)
def test_faults_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    file = tmp_path / "world.yaml"
    file.write_text(WORLD.format(output=tmp_path / "w"))
    assert main(["world", str(file), override]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "w").exists()
