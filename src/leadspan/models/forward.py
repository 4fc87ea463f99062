"""The body of a causal language model over a packed row: final hidden states at chosen positions, no logits."""

import itertools

import torch
from jaxtyping import Float, Int
from transformers import PreTrainedModel


def final_hidden_states(
    model: PreTrainedModel,
    input_ids: Int[torch.Tensor, "1 n"],
    position_ids: Int[torch.Tensor, "1 n"],
    borders: tuple[int, ...],
    positions: Int[torch.Tensor, "m"],  # a dimension name
) -> Float[torch.Tensor, "m d"]:
    """Run everything below the head and keep the hidden states that predict a weighted token.

    Args:
        model: A causal language model loaded for training.
        input_ids: Packed token ids.
        position_ids: Positions, restarting with every example.
        borders: Example borders in the row, from 0 to n.
        positions: Positions to keep.
    """
    longest = max(end - start for start, end in itertools.pairwise(borders))
    cumulative = torch.tensor(borders, dtype=torch.int32).to(input_ids.device, non_blocking=True)
    output = model.get_decoder()(
        input_ids=input_ids,
        position_ids=position_ids,
        use_cache=False,
        example_borders=borders,
        cu_seq_lens_q=cumulative,
        cu_seq_lens_k=cumulative,
        max_length_q=longest,
        max_length_k=longest,
    )
    return output.last_hidden_state[0].index_select(0, positions)
