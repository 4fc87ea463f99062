import json
from pathlib import Path

from leadspan.audit.contamination import TaskIndex, index_tasks, shared_with, summarise
from leadspan.evaluation.config import TaskSettings

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


def test_no_tasks_find_nothing() -> None:
    tasks = index_tasks([], 13)
    assert shared_with(LONG, tasks) == {} and summarise(tasks, [{}], ["p"]) == []
