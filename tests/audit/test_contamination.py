import json
from pathlib import Path

from leadspan.audit.overlap import TaskIndex, index_tasks, shared_with, summarise
from leadspan.data.questions import words
from leadspan.evaluation.settings import TaskSettings

LONG = "Ann has twelve red apples and gives four of them to Bob who eats one at once today"
MEDIUM = "What is seven times eight minus two?"


def index(path: Path, ngram_words: int = 13) -> TaskIndex:
    rows = [
        LONG,
        MEDIUM,
        "Solve it.",
        "Something that nobody else has ever asked in any of these prompts before, is it?",
    ]
    path.write_text("".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in rows))
    task = TaskSettings(
        name="toy", path=str(path), instruction="Please reason step by step and put the answer in a box."
    )
    return index_tasks([task], ngram_words)


def test_shared_ngrams_by_question(tmp_path: Path) -> None:
    tasks = index(tmp_path / "task.jsonl")
    prompts = [
        f"Question: {LONG.upper()}!",
        "Ann has twelve red apples and gives four of them to Bob who eats none.",
        "Please reason step by step and put the answer in a box. Solve it.",
        f"{MEDIUM} And what is nine?",
        "What is seven times eight minus three?",
    ]
    shared = [shared_with(prompt, tasks) for prompt in prompts]
    assert shared[0] == {(0, 0): 1.0}
    assert shared[1] == {(0, 0): 2 / 6}  # 18 words have six runs of 13; the first two are there
    assert shared[2] == {} and shared[4] == {}
    assert shared[3] == {(0, 1): 1.0}
    (found,) = summarise(tasks, shared, [f"p:{i}" for i in range(5)])
    assert (found.num_questions, found.num_too_short, found.num_shared, found.num_traces) == (4, 1, 2, 3)
    assert [example.place for example in found.examples] == ["p:0", "p:3"]


def test_equal_shares_are_shown_in_the_order_of_the_task(tmp_path: Path) -> None:
    tasks = index(tmp_path / "task.jsonl")
    (found,) = summarise(tasks, [{(0, 3): 1.0, (0, 0): 1.0, (0, 1): 1.0}], ["p"])
    assert [example.problem_id for example in found.examples] == [tasks.problems[0][i][0] for i in (0, 1, 3)]


def test_no_tasks_find_nothing() -> None:
    tasks = index_tasks([], 13)
    assert shared_with(LONG, tasks) == {} and summarise(tasks, [{}], ["p"]) == []


CHINESE = "一个长方形的长是八厘米\uff0c宽是五厘米\uff0c求这个长方形的面积是多少\uff1f"
CLOSING = "请写出完整的计算过程并给出最终答案。"
JAPANESE = "りんごが三個あります。全部でいくつですか。"
THAI = "แอนมีแอปเปิ้ลสามลูก และซื้ออีกสองลูก"


def test_questions_without_spaces_between_words(tmp_path: Path) -> None:
    questions = [CHINESE + CLOSING, JAPANESE, THAI, "解方程"]
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in questions))
    tasks = index_tasks([TaskSettings(name="toy", path=str(path))], 13)
    for number, question in enumerate(questions[:3]):
        assert shared_with(f"Q: {question} 解方程", tasks) == {(0, number): 1.0}
    # 13 words are 20 characters, so n characters have n - 19 runs
    found = shared_with(CHINESE, tasks)
    assert found == {(0, 0): (len(words(CHINESE)) - 19) / (len(words(CHINESE + CLOSING)) - 19)}
    assert shared_with("两个数的和是七\uff0c求这两个数。" + CLOSING, tasks) == {}
    assert [tasks.sizes[0, number] > 0 for number in range(4)] == [True, True, True, False]
