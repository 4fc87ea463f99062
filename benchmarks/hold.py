"""Results under kill -9, flipped bits, second writers, a full disk and signals, compared with undisturbed runs.

Small commands run in processes forked from one that has torch loaded. A case is held where the command, given again,
ends with what an uninterrupted one leaves, bit for bit but for times and measurements; and where damage is named.
`python -m benchmarks hold/kills` (flips, writers, disk, signals) measures one part and records nothing.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import hold_process
from benchmarks.hold_cases import Command, commands, comparable, write_inputs
from benchmarks.hold_process import Moment
from benchmarks.record import Figure, Outcome, Spread

CaseT = TypeVar("CaseT")
SEED = int(os.environ.get("LEADSPAN_HOLD_SEED", "0"))
"""Another one gives other moments and places."""
MANY = 20
"""Cases of each kind, where the time is enough for them."""
FLIPS = 60
PART_SECONDS = {"kills": 300, "flips": 60, "writers": 60, "disk": 80, "signals": 100}
"""Of ten minutes in all; the commands of a part share its time, and a figure says how many cases it is of."""
WRITERS = ("distill", "evaluate", "capture", "study")
FULL_DISK = ("distill", "evaluate", "capture")
SIGNALLED = ("distill", "distill LoRA", "distill with workers", "evaluate", "capture", "study")


@dataclass
class Bench:
    """Where the cases lie, and what the uninterrupted commands have left.

    Attributes:
        directory: Everything.
        known: The commands by name.
        draw: Draws moments and places.
        faults: What did not hold, in words.
    """

    directory: Path
    known: dict[str, Command]
    draw: random.Random
    faults: list[str] = field(default_factory=list)
    number: int = 0
    deadline: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def case(self) -> Path:
        """A new directory."""
        self.number += 1
        return self.directory / f"case-{self.number}"

    def in_time(self, cases: Iterable[CaseT]) -> Iterator[CaseT]:
        """The cases, one at least, until the time is over."""
        for number, case in enumerate(cases):
            if number and time.monotonic() >= self.deadline:
                return
            yield case

    def share(self, label: str, cases: Iterable[bool]) -> Figure:
        """The share of cases that held."""
        held = list(cases)
        return Figure(f"{label}: share held of {len(held)}", sum(held) / len(held), 1, "higher")

    def whole(self, name: str) -> Path:
        """The directory of an uninterrupted command, which is run when it is first asked for."""
        directory = self.directory / f"whole-{name.replace(' ', '-')}"
        if name not in self.results:
            ended = hold_process.run(directory, self.known[name].arguments)
            if ended.code:
                raise RuntimeError(f"{name}: {ended.said}")
            self.seconds[name], self.results[name] = ended.seconds, comparable(directory / self.known[name].result)
        return directory

    def is_held(self, name: str, directory: Path, what: str) -> bool:
        """Give the command again, and compare what it leaves; a finished one may refuse to be run again."""
        self.whole(name)
        command = self.known[name]
        ended = hold_process.run(directory, command.again)
        is_over = ended.code == 2 and "holds a finished run" in ended.said
        found = comparable(directory / command.result)
        wanted = self.results[name]
        different = sorted(file for file in {*found, *wanted} if found.get(file) != wanted.get(file))
        held = (ended.code == 0 or is_over) and ended.is_clean and not different
        return self.note(
            held, f"{name}, {what}: exit {ended.code}, different {different}: {ended.said[-400:]}", directory
        )

    def note(self, held: bool, fault: str, directory: Path | None = None) -> bool:
        """Keep what did not hold; else remove its directory."""
        if not held:
            self.faults.append(fault)
        elif directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        return held


def run() -> Outcome:
    return measure(tuple(PARTS))


def run_part(name: str) -> Outcome:
    """One part alone."""
    return measure((name,))


def measure(parts: tuple[str, ...]) -> Outcome:
    """Prepare the inputs and go through some parts."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as directory:
        inputs = Path(directory) / "inputs"
        written = hold_process.run(inputs, partial(write_inputs, inputs))
        if written.code:
            raise RuntimeError(f"the inputs cannot be written: {written.said}")
        bench = Bench(Path(directory), commands(inputs), random.Random(SEED))
        figures: list[Figure] = []
        sides: dict[str, Spread] = {}
        for part in parts:
            started = time.monotonic()
            figures += PARTS[part](bench, PART_SECONDS[part])
            sides[part] = Spread.of([time.monotonic() - started])
    return Outcome(
        method=(__doc__ or "").partition("\n`python")[0],
        settings={"seed": SEED, "cases": MANY, "flips": FLIPS, "seconds": PART_SECONDS},
        sides=sides,
        figures=figures,
        details={"faults": bench.faults},
    )


def kills(bench: Bench, seconds: float) -> list[Figure]:
    """kill -9 at random moments, and before a change of each kind to a file."""
    figures = []
    for name, command in bench.known.items():
        kinds = hold_process.kinds_of_change(bench.whole(name))
        chosen = bench.draw.sample(sorted(kinds), len(kinds))
        moments = {
            "random moments": [Moment(after=bench.draw.uniform(0, bench.seconds[name])) for _ in range(MANY)],
            "before a kind of change": [Moment(before=(kind, bench.draw.randint(1, kinds[kind]))) for kind in chosen],
        }
        for label, drawn in moments.items():
            bench.deadline = time.monotonic() + seconds / len(bench.known) / len(moments)
            held = (_is_killed_and_held(bench, name, command, moment) for moment in bench.in_time(drawn))
            figures.append(bench.share(f"{name} killed, {label}", held))
    return figures


def _is_killed_and_held(bench: Bench, name: str, command: Command, moment: Moment) -> bool:
    directory = bench.case()
    hold_process.run(directory, command.arguments, moment)
    return bench.is_held(name, directory, f"killed {moment.before or f'after {moment.after:.3f} s'}")


def flips(bench: Bench, seconds: float) -> list[Figure]:
    """One bit flipped in each of what later steps read; found, named, and healed by giving the command again."""
    whole, figures = bench.whole("distill"), []
    places = {
        "checkpoints": ("run/checkpoints", "distill"),
        "cache": ("cache/traces", "distill"),
        "samples": ("run/samples", "distill"),
        "metrics": ("run/metrics.jsonl", "distill"),
        "student": ("run/student", "distill"),
    }
    for name, (place, command) in places.items():
        copies = [shutil.copytree(whole, bench.case()) for _ in range(FLIPS)]
        flipped = [_flip(bench.draw, copy, copy / place) for copy in copies]
        named = [_is_named(copy, path) for copy, path in zip(copies, flipped, strict=True)]
        for copy, path, is_named in zip(copies, flipped, named, strict=True):
            bench.note(is_named, f"flip in {path.relative_to(copy)} not named")
        bench.deadline, healed = time.monotonic() + seconds / len(places), []
        for copy, path in bench.in_time(list(zip(copies, flipped, strict=True))[:MANY]):
            if name == "checkpoints":
                (copy / "run" / "run.json").unlink()
            healed.append(bench.is_held(command, copy, f"flip in {path.relative_to(copy)}"))
        for copy in copies:
            shutil.rmtree(copy, ignore_errors=True)
        figures += [bench.share(f"{name} flipped, named", named), bench.share(f"{name} flipped, made anew", healed)]
    return figures


def _flip(draw: random.Random, case: Path, place: Path) -> Path:
    """Flip one bit of one file that a later step reads."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    path = draw.choice([path for path in files if path.stat().st_size])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return path


def _is_named(case: Path, path: Path) -> bool:
    """Whether the check before a file is used finds a fault and names the file, or the list of digests."""
    from leadspan.files import DIGESTS_FILE, fault
    from leadspan.results import damage

    sealed = next(directory for directory in path.parents if (directory / DIGESTS_FILE).exists())
    wrong = fault(sealed) if sealed != case / "run" else damage(sealed)
    return wrong is not None and (path.name in wrong or path.name == DIGESTS_FILE)


def writers(bench: Bench, seconds: float) -> list[Figure]:
    """Two processes with one command in one directory at once."""
    figures = []
    for name in WRITERS:
        bench.whole(name)
        bench.deadline, held = time.monotonic() + seconds / len(WRITERS), []
        for _ in bench.in_time(range(MANY)):
            directory, started = bench.case(), time.monotonic()
            pids = [hold_process.start(directory, bench.known[name].arguments) for _ in range(2)]
            both = [hold_process.wait(pid, directory, started) for pid in pids]
            fair = all(ended.code in (0, 2) and ended.is_clean for ended in both) and 0 in {e.code for e in both}
            said = " | ".join(ended.said[-200:] for ended in both)
            held.append(
                bench.note(fair, f"{name}, two writers: {said}") and bench.is_held(name, directory, "two writers")
            )
        figures.append(bench.share(f"{name}, two writers", held))
    return figures


def disk(bench: Bench, seconds: float) -> list[Figure]:
    """Files that cannot grow beyond a size, as on a full disk: one error, and going on when there is room."""
    figures = []
    for name in FULL_DISK:
        largest = max(p.stat().st_size for p in bench.whole(name).rglob("*") if p.is_file())
        bench.deadline, told, held = time.monotonic() + seconds / len(FULL_DISK), [], []
        for size in bench.in_time([bench.draw.randrange(1, largest) for _ in range(MANY)]):
            directory = bench.case()
            ended = hold_process.run(directory, bench.known[name].arguments, max_bytes=size)
            fault = f"{name}, files of at most {size} bytes: exit {ended.code}: {ended.said[-400:]}"
            told.append(bench.note(ended.code in (0, 2) and ended.is_clean, fault))
            held.append(bench.is_held(name, directory, f"files of at most {size} bytes, then room"))
        figures += [bench.share(f"{name}, full disk is one error", told), bench.share(f"{name}, then room", held)]
    return figures


def signals(bench: Bench, seconds: float) -> list[Figure]:
    """SIGTERM and Ctrl-C to all processes of a command, as schedulers and terminals send them."""
    workers = bench.known["distill"]
    more = ("training.num_workers=2",)
    bench.known["distill with workers"] = Command((*workers.arguments, *more), (*workers.again, *more), workers.result)
    cases = [(name, number) for name in SIGNALLED for number in (signal.SIGTERM, signal.SIGINT)]
    bench.deadline = time.monotonic() + seconds
    figure = bench.share("signals", (_is_ended_and_held(bench, name, number) for name, number in bench.in_time(cases)))
    del bench.known["distill with workers"]
    return [figure]


def _is_ended_and_held(bench: Bench, name: str, number: int) -> bool:
    bench.whole(name)
    directory = bench.case()
    moment = Moment(number, after=bench.draw.uniform(0.2, 0.8) * bench.seconds[name], to_group=True)
    started = time.monotonic()
    pid = hold_process.start(directory, bench.known[name].arguments)
    _send(pid, moment)
    ended = hold_process.wait(pid, directory, started)
    is_alone = hold_process.is_session_empty(pid)
    wanted = 128 + number
    good = ended.code in (0, wanted) and ended.is_clean and is_alone
    good &= ended.code == 0 or "go on with: leadspan" in ended.said
    fault = (
        f"{name}, signal {number} after {moment.after:.2f} s: exit {ended.code}, alone {is_alone}: {ended.said[-600:]}"
    )
    return bench.note(good, fault) and bench.is_held(name, directory, f"signal {number}")


def _send(pid: int, moment: Moment) -> None:
    time.sleep(moment.after or 0)
    if not hold_process.has_ended(pid):
        os.killpg(pid, moment.number)


PARTS: dict[str, Callable[[Bench, float], list[Figure]]] = {
    "kills": kills,
    "flips": flips,
    "writers": writers,
    "disk": disk,
    "signals": signals,
}
