"""The truncated traces of a recipe as data sets that TRL, Axolotl and LLaMA-Factory train on, token for token.

All three accept rows that are already tokenised: TRL's `SFTTrainer` takes any data set with a column `input_ids` (and
uses its `labels`), Axolotl one with exactly `input_ids`, `attention_mask` and `labels`, LLaMA-Factory a saved
`DatasetDict` at `tokenized_path`. So we export ids and no text: a trace that was cut after it was rendered cannot be
written as a conversation, since templates close or drop an unfinished chain of thought, and text that is tokenised
again need not give the same ids. A label is the token's id where the position has a loss and -100 where it has none.

Only the data is exported. These trainers learn by cross-entropy on one label for each position, so the teacher is left
out, and weights other than 0 and 1, a token selection that asks a model, and a cut that changes over training are
refused.

**Source**: TRL 1.16, docstring of `SFTTrainer`; Axolotl, docs/dataset-formats/tokenized; LLaMA-Factory,
data/loader.py.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, Sequence, Value
from datasets.arrow_writer import ArrowWriter

from leadspan.data.examples import Examples
from leadspan.data.supervision import RandomTokens
from leadspan.data.truncation.policy import CutCounts
from leadspan.errors import SettingsError
from leadspan.export.configs import CONFIGS, Exported
from leadspan.inputs import prepare_data
from leadspan.recipe import Recipe

IGNORED = -100
"""Label of a position without a loss, in all three trainers."""
_FEATURES = Features(
    {
        "input_ids": Sequence(Value("int32")),
        "attention_mask": Sequence(Value("int8")),
        "labels": Sequence(Value("int64")),
    }
)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        files: The data sets and the files of settings.
        num_train: Training examples.
        num_validation: Validation examples, uncut.
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
    (Axolotl).

    Args:
        recipe: The recipe; its cut, supervision and tokenizer decide what is written.
        directory: Where to write; created if it is missing.

    Raises:
        SettingsError: The recipe asks for something that labels cannot hold.
        DataError: The data cannot be used.
    """
    check_exportable(recipe)
    data = prepare_data(recipe)
    sets = {"train": data.examples} | ({"validation": data.validation} if data.validation is not None else {})
    # After the data, so that a recipe at fault leaves no directory behind.
    directory.mkdir(parents=True, exist_ok=True)
    # Rows go through a file of their own, because a data set in memory could be larger than the machine's.
    staged = {name: directory / f".{name}.arrow" for name in sets}
    splits = {name: write_rows(examples, staged[name]) for name, examples in sets.items()}
    DatasetDict({**splits}).save_to_disk(directory / "dataset")
    files = [directory / "dataset"]
    for name, rows in splits.items():
        files.append(directory / f"{name}.parquet")
        rows.to_parquet(files[-1])
        staged[name].unlink()
    # The tokens of validation count too: a trainer would cut them at the same limit.
    longest = max(max(examples.lengths) for examples in sets.values())
    exported = Exported(directory, recipe, longest, has_validation="validation" in sets)
    for file, text in CONFIGS.items():
        files.append(directory / file)
        files[-1].write_text(text(exported), encoding="utf-8")
    return Written(
        files=tuple(files),
        num_train=len(splits["train"]),
        num_validation=len(splits["validation"]) if "validation" in splits else 0,
        num_tokens=sum(data.examples.lengths),
        num_labels=data.examples.counts.weighted_tokens,
        counts=data.examples.counts,
        left_out=data.splits.left_out,
    )


def check_exportable(recipe: Recipe) -> None:
    """Refuse recipes that labels alone cannot express.

    Raises:
        SettingsError: A weight is neither 0 nor 1, a model selects the tokens, or the cut changes over training.
    """
    # A label can be ignored or learnt, and nothing between.
    weights = {name: getattr(recipe.supervision, name) for name in ("prompt", "cot", "answer")}
    fractions = [f"supervision.{name}={weight:g}" for name, weight in weights.items() if weight not in (0, 1)]
    if fractions:
        raise SettingsError(f"export: {', '.join(fractions)}: a label is learnt or not; set the weights to 0 or 1")
    selection = recipe.supervision.token_selection
    if selection is not None and not isinstance(selection, RandomTokens):
        raise SettingsError(
            f"export: supervision.token_selection.kind={selection.kind} asks a model at every step; "
            "export without it, or with kind: random"
        )
    if len(recipe.cut.stages) > 1:
        raise SettingsError(
            f"export: cut {recipe.cut.label} changes over training, and a data set does not; "
            "export each of its proportions by itself (cut.kind=lead cut.p=...)"
        )


def write_rows(examples: Examples, file: Path) -> Dataset:
    """Examples in their order as rows of ids, ones, and labels, memory-mapped from an Arrow file."""
    # `Dataset.from_list` would hold all rows in memory, as Python integers.
    with ArrowWriter(path=str(file), features=_FEATURES) as writer:
        for index in examples.usable:
            example = examples[index]
            row = {
                "input_ids": example.input_ids.astype(np.int32),
                "attention_mask": np.ones(len(example.input_ids), dtype=np.int8),
                "labels": np.where(example.weights > 0, example.input_ids, IGNORED),
            }
            writer.write(row)
        writer.finalize()
    return Dataset.from_file(str(file))
