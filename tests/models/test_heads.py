import numpy as np
import torch

from leadspan.models.heads import tokens_at


def test_the_token_under_a_share() -> None:
    masses = torch.tensor([[1.0, 0.0, 2.0, 1.0, 0.0]])
    shares = torch.tensor([[0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53]], dtype=torch.float64)
    assert tokens_at(masses, shares).tolist() == [[0, 0, 2, 2, 3, 3]]


def test_blocks_agree_with_one_running_sum() -> None:
    """200 tokens are three blocks and a part of one; a quarter of the masses is 0, and whole blocks of a row are."""
    random = np.random.default_rng(0)
    masses = random.random((50, 200)).astype(np.float32) * (random.random((50, 200)) > 0.25)
    masses[7, :128] = 0.0
    shares = random.random((50, 300))
    ends = masses.astype(np.float64).cumsum(1)
    expected = [np.searchsorted(row, share * row[-1], side="right") for row, share in zip(ends, shares, strict=True)]
    assert tokens_at(torch.from_numpy(masses), torch.from_numpy(shares)).tolist() == np.stack(expected).tolist()


def test_masses_that_are_not_finite_give_some_token() -> None:
    masses = torch.tensor([[1.0, torch.nan, 2.0]])
    assert int(tokens_at(masses, torch.tensor([[0.5]], dtype=torch.float64))) in range(3)
