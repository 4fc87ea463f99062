"""Capturing a teacher's targets against the bare forward pass of the same teacher on the same packs.

A random model of the Qwen3 architecture (1,024 wide, 8 layers, vocabulary of 151,936) over DeepSeek-R1's traces. Bare:
the packed forward pass and the logits, chunk by chunk, and nothing done with them (for `hidden`: no logits). Capture:
the same with encoding, checksums and hashes, and the shard on disk, whose fixed cost (files made durable) spreads over
fewer positions here than in a shard of a real capture. Ratios are of throughputs, median over rounds.
"""

import hashlib
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from benchmarks.record import Figure, Outcome, Spread
from benchmarks.steps import device_and_gpu
from benchmarks.store_world import qwen3
from benchmarks.timing import alternate, paired_ratio
from benchmarks.traces import prepared, qwen3_renderer, trace_source
from leadspan.data.examples import Examples
from leadspan.data.packing import on_device, pack
from leadspan.data.supervision import Supervision
from leadspan.data.truncation import Budget
from leadspan.models.heads import head_shape, head_weight
from leadspan.models.loading import load_model
from leadspan.models.settings import RandomInit
from leadspan.settings import validate
from leadspan.teacher.capture_plan import Sequences, longest_sequences, plan_capture
from leadspan.teacher.engine import TransformersEngine, default_chunk
from leadspan.teacher.fill import Ranks, claimed, fill_store
from leadspan.teacher.manifest import HEAD_FILE, HeadEntry, Manifest
from leadspan.teacher.settings import CaptureSettings, Hidden, Sampled, TopK
from leadspan.teacher.targets import freeze, live_targets, teacher_logits

VOCAB, HIDDEN, LAYERS = 151_936, 1024, 8
TARGETS = {"cpu": 0.95, "cuda": 0.9}
CODECS = (TopK(), Sampled(), Hidden())
AnyCodec = TopK | Sampled | Hidden


def run() -> Outcome:
    device, gpu = device_and_gpu()
    is_cuda = device.type == "cuda"
    rounds, num_traces, tokens = (8, 64, 8192) if is_cuda else (3, 4, 384)
    settings = validate(RandomInit, qwen3(HIDDEN, LAYERS, VOCAB, 0), "benchmark")
    teacher = freeze(load_model(settings, torch.bfloat16 if is_cuda else torch.float32), device)
    with tempfile.TemporaryDirectory() as folder:
        sequences = _sequences(Path(folder), num_traces, tokens)
        spreads, figures = compared(teacher, sequences, rounds, TARGETS[device.type])
    described = {"hidden_size": HIDDEN, "layers": LAYERS, "vocab_size": VOCAB, "rounds": rounds}
    described["positions"] = sum(n - 1 for n in sequences.lengths)
    return Outcome(" ".join((__doc__ or "").split()), described, spreads, figures, gpu)


def compared(
    teacher: PreTrainedModel, sequences: Sequences, rounds: int, target: float | None
) -> tuple[dict[str, Spread], list[Figure]]:
    """Bare forward passes and captures in turn."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare forward with logits": lambda: _bare(teacher, sequences, True),
            "bare forward of the body": lambda: _bare(teacher, sequences, False),
        }
        sides |= {f"capture {c.label}": (lambda c=c: _capture_anew(teacher, sequences, c, folder)) for c in CODECS}
        seconds = alternate(sides, rounds)
    figures = [
        Figure(
            f"{codec.label}: throughput, capture / bare forward",
            paired_ratio(
                seconds[f"bare forward {'of the body' if isinstance(codec, Hidden) else 'with logits'}"],
                seconds[f"capture {codec.label}"],
            ),
            target,
            "higher",
        )
        for codec in CODECS
    ]
    return {name: Spread.of(values) for name, values in seconds.items()}, figures


def _sequences(folder: Path, num_traces: int, tokens: int) -> Sequences:
    renderer = qwen3_renderer()
    found = prepared(trace_source("deepseek_r1"), renderer, folder / "cache")
    rows = found.rows.select(range(num_traces))
    everything = Supervision(prompt=1, cot=1, answer=1)
    return longest_sequences([Examples(rows, Budget(num_tokens=tokens), everything, 0, 0, "benchmark")])


def _bare(teacher: PreTrainedModel, sequences: Sequences, with_logits: bool) -> None:
    for indices in plan_capture(sequences, CaptureSettings(), 0).packs:
        targets = live_targets(teacher, on_device(pack([sequences[i] for i in indices]), teacher.device))
        if with_logits:
            size = default_chunk(targets.head)
            for start in range(0, len(targets.hidden), size):
                teacher_logits(targets, slice(start, start + size))
    if teacher.device.type == "cuda":
        torch.cuda.synchronize()


def _capture_anew(teacher: PreTrainedModel, sequences: Sequences, codec: AnyCodec, folder: str) -> None:
    # The caller removes all stores at the end, so that no removal is timed.
    fill(teacher, sequences, codec, Path(tempfile.mkdtemp(dir=folder)))


def fill(
    teacher: PreTrainedModel, sequences: Sequences, codec: AnyCodec, directory: Path, keeps_head: bool = False
) -> None:
    """Capture a teacher's targets into an empty directory; only a store with its head can be trained from."""
    settings = CaptureSettings(codec=codec)
    plan = plan_capture(sequences, settings, 0)
    rows, width = head_shape(teacher)
    content, entry = b"", None
    if keeps_head and isinstance(codec, Hidden):
        content = save({"weight": head_weight(teacher).detach().cpu().contiguous()})
        entry = HeadEntry(sha256=hashlib.sha256(content).hexdigest())
    manifest = Manifest(
        teacher="random",
        weights_hash="",
        tokenizer_hash="",
        template_hash="",
        engine="transformers",
        dtype=str(teacher.dtype).removeprefix("torch."),
        codec=codec,
        hidden_dtype=str(teacher.dtype).removeprefix("torch."),
        temperatures=[1.0],
        num_tokens=rows,
        hidden_size=width,
        head=entry,
        plan_hash=plan.content_hash,
        num_sequences=len(sequences),
        num_positions=sum(n - 1 for n in plan.lengths),
    )
    with claimed(directory, manifest) as manifest:
        if entry is not None:
            (directory / HEAD_FILE).write_bytes(content)
        fill_store(directory, manifest, plan, sequences, TransformersEngine(teacher, settings, rows), Ranks())
