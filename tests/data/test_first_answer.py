import json
from pathlib import Path

import pytest

from leadspan.data.first_answer import first_statement


@pytest.mark.parametrize(
    ("cot", "gold", "through"),
    [
        pytest.param("There are 12 eggs. 12 - 3 = 9. So 9.", "9", "There are 12 eggs. 12 - 3 = 9", id="after equals"),
        pytest.param("2 * 9 = 18. So it is 9.", "9", "2 * 9 = 18. So it is 9", id="a mention is no statement"),
        pytest.param("x = 9 + 2 = 11, so 9 = x - 2 is 9", "9", "x = 9 + 2 = 11, so 9 = x - 2 is 9", id="a term"),
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
        pytest.param("it is 7", None, None, id="no reference"),
        pytest.param("it is 7", " ", None, id="empty reference"),
    ],
)
def test_statements(cot: str, gold: str | None, through: str | None) -> None:
    assert first_statement(cot, gold) == (None if through is None else len(through))


@pytest.mark.shared
def test_real_traces_state_their_answer_near_the_middle(shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "traces" / "deepseek_r1.jsonl").open()]
    normal = [row for row in rows if row["gold"] and row["task"].endswith("normal")]
    ends = [first_statement(row["cot"], row["gold"]) for row in normal]
    found = sorted(end / len(row["cot"]) for end, row in zip(ends, normal, strict=True) if end is not None)
    assert len(found) > 0.9 * len(normal) > 100
    assert 0.3 < found[len(found) // 2] < 0.6
