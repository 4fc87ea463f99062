"""Where operations and time of training went, predicted beside measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from leadspan.results import FlopsByPart, MemoryByPart, StepSeconds
from leadspan.settings import Settings
from leadspan.study.report.gathered import NamedRun


class CostSplit(Settings):
    """The costs of one training run by part. Predictions were stored before the run began."""

    label: str
    """Label of the run."""
    policy: str
    """The condition, without the seed."""
    role: str
    """`student`, `base` or `teacher`."""
    device: str
    """Device name and number of ranks."""
    flops: FlopsByPart
    """Operations, counted from what was trained on."""
    predicted_flops: FlopsByPart | None
    """The same before the run."""
    step_seconds: StepSeconds | None
    """Wall time of all steps by part, on the first rank."""
    seconds: float
    """Wall time of the training loop, without fetching data, loading and validation."""
    steady_seconds: float
    """The same with the first step, which compiles and warms up, taken to last as long as the others."""
    predicted_seconds: float | None
    """Steady seconds before the run, absent without a calibration or a stated peak."""
    predicted_from: str | None
    """What the time was predicted from."""
    memory_bytes: int
    """Peak memory."""
    predicted_memory: MemoryByPart | None
    """Memory at the highest moment by part, before the run."""


def cost_splits(named: Sequence[NamedRun]) -> list[CostSplit]:
    """The costs of every run that was trained, in order."""
    return [_split(entry) for entry in named if entry.run.train]


def mean_parts(parts: Sequence[Settings | Mapping[str, float] | None]) -> dict[str, float] | None:
    """Mean of each part over the runs of a policy; None where a run lacks them, as a mean of some would mislead."""
    known = [one.model_dump() if isinstance(one, Settings) else dict(one) for one in parts if one is not None]
    if not known or len(known) < len(parts):
        return None
    names = dict.fromkeys(name for one in known for name in one)
    return {name: fmean(one.get(name, 0.0) for one in known) for name in names}


def _split(entry: NamedRun) -> CostSplit:
    train, prediction = entry.run.train, entry.run.prediction
    assert train is not None, "asked for"
    return CostSplit(
        label=entry.label,
        policy=entry.policy,
        role=entry.run.role,
        device=train.device,
        flops=train.flops,
        predicted_flops=prediction.flops if prediction else None,
        step_seconds=train.step_seconds,
        seconds=train.seconds,
        steady_seconds=train.steady_seconds,
        predicted_seconds=prediction.seconds if prediction else None,
        predicted_from=prediction.seconds_source if prediction else None,
        memory_bytes=train.peak_memory_bytes,
        predicted_memory=prediction.memory if prediction else None,
    )
