from leadspan.audit.overlap import content_stems, ngrams, shared_numbers, shared_words, words


def test_words_and_ngrams() -> None:
    tokens = words("The CAT, the cat_2; 3.5!")
    assert tokens == ["the", "cat", "the", "cat", "2", "3", "5"]
    assert list(ngrams(tokens, 6)) == ["the cat the cat 2 3", "cat the cat 2 3 5"]
    assert list(ngrams(tokens, 8)) == []


def test_numbers_of_the_prompt_in_the_chain_of_thought() -> None:
    assert shared_numbers("He has 1,200 pens, 4 boxes and 7 bags.", "1200 / four = 300") == (3, 2)
    assert shared_numbers("How many?", "12") == (0, 0)


def test_words_of_the_prompt_in_the_chain_of_thought() -> None:
    assert content_stems("boxes boxed boxing") == {"box"}
    assert shared_words("How many boxes did Ann carry to the shed?", "Ann carries a box") == (4, 2)
    assert shared_words("How many?", "none") == (0, 0)
