import json
from pathlib import Path

import pytest
import torch

from leadspan.cli import main
from leadspan.doctor import doctor, fit_checks
from leadspan.doctor.doctor import examine
from leadspan.doctor.fit_checks import Check, CheckInputs
from leadspan.inputs import prepare_data
from leadspan.losses.objective import batch_loss
from leadspan.models.loading import load_model, save_student
from leadspan.planning.prediction import cost_model_of, predict
from leadspan.tables import quantity
from leadspan.teacher.targets import freeze
from recipes import toy_recipe, write_recipe
from stores import captured, stored
from toys import TEMPLATE, character_tokenizer, tiny


def examined(recipe) -> dict[str, Check]:
    found = examine(recipe, 4)
    assert all(check.figure and (check.remedy or check.verdict in ("ok", "skipped")) for check in found)
    return {check.name: check for check in found}


def test_a_sound_recipe_fails_nothing(tmp_path: Path) -> None:
    recipe, _ = captured(tmp_path)
    found = examined(stored(recipe, tmp_path / "run"))
    assert not [check for check in found.values() if check.verdict == "failed"]
    assert found["KL(teacher, teacher) is 0"].figure.startswith("0 nats")
    assert found["store matches the data"].verdict == "ok"
    assert found["end of turn is supervised"].verdict == "warning"  # a lead cut of 0.7 never stops
    assert len(found) >= 9


def test_a_store_that_does_not_serve_the_cut_fails(tmp_path: Path) -> None:
    recipe, _ = captured(tmp_path)
    changed = stored(recipe, tmp_path / "run").model_copy(
        update={"cut": toy_recipe(tmp_path, cut={"kind": "full"}).cut}
    )
    check = examined(changed)["store matches the data"]
    assert check.verdict == "failed" and "shorter than what is needed" in check.figure


def test_a_student_that_lacks_rows_for_tokens_is_not_run(tmp_path: Path) -> None:
    [check] = examine(toy_recipe(tmp_path, student=tiny(vocab=3).model_dump()), 4)
    assert (check.name, check.verdict) == ("vocabulary padding", "failed") and "student 3, teacher" in check.figure


@pytest.mark.slow
def test_a_teacher_of_another_template_or_vocabulary_is_found(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(TEMPLATE.replace("\n", " "))
    model = load_model(tiny(hidden=48, seed=2), torch.float32)
    save_student(model, tokenizer, str(tokenizer.chat_template), 2, tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher" / "generation_config.json").read_text())
    config["eos_token_id"] = [2]
    (tmp_path / "teacher" / "generation_config.json").write_text(json.dumps(config))
    recipe = toy_recipe(tmp_path, teacher={"kind": "pretrained", "path": str(tmp_path / "teacher")})
    found = examined(recipe)
    assert found["teacher: tokenizer"].verdict == "ok"
    assert found["data: assistant turn (template)"].figure == (
        "chain of thought between '<think>' and '</think>', end of turn '<|im_end|>'"
    )
    assert found["teacher: template"].verdict == "warning"
    assert found["teacher: stop token"].verdict == "warning"
    ends = found["end-of-turn tokens"]
    assert (ends.verdict, ends.figure) == ("warning", "data <|im_end|> (0); teacher <|endoftext|> (2)")
    merged = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"stop": "event"})})
    ends = examined(merged)["end-of-turn tokens"]
    assert ends.verdict == "ok" and ends.figure.endswith("(2); the divergence treats them as one outcome")
    file = tmp_path / "teacher" / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(values))
    assert examined(recipe)["teacher: tokenizer"].verdict == "failed"


def test_memory_is_that_of_the_largest_step_as_planned(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    figure = examined(recipe)["memory is enough"].figure
    data = prepare_data(recipe)
    planned = predict(cost_model_of(recipe, data.renderer), data.examples).memory
    assert figure.startswith(f"{quantity('peak_memory_bytes', planned.total)} for the largest step")
    assert planned.activations + planned.logits > planned.weights  # what a count of parameters leaves out


def test_a_student_whose_losses_are_no_numbers_passes_no_check_of_them(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    data = prepare_data(recipe)
    student, teacher = (freeze(load_model(model, torch.float32)) for model in (tiny(seed=1), tiny(hidden=48, seed=2)))
    torch.nn.init.constant_(student.get_input_embeddings().weight, torch.nan)
    excerpts = [data.examples[i] for i in range(3)]
    inputs = CheckInputs(recipe, data, student, teacher, excerpts, excerpts, torch.device("cpu"))
    alike, below = doctor.teacher_losses(inputs)
    assert (alike.verdict, below.verdict) == ("ok", "warning") and "nan nats per token" in below.figure


def test_the_ends_of_a_supervised_prompt_do_not_teach_to_stop(tmp_path: Path) -> None:
    def ends(**changes: object) -> Check:
        recipe = toy_recipe(tmp_path, supervision={"prompt": 1}, **changes)
        inputs = CheckInputs(recipe, prepare_data(recipe), None, None, [], [], torch.device("cpu"))  # pyright: ignore[reportArgumentType]  # no model is read
        [check] = fit_checks.end_of_turn(inputs)
        return check

    assert (ends().verdict, ends().figure) == ("warning", "0.0 % of 32 training examples")  # each question has one
    assert (ends(cut={"kind": "full"}).verdict, ends(cut={"kind": "full"}).figure[:7]) == ("ok", "100.0 %")
    few = {"kind": "mix", "policy": {"kind": "lead"}, "whole_share": 0.02}  # of 32 examples none or one
    assert ends(cut=few).verdict == "warning"


def test_too_little_disk_or_memory_fails() -> None:
    assert fit_checks._fits("disk", 11, 10, "weights", "more").verdict == "failed"
    assert fit_checks._fits("disk", 95, 100, "weights", "more").verdict == "warning"
    assert fit_checks._fits("disk", 9, 10, "weights", "more") == Check(
        "disk is enough", "ok", "9 B for weights; 10 B free"
    )


def test_the_command_prints_checks_and_fails_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, _ = captured(tmp_path)
    path = write_recipe(stored(recipe, tmp_path / "run"), tmp_path / "r.yaml")
    assert main(["doctor", str(path), "--examples", "3", "--json", str(tmp_path / "checks.json")]) == 0
    checks = json.loads((tmp_path / "checks.json").read_text())
    assert {"end of turn is supervised", "memory is enough"} <= {check["name"] for check in checks}
    shown = capsys.readouterr().out
    assert "memory is enough" in shown and "warning" in shown
    assert main(["doctor", str(path), "cut={kind: full}"]) == 2
    assert "1 of" in capsys.readouterr().err


def test_losses_are_computed_at_every_fourth_position_but_for_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def counted(student, batch, *rest):
        counts.append(len(batch["positions"]))
        return batch_loss(student, batch, *rest)

    monkeypatch.setattr(doctor, "batch_loss", counted)
    recipe = toy_recipe(tmp_path)
    examine(recipe, 4)
    rows = prepare_data(recipe).splits.train
    # whole traces of fewer than EXCERPT_TOKENS tokens; the first token of each has no loss
    sizes = [len(rows[i]["input_ids"]) - 1 for i in range(4)]
    assert max(sizes) < doctor.EXCERPT_TOKENS
    fourths = [-(-size // 4) for size in sizes]
    shortest = sorted(fourths)[:3]
    # the teacher on itself, all excerpts, the labels, a pack and each of its examples alone
    assert counts == [sum(shortest), sum(fourths), min(sizes), sum(shortest), *shortest]


def test_the_tokenizer_of_the_data_is_not_read_again_for_a_model_of_the_same_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = character_tokenizer(TEMPLATE)
    save_student(load_model(tiny(), torch.float32), tokenizer, TEMPLATE, 0, tmp_path / "student")
    recipe = toy_recipe(tmp_path, student={"kind": "pretrained", "path": str(tmp_path / "student")}, tokenizer=None)
    monkeypatch.setattr(fit_checks, "load_tokenizer", lambda *_: pytest.fail("read again"))
    assert examined(recipe)["student: tokenizer"].verdict == "ok"
