"""Disk space of a run, from the student's shape."""

from leadspan.costs.flops import ModelShape

NUM_CHECKPOINTS = 3
"""At most: the best one, the last one, and one that is being written."""
_CHECKPOINT, _STUDENT = 12, 4  # bytes a parameter: weights and two moments in float32; the weights alone


def disk_bytes(student: ModelShape) -> int:
    """Bytes of the checkpoints of a run, which hold the trained weights, and of its final student."""
    return NUM_CHECKPOINTS * _CHECKPOINT * student.trained_params + _STUDENT * student.num_params
