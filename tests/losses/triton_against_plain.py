"""Run in a process of its own: the Triton kernel (interpreted where there is no GPU) against the plain row part.

Prints, as JSON, the largest difference of statistics and gradients of every case.
"""

import json
import os

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if __name__ == "__main__" and device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from leadspan.losses import triton_rows  # noqa: E402  # the kernel is made for the interpreter when it is imported
from leadspan.losses.rows import dense_rows  # noqa: E402
from leadspan.losses.settings import ForwardKl, ReverseKl  # noqa: E402
from leadspan.models.heads import LogitTransform  # noqa: E402


def difference(divergence, temperature: float, transforms, extreme: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 5, 4096 + 907
    z_s, z_t = (3 * torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
    if extreme:
        z_s[0, 7], z_t[0, 7], z_s[1, 2], z_t[1, 5000] = 1e4, 1e4, -1e4, 60.0
        z_s[2, 100:5003], z_t[2, 100:5003] = -torch.inf, -torch.inf
    labels = torch.randint(0, 100, (rows,), generator=generator)
    hard, soft = torch.rand(rows, generator=generator), torch.rand(rows, generator=generator)
    inputs = [v.to(device) for v in (z_s, z_t, labels, hard, soft)]
    plain = [v.double() if v.is_floating_point() else v for v in inputs]
    expected = dense_rows(*transforms, divergence, temperature)(*plain)
    found = triton_rows.triton_dense_rows(*transforms, divergence.kind, temperature)(*inputs)
    scale = plain[0].abs().amax()
    return max(float((found - expected).abs().max()), float(((inputs[0] - plain[0]).abs() / scale).max()))


TRANSFORMS = {
    "plain": (LogitTransform(), LogitTransform()),
    "transformed": (LogitTransform(0.5, 8.0), LogitTransform(2.0, 20.0)),
}
if __name__ == "__main__":
    print(
        json.dumps(
            {
                f"{divergence.kind} {temperature} {name} {'extreme' if extreme else 'usual'}": difference(
                    divergence, temperature, transforms, extreme
                )
                for divergence in (ForwardKl(), ReverseKl())
                for temperature in (0.5, 1.0, 2.0)
                for name, transforms in TRANSFORMS.items()
                for extreme in (False, True)
                if not (extreme and name == "transformed")
            }
        )
    )
