"""Known benchmarks: location, columns, prompt, grader and usual number of samples of each.

A row holds settings of a task (`TaskSettings`) under the benchmark's name; a new benchmark is a row. A local file in
the same layout replaces the Hub name by `path`, and `split` and `subset` with it. Where no column is named, the usual
names are tried.

Sources: the data set cards of the Hub names below. Samples: 64 for the AIME sets as in arXiv 2512.21002, fewer the
larger the set.
"""

from typing import Any

GENERATED = "reasoning-gym:"
"""Begins the path of a task whose problems reasoning-gym makes."""
NUM_GENERATED = 100
"""How many it makes where no `limit` says so."""
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER = "Please reason step by step, and put the letter of the right choice within \\boxed{}."

_AIME: dict[str, Any] = {"instruction": BOXED, "samples_per_problem": 64}
_CHOICE: dict[str, Any] = {"instruction": LETTER, "grader": "choice"}
_LABELLED: dict[str, Any] = {**_CHOICE, "answer": "answerKey", "choices": {"columns": ["choices"]}}

BENCHMARKS: dict[str, dict[str, Any]] = {
    # competition and school mathematics
    "aime24": {**_AIME, "path": "HuggingFaceH4/aime_2024", "split": "train"},
    "aime25": {**_AIME, "path": "math-ai/aime25"},
    "amc23": {"path": "math-ai/amc23", "instruction": BOXED, "samples_per_problem": 32},
    "math500": {"path": "HuggingFaceH4/MATH-500", "instruction": BOXED, "samples_per_problem": 4},
    "gsm8k": {"path": "openai/gsm8k", "subset": "main", "instruction": BOXED},
    "olympiadbench": {
        "path": "Hothan/OlympiadBench",
        "subset": "OE_TO_maths_en_COMP",
        "split": "train",
        "problem": "question",
        "answer": "final_answer",
        "instruction": BOXED,
        "samples_per_problem": 4,
    },
    "minerva": {"path": "math-ai/minervamath", "instruction": BOXED, "samples_per_problem": 4},
    "svamp": {"path": "ChilleD/SVAMP", "problem": "{Body}\n{Question}", "answer": "Answer", "instruction": BOXED},
    # knowledge and science, multiple choice
    "gpqa": {
        **_CHOICE,
        "path": "Idavidrein/gpqa",
        "subset": "gpqa_diamond",
        "split": "train",
        "problem": "Question",
        "answer": "Correct Answer",
        "choices": {
            "columns": ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
            "shuffle": True,
        },
        "samples_per_problem": 8,
    },
    "mmlu": {**_CHOICE, "path": "cais/mmlu", "subset": "all", "choices": {"columns": ["choices"]}},
    "mmlu_pro": {**_CHOICE, "path": "TIGER-Lab/MMLU-Pro", "choices": {"columns": ["options"]}},
    # common sense, multiple choice
    "arc_easy": {**_LABELLED, "path": "allenai/ai2_arc", "subset": "ARC-Easy"},
    "arc_challenge": {**_LABELLED, "path": "allenai/ai2_arc", "subset": "ARC-Challenge"},
    "commonsense_qa": {**_LABELLED, "path": "tau/commonsense_qa", "split": "validation"},
    "openbookqa": {**_LABELLED, "path": "allenai/openbookqa", "subset": "main", "problem": "question_stem"},
    "hellaswag": {
        **_CHOICE,
        "path": "Rowan/hellaswag",
        "split": "validation",
        "problem": "Which choice continues this text best?\n\n{ctx}",
        "answer": "label",
        "choices": {"columns": ["endings"]},
    },
    "piqa": {
        **_CHOICE,
        "path": "baber/piqa",
        "split": "validation",
        "problem": "goal",
        "answer": "label",
        "choices": {"columns": ["sol1", "sol2"]},
    },
    "siqa": {
        **_CHOICE,
        "path": "lighteval/siqa",
        "split": "validation",
        "problem": "{context}\n{question}",
        "answer": "label",
        "choices": {"columns": ["answerA", "answerB", "answerC"], "first": 1},
    },
    "winogrande": {
        **_CHOICE,
        "path": "allenai/winogrande",
        "subset": "winogrande_xl",
        "split": "validation",
        "problem": "Which choice fits the gap (_) in this sentence?\n\n{sentence}",
        "answer": "answer",
        "choices": {"columns": ["option1", "option2"], "first": 1},
    },
    "boolq": {
        **_CHOICE,
        "path": "google/boolq",
        "split": "validation",
        "problem": "{passage}\n\nQuestion: {question}?",
        "answer": "answer",
        "choices": {"texts": ["no", "yes"]},
    },
    # code, without running any: what a function returns
    "cruxeval": {
        "path": "cruxeval-org/cruxeval",
        "problem": "What does `f({input})` return?\n\n```python\n{code}\n```",
        "answer": "output",
        "instruction": "Please reason step by step, and put the returned value as a Python literal within \\boxed{}.",
        "grader": "literal",
    },
}


def task_values(text: str, limit: int | None = None) -> dict[str, Any]:
    """Settings of a task by a known benchmark's name, one with a path of its own, or a file or Hub name.

    >>> task_values("gsm8k=own.jsonl", 10)
    {'benchmark': 'gsm8k', 'path': 'own.jsonl', 'limit': 10}
    """
    name, equals, path = text.partition("=")
    first = {} if limit is None else {"limit": limit}
    if name in BENCHMARKS and not text.startswith(GENERATED):
        return {"benchmark": name, **({"path": path} if equals else {}), **first}
    return {"path": text, **first}
