"""Settings of one model: where its weights come from, and how it attends over packed batches."""

from typing import Annotated, Any, Literal

from pydantic import Field

from leadspan.settings import Settings


class _Model(Settings):
    attention: Literal["packed", "flash_attention_2", "flash_attention_3"] = "packed"
    """Attention in training: `packed` runs everywhere, example by example through PyTorch's SDPA; the others need their
    package and a GPU."""


class Pretrained(_Model):
    """Weights from a local directory or the Hub."""

    kind: Literal["pretrained"] = "pretrained"
    """Tag."""
    path: str
    """Local directory in Hugging Face form, or a Hub name."""
    revision: str | None = None
    """Hub revision."""


class RandomInit(_Model):
    """A model built from a Transformers config with random weights: for tests and for training from scratch."""

    kind: Literal["random_init"] = "random_init"
    """Tag."""
    config: dict[str, Any]
    """Fields of the Transformers config; `model_type` names the architecture."""
    seed: int = 0
    """Seed of the weights."""


ModelSettings = Annotated[Pretrained | RandomInit, Field(discriminator="kind")]
