"""The truncated traces of a recipe for TRL, Axolotl and LLaMA-Factory, token for token, with settings to train on them.

All three accept rows that are already tokenised: TRL's `SFTTrainer` takes any data set with a column `input_ids` (and
uses its `labels`), Axolotl one with exactly `input_ids`, `attention_mask` and `labels`, LLaMA-Factory a saved
`DatasetDict` at `tokenized_path`. So we export ids and no text: a trace that was cut after it was rendered cannot be
written as a conversation, since templates close or drop an unfinished chain of thought, and text that is tokenised
again need not give the same ids. A label is the token's id where the position has a loss and -100 where it has none.

Only the data is exported. These trainers learn by cross-entropy on one label for each position, so the teacher is left
out, and weights other than 0 and 1, a token selection that asks a model, and a cut that changes over training are
refused. The settings take the optimiser and the length of the run from the recipe. Their length limit is the longest
exported example, so that no trainer cuts again. All three average the loss over the labels of a step, as leadspan does.

**Source**: TRL 1.16, docstring of `SFTTrainer`; Axolotl, docs/dataset-formats/tokenized; LLaMA-Factory,
data/loader.py.
"""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, Sequence, Value
from datasets.arrow_writer import ArrowWriter
from ruamel.yaml import YAML

from leadspan.data.examples import Examples
from leadspan.data.supervision import RandomTokens
from leadspan.data.truncation.policy import CutCounts
from leadspan.errors import RunError, SettingsError
from leadspan.files import locked
from leadspan.inputs import prepare_data
from leadspan.models.settings import Pretrained
from leadspan.recipe import Recipe
from leadspan.training.settings import ByExamples

IGNORED = -100
"""Label of a position without a loss, in all three trainers."""
_FEATURES = Features(
    {
        "input_ids": Sequence(Value("int32")),
        "attention_mask": Sequence(Value("int8")),
        "labels": Sequence(Value("int64")),
    }
)
# All three pass the name on to Transformers, which has no one_cycle; a comment of the files says so.
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup", "one_cycle": "cosine"}
_DATA = ("dataset", "train.parquet", "validation.parquet")
_NO_MODEL = "DIRECTORY-OF-THE-STUDENT"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        files: The data sets and the files of settings.
        num_tokens: Tokens of the training examples.
        num_labels: Positions with a loss among them.
        counts: What the cut removed, and the examples that it dropped by reason.
        left_out: Number of records that were left out before the cut, by reason.
    """

    files: tuple[Path, ...]
    num_train: int
    num_validation: int
    num_tokens: int
    num_labels: int
    counts: CutCounts
    left_out: dict[str, int]


def export_data(recipe: Recipe, directory: Path) -> Written:
    """Write the examples of a recipe, cut and weighed, and a file of settings for each trainer.

    `dataset/` is a saved `DatasetDict` (TRL, LLaMA-Factory), `train.parquet` and `validation.parquet` hold the same
    (Axolotl). The recipe's cut, supervision and tokenizer decide what is written.

    Raises:
        SettingsError: The recipe asks for something that labels cannot hold (a weight that is neither 0 nor 1, tokens
            that a model selects, a cut that changes over training), or other data would be replaced.
        DataError: The data cannot be used.
        RunError: Another process writes into the directory.
    """
    weights = {name: getattr(recipe.supervision, name) for name in ("prompt", "cot", "answer")}
    fractions = [f"supervision.{name}={weight:g}" for name, weight in weights.items() if weight not in (0, 1)]
    if fractions:
        raise SettingsError(f"export: {', '.join(fractions)}: a label is learnt or not; set the weights to 0 or 1")
    selection = recipe.supervision.token_selection
    if selection is not None and not isinstance(selection, RandomTokens):
        asks = f"supervision.token_selection.kind={selection.kind} asks a model at every step"
        raise SettingsError(f"export: {asks}; export without it, or with kind: random")
    if len(recipe.cut.stages) > 1:
        raise SettingsError(
            f"export: cut {recipe.cut.label} changes over training, and a data set does not; "
            "export each of its proportions by itself (cut.kind=lead cut.p=...)"
        )
    staged = directory / ".being-written"
    is_export = any(path.exists() for path in (staged, *(directory / name for name in CONFIGS)))
    if not is_export and (others := [name for name in _DATA if (directory / name).exists()]):
        text = f"export: {directory / others[0]} was written by no export and would be lost; give another directory"
        raise SettingsError(text)
    data = prepare_data(recipe)
    sets = {"train": data.examples} | ({"validation": data.validation} if data.validation is not None else {})
    # The tokens of validation count too: a trainer would cut them at the same limit.
    longest = max(max(examples.lengths) for examples in sets.values())
    exported = Exported(directory, recipe, longest, has_validation="validation" in sets)
    refusal = "{}: another process (id {}) writes into it; wait for it, or give another directory"
    # After the data, so that a recipe at fault leaves no directory behind.
    with locked(directory / ".lock", lambda holder: RunError(refusal.format(directory, holder))):
        shutil.rmtree(staged, ignore_errors=True)  # of a process that was killed
        staged.mkdir()
        splits = {name: _write_rows(examples, name, staged) for name, examples in sets.items()}
        DatasetDict({**splits}).save_to_disk(staged / "dataset")
        for file, text in CONFIGS.items():
            (staged / file).write_text(text(exported), encoding="utf-8")
        # Under their names only when all are whole, and never beside those of another export.
        names = ["dataset", *(f"{name}.parquet" for name in splits), *CONFIGS]
        for old in (directory / name for name in (*_DATA, *CONFIGS)):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        for name in names:
            (staged / name).rename(directory / name)
        shutil.rmtree(staged, ignore_errors=True)  # NFS keeps a file that is mapped into memory
    return Written(
        files=tuple(directory / name for name in names),
        num_train=len(splits["train"]),
        num_validation=len(splits.get("validation", ())),
        num_tokens=sum(data.examples.lengths),
        num_labels=data.examples.counts.weighted_tokens,
        counts=data.examples.counts,
        left_out=data.splits.left_out,
    )


def _write_rows(examples: Examples, name: str, directory: Path) -> Dataset:
    """The rows of a split, in a file that is mapped into memory and in one of Parquet."""
    path = directory / f"{name}.arrow"
    # `Dataset.from_list` would hold all rows in memory, as Python integers.
    with ArrowWriter(path=str(path), features=_FEATURES) as writer:
        for example in (examples[index] for index in examples.usable):
            ids = example.input_ids
            labels = np.where(example.weights > 0, ids, IGNORED)
            mask = np.ones(len(ids), dtype=np.int8)
            writer.write({"input_ids": ids.astype(np.int32), "attention_mask": mask, "labels": labels})
        writer.finalize()
    rows = Dataset.from_file(str(path))
    rows.to_parquet(directory / f"{name}.parquet")
    return rows


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported data set, its longest example in tokens, and whether it has validation examples, which are uncut."""

    directory: Path
    recipe: Recipe
    longest: int
    has_validation: bool

    @property
    def model(self) -> str:
        """Starting weights, as a path or a name; a placeholder for a student that the recipe builds from a config."""
        return self.recipe.student.path if isinstance(self.recipe.student, Pretrained) else _NO_MODEL

    def revision(self, name: str) -> dict[str, str]:
        """The Hub revision of the starting weights under a trainer's name for it; empty without one."""
        student = self.recipe.student
        return {name: student.revision} if isinstance(student, Pretrained) and student.revision else {}

    @property
    def lora(self) -> dict[str, Any]:
        """Rank, scale, dropout and modules of the recipe's adapters, under PEFT's names; empty without adapters."""
        lora = self.recipe.training.lora
        renamed = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
        return {renamed.get(name, name): value for name, value in lora or ()}

    @property
    def examples_per_step(self) -> int:
        """Examples of an optimiser step; 8 where the recipe packs to a token budget."""
        batching = self.recipe.training.batching
        return batching.examples_per_step if isinstance(batching, ByExamples) else 8


def trl_script(exported: Exported) -> str:
    """A script that runs `SFTTrainer` on the saved data set."""
    training = exported.recipe.training
    model_options = exported.revision("revision")
    options: dict[str, Any] = {
        "output_dir": str(exported.directory / "trl"),
        **({"model_init_kwargs": model_options} if model_options else {}),
        "max_length": exported.longest,
        "packing": False,  # packed rows would need flash attention, which keeps them apart
        **_optimisation(exported, warmup="warmup_steps"),  # Transformers takes a number below 1 as a share
        "gradient_checkpointing": training.gradient_checkpointing,
        "seed": exported.recipe.seed,
    }
    has_bf16 = "torch.cuda.is_available() and torch.cuda.is_bf16_supported()"
    bf16 = has_bf16 if training.precision == "auto" else str(training.precision == "bfloat16")
    lines = "\n".join([*(f"    {name}={value!r}," for name, value in options.items()), f"    bf16={bf16},"])
    revision = exported.recipe.tokenizer_revision
    tokenizer = repr(exported.recipe.tokenizer_path) + (f", revision={revision!r}" if revision else "")
    evaluated = ', eval_dataset=data["validation"]' if exported.has_validation else ""
    peft = adapters = ""
    if exported.lora:
        peft = "from peft import LoraConfig\n"
        adapters = f'    peft_config=LoraConfig(task_type="CAUSAL_LM", **{exported.lora!r}),\n'
    return (
        f"{_comment(exported)}"
        "import torch\n"
        "from datasets import load_from_disk\n"
        f"{peft}"
        "from transformers import AutoTokenizer\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        f"data = load_from_disk({str(exported.directory / 'dataset')!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({tokenizer})\n"
        f"settings = SFTConfig(\n{lines}\n)\n"
        f"trainer = SFTTrainer(\n    {exported.model!r}, args=settings, processing_class=tokenizer, "
        f'train_dataset=data["train"]{evaluated},\n{adapters})\n'
        "trainer.train()\n"
    )


def axolotl_yaml(exported: Exported) -> str:
    """Settings of `axolotl train`; the empty `type` says that the rows are tokenised."""
    training = exported.recipe.training
    read = {"datasets": "train"} | ({"test_datasets": "validation"} if exported.has_validation else {})
    values: dict[str, Any] = {
        "base_model": exported.model,
        **exported.revision("revision_of_model"),
        "tokenizer_config": exported.recipe.tokenizer_path,
    }
    for key, name in read.items():
        path = str(exported.directory / f"{name}.parquet")
        values[key] = [{"path": path, "ds_type": "parquet", "split": "train", "type": None}]
    values |= {
        "dataset_prepared_path": str(exported.directory / "axolotl-prepared"),
        "output_dir": str(exported.directory / "axolotl"),
        "sequence_len": exported.longest,
        "sample_packing": False,
        "optimizer": "adamw_torch",
        **_optimisation(exported, epochs="num_epochs", batch="micro_batch_size", schedule="lr_scheduler"),
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": "auto" if training.precision != "float32" else False,
        "seed": exported.recipe.seed,
    }
    if exported.lora:
        rank, alpha, dropout, modules = exported.lora.values()
        values |= {"adapter": "lora", "lora_r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
        values |= {"lora_target_linear": True} if modules == "all-linear" else {"lora_target_modules": modules}
    return _comment(exported) + to_yaml(values)


def llama_factory_yaml(exported: Exported) -> str:
    """Settings of `llamafactory-cli train`."""
    values: dict[str, Any] = {
        "model_name_or_path": exported.model,
        **exported.revision("model_revision"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "template": "empty",
        "dataset": "leadspan",  # required, and not read where `tokenized_path` is given
        "tokenized_path": str(exported.directory / "dataset"),
        "cutoff_len": exported.longest,
        "output_dir": str(exported.directory / "llama-factory"),
        **_optimisation(exported),  # gradient checkpointing is on by default there
        "bf16": exported.recipe.training.precision != "float32",
        "seed": exported.recipe.seed,
    }
    if exported.lora:
        rank, alpha, dropout, modules = exported.lora.values()
        names = "all" if modules == "all-linear" else modules if isinstance(modules, str) else ",".join(modules)
        values |= {"finetuning_type": "lora", "lora_rank": rank, "lora_alpha": alpha, "lora_dropout": dropout}
        values["lora_target"] = names
    return _comment(exported) + to_yaml(values)


CONFIGS: dict[str, Callable[[Exported], str]] = {
    "trl_sft.py": trl_script,
    "axolotl.yaml": axolotl_yaml,
    "llama_factory.yaml": llama_factory_yaml,
}
"""Name of each file and the function that writes it."""


def _optimisation(
    exported: Exported,
    epochs: str = "num_train_epochs",
    batch: str = "per_device_train_batch_size",
    schedule: str = "lr_scheduler_type",
    warmup: str = "warmup_ratio",
) -> dict[str, Any]:
    """The optimiser and the length of the run, under the names that a trainer has for them."""
    training = exported.recipe.training
    # A recipe has steps or epochs, never both.
    length = {"max_steps": training.steps} if training.epochs is None else {epochs: training.epochs}
    return {
        **length,
        batch: 1,  # no padding, whatever the lengths; accumulation makes steps of the recipe's size
        "gradient_accumulation_steps": exported.examples_per_step,
        "learning_rate": training.learning_rate,
        schedule: _SCHEDULES[training.schedule],
        warmup: training.warmup_share,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.betas[0],
        "adam_beta2": training.betas[1],
        "max_grad_norm": training.max_grad_norm,
    }


def _comment(exported: Exported) -> str:
    """Where a file comes from, and the properties of the recipe that its settings cannot express."""
    recipe, training = exported.recipe, exported.recipe.training
    lines = [
        f"Written by `leadspan export` from the recipe {json.dumps(recipe.name)}, cut {recipe.cut.label}.",
        "Cross-entropy on the truncated traces alone: no teacher takes part.",
        f"A step has {exported.examples_per_step} examples on one device: on several, divide the accumulation by them.",
    ]
    # Each of these would go unseen: the trainer would run, and train something else.
    if exported.model == _NO_MODEL:
        lines.append(f"The recipe builds its student from a config: save it, and write its path for {_NO_MODEL}.")
    if isinstance(recipe.student, Pretrained) and recipe.student.gguf_file is not None:
        lines.append(f"The recipe's student is the GGUF file {json.dumps(recipe.student.gguf_file)}: convert it first.")
    if recipe.rollout is not None:
        also = "also learns" if recipe.has_traces else "learns"
        lines.append(f"The recipe's student {also} from its own rollouts, which cannot be exported.")
    if not isinstance(training.batching, ByExamples):
        lines.append("The recipe packs to a token budget; a step here has 8 examples instead.")
    if training.schedule == "one_cycle":
        lines.append("The recipe's one_cycle schedule is not available here; cosine replaces it.")
    return "".join(f"# {line}\n" for line in lines)


def to_yaml(values: dict[str, Any]) -> str:
    """A mapping as YAML 1.1, which those programs read, keys in their order."""
    stream = io.StringIO()
    writer = YAML()
    writer.version = (1, 1)  # of YAML 1.2 they take `4e-06` for text, and a name such as `on` for true
    writer.default_flow_style = False
    # A path is never broken over two lines.
    writer.width = 4096
    writer.dump(values, stream)
    return stream.getvalue()
