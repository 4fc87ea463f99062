"""A world on disk: the sets of problems, traces and tasks in common formats, and a real fast tokenizer, only small."""

import json
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from leadspan.errors import RunError
from leadspan.faults import Rule
from leadspan.files import write_atomically
from leadspan.settings import Settings, load_json
from leadspan.worlds.problems import DeriveAndVerify, Multiplication, Problem, first_answer_share
from leadspan.worlds.word_problems import WordProblems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORLD_FILE = "world.json"
END_OF_TURN = "<|im_end|>"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)
# Tags and roles, and the word with which a trace of `derive_and_verify` begins to check itself.
_WORDS = ("<think>", "</think>", "user", "assistant", "system", "check")
_CHARACTERS = "\n " + string.digits + string.ascii_letters + string.punctuation
# ChatML, without a line break after the last turn: a conversation ends with its end-of-turn token.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}"
    "{{ '' if loop.last else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)

AnyWorld = Annotated[DeriveAndVerify | Multiplication | WordProblems, Field(discriminator="kind")]
# A set's name is that of its files, with `_test` behind it for those held out.
SetName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class ProblemSet(Settings):
    """Problems of one shape: traces to train on, and problems that are held out."""

    world: AnyWorld
    """The world and the shape of its problems."""
    num_traces: int = Field(default=8000, ge=1, le=10_000_000)
    """Traces, written to `NAME.jsonl` with the columns prompt, cot, answer and gold."""
    num_problems: int = Field(default=0, ge=0, le=10_000_000)
    """Held-out problems, written to `NAME_test.jsonl` with the columns problem and answer; 0 writes none."""


class WorldFiles(Settings):
    """A world on disk."""

    output: Path
    """Directory of the files."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw; no problem of it or of any other seed is in both a `NAME.jsonl` and a `NAME_test.jsonl`."""
    sets: dict[SetName, ProblemSet] = Field(min_length=1)
    """Sets of problems by name."""

    def conflicts(self) -> Iterator[Rule]:
        """No two files have one name."""
        for name, problem_set in self.sets.items():
            if problem_set.num_problems and f"{name}_test" in self.sets:
                text = f"sets: {name}_test.jsonl is the file of {name}'s held-out problems, and of the set {name}_test"
                yield ("sets",), f"{text}; give that set another name"


class SetRecord(Settings):
    """The record of one written set."""

    settings: ProblemSet
    """The settings of the set."""
    first_answer: float | None
    """Mean share of the chain of thought, in characters, through the first statement of the answer; absent where the
    chain of thought never states it."""


class WorldRecord(Settings):
    """The record of a world, `world.json` in its directory."""

    seed: int
    """Seed of the draw."""
    sets: dict[str, SetRecord]
    """The sets by name."""


def write_world(settings: WorldFiles) -> WorldRecord:
    """Draw all sets, then write them, with a tokenizer that has all their characters, and the record of it.

    Raises:
        SettingsError: A world has too few distinct problems; nothing has been written then.
        RunError: The directory holds another world, or files of the same names that belong to none.
    """
    held_out: dict[str, list[Problem]] = {}
    traces: dict[str, list[Problem]] = {}
    sets: dict[str, SetRecord] = {}
    for name, problem_set in settings.sets.items():
        held_out[name] = problem_set.world.problems(problem_set.num_problems, settings.seed, "test")
        traces[name] = problem_set.world.problems(problem_set.num_traces, settings.seed, "train")
        sets[name] = SetRecord(settings=problem_set, first_answer=first_answer_share(traces[name]))
    record, path = WorldRecord(seed=settings.seed, sets=sets), settings.output / WORLD_FILE
    # A study may have been run on the world that is there, so only an equal one is written again.
    if path.exists() and load_json(WorldRecord, path) != record:
        raise RunError(f"{path}: the directory holds a world of other settings; give another output, or remove it")
    contents = {settings.output / f"{name}.jsonl": problem_lines(traces[name]).encode() for name in sets}
    tasks = {f"{name}_test.jsonl": problem_lines(held_out[name], is_task=True) for name in sets if held_out[name]}
    contents |= {settings.output / name: text.encode() for name, text in tasks.items()}
    with TemporaryDirectory() as directory:
        for file in map(Path, build_tokenizer().save_pretrained(directory)):
            contents[settings.output / "tokenizer" / file.name] = file.read_bytes()
    for file, content in contents.items():
        # What a killed command has left is what would be written again.
        if not path.exists() and file.exists() and file.read_bytes() != content:
            raise RunError(f"{file}: exists already, with other content; give another output, or move it")
    for file, content in contents.items():
        write_atomically(file, content)
    write_atomically(path, record.model_dump_json(indent=1) + "\n")  # last: a world with a record is complete
    return record


def problem_lines(problems: Iterable[Problem], is_task: bool = False) -> str:
    """JSON lines: traces with the columns prompt, cot, answer and gold, or a task with problem and answer."""
    rows = (
        {"problem": p.prompt, "answer": p.answer}
        if is_task
        else {"prompt": p.prompt, "cot": p.cot, "answer": p.reply or p.answer, "gold": p.answer}
        for p in problems
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Special tokens, tags, roles and a few words as one token each, then printable ASCII; ChatML template."""
    # Here, so that the settings of a world need no Transformers.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *_WORDS, *_CHARACTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    # One token a character, but for the tokens that are added below.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in _WORDS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END_OF_TURN, pad_token="<|endoftext|>", model_max_length=512
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer
