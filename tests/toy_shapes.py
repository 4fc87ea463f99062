from dataclasses import replace

from leadspan.costs.flops import ModelShape
from leadspan.costs.memory import ActivationBytes, MemoryModel

SHAPE = ModelShape(
    linear_params=80,
    attention_dims=(8, 8),
    windows=(None, None),
    hidden_size=4,
    vocab_size=10,
    num_params=120,
    is_tied=True,
    layer_params=40,
)
TEACHER = replace(SHAPE, num_params=1000, vocab_size=12)
MODEL = MemoryModel(
    student=SHAPE,
    teacher=None,
    student_activations=ActivationBytes(retained=100, peak=130),
    teacher_activations=None,
    use_bf16=False,
    chunk_tokens=6,
)
