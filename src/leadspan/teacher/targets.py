"""What the student imitates at the weighted positions of a batch. Knows nothing of where it is kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class DenseTargets:
    """The teacher's full distribution, as final hidden states and its head: `z_t = hidden @ head.T`.

    Attributes:
        hidden: Final hidden states at the weighted positions, [m, d_t].
        head: Output projection, [V_t, d_t].
    """

    hidden: Float[torch.Tensor, "m d_t"]
    head: Float[torch.Tensor, "V_t d_t"]
