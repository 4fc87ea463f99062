"""Settings of evaluation: tasks, known benchmarks, and sampling.

A row of `BENCHMARKS` holds settings of a task (`TaskSettings`) under the benchmark's name: location, columns, prompt,
grader and usual number of samples; a new benchmark is a row. A local file in the same layout replaces the Hub name by
`path`, and `split` and `subset` with it. Where no column is named, the usual names are tried.

Sources: the data set cards of the Hub names below. Samples: 64 for the AIME sets as in arXiv 2512.21002, fewer the
larger the set.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from leadspan.faults import Rule
from leadspan.settings import Settings
from leadspan.traces.settings import TraceSource

GENERATED = "reasoning-gym:"
"""Begins the path of a task whose problems reasoning-gym makes."""
NUM_GENERATED = 100
"""How many it makes where no `limit` says so."""
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER = "Please reason step by step, and put the letter of the right choice within \\boxed{}."

_AIME: dict[str, Any] = {"instruction": BOXED, "samples_per_problem": 64}
_CHOICE: dict[str, Any] = {"instruction": LETTER, "grader": "choice"}
_VALIDATION: dict[str, Any] = {**_CHOICE, "split": "validation"}
_LABELLED: dict[str, Any] = {**_CHOICE, "answer": "answerKey", "choices": {"columns": ["choices"]}}

BENCHMARKS: dict[str, dict[str, Any]] = {
    # competition and school mathematics
    "aime24": {**_AIME, "path": "HuggingFaceH4/aime_2024", "split": "train"},
    "aime25": {**_AIME, "path": "math-ai/aime25"},
    "amc23": {"path": "math-ai/amc23", "instruction": BOXED, "samples_per_problem": 32},
    "math500": {"path": "HuggingFaceH4/MATH-500", "instruction": BOXED, "samples_per_problem": 4},
    "gsm8k": {"path": "openai/gsm8k", "subset": "main", "instruction": BOXED},
    "olympiadbench": {
        "path": "Hothan/OlympiadBench",
        "subset": "OE_TO_maths_en_COMP",
        "split": "train",
        "problem": "question",
        "answer": "final_answer",
        "instruction": BOXED,
        "samples_per_problem": 4,
    },
    "minerva": {"path": "math-ai/minervamath", "instruction": BOXED, "samples_per_problem": 4},
    "svamp": {"path": "ChilleD/SVAMP", "problem": "{Body}\n{Question}", "answer": "Answer", "instruction": BOXED},
    # knowledge and science, multiple choice
    "gpqa": {
        **_CHOICE,
        "path": "Idavidrein/gpqa",
        "subset": "gpqa_diamond",
        "split": "train",
        "problem": "Question",
        "answer": "Correct Answer",
        "choices": {
            "columns": ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
            "shuffle": True,
        },
        "samples_per_problem": 8,
    },
    "mmlu": {**_CHOICE, "path": "cais/mmlu", "subset": "all", "choices": {"columns": ["choices"]}},
    "mmlu_pro": {**_CHOICE, "path": "TIGER-Lab/MMLU-Pro", "choices": {"columns": ["options"]}},
    # common sense, multiple choice
    "arc_easy": {**_LABELLED, "path": "allenai/ai2_arc", "subset": "ARC-Easy"},
    "arc_challenge": {**_LABELLED, "path": "allenai/ai2_arc", "subset": "ARC-Challenge"},
    "commonsense_qa": {**_LABELLED, "path": "tau/commonsense_qa", "split": "validation"},
    "openbookqa": {**_LABELLED, "path": "allenai/openbookqa", "subset": "main", "problem": "question_stem"},
    "hellaswag": {
        **_VALIDATION,
        "path": "Rowan/hellaswag",
        "problem": "Which choice continues this text best?\n\n{ctx}",
        "answer": "label",
        "choices": {"columns": ["endings"]},
    },
    "piqa": {
        **_VALIDATION,
        "path": "baber/piqa",
        "problem": "goal",
        "answer": "label",
        "choices": {"columns": ["sol1", "sol2"]},
    },
    "siqa": {
        **_VALIDATION,
        "path": "lighteval/siqa",
        "problem": "{context}\n{question}",
        "answer": "label",
        "choices": {"columns": ["answerA", "answerB", "answerC"], "first": 1},
    },
    "winogrande": {
        **_VALIDATION,
        "path": "allenai/winogrande",
        "subset": "winogrande_xl",
        "problem": "Which choice fits the gap (_) in this sentence?\n\n{sentence}",
        "answer": "answer",
        "choices": {"columns": ["option1", "option2"], "first": 1},
    },
    "boolq": {
        **_VALIDATION,
        "path": "google/boolq",
        "problem": "{passage}\n\nQuestion: {question}?",
        "answer": "answer",
        "choices": {"texts": ["no", "yes"]},
    },
    # code, without running any: what a function returns
    "cruxeval": {
        "path": "cruxeval-org/cruxeval",
        "problem": "What does `f({input})` return?\n\n```python\n{code}\n```",
        "answer": "output",
        "instruction": "Please reason step by step, and put the returned value as a Python literal within \\boxed{}.",
        "grader": "literal",
    },
}


class Choices(Settings):
    """Where the choices of a multiple-choice task come from: one column, several, or these settings."""

    columns: list[str] = []
    """One column that holds all choices (a list of texts, or lists `text` and `label`), or one column for each."""
    texts: list[str] = []
    """The choices themselves, where every problem has the same."""
    first: int = Field(default=0, ge=0, le=1)
    """Number of the first choice, where the answer is a number."""
    shuffle: bool = False
    """Order the choices by a hash of problem and choice, for sources that always name the right one first."""

    def conflicts(self) -> Iterator[Rule]:
        """Choices come from columns or from texts."""
        if bool(self.columns) == bool(self.texts):
            yield ("columns", "texts"), "name either the columns of the choices or their texts"


# Characters of a task's name, and bytes: file systems take 255, of which endings and the name of a copy need 50.
_MAX_NAME, _MAX_BYTES = 100, 200


def task_name(path: str) -> str:
    """Name of a task after the file of its problems, in letters that every file system takes.

    >>> task_name("data/my tasks (2nd).jsonl")
    'my tasks -2nd-'
    """
    name = re.sub(r"[^\w. -]", "-", Path(path).stem)[:_MAX_NAME]
    return name.encode()[:_MAX_BYTES].decode(errors="ignore") or "task"


class TaskSettings(Settings):
    """Problems with reference answers."""

    # A known benchmark stands for the required path. Letters of names are those of Python, which writes the files.
    model_config = ConfigDict(
        regex_engine="python-re",
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{"required": schema.pop("required")}, {"required": ["benchmark"]}]
        ),
    )

    name: str = Field(default="task", pattern=r"^[\w. -]+$", max_length=_MAX_NAME)
    """Name of the task in results, and of the file of its samples; when absent the benchmark's, or that of the file of
    problems without its ending."""
    benchmark: str | None = None
    """A known benchmark (see docs/evaluation.md): it gives every setting that is not given here, its `split` and
    `subset` only along with its `path`."""
    path: str
    """Local file or directory of records, a Hub dataset name, or `reasoning-gym:DATASET`, which generates problems."""
    options: dict[str, bool | int | float | str | list[Any] | dict[str, Any]] = {}
    """Of `reasoning-gym:DATASET`: `seed` (0 when absent) and the data set's own, e.g. `{min_animals: 5}`."""
    split: str | None = None
    """Hub split; of a local path, the directory or the files whose name says it. `test` when absent; a local path whose
    names say no split is then read whole."""
    subset: str | None = None
    """Hub configuration name; of a local path, a directory in it."""
    problem: str | None = None
    """Column of the problem, or a text with columns in braces (`{Body} {Question}`); found by its usual names when
    absent."""
    answer: str | None = None
    """Column of the reference answer; found by its usual names when absent, else the last `\\boxed{}` of `solution`.
    After `####` where that occurs."""
    choices: Choices | None = None
    """The choices, for `grader: choice`."""
    instruction: str = ""
    """Text appended to every problem, on lines of its own."""
    grader: Literal["math", "exact", "choice", "literal", "reasoning_gym"] = "math"
    """`math`: Math-Verify on the boxed answer; `exact`: the boxed answer, or the whole answer text where there is no
    box, equals the reference; `choice`: the letter of the right choice; `literal`: equal as Python literals;
    `reasoning_gym`: the verifier of its data set scores the answer 1."""
    samples_per_problem: int = Field(default=1, ge=1, le=100_000)
    """Samples for each problem, unless `sampling.samples_per_problem` says otherwise."""
    limit: int | None = Field(default=None, ge=1)
    """Use only this many problems, the first; 100 when absent, where problems are generated."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_benchmark(cls, values: Any) -> Any:  # Any: whatever the user wrote
        # Defaults come first and the user's values last, so that each default can be replaced.
        if isinstance(values, dict) and str(values.get("path")).startswith(GENERATED):
            name = values["path"].removeprefix(GENERATED)
            return {"name": task_name(name), "grader": "reasoning_gym", "instruction": BOXED, **values}
        name = values.get("benchmark") if isinstance(values, dict) else None
        if not isinstance(name, str):
            is_named = not isinstance(values, dict) or "path" not in values
            return values if is_named else {"name": task_name(str(values["path"])), **values}
        if name not in BENCHMARKS:
            return {"name": str(name), "path": "unknown", **values}  # the field `benchmark` reports the fault
        defaults = BENCHMARKS[name]
        if values.get("path", defaults["path"]) != defaults["path"]:  # names of another data set's parts
            defaults = {key: value for key, value in defaults.items() if key not in ("split", "subset")}
        return {"name": name, **defaults, **values}

    @field_validator("name")
    @classmethod
    def _is_a_file_name(cls, name: str) -> str:
        if len(name.encode()) > _MAX_BYTES or name.endswith("\n"):
            raise ValueError(f"no name of a file: give one line of at most {_MAX_BYTES} bytes")
        return name

    @field_validator("benchmark")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in BENCHMARKS:
            near = difflib.get_close_matches(name, BENCHMARKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BENCHMARKS)}"
            raise ValueError(f"no known benchmark; {hint}")
        return name

    @property
    def source(self) -> TraceSource:
        """Where its records are read from."""
        return TraceSource(path=self.path, split=self.split, subset=self.subset, limit=self.limit)

    @property
    def generated(self) -> str | None:
        """The data set of reasoning-gym that makes its problems; None where they are read."""
        return self.path.removeprefix(GENERATED) if self.path.startswith(GENERATED) else None

    def conflicts(self) -> Iterator[Rule]:
        """Choices go with their grader, options and a verifier with generated problems, columns with read ones."""
        if self.generated is None and (self.options or self.grader == "reasoning_gym"):
            yield ("path", "options", "grader"), f"options and `grader: reasoning_gym` go with path: {GENERATED}DATASET"
        read = ("benchmark", "split", "subset", "problem", "answer", "choices")
        if self.generated is not None and (given := [name for name in read if getattr(self, name) is not None]):
            yield ("path", *given), f"problems of {GENERATED}DATASET are made, not read: leave out {', '.join(given)}"
        if (self.grader == "choice") != (self.choices is not None):
            yield ("grader", "choices"), "`grader: choice` and `choices` go together; give both or neither"


class Batched(Settings):
    """Transformers, batch by batch; samples that have ended leave their batch."""

    kind: Literal["transformers"] = "transformers"


class Vllm(Settings):
    """vLLM (`pip install leadspan[vllm]`); with the same seed its draws differ from those of Transformers."""

    kind: Literal["vllm"] = "vllm"
    options: dict[str, bool | int | float | str] = {}
    """Passed on to `vllm.LLM`, e.g. `{tensor_parallel_size: 8, gpu_memory_utilization: 0.9}`."""

    def conflicts(self) -> Iterator[Rule]:
        """What the model and the precision decide is no option."""
        taken = self.options.keys() & {"model", "revision", "tokenizer", "tokenizer_revision", "dtype"}
        if taken:
            text = (
                f"options has {', '.join(sorted(taken))}, which the model and the setting of precision give: leave out"
            )
            yield ("options",), text


class SamplingSettings(Settings):
    """How answers are drawn. Defaults are the paper's (arXiv 2512.21002, evaluation), one sample each."""

    temperature: float = Field(default=0.6, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus: smallest set of tokens with at least this probability."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from this many most probable tokens only."""
    max_new_tokens: int = Field(default=32768, ge=1)
    """Cap on new tokens; lowered where prompt and new tokens would not fit the model's window."""
    thinking_budget: int | None = Field(default=None, ge=1)
    """Makes every sample answer: after this many tokens of thinking, or where it loops, the closing tag is inserted and
    the answer is drawn. These figures are reported in addition to those of the samples as drawn."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights that samples are drawn from; `auto` as in `training.precision`."""
    samples_per_problem: int | None = Field(default=None, ge=1, le=100_000)
    """Samples for each problem of every task; each task's own number when absent."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences generated at a time; does not change what is drawn."""
    seed: int = 0
    """Seed; every sample draws from its own stream, keyed by seed, problem and sample number."""
    engine: Annotated[Batched | Vllm, Field(discriminator="kind")] = Batched()
    """What generates."""

    def conflicts(self) -> Iterator[Rule]:
        """The batch size is given once."""
        if isinstance(self.engine, Vllm) and "max_num_seqs" in self.engine.options:
            yield ("engine", "batch_size"), "engine.options has max_num_seqs, which is batch_size: set that"


class EvaluationSettings(Settings):
    """What is evaluated after training."""

    tasks: list[TaskSettings] = []
    """Tasks, in order."""
    sampling: SamplingSettings = SamplingSettings()
    """How answers are drawn."""
    system: str = ""
    """System message before every problem; none when empty."""
    item_seconds: float = Field(default=10.0, gt=0)
    """Processor time for grading one answer."""

    def conflicts(self) -> Iterator[Rule]:
        """Task names differ."""
        # Samples are stored by name, and to some file systems letters of either case are the same.
        names = [task.name.casefold() for task in self.tasks]
        for name in sorted({name for name in names if names.count(name) > 1}):
            numbers = [number for number, other in enumerate(names) if other == name]
            fields = tuple(f"tasks.{number}.{key}" for number in numbers for key in ("name", "path"))
            shown = self.tasks[numbers[0]].name
            yield fields, f"two tasks are called {shown!r}; give them different names (tasks.1.name)"


def task_values(text: str, limit: int | None = None) -> dict[str, Any]:
    """Settings of a task by a known benchmark's name, one with a path of its own, or a file or Hub name.

    >>> task_values("gsm8k=own.jsonl", 10)
    {'benchmark': 'gsm8k', 'path': 'own.jsonl', 'limit': 10}
    """
    name, equals, path = text.partition("=")
    first = {} if limit is None else {"limit": limit}
    if name in BENCHMARKS:
        return {"benchmark": name, **({"path": path} if equals else {}), **first}
    return {"path": text, **first}
