"""Predicted peak memory of a step's tensors against the allocator's, on policies, lengths and batch shapes.

Forward and backward pass with the distillation loss, batch by batch, as the peak of PyTorch's allocator (on the CPU by
its profiler, on a GPU by its own counter) above what weights take. The prediction is that of the moments `loss` and
`backward`, without weights, teacher and optimiser. An error is `|predicted / measured - 1|`.
"""

import itertools
import tempfile
from pathlib import Path

import torch
from torch import nn

from benchmarks.memory import MIB, allocated
from benchmarks.plans import model, recipe, write_tokenizer
from benchmarks.record import Figure, Outcome, Spread
from benchmarks.steps import device_and_gpu
from leadspan.costs.memory import BatchSize
from leadspan.data.packing import Batch, on_device, pack
from leadspan.data.truncation import Full, Lead
from leadspan.inputs import prepare_data, training_examples
from leadspan.losses.objective import batch_loss
from leadspan.models.loading import load_model
from leadspan.planning.prediction import cost_model_of
from leadspan.teacher.targets import freeze, live_targets

SIZES = ((1, 1024), (3, 1024), (1, 2048))
"""Examples of a batch, and tokens of the longest trace."""
POLICIES = (Full(), Lead(p=0.5), Lead(p=0.3))
TARGET = 0.15


def run() -> Outcome:
    device, gpu = device_and_gpu()
    errors: dict[str, float] = {}
    sides: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder))
        for (number, longest), checkpointing in itertools.product(SIZES, (False, True)):
            found = recipe(
                Path(folder),
                tokenizer,
                f"{number} x {longest}",
                student=model(128, 4),
                teacher=model(192, 2),
                data={"max_tokens": longest, "min_tokens": longest // 2, "num_train": number},
                training={"steps": 1, "gradient_checkpointing": checkpointing, "precision": "float32"},
            )
            data = prepare_data(found)
            memory = cost_model_of(found, data.renderer).memory
            student = load_model(found.student, torch.float32).to(device).train()
            assert found.teacher is not None, "given above"
            teacher = freeze(load_model(found.teacher, torch.float32).to(device))
            if checkpointing:
                student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            for policy in POLICIES:
                examples = training_examples(found, data.splits, data.renderer, policy)
                batch = on_device(pack(list(examples)), device)
                peak = _peak(student, teacher, batch, found.loss, device)
                moments = memory.by_phase(BatchSize(batch["input_ids"].numel(), len(batch["labels"])))
                fixed = moments["loss"].weights + moments["loss"].optimizer + moments["loss"].teacher
                predicted = max(moments["loss"].total, moments["backward"].total) - fixed
                name = f"{number} x {longest}, {policy.label}" + (", checkpointing" if checkpointing else "")
                errors[name] = predicted / peak - 1
                sides[name] = Spread.of([peak / MIB], "MiB")
    figures = [Figure("largest error", max(map(abs, errors.values())), 0.1 if gpu else TARGET)]
    settings = {"student": "hidden 128 x 4 layers", "teacher": "hidden 192 x 2 layers", "vocabulary": 4096}
    return Outcome(" ".join((__doc__ or "").split()), settings, sides, figures, gpu, {"errors": errors})


def _peak(student: nn.Module, teacher: nn.Module, batch: Batch, loss: object, device: torch.device) -> int:
    def step() -> None:
        batch_loss(student, batch, live_targets(teacher, batch), loss).loss_sum.backward()  # type: ignore[arg-type]

    peak, _ = allocated(step, device)
    student.zero_grad(set_to_none=True)
    return peak
