"""An entry of a sparse store: a token id and its log-probability, in 4 bytes or in 8.

A packed entry is one unsigned 32-bit integer, `id << 14 | code`, with `code = round(16383 sqrt(-log p / 128))`: steps
are finest near `log p = 0`, where the mass is (1.4e-4 nats at -0.01, 1e-3 at -0.5, 4.4e-3 at -10). Below -128 nats a
log-probability is kept as -128, less than the smallest float32.
"""

import numpy as np

from leadspan.errors import TargetsError
from leadspan.teacher.settings import Precision

# 18 bits of id reach 262,144 tokens; with 14 bits of code an entry fills an unsigned 32-bit integer.
PACKED_ID_BITS = 18
_CODE_BITS, _RANGE = 14, 128.0
_TOP_CODE = (1 << _CODE_BITS) - 1


def pack_entries(ids: np.ndarray, log_probs: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    """Entries in the chosen precision.

    Raises:
        TargetsError: An id has more than 18 bits.
    """
    if precision == "float32":
        return {"token_ids": ids.astype(np.uint32), "log_probs": log_probs.astype(np.float32)}
    if len(ids) and int(ids.max()) >> PACKED_ID_BITS:
        raise TargetsError(
            f"token id {int(ids.max())} does not fit the {PACKED_ID_BITS} bits of a packed entry; "
            "set capture.codec.precision: float32"
        )
    # The square root spends codes where the mass is: near log p = 0.
    code = np.rint(np.sqrt(np.minimum(-log_probs, _RANGE) / _RANGE) * _TOP_CODE).astype(np.uint32)
    return {"entries": ids.astype(np.uint32) << np.uint32(_CODE_BITS) | code}


def unpack_entries(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of packed entries; inverse of `pack_entries` up to the rounding of the code."""
    return (entries >> np.uint32(_CODE_BITS)).astype(np.int64), _LOG_PROBS[entries & np.uint32(_TOP_CODE)]


# All 16,384 values that a code can stand for, so that decoding is one look-up.
_LOG_PROBS = -((np.arange(_TOP_CODE + 1) / _TOP_CODE) ** 2 * _RANGE).astype(np.float32)


def at_positions(values: np.ndarray, positions: np.ndarray, num_positions: int, sizes: np.ndarray | None) -> np.ndarray:
    """Values of some positions; a view of the array where the positions are consecutive.

    Args:
        values: Values of all positions, the same number for each, or `sizes` of each.
        positions: Ascending.
        num_positions: All positions.
        sizes: Entries of each position, where they differ.
    """
    if len(positions) == 0:
        return values[:0]
    start, end = int(positions[0]), int(positions[-1]) + 1
    is_run = end - start == len(positions)
    if sizes is not None:
        ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        if is_run:
            return values[ends[start] : ends[end]]
        return np.concatenate([values[ends[t] : ends[t + 1]] for t in positions])
    # Columns of fixed width (hidden states, top-k entries) store no sizes.
    width = len(values) // num_positions
    if is_run:
        return values[start * width : end * width]
    return values.reshape(num_positions, width)[positions].reshape(-1)
