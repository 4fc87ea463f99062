"""Settings of the loss."""

from pydantic import Field

from leadspan.settings import Settings


class LossSettings(Settings):
    """`(1 - kl_weight) * CE + kl_weight * temperature^2 * KL(teacher || student)` at every weighted position.

    Source: Chen et al., arXiv 2512.21002 (kl_weight 0.5, temperature 1, forward KL); the factor `temperature^2` is
    Hinton et al., arXiv 1503.02531, section 2.
    """

    kl_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the teacher's distribution; the rest goes to the tokens of the trace. 0 needs no teacher."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of both models in the KL part; the cross-entropy is always at temperature 1."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Positions projected to the vocabulary at a time; chosen for the device when absent."""
