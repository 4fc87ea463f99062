import random
from collections import Counter
from collections.abc import Sequence

import pytest
from datasets import Dataset

from leadspan.data.questions import folded_sentences, same_questions

EGGS = "Ann has 12 eggs and buys 7 more. How many eggs does she have?"
ROOT = r"Find the sum of the roots of \(x^2 - \frac{7}{2}x + 1{,}000 = 0\)."
APPLES = "小明有12个苹果\uff0c又买了7个。他一共有多少个苹果\uff1f"
CARS = "A car drives 90 km in 2 hours. What is its speed in km/h?"
TASK = "Solve the problem step by step, and put the answer in \\boxed{}."
EXAMPLES = "Q: Tom has 3 pens and 4 pencils. How many things has he?\nA: 7.\n\nQ: "


def groups_of(texts: Sequence[str], ids: Sequence[int] | None = None) -> list[int]:
    """The row that stands for each text's question; ids ascend unless they are given."""
    names = [f"{i:016x}" for i in ids or range(len(texts))]
    rows = Dataset.from_dict({"question_id": names, "question": [folded_sentences(text) for text in texts]})
    return list(map(int, same_questions(rows)))


def are_same(first: str, second: str, others: Sequence[str] = ()) -> bool:
    groups = groups_of([first, second, *others])
    return groups[0] == groups[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(EGGS, "ann has 12 eggs, and buys 7 more - how many eggs does she have", id="case, punctuation"),
        pytest.param(EGGS, EGGS.replace(" ", "\u00a0").replace(". ", ".\r\n\r\n"), id="white space"),
        pytest.param(EGGS, f"{EGGS}\0{CARS}", id="more turns"),
        pytest.param(EGGS, f"{TASK}\n\n{EGGS}", id="in an instruction"),
        pytest.param(EGGS, f"Question: {EGGS}\nAnswer:", id="between labels"),
        pytest.param(EGGS, f"Please help me with this one, {EGGS} Thanks!", id="in a letter"),
        pytest.param(EGGS, f"{EXAMPLES}{EGGS}\nA:", id="behind an example"),
        pytest.param(ROOT, r"Find the sum of the roots of $x^{2}-\dfrac72 x+1000=0$", id="LaTeX"),
        pytest.param(ROOT, "Find the sum of the roots of x² \u2212 7/2 x + 1,000 = 0", id="LaTeX and Unicode"),
        pytest.param(
            APPLES, APPLES.replace("\uff0c", " ,").replace("12", "\uff11\uff12").replace("。", ".\n"), id="Chinese"
        ),
        pytest.param(APPLES, f"请一步一步地解答下面的问题\uff1a{APPLES}", id="Chinese, in an instruction"),
        pytest.param(f"Context: {EGGS}", f"{TASK} {EGGS}", id="bare in neither, found through a third"),
    ],
)
def test_one_question_in_other_dress(first: str, second: str) -> None:
    assert are_same(first, second, [EGGS, CARS])
    assert are_same(second, first, [CARS, EGGS])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(EGGS, EGGS.replace("12", "13"), id="a number changed"),
        pytest.param(f"{TASK}\n{EGGS}", f"{TASK}\n{EGGS.replace('12', '13')}", id="a number changed in an instruction"),
        pytest.param(APPLES, APPLES.replace("7", "8"), id="a number changed in Chinese"),
        pytest.param(ROOT, ROOT.replace("7", "9"), id="a coefficient changed"),
        pytest.param(EGGS, EGGS.replace("Ann", "Eve"), id="a name changed"),
        pytest.param(EGGS, EGGS.replace(" more", ""), id="a word left out"),
        pytest.param("What is 2 + 2?", f"What is 2 + 2? {EGGS}", id="too short to look for"),
        pytest.param("What is 2.5?", "What is 25?", id="a decimal point"),
    ],
)
def test_other_questions(first: str, second: str) -> None:
    assert not are_same(first, second, [CARS])


def test_instructions_and_examples_that_many_prompts_have_are_no_question() -> None:
    numbered = [EGGS.replace("12", str(n)) for n in range(20, 40)]
    behind_examples = [f"{EXAMPLES}{text}\nA:" for text in numbered]
    instructed = [f"{TASK}\n{text}" for text in numbered]
    asked = ["Tom has 3 pens and 4 pencils. How many things has he?", *behind_examples, *instructed]
    groups = groups_of(asked)
    assert len(set(groups)) == 1 + len(numbered)
    assert all(groups[1 + i] == groups[1 + len(numbered) + i] for i in range(len(numbered)))


def test_a_question_in_the_examples_of_all_prompts_does_not_join_them() -> None:
    example = "Tom has 3 pens and 4 pencils, so how many things has he?"
    asked = [example, *(f"{example} Seven, I see, so what of {n} pens and {n + 1} pencils?" for n in range(30))]
    assert len(set(groups_of(asked))) == len(asked)


def quadratic(texts: Sequence[str], ids: Sequence[int]) -> list[int]:
    """The same groups by comparing every question with every other one, word by word."""
    folded = {i: folded_sentences(text).split("\n") for i, text in zip(ids, texts, strict=True)}
    counts = Counter(sentence for sentences in folded.values() for sentence in set(sentences))
    cores = {}
    for i, sentences in folded.items():
        rest = " ".join(sentence for sentence in sentences if counts[sentence] < 10).split()
        cores[i] = " ".join(rest if len(rest) >= 5 else " ".join(sentences).split()) or f"id {i}"
    groups = {core: {core} for core in cores.values()}
    for core in set(groups):
        holders = [other for other in set(cores.values()) if other != core and f" {core} " in f" {other} "]
        if len(core.split()) < 5 or len(holders) >= 20:
            continue
        for holder in holders:
            joined = groups[core] | groups[holder]
            groups |= dict.fromkeys(joined, joined)
    first_ids = {}
    for i in ids:
        group = [j for j in ids if cores[j] in groups[cores[i]]]
        if len({" ".join(folded[j]) or j for j in group}) > 20:
            group = [j for j in group if folded[j] == folded[i] or " ".join(folded[j]) == " ".join(folded[i]) != ""]
        first_ids[i] = min(group)
    return [ids.index(first_ids[i]) for i in ids]


@pytest.mark.parametrize("seed", range(40))
def test_groups_are_those_of_a_comparison_of_all_pairs(seed: int) -> None:
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(rng.choice([3, 6, 20, 60]))]

    def some(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randrange(most)))

    texts = ["", "2 + 2"]
    for _ in range(rng.randrange(2, 60)):
        kind = rng.random()
        if kind < 0.2:
            texts.append(rng.choice(texts))
        elif kind < 0.6:  # one that holds another one, so that long chains of them occur
            texts.append(f"{some(6)}{rng.choice([' ', '. '])}{rng.choice(texts)}{rng.choice([' ', '. '])}{some(6)}")
        else:
            texts.append(". ".join(some(14) for _ in range(rng.randrange(1, 4))))
    if seed % 4 == 0:
        texts = [f"Solve the problem. {text}" for text in texts]
    ids = rng.sample(range(10**6), len(texts))
    repeated = [rng.randrange(len(texts)) for _ in range(9)]  # several traces of one question
    texts += [texts[i] for i in repeated]
    assert groups_of(texts, ids + [ids[i] for i in repeated])[: len(ids)] == quadratic(texts[: len(ids)], ids)
