"""Settings of the targets: where they come from in training, and how a store of them is captured."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from leadspan.data.truncation import AnyPolicy
from leadspan.settings import Settings

Precision = Literal["packed", "float32"]


class LiveTargets(Settings):
    """The teacher runs beside the student."""

    kind: Literal["live"] = "live"
    """Tag."""


class StoredTargets(Settings):
    """The teacher's outputs are read from a store that `leadspan capture` has written; no teacher is loaded."""

    kind: Literal["store"] = "store"
    """Tag."""
    path: Path
    """Directory of the store."""


TargetSource = Annotated[LiveTargets | StoredTargets, Field(discriminator="kind")]


class TopK(Settings):
    """The `k` likeliest tokens of every position; all others are one bucket, the tail."""

    kind: Literal["top_k"] = "top_k"
    """Tag."""
    k: int = Field(default=50, ge=1)
    """Tokens kept; the whole vocabulary gives the exact divergence."""
    precision: Precision = "packed"
    """`packed`: 4 bytes an entry (18 bits of id, 14 of log-probability). `float32`: 8 bytes an entry, exact."""

    @property
    def label(self) -> str:
        """`top_k k`."""
        return f"top_k {self.k}"


class TopP(Settings):
    """The fewest likeliest tokens whose mass reaches `p` (Holtzman et al., arXiv 1904.09751); others are the tail."""

    kind: Literal["top_p"] = "top_p"
    """Tag."""
    p: float = Field(default=0.98, gt=0, le=1)
    """Mass to reach."""
    max_tokens: int = Field(default=256, ge=1, le=65535)
    """Tokens kept at most; where they do not reach `p`, the rest stays in the tail."""
    precision: Precision = "packed"
    """As of `top_k`."""

    @property
    def label(self) -> str:
        """`top_p p`."""
        return f"top_p {self.p:g}"


class Sampled(Settings):
    """Tokens drawn from the teacher's distribution, with their counts: `E[sum_i count_i / n f(i)] = sum_j p_j f(j)`.

    Source: Anshumann et al., arXiv 2503.16870, section 4 (importance sampling where top-k is biased). Draws are
    systematic: one uniform number places `n` equidistant points on the cumulative distribution, so that a count is
    `n p` rounded down or up, without bias and with less variance than independent draws.
    """

    kind: Literal["sampled"] = "sampled"
    """Tag."""
    num_samples: int = Field(default=50, ge=1, le=255)
    """Draws per position; the support is the distinct ones."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the draws, which depend on it and on the sequence only."""
    precision: Precision = "packed"
    """As of `top_k`; one byte more an entry for the count."""

    @property
    def label(self) -> str:
        """`sampled n`."""
        return f"sampled {self.num_samples}"


class Hidden(Settings):
    """Final hidden states, and once the teacher's head: the full distribution, without the teacher's body."""

    kind: Literal["hidden"] = "hidden"
    """Tag."""
    dtype: Literal["teacher", "float32", "bfloat16"] = "teacher"
    """Type of the hidden states; `teacher`: the one the teacher computes in."""

    @property
    def label(self) -> str:
        """`hidden`."""
        return "hidden" if self.dtype == "teacher" else f"hidden {self.dtype}"


SparseCodec = TopK | TopP | Sampled
Codec = Annotated[TopK | TopP | Sampled | Hidden, Field(discriminator="kind")]


class CaptureSettings(Settings):
    """What `leadspan capture` writes, and how."""

    path: Path | None = None
    """Directory of the store; that of `targets` when absent."""
    codec: Codec = TopK()
    """What is kept of a position's distribution; `leadspan capture --dry-run` prints the size and loss of each."""
    cuts: list[AnyPolicy] = []
    """Cuts the store is to serve, the recipe's own when empty. Of each trace the longest is captured: a causal
    teacher's outputs on a prefix are the prefix of its outputs. Cuts that change the context are captured besides."""
    temperatures: list[Annotated[float, Field(gt=0)]] = [1.0]
    """Temperatures whose normalisers are kept (4 bytes a position each); sparse codecs serve these only."""
    vocabulary: Literal["head", "tokenizer"] = "head"
    """Tokens the distribution is over: all rows of the teacher's head, or those the tokenizer has, for students whose
    head is padded otherwise."""
    tokens_per_batch: int = Field(default=8192, ge=2)
    """Token budget of a pack; longer sequences are packs of their own."""
    positions_per_shard: int = Field(default=2**18, ge=1)
    """Positions after which a shard is closed; what a kill loses at most, per rank."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Positions projected to the vocabulary at a time; chosen for the device when absent."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the teacher. `vllm` (its extra) stores `top_k` at temperature 1 only, without entropy."""

    @model_validator(mode="after")
    def _engine_can(self) -> "CaptureSettings":
        if 1.0 not in self.temperatures:
            raise ValueError(f"temperatures {self.temperatures}: 1.0 is missing, and log-probabilities are kept at it")
        if self.engine == "transformers":
            return self
        if self.codec.kind != "top_k" or self.temperatures != [1.0] or self.vocabulary != "head":
            raise ValueError(
                "engine vllm returns the likeliest tokens at temperature 1 over the whole head only: "
                "set codec.kind: top_k, temperatures: [1.0], vocabulary: head, or engine: transformers"
            )
        return self
