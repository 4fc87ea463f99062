"""Settings of training."""

import importlib.util
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from leadspan.errors import SettingsError
from leadspan.faults import Rule
from leadspan.settings import Settings


class ByExamples(Settings):
    """A fixed number of examples per optimiser step, split into micro-batches of a fixed number."""

    kind: Literal["examples"] = "examples"
    examples_per_step: int = Field(default=8, ge=1)
    """Examples per optimiser step, over all ranks."""
    examples_per_batch: int = Field(default=1, ge=1)
    """Examples packed into one forward pass on one rank; the rest is gradient accumulation."""

    def conflicts(self) -> Iterator[Rule]:
        """A step is a whole number of batches."""
        step, batch = self.examples_per_step, self.examples_per_batch
        if step % batch:
            text = f"examples_per_step {step} is not a multiple of examples_per_batch {batch}"
            yield ("examples_per_step", "examples_per_batch"), text

    @property
    def batches_per_step(self) -> int:
        """Micro-batches per optimiser step, over all ranks."""
        return self.examples_per_step // self.examples_per_batch


class ByTokens(Settings):
    """Best-fit packs up to a token budget; a fixed number of packs per optimiser step."""

    kind: Literal["tokens"] = "tokens"
    tokens_per_batch: int = Field(default=8192, ge=1)
    """Token budget of one forward pass on one rank."""
    batches_per_step: int = Field(default=1, ge=1)
    """Packs per optimiser step, over all ranks."""


Batching = Annotated[ByExamples | ByTokens, Field(discriminator="kind")]


Decay = Annotated[float, Field(ge=0, lt=1)]


class Lora(Settings):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) through PEFT; merged into the student at the end."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32, gt=0)
    """Scale; the update is `alpha / r * B A`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter; `all-linear` is every linear layer but the head."""


class Profile(Settings):
    """Steps that PyTorch's profiler records, in `profile/` of the run directory."""

    skip: int = Field(default=5, ge=0)
    """Steps before the first one recorded: they compile and allocate."""
    steps: int = Field(default=3, ge=1)
    """Steps recorded; a trace has some megabytes for each."""


class TrainingSettings(Settings):
    """Optimiser, schedule, batches, validation and checkpoints. Defaults are the paper's (arXiv 2512.21002, setup)."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training examples; give exactly one of `epochs` and `steps`."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps."""
    batching: Batching = ByExamples()
    """What shares a step and a forward pass."""
    learning_rate: float = Field(default=4e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "one_cycle", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up; `one_cycle`: Smith & Topin (arXiv 1708.07120), fixed momentum."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's moment decays."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm clipping; 0 switches it off."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast over float32 weights on a CUDA device that supports it, and on a CPU with AMX-BF16 or
    AVX512-BF16 for models of 100 million parameters or more; else float32. `run.json` records which was used."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""
    lora: Lora | None = None
    """Train adapters instead of all weights."""
    num_validations: int = Field(default=1, ge=1)
    """Validations on full sequences, evenly spaced, the last one at the end; each also writes a checkpoint. At most one
    a step."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints to resume from; a tenth of the run when absent. The last and the best are kept."""
    keep_checkpoints: bool = True
    """Keep the last two when the run is finished; each is three times the size of the student or more. With them a
    damaged student is written again without training."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the student: lowest validation loss, or the last."""
    num_workers: int = Field(default=0, ge=0)
    """Processes on each rank that assemble batches while it trains; with 0 the training process does it."""
    log_every: int = Field(default=10, ge=1)
    """Steps between log lines."""
    report_to: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = ["tensorboard"]
    """Trackers that get the run's name, recipe, log lines, costs and evaluation (docs/trackers.md)."""

    profile: Profile | None = None
    """Profile a few steps: a trace for `chrome://tracing` or Perfetto, and a table of the ten costliest operations.
    `{}` takes the defaults."""

    def conflicts(self) -> Iterator[Rule]:
        """Training has one length, and the profiled steps lie within it."""
        if (self.epochs is None) == (self.steps is None):
            yield ("epochs", "steps"), "give exactly one of epochs and steps, and set the other to null"
        if self.profile is not None and self.steps is not None and self.profile.skip >= self.steps:
            text = f"profile.skip {self.profile.skip} leaves none of the {self.steps} steps to record; lower it"
            yield ("profile", "steps"), text


def tracker_faults(settings: TrainingSettings) -> list[str]:
    """A line on trackers that are not installed, where there are some."""
    missing = [tracker for tracker in settings.report_to if importlib.util.find_spec(tracker) is None]
    names = ", ".join(missing)
    remedy = f"pip install {' '.join(missing)}, or leave it out"
    return [f"training.report_to: {names}: not installed; {remedy}"] if missing else []


def check_trackers(settings: TrainingSettings) -> None:
    """Refuse trackers that are not installed.

    Raises:
        SettingsError: Names them.
    """
    if faults := tracker_faults(settings):
        raise SettingsError(faults[0])
