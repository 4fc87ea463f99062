"""What the parts of `gpu` share: the device, sizes by its memory, random models, and examples of random tokens."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks.record import RecordError
from leadspan.data.examples import Examples
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Full, Policy
from leadspan.models.forward import ATTENTION, LAYOUT
from leadspan.models.loading import build_untrained, load_config
from leadspan.models.settings import RandomInit


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts for a card of some memory.

    Attributes:
        min_gb: Smallest memory they are for, 10^9 bytes.
        vocabulary: Rows of both heads.
        rows: Positions of the loss, measured by itself.
        teacher_width: Of the loss, measured by itself.
        student: Width, layers, inner width and heads of the student.
        teacher: The same of the teacher.
        tokens: Of a whole trace in a training step.
        rounds: Timed rounds.
        requests: Samples that are drawn, and new tokens of the longest.
    """

    min_gb: float
    vocabulary: int
    rows: int
    teacher_width: int
    student: tuple[int, int, int, int]
    teacher: tuple[int, int, int, int]
    tokens: int
    rounds: int
    requests: tuple[int, int]

    @property
    def name(self) -> str:
        """`80 GB`, or `tiny`."""
        return f"{self.min_gb:g} GB" if self.min_gb else "tiny"


# Weights, gradients and moments take 16 bytes a weight of the student, so a whole Qwen3-4B fits an H200 alone; smaller
# cards get its layers at full width, fewer of them.
QWEN3_4B, QWEN3_8B = (2560, 36, 9728, 32), (4096, 36, 12288, 32)
SIZES = (
    Sizes(120, 151_936, 8192, 4096, QWEN3_4B, QWEN3_8B, 4096, 8, (64, 320)),
    Sizes(75, 151_936, 8192, 4096, (2560, 18, 9728, 32), QWEN3_8B, 4096, 8, (64, 320)),
    Sizes(38, 151_936, 8192, 4096, (2560, 6, 9728, 32), (4096, 9, 12288, 32), 4096, 8, (64, 320)),
    Sizes(22, 151_936, 2048, 4096, (1024, 12, 3072, 16), (2048, 14, 6144, 16), 4096, 6, (48, 256)),
)
TINY = Sizes(0, 512, 48, 64, (32, 2, 64, 2), (64, 2, 128, 2), 64, 2, (4, 12))
HEAD_DIM = 128


@dataclass(frozen=True)
class Setting:
    """Where a part runs, and how large it is."""

    device: torch.device
    sizes: Sizes
    gpu: str | None

    @classmethod
    def here(cls, is_tiny: bool) -> "Setting":
        """Of this machine's first GPU by its memory; tiny: of the CPU.

        Raises:
            RecordError: There is no GPU, or one too small.
        """
        if is_tiny:
            return cls(torch.device("cpu"), TINY, None)
        if not torch.cuda.is_available():
            raise RecordError("gpu: PyTorch sees no CUDA device here; `gpu --tiny` runs every part on the CPU, tiny")
        properties = torch.cuda.get_device_properties(0)
        return cls(torch.device("cuda", 0), sizes_for(properties.total_memory, properties.name), properties.name)

    @property
    def is_tiny(self) -> bool:
        return self.gpu is None

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return torch.float32 if self.is_tiny else torch.bfloat16

    def target(self, value: float) -> float | None:
        """A target of a GPU: tiny sizes on a CPU have none."""
        return None if self.is_tiny else value

    def finished(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same work, with a wait for the device behind it."""

        def and_wait() -> Any:
            result = run()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return result

        return and_wait

    def described(self) -> dict[str, Any]:
        sizes = self.sizes
        models = {"student": sizes.student, "teacher": sizes.teacher}
        return {
            "sizes": sizes.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "vocabulary": sizes.vocabulary,
            **{role: "width {} x {} layers, inner {}, {} heads".format(*shape) for role, shape in models.items()},
        }


def sizes_for(memory_bytes: int, name: str) -> Sizes:
    """The largest sizes a memory is enough for.

    Raises:
        RecordError: There are none.
    """
    for sizes in SIZES:
        if memory_bytes >= sizes.min_gb * 1e9:
            return sizes
    raise RecordError(f"gpu: {name} has {memory_bytes / 1e9:.0f} GB; the smallest sizes are for {SIZES[-1].min_gb} GB")


def qwen3(shape: tuple[int, int, int, int], vocabulary: int, seed: int) -> RandomInit:
    """A model of the Qwen3 architecture by width, layers, inner width and heads."""
    width, layers, inner, heads = shape
    config = {
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 4),
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": width < QWEN3_8B[0],
    }
    return RandomInit(config=config, seed=seed)


def built(settings: RandomInit, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A random model that takes packed rows, drawn on the device: a CPU would take minutes for billions of weights."""
    torch.manual_seed(settings.seed)
    with torch.device(device):
        model = build_untrained(load_config(settings), "benchmark", dtype=dtype)
    model.set_attn_implementation(ATTENTION)
    setattr(model, LAYOUT, "packed")
    return model


def random_examples(lengths: list[int], vocabulary: int, policy: Policy | None = None) -> Examples:
    """Traces of random tokens: a sixteenth prompt, as much answer, and between them the chain of thought."""
    draw = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {
        "input_ids": [draw.integers(0, vocabulary, n) for n in lengths],
        "prompt_end": [n // 16 for n in lengths],
        "think_end": [n - n // 16 - 1 for n in lengths],
        "cot_end": [n - n // 16 for n in lengths],
        "num_tokens": lengths,
        "stop": [n - 1 for n in lengths],
        "steps": [[n // 2] for n in lengths],
        "example_id": [f"{i:032x}" for i in range(len(lengths))],
        "teacher": [""] * len(lengths),
    }
    return Examples(Dataset.from_dict(rows), policy or Full(), Supervision(), 0, 0, "benchmark")


def mixed_lengths(total: int, longest: int) -> list[int]:
    """Lengths of a pack: `longest`, a half, a quarter, an eighth of it, and again, up to `total` tokens."""
    lengths: list[int] = []
    for part in itertools.cycle((1, 2, 4, 8)):
        if sum(lengths) + longest // part > total:
            return lengths
        lengths.append(longest // part)
    raise AssertionError("a cycle does not end")
