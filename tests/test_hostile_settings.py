"""Recipes, overrides, studies and worlds that nobody meant to write: one error each, at once, and no traceback."""

import itertools
from pathlib import Path

import pytest

from leadspan.cli import main
from leadspan.errors import RunError, SettingsError
from leadspan.files import locked
from leadspan.settings import dump_yaml, load_settings, validate
from leadspan.worlds.files import WorldFiles
from leadspan.yaml_text import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES

VALID = """
name: mine
output: out
tokenizer: tokenizer
data: {train: {path: traces.jsonl}}
student: {kind: random_init, config: {model_type: qwen3}}
loss: {kl_weight: 0}
training: {steps: 1}
"""
_LEVELS = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in itertools.pairwise(_LEVELS)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join(['*' + before] * 9)}]}}\n" for before, name in itertools.pairwise(_LEVELS)
)
DOCUMENTS: dict[str, tuple[str | bytes, str]] = {
    "alias bomb": (BOMB + "name: *i", "more than 5,000 values"),
    "alias bomb in a model": (f"{VALID}teacher: {{kind: random_init, config: {{k: [\n{BOMB}]}}}}", "not valid YAML"),
    "merge bomb": (MERGES, "more than 5,000 values"),
    "chain of aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2 * MAX_DEPTH)),
        "nested more than",
    ),
    "alias of itself": (VALID.replace("{model_type: qwen3}", "&c {model_type: qwen3, me: *c}"), "refers to itself"),
    "alias as its own key": ("&a {*a : 1}", "refers to itself"),
    "merged into itself": ("a: &a {<<: *a, b: 1}", "refers to itself"),
    "alias of nothing": ("name: *x", "undefined alias"),
    "deep list": ("name: " + "[" * 3000 + "]" * 3000, "nested more than"),
    "deep mapping": ("name: " + "{a: " * 3000 + "1" + "}" * 3000, "nested more than"),
    "deep block": ("".join(" " * i + "a:\n" for i in range(300)), "nested more than"),
    "deep dashes": ("- " * 3000, "nested more than"),
    "deep keys": ("? " * 3000, "nested more than"),
    "many values": ("name: [" + "1," * 2 * MAX_VALUES + "]", "more than 5,000 values"),
    "long": ("# \n" * MAX_CHARACTERS, "settings have at most"),
    "long, and cut within a character": ("#a" + "é" * 2 * MAX_CHARACTERS, "settings have at most"),
    "date out of range": ("name: 2020-13-45", "missing"),
    "offset out of range": ("name: 2001-12-14t21:59:43.10-99:99", "missing"),
    "escape out of range": ('name: "\\UFFFFFFFF"', "names no character"),
    "unknown escape": ('name: "\\q"', "unknown escape"),
    "integer tag": ("seed: !!int abc", "line 1, column 7: not a valid int"),
    "float tag": ("seed: !!float abc", "not a valid float"),
    "truth tag": ("seed: !!bool abc", "not a valid bool"),
    "tag of another kind": ("seed: !!int [1]", "expected a scalar"),
    "python tag": ("name: !!python/object/apply:os.system [ls]", "tags such as"),
    "binary tag": ("name: !!binary aGVsbG8=", "tags such as"),
    "set tag": ("name: !!set {x}", "tags such as"),
    "date tag": ("name: !!timestamp 2020-13-45", "tags such as"),
    "own tag": ("%TAG ! tag:x,2000:\n---\nname: !foo b", "tags such as"),
    "integer of many digits": ("seed: " + "1" * 5000, "not a valid int"),
    "long hexadecimal": ("seed: 0x" + "f" * 10000, "an integer of 40,000 bits"),
    "integer of 100 digits in a model": (VALID.replace("qwen3", f"qwen3, a: {'9' * 100}"), "bits"),
    "infinite": (f"{VALID}seed: 1e999", "seed = inf"),
    "no number": (f"{VALID}plan: {{utilisation: .nan}}", "finite number"),
    "lone surrogate": ('name: "a\\uD800b"', "U+D800"),
    "lone surrogate as a key": ('"\\uDFFF": 1', "U+DFFF"),
    "NUL in text": ('output: "a\\0b"', "U+0000"),
    "NUL in the file": (b"name: a\0b", "U+0000"),
    "another encoding": ("name: Größe".encode("latin-1"), "is not UTF-8"),
    "UTF-16": ("name: a".encode("utf-16"), "is not UTF-8"),
    "binary": (bytes(range(256)), "is not UTF-8"),
    "empty": ("", "is empty"),
    "only a comment": ("# nothing", "is empty"),
    "a list": ("- 1", "is a list"),
    "text": ("name", "is a text"),
    "a number": ("1", "is a number"),
    "two documents": ("name: a\n---\nname: b", "another document"),
    "duplicate key": ("name: a\nname: b", 'duplicate key "name"'),
    "tab": ("data:\n\ttrain: 1", "indent with spaces"),
    "unclosed quote": ('name: "a', "unexpected end of stream"),
    "unclosed brace": ("data: {train", "not valid YAML"),
    "YAML 1.1": ("%YAML 1.1\n---\nname: no", "settings are YAML 1.2"),
    "YAML 9": ("%YAML 9.9\n---\nname: no", "settings are YAML 1.2"),
    "null key": (f"{VALID}null: 1", "quote it as text"),
    "truth key": (f"{VALID}true: 1", "quote it as text"),
    "number key": (f"{VALID}1: 1", "1: keys are text"),
    "list key": (f"{VALID}? [1, 2]\n: 1", "quote it as text"),
    "mapping key": (f"{VALID}? {{a: 1}}\n: 1", "unhashable"),
    "nothing but names": (VALID.replace("{train: {path: traces.jsonl}}", ""), "data = None"),
    "every section a number": ("".join(f"{key}: 1\n" for key in ("data", "student", "cut", "loss")), "a mapping"),
    "every section a list": ("".join(f"{key}: [1]\n" for key in ("data", "student", "cut", "loss")), "a mapping"),
    "hundreds of unknown keys": ("".join(f"x{i}: 1\n" for i in range(500)), "and 486 more"),
}
OVERRIDES = {
    "no value": ("name", "write it as key.sub=value"),
    "no key": ("=1", "write it as key.sub=value"),
    "empty key": ("training..steps=1", "write it as key.sub=value"),
    "only dots": ("...=1", "write it as key.sub=value"),
    "deep key": (".".join("a" * 2000) + "=1", "settings are at most"),
    "below text": ("name.x=1", "has no keys"),
    "below a number": ("training.steps.x.y=1", "has no keys"),
    "in an empty list": ("training.report_to=[]|training.report_to.0=x", "empty list"),
    "beyond a list": ("training.report_to=[wandb]|training.report_to.7=x", "from 0 to 0"),
    "superscript index": ("training.report_to=[wandb]|training.report_to.²=x", "from 0 to 0"),
    "index of many digits": ("training.report_to=[wandb]|training.report_to." + "9" * 5000 + "=x", "from 0 to 0"),
    "alias": ("name=*x", "undefined alias"),
    "alias of itself": ("name=&a [*a]", "refers to itself"),
    "bomb": (
        "name=[" + ",".join(f"&{n} [{','.join(['*' + p] * 9)}]" for p, n in itertools.pairwise("zabcde")) + "]",
        "alias",
    ),
    "deep": ("name=" + "[" * 3000, "nested more than"),
    "many": ("name=[" + "1," * 2 * MAX_VALUES + "]", "more than"),
    "long": ("name=" + "a" * 2 * MAX_CHARACTERS, "characters"),
    "huge": ("seed=" + "9" * 5000, "not a valid int"),
    "hexadecimal": ("seed=0x" + "f" * 100, "bits"),
    "negative": ("seed=-1", "greater than or equal to 0"),
    "too large": ("seed=4294967296", "less than 4294967296"),
    "no whole number": ("seed=1.5", "seed = 1.5"),
    "more samples than memory holds": ("evaluation.sampling={samples_per_problem: 1000000000}", "100000"),
    "date": ("seed=2020-01-01", "seed = '2020-01-01'"),
    "surrogate of the shell": ("name=\udcff", "U+DCFF"),
    "surrogate in a key": ("na\udcffme=1", "U+DCFF"),
    "escape": ('name="\\UFFFFFFFF"', "names no character"),
    "NUL": ('output="a\\0"', "U+0000"),
    "tag": ("seed=!!int x", "not a valid int"),
    "other tag": ("seed=!foo x", "tags such as"),
    "unclosed": ("cut={kind:", "quote it"),
    "two documents": ("name=a\n---\nb", "another document"),
    "no name": ("name=", "name = None"),
    "list for text": ("name=[a]", "valid string"),
    "text for a section": ("training=fast", "training = 'fast': settings are a mapping"),
    "unknown policy": ("cut={kind: LEAD}", "one of full, lead"),
    "a number as a policy": ("cut={kind: 5}", "cut.kind"),
    "a list as a policy": ("cut={kind: [lead]}", "cut.kind"),
    "a mapping as a device": ("plan.device={a: 1}", "plan.device.a: unknown key"),
    "escape sequence": ('"\x1b[2J"=1', "unknown key"),
}


def _one_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count(f"leadspan {arguments[0]}:") == 1
    assert len(shown.err) < 6000 and "\x1b" not in shown.err
    shown.err.encode()
    return shown.err


_QUICK = list(DOCUMENTS)[::7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name"),
    [("distill", name) for name in DOCUMENTS] + [(c, name) for name in _QUICK for c in ("study", "world")],
)
def test_hostile_files(command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = DOCUMENTS[name]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = _one_error([command, str(path), *(["--dry-run"] if command != "world" else [])], capsys)
    assert str(path) in told
    assert message in told or command != "distill"  # settings of other kinds say more of what is missing


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_hostile_overrides(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = OVERRIDES[name]
    (tmp_path / "recipe.yaml").write_text(VALID)
    assert message in _one_error(["distill", str(tmp_path / "recipe.yaml"), *text.split("|"), "--dry-run"], capsys)


@pytest.mark.parametrize("place", ["missing.yaml", "", "recipe.yaml/x", "a" * 300, "/dev/zero", "/dev/null"])
def test_no_recipe_there(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(VALID)
    assert "give the path of a YAML file" in _one_error(["distill", str(tmp_path / place), "--dry-run"], capsys)


@pytest.mark.slow
def test_the_largest_settings_are_read(tmp_path: Path) -> None:
    sets = "".join(f"  s{i}: {{world: {{kind: multiplication}}, num_traces: {i + 1}}}\n" for i in range(600))
    (tmp_path / "world.yaml").write_text(f"output: out\nsets:\n{sets}")
    world = load_settings(WorldFiles, tmp_path / "world.yaml")
    (tmp_path / "again.yaml").write_text(dump_yaml(world.model_copy(update={"sets": {"a": world.sets["s599"]}})))
    assert load_settings(WorldFiles, tmp_path / "again.yaml").sets["a"].num_traces == 600


@pytest.mark.parametrize(
    ("output", "reason"), [("/proc/run", "No such file or directory"), ("/dev/null/run", "Not a directory")]
)
def test_an_output_that_no_file_system_makes_is_refused(output: str, reason: str) -> None:
    with pytest.raises(OSError, match=reason), locked(Path(output) / ".lock", RunError):
        raise AssertionError("it cannot be held")


def test_a_world_that_would_never_be_made_is_refused() -> None:
    world = {"kind": "multiplication", "base": 6, "max_digits": 2}
    values = {"output": "w", "sets": {"a": {"world": world, "num_traces": 10**12, "num_problems": 10**9}}}
    with pytest.raises(SettingsError, match=r"num_traces = 1000000000000: .*\n  sets.a.num_problems = 1000000000: "):
        validate(WorldFiles, values, "world.yaml")
