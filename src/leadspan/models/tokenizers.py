"""Tokenizers: loading, and whether a model's vocabulary is that of the data.

Apart from `loading`, which imports Transformers' models: that takes two seconds, and data are prepared without a model.
"""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from leadspan.errors import ModelError
from leadspan.models.reading import check_directory, reading
from leadspan.models.settings import ModelSettings, Pretrained


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory, Hub name, or GGUF file in either.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    directory, file = path, None
    if path.endswith(".gguf"):
        directory, _, name = path.rpartition("/")
        file = None if (Path(directory) / "tokenizer.json").exists() else name
    check_directory(directory, "tokenizer", file)
    options = {} if file is None else {"gguf_file": file}
    with reading(f"tokenizer {path}"):
        tokenizer = AutoTokenizer.from_pretrained(directory, revision=revision, trust_remote_code=False, **options)
    if not isinstance(tokenizer.model_max_length, int | float):
        shown = repr(tokenizer.model_max_length)[:60]
        raise ModelError(
            f"tokenizer {path}: tokenizer_config.json: model_max_length = {shown} is not a number; leave it out"
        )
    if file is not None:
        return tokenizer
    files = {*tokenizer.vocab_files_names.values(), "tekken.json"}
    if Path(directory).is_dir() and not any((Path(directory) / name).exists() for name in files):
        raise ModelError(f"tokenizer {path}: it has none of {', '.join(sorted(files))}; give a tokenizer's directory")
    return tokenizer


def load_own_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a model comes with; None for one that is built from a config.

    Raises:
        ModelError: It cannot be read.
    """
    return load_tokenizer(settings.tokenizer_path, settings.revision) if isinstance(settings, Pretrained) else None


def check_vocabulary(
    data: PreTrainedTokenizerBase, role: str, own_tokenizer: PreTrainedTokenizerBase | None, num_rows: int | None
) -> None:
    """Check that every token id means the same to a model and the data, and that the model's head has a row for it.

    Args:
        data: Tokenizer that renders the data.
        role: What the model is, for messages: `student` or `teacher`.
        own_tokenizer: The model's own tokenizer, or None when it has none.
        num_rows: Rows of the model's head; None where they are not known.

    Raises:
        ModelError: Names the first token that differs, or the head that is too small.
    """
    ours = data.get_vocab()
    needed = max(ours.values()) + 1  # ids may have gaps, so the number of tokens is not enough
    if num_rows is not None and num_rows < needed:
        raise ModelError(
            f"{role}: its head has {num_rows} rows, the tokenizer {needed} token ids; "
            "take the tokenizer that belongs to the models, or resize the embeddings"
        )
    theirs = ours if own_tokenizer is None else own_tokenizer.get_vocab()
    if theirs == ours:
        return
    # The model may know more tokens than the data: only those of the data must agree.
    by_id = {index: token for token, index in theirs.items()}
    for token, index in sorted(ours.items(), key=lambda item: item[1]):
        if by_id.get(index) != token:
            raise ModelError(
                f"the {role}'s vocabulary is not that of the data: token id {index} is {token!r} in the data and "
                f"{by_id.get(index)!r} for the {role}; models distilled over the vocabulary need one tokenizer"
            )
