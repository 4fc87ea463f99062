"""Settings of one model: where its weights come from, and how it attends over packed batches."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from leadspan.errors import ModelError
from leadspan.settings import Settings


class _Model(Settings):
    attention: Literal["packed", "own", "flash_attention_2", "flash_attention_3"] = "packed"
    """Attention in training: `packed` runs everywhere, example by example through PyTorch's SDPA, and where that is not
    exact as `own`; `own` sends each example through the model's own attention; the others need their package and a
    GPU."""


class Pretrained(_Model):
    """Weights from a local directory or the Hub."""

    kind: Literal["pretrained"] = "pretrained"
    path: str
    """Local directory in Hugging Face form, or a Hub name."""
    revision: str | None = None
    """Hub revision."""
    gguf_file: str | None = None
    """Name of a GGUF file in it, with weights and, where `path` has no other, the tokenizer. A student's weights are
    dequantised on reading; a teacher's stay packed where Transformers has a kernel for that."""
    quantization: Literal["bitsandbytes_4bit", "bitsandbytes_8bit"] | None = None
    """Quantise the linear layers on loading, of a teacher on a CUDA device; needs the package bitsandbytes."""

    @property
    def tokenizer_path(self) -> str:
        """Where its tokenizer is read from: the directory, Hub name, or GGUF file."""
        return self.path if self.gguf_file is None else f"{self.path}/{self.gguf_file}"


def pretrained_at(path: str) -> Pretrained:
    """A model by a directory, Hub name or GGUF file, also where this is the only file of weights in the directory.

    Raises:
        ModelError: The directory has several GGUF files, and no other weights.
    """
    if path.endswith(".gguf"):
        return Pretrained(path=str(Path(path).parent), gguf_file=Path(path).name)
    packed = [] if (Path(path) / "config.json").exists() else sorted(Path(path).glob("*.gguf"))
    if len(packed) > 1:
        names = ", ".join(file.name for file in packed)
        raise ModelError(f"model {path}: it has {len(packed)} GGUF files, {names}; name one, as {packed[0]}")
    return Pretrained(path=path, gguf_file=packed[0].name if packed else None)


class RandomInit(_Model):
    """A model built from a Transformers config with random weights: for tests and for training from scratch."""

    kind: Literal["random_init"] = "random_init"
    config: dict[str, Any]
    """Fields of the Transformers config; `model_type` names the architecture."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the weights."""


ModelSettings = Annotated[Pretrained | RandomInit, Field(discriminator="kind")]
