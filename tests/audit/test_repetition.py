import numpy as np
import pytest

from leadspan.audit.overlap import has_loop, repeated_share


def brute_force(ids: list[int], num_repeats: int, num_tokens: int) -> bool:
    for period in range(1, len(ids) + 1):
        turns = max(num_repeats, -(-num_tokens // period))
        for start in range(len(ids)):
            length = max(period * num_repeats, num_tokens)
            stretch = ids[start : start + length]
            if len(stretch) == length and all(stretch[i] == stretch[i % period] for i in range(length)):
                assert turns >= num_repeats
                return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_loops_as_a_slow_search_finds_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 3, 60)
    if seed % 2:
        ids[20:41] = np.tile(rng.integers(0, 3, 7), 3)
    for num_repeats, num_tokens in ((3, 12), (2, 16), (4, 8)):
        assert has_loop(ids, num_repeats, num_tokens) == brute_force(ids.tolist(), num_repeats, num_tokens)


def test_a_loop_needs_turns_and_tokens() -> None:
    ids = np.array([1, 2, 3] * 4 + [9, 8, 7])
    assert has_loop(ids, 4, 12)
    assert not has_loop(ids, 5, 12)
    assert not has_loop(ids, 4, 13)
    assert not has_loop(np.arange(5), 2, 2)
    assert not has_loop(np.array([], dtype=np.int32), 2, 2)


def test_repeated_sentences() -> None:
    text = "Let me check that once more. No. No. Let me check  THAT once more! It is one plus one, so two."
    assert repeated_share(text) == pytest.approx(1 / 3)
    assert repeated_share("") == 0


def test_repeated_sentences_without_spaces() -> None:
    said = "我们再检查一遍结果"
    assert repeated_share(f"{said}。三加四等于七所以答案是七\uff01{said}\uff1f好。好。") == pytest.approx(1 / 3)
