"""Audits of files made up here: several layouts, and right answers of every kind, absurd ones among them."""

import json
from pathlib import Path
from typing import Any

import pytest

from leadspan.answers.boxes import bare_gold
from leadspan.answers.first_answer import Gold, find_candidates
from leadspan.audit.audit import run_audit
from leadspan.audit.findings import AuditResult, blocks
from leadspan.audit.settings import AuditSettings
from leadspan.cli import main
from leadspan.settings import validate
from toys import character_tokenizer

FIVES = (
    "There are 5 bags of 5 pens. Step 5. 5 times 5 is 25, and 5 + 5 is 10. Then 25 - 20 = 5. Let me check. "
    "5 + 20 = 25. Yes."
)
ANSWERS = [
    pytest.param("5", FIVES, "= 5. Let", id="five in a text full of fives"),
    pytest.param("(0, 5]", "From 0 to 5, say. So the interval is (0, 5]. Check it.", "(0, 5]", id="interval"),
    pytest.param("{1, 2}", "We try 1 and 2. The set is {1, 2}. Check it.", "{1, 2}", id="set"),
    pytest.param("\\frac{x}{2}", "Half of x. So y = \\frac{x}{2}. Check it.", "\\frac{x}{2}", id="expression"),
    pytest.param("\\text{east}", "North or east? So the answer is east. Check it.", "east", id="text"),
    pytest.param("7" * 150, f"So it is {'7' * 150}. Check it.", "7" * 150, id="huge"),
    pytest.param("5 \\text{ cm}", "So it is 5 cm. Check it.", "5 cm", id="unit"),
]
ABSURD = ["", " ", "{", "\\boxed{}", "((((", "\\frac{1}{0}", "9" * 5000, "x=", ",", "None", "[]", "\\"]


def audit(folder: Path, rows: list[dict[str, Any]]) -> AuditResult:
    character_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"data": {"train": {"path": str(folder / "traces.jsonl")}}, "tokenizer": str(folder / "tokenizer")}
    return run_audit(validate(AuditSettings, values, "audit"))


def answered(gold: str | None, cot: str) -> dict[str, Any]:
    return {"prompt": "What comes out?", "cot": cot, "answer": "That is all.", "gold": gold}


@pytest.mark.parametrize(("gold", "cot", "at"), ANSWERS)
def test_the_position_of_every_kind_of_answer(gold: str, cot: str, at: str, tmp_path: Path) -> None:
    found = audit(tmp_path, [answered(gold, cot)]).first_answers
    assert found.outcomes["found"] == 1 and found.position_tokens is not None
    offset = at.index("5") if at.startswith("= 5") else 0
    assert found.position_tokens.mean == 2 + cot.rindex(at) + offset  # a tag and a line break come first


@pytest.mark.parametrize("gold", ABSURD)
def test_absurd_golds_are_an_outcome_and_no_failure(gold: str, tmp_path: Path) -> None:
    found = audit(tmp_path, [answered(gold, FIVES)]).first_answers
    assert sum(found.outcomes.values()) == 1 and found.outcomes["found"] == 0


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            {
                "messages": [
                    {"role": "user", "content": "What comes out?"},
                    {"role": "assistant", "content": "<think>\nSo it is 7. Check it.\n</think>\n\nIt is \\boxed{7}."},
                ]
            },
            id="messages",
        ),
        pytest.param(
            {
                "question": "What comes out?",
                "solution": "7",
                "thinking_trajectories": ["So it is 7. Check it."],
                "attempt": "It is \\boxed{7}.",
            },
            id="s1k",
        ),
        pytest.param({"question": "What comes out?", "answer": "So it is 7. Check it.\n#### 7"}, id="gsm8k"),
    ],
)
def test_layouts_are_recognised(row: dict[str, Any], tmp_path: Path) -> None:
    found = audit(tmp_path, [row])
    assert found.num_traces == 1 and found.first_answers.outcomes["found"] == 1


def test_traces_without_gold_are_told_apart_from_unstated_answers(tmp_path: Path) -> None:
    rows = [answered(None, FIVES), answered("8", FIVES), answered("5", FIVES)]
    found = audit(tmp_path, rows)
    assert found.first_answers.outcomes == {"found": 1, "not found": 1, "no gold": 1}
    shown = " ".join(cell for block in blocks(found) for row in block.rows for cell in row)
    assert "no gold 1" in shown and "not found 1" in shown


def test_the_command_audits_a_file_of_another_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit(tmp_path, [answered("5", FIVES)])  # for the tokenizer
    path = tmp_path / "other.json"
    path.write_text(
        json.dumps([{"prompt": f"{i}?", "llm_response": f"<think>So 7.</think>It is {i}"} for i in range(3)])
    )
    assert main(["audit", str(path), "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "1"]) == 0
    assert "records read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cot", "gold", "through"),
    [
        pytest.param("There are 12 eggs. 12 - 3 = 9. So 9.", "9", "There are 12 eggs. 12 - 3 = 9", id="after equals"),
        pytest.param("2 * 9 = 18. So it is 9.", "9", "2 * 9 = 18. So it is 9", id="a mention is no statement"),
        pytest.param("it is 12th, then it is 12.", "12", "it is 12th, then it is 12", id="12th is not 12"),
        pytest.param("it is 12.5, then it is 12.", "12", "it is 12.5, then it is 12", id="12.5 is not 12"),
        pytest.param("that gives $1,250 a day", "1250", "that gives $1,250", id="grouped digits"),
        pytest.param("that gives 4.0", "4", "that gives 4.0", id="decimal zeros in the text"),
        pytest.param("that gives 4", "4.0", "that gives 4", id="decimal zeros in the reference"),
        pytest.param(r"so \boxed{\frac{13}{15}}", r"\frac{13}{15}", r"so \boxed{\frac{13}{15}", id="boxed fraction"),
        pytest.param("the answer is 13/15.", r"\frac{13}{15}", "the answer is 13/15", id="slash for a fraction"),
        pytest.param("So the answer is East.", r"\text{east}", "So the answer is East", id="text"),
        pytest.param("it is 0.5", "-0.5", None, id="a sign matters"),
        pytest.param("it is 7", "8", None, id="never stated"),
    ],
)
def test_where_a_statement_ends(cot: str, gold: str, through: str | None) -> None:
    found = find_candidates(cot, "", Gold(bare_gold(gold), "record")).candidates
    assert (found[0].end if found else None) == (None if through is None else len(through))
