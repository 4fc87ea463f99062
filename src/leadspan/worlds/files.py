"""A world on disk: traces and tasks in common formats, and a real fast tokenizer, only small."""

import json
import string
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from leadspan.errors import RunError
from leadspan.files import write_atomically
from leadspan.settings import Settings, load_json
from leadspan.worlds.problems import Problem, first_answer_share
from leadspan.worlds.settings import ProblemSet, WorldFiles

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
        RunError: The directory holds another world.
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
    for name in sets:
        write_traces(traces[name], settings.output / f"{name}.jsonl")
        if held_out[name]:
            write_task(held_out[name], settings.output / f"{name}_test.jsonl")
    with TemporaryDirectory() as directory:
        for file in map(Path, build_tokenizer().save_pretrained(directory)):
            write_atomically(settings.output / "tokenizer" / file.name, file.read_bytes())
    write_atomically(path, record.model_dump_json(indent=1) + "\n")  # last: a world with a record is complete
    return record


def write_traces(problems: Iterable[Problem], path: Path) -> Path:
    """Traces as JSON lines with the columns prompt, cot, answer and gold."""
    rows = ({"prompt": p.prompt, "cot": p.cot, "answer": p.reply or p.answer, "gold": p.answer} for p in problems)
    return _write(path, rows)


def write_task(problems: Iterable[Problem], path: Path) -> Path:
    """Problems as JSON lines with the columns problem and answer."""
    return _write(path, ({"problem": p.prompt, "answer": p.answer} for p in problems))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


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
