import pytest
import torch

from leadspan.errors import ModelError
from leadspan.models.forward import final_hidden_states
from leadspan.models.loading import load_model
from toys import tiny


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="grouped queries"),
        pytest.param({"num_key_value_heads": 4}, id="one key head per query head"),
        pytest.param(
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
            id="sliding window in one layer",
        ),
    ],
)
def test_a_packed_row_equals_its_examples_through_eager_attention(more: dict[str, object]) -> None:
    settings = tiny(seed=3, **more)
    packed = load_model(settings, torch.float64)
    plain = load_model(settings, torch.float64, for_training=False)
    plain.set_attn_implementation("eager")
    lengths = [9, 1, 14, 6]
    rows = [torch.randint(5, 80, (1, n), generator=torch.Generator().manual_seed(n)) for n in lengths]
    expected = torch.cat([plain.get_decoder()(input_ids=row).last_hidden_state[0] for row in rows])
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    found = final_hidden_states(packed, torch.cat(rows, 1), positions, (0, 9, 10, 24, 30), torch.arange(30))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)  # eager rounds its softmax to float32


def test_a_padded_batch_is_refused() -> None:
    model = load_model(tiny(), torch.float32)
    with pytest.raises(ModelError, match="takes packed rows with example borders only"):
        model(input_ids=torch.ones(2, 5, dtype=torch.long), attention_mask=torch.ones(2, 5, dtype=torch.long))
