"""Draws from the distributions of many positions, by their cumulative masses."""

import torch
import torch.nn.functional as F  # the field's name
from jaxtyping import Float, Int

BLOCK = 64
"""Tokens of a block that is looked at as a whole first: a vocabulary of 150,000 is a short list of blocks, and a block
a short list of tokens."""


def in_blocks(values: Float[torch.Tensor, "N V"], filling: float) -> Float[torch.Tensor, "N B BLOCK"]:
    """Rows as blocks of tokens, the last one filled up."""
    missing = -values.shape[1] % BLOCK
    padded = F.pad(values, (0, missing), value=filling) if missing else values  # padding by nothing copies all
    return padded.view(len(values), -1, BLOCK)


def tokens_at(masses: Float[torch.Tensor, "N V"], shares: Float[torch.Tensor, "N n"]) -> Int[torch.Tensor, "N n"]:
    """The tokens under some shares of each cumulative distribution: a uniform share is a draw.

    The cumulative sums are in float64, first over blocks of tokens, then within the blocks that a share falls into. A
    token of mass 0 is under none; of masses that are not finite some token is returned.

    Args:
        masses: Masses of the tokens, up to a factor for each position.
        shares: In [0, 1), float64.
    """
    blocks = in_blocks(masses, 0.0)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    points = shares * ends[:, -1:]
    block = torch.searchsorted(ends, points, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    within = blocks.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).double().cumsum(-1)
    # Rounding must not push a point past the end of its block.
    rest = torch.minimum((points - before).clamp_(min=0.0), within[:, :, -1] * (1 - 1e-12))
    ids = block * BLOCK + torch.searchsorted(within, rest[:, :, None], right=True)[:, :, 0]
    return ids.clamp_(max=masses.shape[1] - 1)
