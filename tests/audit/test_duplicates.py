import pytest

from leadspan.audit.overlap import find_duplicates, signature

TEXT = " ".join(f"word{i} follows word{i - 1} in line {i % 7}" for i in range(60))


def test_exact_and_near_duplicates_are_counted_once_each() -> None:
    texts = [TEXT, TEXT, TEXT.replace("word30", "other"), TEXT[::-1], "", ""]
    ids = ["a", "a", "b", "c", "d", "e"]
    found = find_duplicates(ids, list("qqqrst"), [signature(t) for t in texts], [f"t:{i}" for i in range(6)], 0.8)
    assert (found.num_questions, found.num_exact) == (4, 1)
    assert ("t:1", "t:0") in found.examples and ("t:2", "t:0") in found.examples


def test_texts_with_little_in_common_are_no_duplicates() -> None:
    texts = [" ".join(f"{i}-{j}" for j in range(80)) for i in range(30)]
    found = find_duplicates([str(i) for i in range(30)], ["q"] * 30, [signature(t) for t in texts], ["p"] * 30, 0.5)
    assert (found.num_exact, found.num_near) == (0, 0)


def test_estimated_similarity_follows_the_threshold() -> None:
    half = TEXT.split()
    other = " ".join(half[: len(half) // 2] + [f"new{i}" for i in range(len(half) // 2)])
    signatures = [signature(TEXT), signature(other)]
    counts = [find_duplicates(["a", "b"], ["q", "r"], signatures, ["x", "y"], t).num_near for t in (0.15, 0.9)]
    assert counts == [1, 0]


@pytest.mark.parametrize("threshold", [1, 0.97, 1e-6])
def test_thresholds_at_either_end(threshold: float) -> None:
    texts = [TEXT, TEXT.upper(), " ".join(f"{i}-{i}" for i in range(80))]
    found = find_duplicates(list("abc"), list("qrs"), [signature(t) for t in texts], ["x", "y", "z"], threshold)
    assert (found.num_near, found.examples) == (1, [("y", "x")])


def test_near_duplicates_without_spaces_between_words() -> None:
    thoughts = ["先看第一个数", "再看第二个数", "然后把它们相加", "检查一遍结果", "得到最后的答案"]
    text = (
        "\uff0c".join(f"{thought}{chr(0x4E00 + 7 * i)}{chr(0x6B00 + i)}" for i in range(12) for thought in thoughts)
        + "。"
    )
    near = text.replace("检查", "检验", 1)
    other = "\uff0c".join(f"{chr(0x7000 + i)}{chr(0x5200 + 3 * i)}{chr(0x8000 + i)}" for i in range(150))
    signatures = [signature(part) for part in (text, near, other)]
    found = find_duplicates(["a", "b", "c"], ["q", "r", "s"], signatures, ["t:0", "t:1", "t:2"], 0.8)
    assert (found.num_exact, found.num_near, found.examples) == (0, 1, [("t:1", "t:0")])
