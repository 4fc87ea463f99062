from pathlib import Path

import torch

from leadspan.models.loading import end_ids_of, load_end_ids, load_model, save_student
from leadspan.models.settings import Pretrained
from toys import TEMPLATE, character_tokenizer, tiny


def test_ends_of_a_model_with_and_without_its_weights(tmp_path: Path) -> None:
    for settings, expected in ((tiny(), []), (tiny(eos_token_id=3), [3]), (tiny(eos_token_id=[4, 2]), [2, 4])):
        model = load_model(settings, torch.float32)
        assert load_end_ids(settings) == end_ids_of(model.generation_config) == expected
    tokenizer = character_tokenizer()
    save_student(model, tokenizer, TEMPLATE, 1, tmp_path / "with")
    assert load_end_ids(Pretrained(path=str(tmp_path / "with"))) == [0, 1, 2, 4]  # the tokenizer's is 0
    (tmp_path / "with" / "generation_config.json").unlink()
    assert load_end_ids(Pretrained(path=str(tmp_path / "with"))) == [2, 4]
