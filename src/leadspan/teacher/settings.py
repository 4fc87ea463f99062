"""Settings of the teacher: served teachers, the source of targets in training, and how a store is captured."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from leadspan.data.truncation import AnyPolicy
from leadspan.faults import Rule
from leadspan.models.settings import Pretrained, RandomInit
from leadspan.settings import Settings

Precision = Literal["packed", "float32"]


class LiveTargets(Settings):
    """The teacher runs in the process that trains the student."""

    kind: Literal["live"] = "live"


class StoredTargets(Settings):
    """The teacher's outputs are read from a store that `leadspan capture` has written; no teacher is loaded."""

    kind: Literal["store"] = "store"
    path: Path
    """Directory of the store."""


TargetSource = Annotated[LiveTargets | StoredTargets, Field(discriminator="kind")]


class _Codec(Settings):
    shown_as: ClassVar[str]

    @property
    def label(self) -> str:
        """The kind and what sets the size, such as `top_k 50`, for tables and messages."""
        return self.shown_as.format(self).removesuffix(" teacher")


class TopK(_Codec):
    """The `k` likeliest tokens of every position; all others are one bucket, the tail."""

    shown_as = "top_k {0.k}"
    kind: Literal["top_k"] = "top_k"
    k: int = Field(default=50, ge=1)
    """Tokens kept; the whole vocabulary gives the exact divergence."""
    precision: Precision = "packed"
    """`packed`: 4 bytes an entry (18 bits of id, 14 of log-probability). `float32`: 8 bytes an entry, exact."""


class TopP(_Codec):
    """The fewest likeliest tokens whose mass reaches `p` (Holtzman et al., arXiv 1904.09751); others are the tail."""

    shown_as = "top_p {0.p:g}"
    kind: Literal["top_p"] = "top_p"
    p: float = Field(default=0.98, gt=0, le=1)
    """Mass to reach."""
    # The number of entries is stored in 16 bits.
    max_tokens: int = Field(default=256, ge=1, le=65535)
    """Tokens kept at most; where they do not reach `p`, the rest stays in the tail."""
    precision: Precision = "packed"
    """As of `top_k`."""


class Sampled(_Codec):
    """Tokens drawn from the teacher's distribution, with their counts: `E[sum_i count_i / n f(i)] = sum_j p_j f(j)`.

    Source: Anshumann et al., arXiv 2503.16870, section 4 (importance sampling where top-k is biased). Draws are
    systematic: one uniform number places `n` equidistant points on the cumulative distribution, so that a count is
    `n p` rounded down or up, without bias and with less variance than independent draws.
    """

    shown_as = "sampled {0.num_samples}"
    kind: Literal["sampled"] = "sampled"
    # A count is stored in one byte.
    num_samples: int = Field(default=50, ge=1, le=255)
    """Draws per position; the support is the distinct ones."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the draws, which depend on it and on the sequence only."""
    precision: Precision = "packed"
    """As of `top_k`; one byte more an entry for the count."""


class Hidden(_Codec):
    """Final hidden states, and once the teacher's head: the full distribution, without the teacher's body."""

    shown_as = "hidden {0.dtype}"
    kind: Literal["hidden"] = "hidden"
    dtype: Literal["teacher", "float32", "bfloat16"] = "teacher"
    """Type of the hidden states; `teacher`: the one the teacher computes in."""


SparseCodec = TopK | TopP | Sampled
Codec = Annotated[SparseCodec | Hidden, Field(discriminator="kind")]
Engine = Literal["transformers", "vllm", "server"]


@dataclass(frozen=True, slots=True)
class KeptTargets:
    """What a store keeps of each distribution, which decides the losses and token selections it can serve.

    Attributes:
        codec: How a distribution is kept.
        temperatures: Temperatures whose normalisers, and with `top_k` and `top_p` tail masses, are kept.
        engine: What ran the teacher; vLLM and servers return no entropy.
    """

    codec: Codec
    temperatures: tuple[float, ...]
    engine: Engine

    @property
    def tail_temperatures(self) -> tuple[float, ...]:
        """Temperatures at which the mass outside the support is kept; a drawn support has no use for it."""
        return (1.0,) if self.codec.kind == "sampled" else self.temperatures


class ServedTeacher(Settings):
    """A teacher behind an HTTP server that returns log-probabilities of the prompt's tokens: vLLM or SGLang."""

    kind: Literal["server"] = "server"
    url: str
    """Address of the server, such as `http://host:8000`."""
    model: str = Field(min_length=1)
    """Name under which the server knows the model."""
    api: Literal["vllm", "sglang"] = "vllm"
    """`vllm`: `/v1/completions` with `prompt_logprobs`, as other OpenAI-compatible servers may have it. `sglang`:
    `/generate` with `input_ids`."""
    k: int = Field(default=20, ge=1)
    """Likeliest tokens requested at every position in training (a capture requests `capture.codec.k`); all others are
    one bucket. vLLM returns as many as its `--max-logprobs` allows, 20 unless raised."""
    end_ids: list[Annotated[int, Field(ge=0)]] = []
    """Tokens with which the teacher ends a turn; those of data and student when empty."""
    check_template: bool = True
    """Whether the server's chat template must render prompts as the data's does; compared where it has `/tokenize`."""
    api_key_env: str | None = None
    """Name of an environment variable with the key that the server requires; the key itself is written nowhere."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds without a byte of an answer after which a request has failed."""
    retries: int = Field(default=5, ge=0)
    """How often a request is repeated after a failure that may pass: no connection, no answer in time, a busy or
    broken server. Waits double from half a second up to 30."""
    concurrency: int = Field(default=16, ge=1)
    """Requests under way at once, per rank."""

    @field_validator("url")
    @classmethod
    def _root_of_server(cls, url: str) -> str:
        address = urlsplit(url)
        _ = address.port  # read for its error: a port that is no number, or beyond 65535
        if address.scheme not in ("http", "https") or not address.hostname or address.query or address.fragment:
            raise ValueError("not the address of a server; write http://HOST:PORT or https://HOST")
        # Clients of OpenAI's interface give the address with /v1; paths are added to the root here.
        return url.rstrip("/").removesuffix("/v1")

    def conflicts(self) -> Iterator[Rule]:
        """The settings hold the name of a variable, never a key."""
        # Checked here and not by a pattern of the field, whose error message would print the value.
        if self.api_key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.api_key_env):
            text = "api_key_env is not the name of an environment variable (A-Z, 0-9, _); a recipe never holds the key"
            yield ("api_key_env",), text

    @property
    def kept_targets(self) -> KeptTargets:
        """What it returns of a distribution."""
        return KeptTargets(TopK(k=self.k), (1.0,), "server")

    @property
    def identity(self) -> str:
        """Stands for the hash of its weights: a server reports no more than a name."""
        return f"served as {self.model}"


class ServedTeachers(Settings):
    """Several served teachers of one tokenizer; `data.train.columns.teacher` names the one of every trace."""

    kind: Literal["servers"] = "servers"
    by_name: dict[Annotated[str, Field(min_length=1)], ServedTeacher] = Field(min_length=1)
    """The teachers, by the names in that column."""

    def conflicts(self) -> Iterator[Rule]:
        """All have the same `k`, since their answers go into one batch."""
        if len(numbers := {teacher.k for teacher in self.by_name.values()}) > 1:
            yield ("by_name",), f"the teachers have different k: {sorted(numbers)}; give them all the same"

    @property
    def k(self) -> int:
        """Tokens of a position."""
        return next(iter(self.by_name.values())).k

    @property
    def kept_targets(self) -> KeptTargets:
        """What each returns of a distribution."""
        return next(iter(self.by_name.values())).kept_targets

    @property
    def end_ids(self) -> list[int]:
        """Tokens with which one of them ends a turn."""
        return sorted({token for teacher in self.by_name.values() for token in teacher.end_ids})

    @property
    def identity(self) -> str:
        """Stands for the hash of their weights."""
        return ", ".join(f"{name} {teacher.identity}" for name, teacher in sorted(self.by_name.items()))


Served = ServedTeacher | ServedTeachers

SERVER_ACCESS = frozenset({"url", "check_template", "api_key_env", "timeout", "retries", "concurrency"})
"""Settings of a served teacher that say how it is reached, and do not change its answers."""
NO_ACCESS: dict[str, Any] = {**dict.fromkeys(SERVER_ACCESS, True), "by_name": {"__all__": SERVER_ACCESS}}
"""The same for `model_dump(exclude=...)` of any teacher."""

AnyTeacher = Annotated[Pretrained | RandomInit | Served, Field(discriminator="kind")]


class CaptureSettings(Settings):
    """What `leadspan capture` writes, and how."""

    path: Path | None = None
    """Directory of the store; that of `targets` when absent."""
    codec: Codec = TopK()
    """What is kept of a position's distribution; `leadspan capture --dry-run` prints the size and loss of each."""
    cuts: list[AnyPolicy] = []
    """Cuts that the store must serve; that of the recipe when empty. For each trace the longest one is captured, since
    a causal teacher's outputs on a prefix are the prefix of its outputs; so are cuts that change the context."""
    temperatures: list[Annotated[float, Field(gt=0)]] = [1.0]
    """Temperatures whose normalisers are kept (4 bytes a position each); sparse codecs serve these only."""
    vocabulary: Literal["head", "tokenizer"] = "head"
    """Tokens the distribution is over: all rows of the teacher's head, or those of the tokenizer, for students whose
    head is padded to another size."""
    tokens_per_batch: int = Field(default=8192, ge=2)
    """Token budget of a pack; longer sequences are packs of their own."""
    positions_per_shard: int = Field(default=2**18, ge=1)
    """Positions after which a shard is closed: the most that a kill loses, per rank."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Positions projected to the vocabulary at a time; chosen for the device when absent."""
    engine: Engine = "transformers"
    """What runs the teacher: `server` for a served one. `vllm` (its extra) and `server` store `top_k` at temperature 1
    only, without entropy."""

    def conflicts(self) -> Iterator[Rule]:
        """Log-probabilities are kept at temperature 1, and the engine can return what is kept."""
        if 1.0 not in self.temperatures:
            text = f"temperatures {self.temperatures}: 1.0 is missing, at which log-probabilities are kept"
            yield ("temperatures",), text
        # Columns of a store are named by six digits.
        if len({f"{temperature:g}" for temperature in self.temperatures}) < len(self.temperatures):
            yield ("temperatures",), f"temperatures {self.temperatures}: each may be given only once"
        is_plain = self.codec.kind == "top_k" and self.temperatures == [1.0] and self.vocabulary == "head"
        if self.engine != "transformers" and not is_plain:
            text = (
                f"engine {self.engine} returns the likeliest tokens at temperature 1 over the whole head only: "
                "set codec.kind: top_k, temperatures: [1.0], vocabulary: head, or engine: transformers"
            )
            yield ("engine", "codec", "temperatures", "vocabulary"), text

    @property
    def kept_targets(self) -> KeptTargets:
        """What a store of these settings keeps."""
        return KeptTargets(self.codec, tuple(self.temperatures), self.engine)
