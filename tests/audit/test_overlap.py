from leadspan.audit.overlap import content_stems, phrases, repeated_content, thirds_of_words
from leadspan.data.questions import words


def test_words_and_ngrams() -> None:
    tokens = words("The CAT, the cat_2; 3.5!")
    assert tokens == ["the", "cat", "the", "cat", "2", "3", "5"]
    assert list(phrases(tokens, 3 * 6)) == ["the cat the cat 2 3", "cat the cat 2 3 5"]
    assert list(phrases(tokens, 3 * 8)) == []


def test_numbers_of_the_prompt_in_the_chain_of_thought() -> None:
    assert repeated_content("He has 1,200 pens, 4 boxes and 7 bags.", "1200 / four = 300")[0] == (3, 2)
    assert repeated_content("How many?", "12")[0] == (0, 0)


def test_words_of_the_prompt_in_the_chain_of_thought() -> None:
    assert content_stems("boxes boxed boxing") == {"box"}
    assert repeated_content("How many boxes did Ann carry to the shed?", "Ann carries a box")[1] == (4, 2)
    assert repeated_content("How many?", "none")[1] == (0, 0)


def test_letters_of_unspaced_scripts_are_words() -> None:
    assert words("Ann有2个苹果\uff0c共\uff18元") == ["ann", "有", "2", "个", "苹", "果", "共", "8", "元"]
    assert words("とか・シ") == ["と", "か", "シ"]  # a middle dot is no letter
    assert words("한국어 문장") == ["한국어", "문장"]  # Korean has spaces


def test_phrases_are_ngrams_of_words_where_there_are_spaces() -> None:
    tokens = words("How many eggs does Ann have if she has 3 or 4 more?")
    for size in range(1, len(tokens) + 2):
        ngrams = [" ".join(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
        assert list(phrases(tokens, 3 * size)) == ngrams


def test_three_letters_of_an_unspaced_script_are_two_words() -> None:
    tokens = words("a一二三b")
    assert sum(thirds_of_words(tokens)) == 12
    assert list(phrases(tokens, 6)) == ["a 一 二", "一 二 三", "二 三 b"]
    assert list(phrases(tokens, 12)) == [" ".join(tokens)] and list(phrases(tokens, 13)) == []


def test_content_of_the_prompt_in_a_chain_of_thought_without_spaces() -> None:
    asked = "长方形面积"
    assert content_stems(asked) == {"长方", "方形", "形面", "面积"}
    assert repeated_content(asked, "求面积, 长方形")[1] == (4, 3)
