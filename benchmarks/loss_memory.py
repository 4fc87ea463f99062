"""What the chunked loss allocates at its peak beyond inputs and gradients, at a vocabulary of 151,936.

Cross-entropy and forward KL, float32, compiled, widths 64, at growing numbers of positions. Every allocation of the
forward pass is counted; the gradients it hands out are taken off, and the rest is set against two chunks of logits,
one of the student and one of the teacher.
"""

import torch

from benchmarks.memory import MIB, allocated
from benchmarks.record import Figure, Outcome, Spread
from leadspan.losses.chunked import chunked_loss, default_chunk
from leadspan.losses.settings import LossSettings
from leadspan.teacher.targets import DenseTargets

VOCABULARY, WIDTH = 151_936, 64
POSITIONS = (256, 1024, 4096)
TARGET = 1.10


def run() -> Outcome:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chunk = default_chunk(device, VOCABULARY)
    two_chunks = 2 * 4 * chunk * VOCABULARY
    peaks = {number: _peak(number, device) for number in POSITIONS}
    figures = [
        Figure(f"{number} positions: peak beyond inputs and gradients / two chunks", peak / two_chunks, TARGET)
        for number, peak in peaks.items()
    ]
    full = 2 * 4 * POSITIONS[-1] * VOCABULARY
    figures.append(Figure(f"{POSITIONS[-1]} positions: peak / full logits of both", peaks[POSITIONS[-1]] / full))
    return Outcome(
        method=" ".join((__doc__ or "").split()),
        settings={"vocabulary": VOCABULARY, "width": WIDTH, "chunk": chunk},
        sides={f"{number} positions": Spread.of([peak / MIB], "MiB") for number, peak in peaks.items()},
        figures=figures,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )


def _peak(number: int, device: torch.device) -> int:
    """Bytes at the peak of the forward pass, without the gradients that it keeps."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher = (torch.randn(number, WIDTH, generator=generator).to(device) for _ in range(2))
    head, teacher_head = (torch.randn(VOCABULARY, WIDTH, generator=generator).to(device) for _ in range(2))
    labels = torch.randint(0, VOCABULARY, (number,), generator=generator).to(device)
    hidden.requires_grad_()
    head.requires_grad_()
    weights = torch.full((number,), 0.5, device=device)

    def loss() -> torch.Tensor:
        targets = DenseTargets(teacher, teacher_head)
        return chunked_loss(hidden, head, targets, labels, weights, weights, LossSettings())[0]

    loss()  # compiles
    peak, _ = allocated(loss, device)
    return peak - 4 * (hidden.numel() + head.numel())
