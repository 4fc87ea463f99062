"""The whole audit on a handful of traces whose figures are counted by hand."""

import json
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest

from leadspan.audit.audit import run_audit
from leadspan.audit.findings import AuditResult, blocks, load_audit
from leadspan.audit.settings import AuditSettings
from leadspan.cli.options import show
from leadspan.data.truncation import Budget, Lead, PostConclusion, Schedule
from leadspan.errors import DataError, RunError
from leadspan.settings import validate
from toys import character_tokenizer

ADD = {"prompt": "What is 2 + 3?", "cot": "So it is 2 + 3 = 5. Check.", "answer": "It is \\boxed{5}.", "gold": "5"}
WRONG = {"prompt": "What is 4 + 3?", "cot": "So it is 4 + 3 = 8. Check.", "answer": "It is 8.", "gold": "7"}
NO_GOLD = {"prompt": "Who are you?", "cot": "I am a machine.", "answer": "A machine."}
OPEN = {"prompt": "What?", "cot": "Hm", "answer": "-", "finished": False}
LOOP = {"prompt": "What is 1 + 1?", "cot": "It is 2. Yes.\n" + "wait, no. " * 20, "answer": "2", "gold": "2"}


def audit(folder: Path, rows: list[dict[str, object]], workers: int = 1, **changes: object) -> AuditResult:
    character_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"data": {"train": {"path": str(folder / "traces.jsonl")}}, "tokenizer": str(folder / "tokenizer")}
    return run_audit(validate(AuditSettings, {**values, **changes}, "audit"), workers)


def test_figures_of_five_records(tmp_path: Path) -> None:
    found = audit(tmp_path, [ADD, WRONG, NO_GOLD, OPEN, LOOP, ADD], policies=[Lead(p=0.5).model_dump()])
    assert (found.num_read, found.num_traces, found.num_unclosed) == (6, 5, 1)
    assert found.refused == {"chain of thought never closed": 1}
    assert found.stops_training is not None and "1 of 6 records" in found.stops_training
    assert found.first_answers.outcomes == {"found": 3, "not found": 1, "no gold": 1}
    assert found.first_answers.gold_sources == {"record": 4, "none": 1}
    assert (found.duplicates.num_questions, found.duplicates.num_exact) == (4, 1)
    assert found.repetition.num_loops == 1
    assert found.policies[0].counts.num_examples == 5


def test_position_and_break_point_in_tokens(tmp_path: Path) -> None:
    found = audit(tmp_path, [ADD])
    header = len("<|im_start|>user\n") - len("<|im_start|>") + 1 + len(ADD["prompt"]) + 1 + 1 + len("assistant\n") + 1
    before = 1 + 1 + ADD["cot"].index("5")  # the opening tag and a line break are one token each
    total = header + 2 + len(ADD["cot"]) + 2 + 2 + len(ADD["answer"]) + 2
    assert found.tokens["prompt"].mean == header and found.tokens["all"].mean == total
    first = found.first_answers
    assert first.position_tokens is not None and first.position_tokens.mean == before
    assert first.lsp_star is not None and first.lsp_star.value == pytest.approx((header + before) / total)
    lost = {cut.p: cut.without_derivation.value for cut in first.cuts}
    assert lost == {p: float(int(p * total + 1e-9) <= header + before) for p in lost}


def test_a_policy_that_leaves_nothing_is_shown_not_refused(tmp_path: Path) -> None:
    found = audit(tmp_path, [ADD, WRONG], policies=[Budget(num_tokens=3).model_dump()])
    assert found.policies[0].counts.num_kept == 0
    assert any("100 %" in cell for block in blocks(found) for row in block.rows for cell in row)


def test_a_recipes_cut_is_counted_as_it_is_beside_one_of_the_same_label(tmp_path: Path) -> None:
    cut, plain = Lead(p=0.5, stop="append_eos"), Lead(p=0.5)
    found = audit(tmp_path, [ADD, LOOP], cut=cut.model_dump(), policies=[plain.model_dump(), cut.model_dump()])
    lost = [(policy.label, policy.is_own, policy.counts.lost_stop) for policy in found.policies]
    assert lost[0] == ("lead 0.5", True, 0) and lost[-1] == ("lead 0.5", False, 2) and len(lost) == 4
    (table,) = [block for block in blocks(found) if block.title == "Traces that lose, per policy"]
    assert [row[0] for row in table.rows] == ["lead 0.5 *", "mix 0.75 lead 0.5", "lead_answer 0.5", "lead 0.5"]
    assert table.note.splitlines()[1].startswith("lead 0.5: hardly a training example")


def test_every_stage_of_a_schedule_is_counted(tmp_path: Path) -> None:
    cut = Schedule(policy=Lead(), start=0.5, end=1, num_stages=3)
    counts = audit(tmp_path, [ADD, LOOP], cut=cut.model_dump()).policies[0].counts
    assert (counts.num_stages, counts.num_examples) == (3, 6)


def test_a_cut_at_the_first_answer_needs_one_of_the_record_as_in_training(tmp_path: Path) -> None:
    own = {**ADD, "gold": None}
    found = audit(tmp_path, [ADD, own, own], cut=PostConclusion().model_dump())
    assert found.first_answers.outcomes["found"] == 3
    assert found.policies[0].counts.dropped == {"the chain of thought states no known answer": 2}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_reference_answer_may_have_letters_of_several_characters(tmp_path: Path, form: Any) -> None:
    row = {
        "prompt": "Who?",
        "cot": "so the answer is José. check.",
        "answer": "he is it",
        "gold": normalize(form, "José"),
    }
    assert audit(tmp_path, [row]).first_answers.outcomes["found"] == 1


def test_an_answer_of_letters_stands_in_a_thought_as_a_word_alone(tmp_path: Path) -> None:
    def row(answer: str) -> dict[str, object]:
        cot = "A cube is beside it, so option C. It is in east London.\n\nYes, $x + 1$."
        return {"prompt": "Which?", "cot": cot, "answer": f"\\boxed{{{answer}}}"}

    for answer in ("C", "(C)", "\\text{East}", "east london", "x+1", "x"):
        assert audit(tmp_path, [row(answer)]).entailment.answer_stands == 1, answer
    for answer in ("B", "a", "\\text{eas}", "ast London", "d", "x+2"):
        assert audit(tmp_path, [row(answer)]).entailment.answer_stands == 0, answer


def test_a_source_without_a_usable_trace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 records .* nothing is left"):
        audit(tmp_path, [OPEN])


def test_traces_without_gold_have_no_break_point(tmp_path: Path) -> None:
    found = audit(tmp_path, [NO_GOLD])
    assert found.first_answers.lsp_star is None and found.first_answers.cuts == []
    assert found.first_answers.outcomes["no gold"] == 1
    assert any("no break point" in block.note for block in blocks(found))


@pytest.mark.slow
def test_processes_change_no_figure(tmp_path: Path) -> None:
    rows = [ADD | {"prompt": f"What is 2 + 3? ({i})"} for i in range(230)]
    one, two = audit(tmp_path, rows, 1), audit(tmp_path, rows, 2)
    assert one.model_copy(update={"seconds": 0.0}) == two.model_copy(update={"seconds": 0.0})


def test_steps_and_reference_answers_that_are_none_are_counted(tmp_path: Path) -> None:
    golds: list[object] = ["5", ["5", "five"], {"value": 5}, True, None]
    rows = [ADD | {"prompt": f"q{i}", "cot": "a\r\n \r\nb" if i else "a\nb", "gold": g} for i, g in enumerate(golds)]
    found = audit(tmp_path, rows)
    assert found.num_traces == 5 and found.refused == {}
    assert found.gold_faults == {"a list of several": 1, "an object": 1, "true or false": 1, "missing": 1}
    assert found.num_without_steps == 1 and found.steps is not None
    assert (found.steps.mean, found.steps.p50) == (9 / 5, 2)
    said = {row[0]: row[1] for row in blocks(found)[0].rows}
    assert said["steps of a chain of thought"].endswith("a single step in 1 (20.0 %)")
    assert "an object 1 (20.0 %)" in said["no reference answer in its column"]


def test_results_are_kept_as_json(tmp_path: Path) -> None:
    found = audit(tmp_path, [ADD])
    path = tmp_path / "deep" / "audit.json"
    show([], found.model_dump(mode="json"), path)
    assert load_audit(path) == found
    path.write_text("{}")
    with pytest.raises(RunError, match="holds no AuditResult"):
        load_audit(path)
    with pytest.raises(RunError, match="not found"):
        load_audit(tmp_path / "none.json")
