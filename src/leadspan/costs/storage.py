"""Size of a store of the teacher's targets, in bytes, before any is captured."""

from leadspan.costs.flops import ModelShape

TOP_K = 64
"""Tokens a position in the size that a plan shows."""
_ID, _LOG_PROB, _SCALAR = 4, 2, 4


def top_k_bytes(num_positions: int, k: int, num_temperatures: int = 1) -> int:
    """Rows of the `k` most likely tokens: ids in 32 bits (a vocabulary of 151,936 needs 18), log-probabilities in 16.

    To each row come the mass outside, the entropy, the log-probability of the trace's own token, and the normaliser at
    each temperature, 32 bits each.
    """
    return num_positions * (k * (_ID + _LOG_PROB) + (3 + num_temperatures) * _SCALAR)


def hidden_state_bytes(num_positions: int, teacher: ModelShape) -> int:
    """Final hidden states in bfloat16, and the teacher's head once: the full distribution without its body."""
    return 2 * (num_positions * teacher.hidden_size + teacher.head_params)
