import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unicodedata import normalize

import pytest

from leadspan.answers.boxes import is_thinking_closed, last_boxed
from leadspan.answers.grading import GradeItem, MathGrader, Verdict, exact_grade
from leadspan.errors import DataError, EvaluationError
from leadspan.evaluation.tasks import choice_grade

logger = logging.getLogger(__name__)

EXPLODING = r"\boxed{10^{10^{10}}}"


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader(num_workers=1) as pool:
        yield pool


def boxed(answer: str, gold: str) -> GradeItem:
    return GradeItem(f"<think>hm</think>So it is $\\boxed{{{answer}}}$.", gold, finished=True)


def worker_ids(pool: MathGrader) -> list[int]:
    return [worker._process.pid for worker in pool._workers if worker._process is not None]


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        pytest.param("12", "12", id="integer"),
        pytest.param("12^{\\text{th}}", "12", id="ordinal exponent"),
        pytest.param("12^{\\mathrm{th}}\\text{ grade}", "12", id="ordinal with noun"),
        pytest.param("12th", "12", id="plain ordinal"),
        pytest.param("9 boys", "9", id="bare unit"),
        pytest.param("18 dollars.", "18", id="bare unit with a full stop"),
        pytest.param("\\frac{600}{7}\\mathrm{~km}/\\mathrm{h}", "\\frac{600}{7}", id="unit"),
        pytest.param("\\$1{,}080", "1,080", id="currency and thousands"),
        pytest.param("17.5\\%", "17.5", id="percent sign left out of the gold"),
        pytest.param("0.175", "17.5\\%", id="percent as a fraction"),
        pytest.param("1.04 \\times 10^{-3}", "1.04e-3", id="scientific notation"),
        pytest.param("0.5", "\\frac12", id="decimal of a fraction"),
        pytest.param("x = 5", "5", id="assignment"),
        pytest.param("2, 1", "\\{1,2\\}", id="set in another order"),
        pytest.param("x < 3", "(-\\infty, 3)", id="inequality for an interval"),
        pytest.param("(1, 2)", "$(1,2)$", id="tuple, gold in dollars"),
        pytest.param("5", "\\boxed{5}", id="gold in a box"),
        pytest.param("1+x^2", "x^2+1", id="expression"),
        pytest.param("\\frac{1}{2004!}", "1/2004!", id="factorial"),
        pytest.param("10^{10^{10}}", "10^{10^{10}}", id="too large to compute, same text"),
        pytest.param("B", "\\text{(B)}", id="choice"),
        pytest.param("\\text{evelyn}", "Evelyn", id="word"),
        pytest.param("6:00\\text{ PM}", "6:00 \\text{ PM}", id="no maths, same text"),
        pytest.param("4210_5", "4210_{5}", id="numeral with a base"),
        pytest.param("5 million", "5{,}000{,}000", id="number word"),
        pytest.param("5\\text{ km}", "5\\text{ kilometers}", id="unit spelled out"),
        pytest.param("5 km", "5", id="unit on one side"),
        pytest.param("5 million km", "5000000 kilometers", id="unit spelled out behind a number word"),
        pytest.param("-.5", "-\\frac12", id="leading point"),
    ],
)
def test_right_answers(grader: MathGrader, answer: str, gold: str) -> None:
    assert grader.grade([boxed(answer, gold)]) == [Verdict("right", "right", answer)]


@pytest.mark.parametrize(
    ("answer", "gold", "outcome"),
    [
        pytest.param("13", "12", "wrong", id="integer"),
        pytest.param("seat", "east", "wrong", id="anagram"),
        pytest.param("\\text{(C)}", "\\text{(B)}", "wrong", id="choice"),
        pytest.param("(2,1)", "(1,2)", "wrong", id="pair in another order"),
        pytest.param("[0,1]", "[0,1)", "wrong", id="closed for half-open"),
        pytest.param("11_8", "11_7", "wrong", id="other base"),
        pytest.param("6:00\\text{ AM}", "6:00\\text{ PM}", "wrong", id="no maths, other text"),
        pytest.param("0.33", "\\frac13", "wrong", id="rounded"),
        pytest.param(".5", "5", "wrong", id="leading point"),
        pytest.param("5", ".5", "wrong", id="leading point of the gold"),
        pytest.param("5 million", "5", "wrong", id="number word"),
        pytest.param("5", "5 million", "wrong", id="number word of the gold"),
        pytest.param("3 sqrt", "3", "unparsed", id="operator"),
        pytest.param("1/2003!", "1/2004!", "wrong", id="tiny numbers"),
        pytest.param("\\frac1{20!}", "\\frac1{21!}", "wrong", id="small numbers"),
        pytest.param("5\\text{ km}", "5\\text{ cm}", "wrong", id="other unit"),
        pytest.param("3 hours", "3 minutes", "wrong", id="other unit, bare"),
        pytest.param("5 million km", "5 million cm", "wrong", id="other unit behind a number word"),
        pytest.param("\\text{two}", "3", "wrong", id="another number as a word"),
        pytest.param("???", "2", "unparsed", id="punctuation"),
        pytest.param("1" * 5000, "2", "unparsed", id="more digits than Python reads"),
    ],
)
def test_answers_that_are_not_right(grader: MathGrader, answer: str, gold: str, outcome: str) -> None:
    assert grader.grade([boxed(answer, gold)])[0].strict == outcome


@pytest.mark.parametrize(
    ("text", "finished", "strict", "flexible", "extracted"),
    [
        pytest.param("<think>\\boxed{5}</think>Done.", True, "no_answer", "no_answer", None, id="box in thinking"),
        pytest.param("<think>\\boxed{5}</think>\\boxed{6}", True, "wrong", "wrong", "6", id="answer differs"),
        pytest.param("\\boxed{6} or rather \\boxed{5}", True, "right", "right", "5", id="last of two boxes"),
        pytest.param("hm</think>\\boxed{5}", True, "right", "right", "5", id="prompt opened thinking"),
        pytest.param("<think>a</think>Wait. <think>\\boxed{5}", True, "no_answer", "right", None, id="reopened"),
        pytest.param("<think>so \\boxed{5}", False, "no_answer", "right", None, id="never closed"),
        pytest.param("<think>a</think>\\boxed{5} and", False, "no_answer", "right", None, id="cut off"),
        pytest.param("<think>a</think>It is 5.", True, "no_answer", "right", None, id="no box"),
        pytest.param("<think>a</think>\\boxed{ }", True, "no_answer", "no_answer", None, id="empty box"),
        pytest.param("", True, "no_answer", "no_answer", None, id="nothing"),
    ],
)
def test_which_text_is_graded(
    grader: MathGrader, text: str, finished: bool, strict: str, flexible: str, extracted: str | None
) -> None:
    (verdict,) = grader.grade([GradeItem(text, "5", finished)])
    assert (verdict.strict, verdict.flexible, verdict.extracted) == (strict, flexible, extracted)


def test_strict_right_is_flexible_right(grader: MathGrader) -> None:
    text = "\\boxed{20}\n\n**Final Answer** The time constant is \\(0.2\\) and the steady state is \\(20\\)."
    assert grader.grade([GradeItem(text, "20", True)])[0].flexible == "right"


@pytest.mark.slow
def test_order_is_kept_across_workers_and_repeats() -> None:
    items = [boxed(str(n % 20), "3") for n in range(60)]
    with MathGrader(num_workers=2) as pool:
        pool.grade(items[:5])
        assert len(worker_ids(pool)) == 1  # a second one would import longer than these take
        verdicts = pool.grade(items)
        assert len(worker_ids(pool)) == 2
    assert [v.extracted for v in verdicts] == [str(n % 20) for n in range(60)]
    assert [v.strict == "right" for v in verdicts] == [n % 20 == 3 for n in range(60)]


@pytest.mark.slow
def test_overdue_worker_is_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with MathGrader(num_workers=1, item_seconds=0.5) as pool:
        assert pool.grade([boxed("5", "5")])[0].strict == "right"
        (first,) = worker_ids(pool)
        (verdict,) = pool.grade([GradeItem(EXPLODING, "5", True)])
        assert (verdict.strict, verdict.flexible) == ("timeout", "timeout")
        assert not is_alive(first)
        assert pool.grade([boxed("6", "6")])[0].strict == "right"
    assert "count as timeout" in caplog.text


@pytest.mark.slow
def test_time_that_a_worker_does_not_run_is_not_charged() -> None:
    with MathGrader(num_workers=1, item_seconds=0.5) as pool:
        pool.grade([boxed("5", "5")])
        (worker,) = worker_ids(pool)
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (worker, signal.SIGCONT)).start()
        assert pool.grade([boxed("6", "\\frac{12}{2}")])[0].strict == "right"
        assert worker_ids(pool) == [worker]


@pytest.mark.slow
def test_question_of_a_dead_worker_counts_as_timeout() -> None:
    with MathGrader(num_workers=1) as pool:
        pool.grade([boxed("5", "5")])
        os.kill(worker_ids(pool)[0], signal.SIGKILL)
        assert pool.grade([GradeItem("\\boxed{7}", "7", True)])[0].strict == "timeout"
        assert pool.grade([boxed("6", "6")])[0].strict == "right"


def test_runs_off_the_main_thread(grader: MathGrader) -> None:
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.extend(grader.grade([boxed("5", "5")])))
    thread.start()
    thread.join()
    assert verdicts == [Verdict("right", "right", "5")]


def test_no_worker_outlives_the_pool() -> None:
    ids: list[int] = []
    with pytest.raises(KeyError), MathGrader(num_workers=2) as pool:
        pool.grade([boxed(str(n), "1") for n in range(20)])
        ids += worker_ids(pool)
        raise KeyError
    assert len(ids) == 2 and not any(map(is_alive, ids))


@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    # the script has no `if __name__ == "__main__"`: workers do not import the caller's main module
    script = tmp_path / "parent.py"
    script.write_text(
        "import threading, time\n"
        "from leadspan.answers.grading import GradeItem, MathGrader\n"
        "pool = MathGrader(num_workers=2, item_seconds=1.0).__enter__()\n"
        "pool.grade([GradeItem(f'\\\\boxed{{{n}}}', '1', True) for n in range(20)])\n"
        f"hang = [GradeItem({EXPLODING!r}, '5', True)]\n"
        "threading.Thread(target=pool.grade, args=(hang,)).start()\n"
        "time.sleep(0.3)\n"
        "print(*[w._process.pid for w in pool._workers if w._process], flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    ids = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.communicate()
    assert len(ids) == 2
    assert wait_until(lambda: not any(map(is_alive, ids)), seconds=20)


def test_workers_load_no_torch() -> None:
    check = "import sys, math_verify, leadspan.answers.grading; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=environment)
    assert printed.stdout.strip() == "False"


def test_memory_limit_is_set(grader: MathGrader) -> None:
    grader.grade([boxed("5", "5")])
    limits = Path(f"/proc/{worker_ids(grader)[0]}/limits").read_text()
    assert f"Max address space         {2 << 30}" in limits


def test_worker_that_cannot_start_is_an_error() -> None:
    message = r"no worker was ready .* 16777216 bytes of memory; .*math_verify"
    with (
        MathGrader(num_workers=1, memory_bytes=16 << 20) as pool,
        pytest.raises(EvaluationError, match=message),
    ):
        pool.grade([boxed("5", "5")])


@pytest.mark.parametrize("gold", ["", "  ", "$$", "\\boxed{}"], ids=["empty", "blank", "dollars", "empty box"])
def test_empty_gold_is_refused_before_anything_runs(gold: str) -> None:
    with MathGrader(num_workers=1) as pool:
        with pytest.raises(DataError, match="item 1: gold is"):
            pool.grade([boxed("5", "5"), boxed("5", gold)])
        assert worker_ids(pool) == []
    with pytest.raises(DataError, match="exact_grade: gold is"):
        exact_grade(boxed("5", gold))


def test_closed_pool_is_refused() -> None:
    with pytest.raises(EvaluationError, match="call it within `with MathGrader"):
        MathGrader(num_workers=1).grade([boxed("5", "5")])


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        pytest.param("<think>a</think>\n 7 \n", True, Verdict("right", "right", "7"), id="number"),
        pytest.param("<think>a</think>\\boxed{7}", True, Verdict("right", "right", "7"), id="box"),
        pytest.param("7", True, Verdict("right", "right", "7"), id="no tags"),
        pytest.param("<think>a</think>07", True, Verdict("wrong", "wrong", "07"), id="other spelling"),
        pytest.param("<think>a</think>7", False, Verdict("no_answer", "right", None), id="unfinished"),
        pytest.param("<think>7", False, Verdict("no_answer", "no_answer", None), id="never closed"),
        pytest.param("<think>7</think>", True, Verdict("no_answer", "no_answer", None), id="no answer"),
    ],
)
def test_exact_grade(text: str, finished: bool, expected: Verdict) -> None:
    assert exact_grade(GradeItem(text, "7", finished)) == expected


def test_accented_letters_are_the_same_however_they_are_written(grader: MathGrader) -> None:
    written = [normalize(form, "S\u00e3o Paulo") for form in ("NFC", "NFD")]
    items = [boxed(*texts) for texts in itertools.permutations(written)]
    assert [verdict.strict for verdict in (*grader.grade(items), *map(exact_grade, items))] == 4 * ["right"]
    chosen = GradeItem(f"\\boxed{{{written[0]}}}", "B", True, ("Rio", written[1]))
    assert choice_grade(chosen).strict == "right"


def test_exact_grade_folds_white_space() -> None:
    assert exact_grade(GradeItem("a \n  b", "a b ", True)).strict == "right"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        pytest.param("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", id="braces"),
        pytest.param("\\boxed{1} \\boxed{2}", "2", id="last"),
        pytest.param("\\boxed{1} \\boxed{2", "1", id="last that closes"),
        pytest.param("\\boxed {3}", "3", id="space"),
        pytest.param("\\boxed{\\left\\{1, 2\\right.}", "\\left\\{1, 2\\right.", id="escaped brace"),
        pytest.param("\\boxed{\\boxed{4}}", "4", id="nested"),
        pytest.param("} { \\boxed{5}", "5", id="stray braces"),
        pytest.param("boxed{6}", None, id="none"),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_last_boxed_is_linear() -> None:
    """What is quadratic would not return within hours."""
    assert last_boxed("\\boxed{" * 300_000) is None


def recorded_item(record: dict[str, str | bool | None]) -> GradeItem:
    answer, gold, cot = str(record["answer"]), str(record["gold"]), str(record["cot_tail"])
    if record["finished"] is None:
        return GradeItem(answer, gold, finished=True)
    return GradeItem(
        f"<think>{cot}</think>{answer}" if record["finished"] else f"<think>{cot}",
        gold,
        finished=bool(record["finished"]),
    )


@pytest.mark.shared
@pytest.mark.slow
def test_agreement_with_recorded_verdicts(shared: Path) -> None:
    lines = (shared / "grading/recorded_verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    with MathGrader(num_workers=2) as pool:
        verdicts = pool.grade([recorded_item(record) for record in records])
    pairs = [(verdict, record["recorded_correct"]) for verdict, record in zip(verdicts, records, strict=True)]
    committed = [(v.strict == "right") == right for v, right in pairs if v.extracted is not None]
    strict = [(v.strict == "right") == right for v, right in pairs]
    flexible = [(v.flexible == "right") == right for v, right in pairs]
    for name, agrees in (("strict, boxed", committed), ("strict, all", strict), ("flexible, all", flexible)):
        logger.info("%s: %d of %d (%.2f %%)", name, sum(agrees), len(agrees), 100 * sum(agrees) / len(agrees))
    assert len(records) == 1500
    assert sum(committed) / len(committed) >= 0.97
    assert sum(flexible) / len(flexible) >= 0.96
    assert sum(strict) / len(strict) >= 0.95
    assert not any(outcome == "timeout" for v in verdicts for outcome in (v.strict, v.flexible))


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("no thinking", "", True),
        ("<think>a</think>b", "", True),
        ("<think>a", "", False),
        ("<think>a</think>Wait. <think>b", "", False),
        ("<think>a</think><think>b</think>c", "", True),
        ("opened by the prompt</think>b", "question\n<think>\n", True),
        ("opened by the prompt", "question\n<think>\n", False),
    ],
)
def test_thinking_is_closed_where_the_last_that_was_opened_is(text: str, prompt: str, expected: bool) -> None:
    assert is_thinking_closed(text, prompt, "<think>", "</think>") is expected
