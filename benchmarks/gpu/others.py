"""The parts of `gpu` that other benchmarks measure on a CPU, at a GPU's sizes; and the tests that need a GPU."""

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree  # of a file that pytest has just written
from pathlib import Path

from benchmarks import capture as capturing
from benchmarks import gkd_step, sampling
from benchmarks.gpu.setting import Setting, built, mixed_lengths, qwen3, random_examples
from benchmarks.record import ROOT, Figure, Outcome, RecordError, Spread
from leadspan.teacher.capture_plan import longest_sequences
from leadspan.teacher.targets import freeze

MARK = "@pytest.mark.gpu"
CAPTURE = 0.9


def tests(setting: Setting) -> Outcome:
    """The tests marked `gpu`, by their files; without a GPU they are skipped and counted so."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}", *map(str, files)]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if not report.exists():
            raise RecordError(f"pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None, "pytest writes one"
    counts = {name: int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors")}
    figures = [
        Figure("tests that failed", counts["failures"] + counts["errors"], 0),
        Figure("tests that were skipped", counts["skipped"], setting.target(0)),
        Figure("tests", counts["tests"]),
    ]
    details = {"files": [str(path.relative_to(ROOT)) for path in files], "end of the output": done.stdout[-2000:]}
    method = " ".join((tests.__doc__ or "").split())
    return Outcome(method, {}, {"pytest": Spread.of([seconds])}, figures, setting.gpu, details)


def capture(setting: Setting) -> Outcome:
    """Capturing a random teacher's targets of random traces against its bare forward pass, as the benchmark `capture`.

    The teacher has the layers' width of the training steps' and at most nine of them; traces are as long as theirs,
    and a half, a quarter and an eighth of that.
    """
    sizes = setting.sizes
    width, layers, inner, heads = sizes.teacher
    teacher = qwen3((width, min(layers, 9), inner, heads), sizes.vocabulary, 1)
    lengths = mixed_lengths(4 * sizes.tokens, sizes.tokens)
    sequences = longest_sequences([random_examples(lengths, sizes.vocabulary)])
    model = freeze(built(teacher, setting.dtype, setting.device))
    spreads, figures = capturing.compared(model, sequences, max(2, sizes.rounds // 2), setting.target(CAPTURE))
    described = setting.described() | {"layers": min(layers, 9), "positions": sum(n - 1 for n in sequences.lengths)}
    return Outcome(" ".join((capture.__doc__ or "").split()), described, spreads, figures, setting.gpu)


def generation(setting: Setting) -> Outcome:
    """Sampling in evaluation against plain batched `generate`, as the benchmark `sampling`."""
    model = sampling.random_model(setting.device, *((64, 2) if setting.is_tiny else (2048, 16)))
    return sampling.measured(model, *setting.sizes.requests, 2, setting.gpu)


def trl(setting: Setting) -> Outcome:
    """A step against TRL's GKD trainer, as the benchmark `gkd_step`, with larger models in float32.

    Raises:
        RecordError: TRL is not installed.
    """
    if setting.is_tiny:
        return gkd_step.compared([(512, 2, 1, None, None)])
    return gkd_step.compared([(131_072, 6, 2, None, None)], 1024, 8, 2048, 8)
