"""Malformed input: settings, overrides, studies, traces, tasks, templates, model directories, runs and stores.

Small valid files are made by the tool itself; each case damages one of them, as text or as a value, and gives it to a
command in a forked process. What counts is how the command ends: with success (the damage was none to it) or with exit
code 2 and one message, within five seconds of processor time. Anything else is a traceback or a hang. A case is drawn
from its kind and number, so that a failure is found again; other numbers (`LEADSPAN_HOSTILE_FIRST`) are other cases.
"""

import copy
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import Figure, Outcome
from leadspan.cli import main

CASES_PER_KIND = 100
FIRST = int(os.environ.get("LEADSPAN_HOSTILE_FIRST", "0"))
CPU_SECONDS = 5  # to refuse what is wrong
WORK_SECONDS = 60  # of processor time, to do what was not damaged
WALL_SECONDS = 300  # behind the limits of processor time: a process that sleeps for ever
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
SET = "short"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Values that no setting, column or entry expects; the strings are what escapes, markup, paths and numbers look like.
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 1e308, -0.0, "", " ", "nan", "1e999", "\0", "\x1b[2J", "\ud800", "[/b]", "{{ 7*7 }}",
    "../../etc/passwd", "/dev/zero", "a" * 100_000, [], {}, [[]], {"": None}, {"kind": "none"}, {"kind": 3}, ["x"] * 50,
)  # fmt: skip
KEYS = ("", "kind", "seed", "\x1b[1m", "x" * 300)
BYTES = (b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b]0;x\x07", b"{" * 5000)
LOOPS = (
    "{% for i in range(999999999) %}x{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * 9999999999 }}",
    "{{ messages.__class__.__mro__ }}",
    "{% include 'other' %}",
    "{% for m in messages %}{{ m.content",
    "{{ raise_exception('no') }}",
    "{{ 1 // 0 }}",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
)
WEIGHTS = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "<html>404 Not Found</html>",
    "\0" * 8,
    "\x02" + "\0" * 7 + "{}",
    "\x7f" * 8 + "{}",
    '\x3e\0\0\0\0\0\0\0{"lm_head.weight":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}',
)
"""What stands in the place of a file of weights; a header's length comes first."""
EVALUATE = (
    *("evaluate", "run/student", f"world/{SET}_test.jsonl", "--output", "evaluated"),
    *("--set", "sampling.max_new_tokens=2", "--set", "tasks.0.grader=exact"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input.

    Attributes:
        file: The valid file that is damaged, relative to the directory of the case.
        arguments: The command, run in that directory.
        inserts: Texts that may stand in the file's place, or be put into it.
        line: Whether each line is a JSON document of its own.
    """

    file: str
    arguments: tuple[str, ...]
    inserts: tuple[str, ...] = ()
    line: bool = False


KINDS = {
    "recipe": Kind("recipe.yaml", ("preview", "recipe.yaml")),
    "distill": Kind("recipe.yaml", ("distill", "--dry-run", "recipe.yaml")),
    "study": Kind("study.yaml", ("study", "--dry-run", "study.yaml")),
    "world": Kind("world.yaml", ("world", "world.yaml")),
    "traces": Kind(f"world/{SET}.jsonl", ("preview", "recipe.yaml"), line=True),
    "audit": Kind(f"world/{SET}.jsonl", ("audit", "recipe.yaml", "--json", "audit.json"), line=True),
    "task": Kind(f"world/{SET}_test.jsonl", ("audit", "recipe.yaml", "--task", f"world/{SET}_test.jsonl"), line=True),
    "template": Kind(
        "template.jinja", ("preview", "recipe.yaml", "data.rendering.chat_template=template.jinja"), LOOPS
    ),
    "model": Kind("run/student/config.json", ("plan", "student.yaml")),
    "weights": Kind("run/student/model.safetensors", EVALUATE, WEIGHTS),
    "tokenizer_config": Kind("world/tokenizer/tokenizer_config.json", ("preview", "recipe.yaml")),
    "tokenizer": Kind("world/tokenizer/tokenizer.json", ("preview", "recipe.yaml")),
    "run": Kind("run/run.json", ("report", "run")),
    "metrics": Kind("run/metrics.jsonl", ("report", "run"), line=True),
    "samples": Kind("run/samples/test.jsonl", ("report", "run"), line=True),
    "store": Kind("store/manifest.json", ("store", "verify", "store")),
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended: what is wrong with that, whether it refused its input, and what it wrote."""

    fault: str | None
    is_refused: bool
    text: str


def run() -> Outcome:
    endings: dict[str, list[Ending]] = {}
    with tempfile.TemporaryDirectory() as directory:
        valid = make_valid(Path(directory) / "valid")
        for name in KINDS:
            numbers = range(FIRST, FIRST + CASES_PER_KIND)
            endings[name] = [try_case(valid, name, number) for number in numbers]
            for number, ending in zip(numbers, endings[name], strict=True):
                if ending.fault:
                    print(f"{name} {number}: {ending.fault}\n{ending.text[-1500:]}", file=sys.stderr)
    flat = [ending for kind in endings.values() for ending in kind]
    faults = Counter((ending.fault or "").partition(":")[0] for ending in flat)
    refused = sum(ending.is_refused for ending in flat)
    return Outcome(
        method="each case damages one valid file and is given to one command, in a process of its own",
        settings={"cases": len(flat), "first": FIRST, "kinds": list(KINDS), "processor seconds": CPU_SECONDS},
        sides={},
        figures=[
            Figure("tracebacks", faults["traceback"], target=0),
            Figure("hangs", faults["hang"], target=0),
            Figure("other endings", sum(faults.values()) - faults[""] - faults["traceback"] - faults["hang"], target=0),
            Figure("share refused", refused / len(flat)),
        ],
    )


def make_valid(directory: Path) -> Path:
    """The valid files: a world, a recipe, a study, a run and a store."""
    directory.mkdir(parents=True)
    world = {
        "output": "world",
        "sets": {
            SET: {"world": {"kind": "multiplication", "base": 6, "max_digits": 2}, "num_traces": 12, "num_problems": 3}
        },
    }
    model = {"kind": "random_init", "config": MODEL}
    recipe = {
        "name": "valid",
        "output": "run",
        "tokenizer": "world/tokenizer",
        "data": {"train": {"path": f"world/{SET}.jsonl"}, "cache_dir": "cache", "rendering": {}},
        "student": model,
        "cut": {"kind": "lead", "p": 0.5},
        "loss": {"kl_weight": 0},
        "training": {"steps": 2, "learning_rate": 1e-3},
        "evaluation": {
            "tasks": [{"name": "test", "path": f"world/{SET}_test.jsonl", "grader": "exact"}],
            "sampling": {"max_new_tokens": 4},
        },
    }
    capture = {
        **recipe,
        "teacher": {"kind": "random_init", "config": MODEL, "seed": 7},
        "loss": {},
        "capture": {"path": "store"},
    }
    student = {**recipe, "student": {"kind": "pretrained", "path": "run/student"}, "output": "again"}
    study = {"name": "valid", "recipe": "recipe.yaml", "output": "study", "axes": {"p": [0.5, 1.0]}, "seeds": [0, 1]}
    (directory / "template.jinja").write_text(TEMPLATE)
    for name, values in (
        ("world", world),
        ("recipe", recipe),
        ("capture", capture),
        ("student", student),
        ("study", study),
    ):
        (directory / f"{name}.yaml").write_text(json.dumps(values, indent=1))
    for arguments in (("world", "world.yaml"), ("distill", "recipe.yaml"), ("capture", "capture.yaml")):
        ending = in_process(directory, arguments)
        if ending.fault or ending.is_refused:
            raise RuntimeError(f"the valid input is refused: {' '.join(arguments)}\n{ending.fault}\n{ending.text}")
    return directory


def try_case(valid: Path, name: str, number: int) -> Ending:
    """Damage one file of a copy of the valid ones, and run the command on it."""
    kind, rng = KINDS[name], random.Random(f"{name} {number}")
    with tempfile.TemporaryDirectory() as copied:
        directory = Path(copied) / "case"
        shutil.copytree(valid, directory, ignore=shutil.ignore_patterns("cache", "checkpoint*"))
        path = directory / kind.file
        path.write_bytes(damaged(path.read_bytes(), kind, rng))
        if rng.random() < 0.8:  # most damage is to be seen in the content, not in its digest
            for digests in directory.rglob("digests.json"):
                digests.unlink()
        return in_process(directory, kind.arguments)


def damaged(content: bytes, kind: Kind, rng: random.Random) -> bytes:
    """The content with one thing wrong: a value, a key, bytes, its end, or all of it."""
    ways: list[Callable[[], bytes]] = [
        lambda: content[: rng.randrange(len(content))],
        lambda: _with_bytes(content, rng, bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 64))))),
        lambda: _with_bytes(content, rng, rng.choice(BYTES)),
        lambda: rng.choice(
            (b"", b"null", b"[]", b"{}", b"\xef\xbb\xbf" + content, content.decode(errors="replace").encode("utf-16"))
        ),
    ]
    if kind.inserts:
        ways += [
            lambda: rng.choice(kind.inserts).encode(),
            lambda: _with_bytes(content, rng, rng.choice(kind.inserts).encode()),
        ]
    else:
        ways += [lambda: _with_value(content, kind, rng)] * 6
    return rng.choice(ways)()


def _with_bytes(content: bytes, rng: random.Random, more: bytes) -> bytes:
    position = rng.randrange(len(content) + 1)
    return content[:position] + more + content[position + rng.choice((0, len(more))) :]


def _with_value(content: bytes, kind: Kind, rng: random.Random) -> bytes:
    """One value of the JSON document replaced, left out, or joined by one that nobody expects."""
    lines = content.splitlines() if kind.line else [content]
    index = rng.randrange(len(lines))
    document = json.loads(lines[index])
    places = list(_places(document))
    if places:
        container, key = rng.choice(places)
        way = rng.choice(("replace", "replace", "remove", "add"))
        if way == "remove":
            del container[key]
        elif way == "add" and isinstance(container, dict):
            container[rng.choice((*KEYS, f"{key}s"))] = copy.deepcopy(rng.choice(VALUES))
        else:
            container[key] = copy.deepcopy(rng.choice(VALUES))
    lines[index] = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return b"\n".join(lines) + b"\n"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def in_process(directory: Path, arguments: tuple[str, ...]) -> Ending:
    """Run a command in a forked process, with its output in files."""
    output = directory.parent / "output.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(directory)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (WORK_SECONDS, WORK_SECONDS))
        code = 70
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status, seconds = _wait(child)
    text = output.read_text(errors="replace")
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return Ending("hang", False, text)
    code = os.waitstatus_to_exitcode(status)
    if "Traceback (most recent call last)" in text or code == 70:
        return Ending("traceback", False, text)
    if "\x1b" in text:
        return Ending("other: an escape code reaches the terminal", code == 2, text)
    messages = text.count(f"leadspan {arguments[0]}: ")
    if code and seconds > CPU_SECONDS:
        return Ending(f"hang: refused after {seconds:.1f} s of processor time", True, text)
    if (code, messages) not in ((0, 0), (2, 1)):
        return Ending(f"other: exit code {code} with {messages} messages", False, text)
    return Ending(None, code == 2, text)


def _wait(child: int) -> tuple[int | None, float]:
    """Status of the process, None where it had to be killed, and the processor time of it and its own processes."""
    end = time.monotonic() + WALL_SECONDS
    while time.monotonic() < end:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage.ru_utime + usage.ru_stime
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, 0.0
