"""Which files of a local path are read: those of the requested split, each record once.

No file that could hold records is skipped in silence: skipped files are listed with the reason.
"""

import codecs
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leadspan.errors import DataError
from leadspan.traces.files import SUFFIXES, digest_file, head, kind_of, reading, saved_files

# Words that name a split in a file or directory name, as `datasets` reads them, and held-out data beside them.
_SPLIT_WORDS = {
    "train": "train|training",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation|heldout|holdout",
}
# Whole words only: `latest` holds no `test`.
_NAMED = {split: re.compile(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])", re.I) for split, words in _SPLIT_WORDS.items()}
# Names that `datasets` writes, and files that lie in data sets without being data.
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_METADATA = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "croissant.json"}
_DOCUMENT = re.compile(r"(readme|licen[cs]e|notice|citation)\b.*|.*\.(md|py|ya?ml)", re.I)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a local path that are read, in reading order."""

    files: tuple[Path, ...]
    passed_over: tuple[str, ...] = ()  # what could hold records and is not read, each with the reason


def list_files(path: Path, split: str | None = None, subset: str | None = None, usual: str = "train") -> Listing:
    """The files that hold the rows of a local path, in reading order.

    Args:
        path: A file, a directory of files, or what `Dataset` or `DatasetDict` wrote with `save_to_disk`.
        split: The split to read. Where it is absent and the path has splits, `usual` is read.
        subset: The directory in `path` to read.
        usual: The split that is read where `split` is absent.

    Raises:
        DataError: Nothing can be read, the split or the subset is not there, or files may hold the same records.
    """
    with reading(path):
        if not path.is_dir():
            if kind_of(path) is None:
                kinds = ", ".join(SUFFIXES)
                raise DataError(f"{path}: the suffix {path.suffix!r} is none of {kinds}; convert the file")
            if path.exists() and not path.is_file():
                raise DataError(f"{path}: is not a regular file; write the records to one")
            if subset is not None:
                raise DataError(f"{path}: `subset: {subset}` is the name of a directory, this is a file; drop `subset`")
            named = _split_of((_stem(path),))
            if split not in (None, _stem(path)) and _split_of((split,)) != (named or usual):
                says = f"its name says {named or 'none'}"
                remedy = "drop `split`, or give the file of that split"
                raise DataError(f"{path}: `split: {split}` is asked for, but {says}; {remedy}")
            return Listing((path,))
        if subset is not None:
            if not (path / subset).is_dir():
                names = _are(_directories(path))
                raise DataError(f"{path}: no directory {subset!r} in it; there are {names}; correct `subset`")
            path /= subset
        if (path / "dataset_dict.json").is_file():  # what `DatasetDict` wrote, a directory for each split
            saved = path / (split or usual)
            if not saved.is_dir():
                names = _are(_directories(path))
                raise DataError(f"{saved}: no such split; set `split` to the name of a directory beside it ({names})")
            return Listing(tuple(saved_files(saved)))
        passed_over: list[str] = []
        files = _of_split(path, _gather(path, passed_over), split, usual, passed_over)
        return Listing(files, tuple(passed_over))


def _gather(path: Path, passed_over: list[str]) -> list[Path]:
    """The files of records in a directory; where it has none, those of its one data directory or its splits."""
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return list(saved_files(path))
    files: list[Path] = []
    for entry in sorted(path.iterdir()):
        if entry.is_dir() or entry.name in _METADATA or entry.name.startswith((".", "_")):
            continue
        if kind_of(entry) is None:
            if not _DOCUMENT.fullmatch(entry.name):
                passed_over.append(f"{entry.name} (none of {', '.join(SUFFIXES)})")
        elif entry.is_file():
            files.append(entry)
        else:
            passed_over.append(f"{entry.name} (not a regular file)")
    below = [directory for directory in _directories(path) if _holds_records(directory)]
    if files:
        passed_over += [f"{directory.name}/ (a directory)" for directory in below]
        return files
    # Several directories are one source only where each is a split.
    splits = [directory for directory in below if _split_of((directory.name,))]
    if len(below) > 1 and len(splits) < len(below):
        raise DataError(
            f"{path}: has no file of records itself; set `subset` to one of its directories ({_are(below)})"
        )
    if not below:
        raise DataError(f"{path}: holds no {', '.join(SUFFIXES)} file; correct the path")
    return [file for directory in below for file in _gather(directory, passed_over)]


def _holds_records(directory: Path, depth: int = 3) -> bool:
    entries = sorted(directory.iterdir())
    if any(kind_of(e) is not None and e.name not in _METADATA and e.is_file() for e in entries):
        return True
    return depth > 1 and any(_holds_records(below, depth - 1) for below in _directories(directory))


def _of_split(
    path: Path, files: Sequence[Path], split: str | None, usual: str, passed_over: list[str]
) -> tuple[Path, ...]:
    """The files of a split, refused where two of them may hold the same records in another form.

    They are all the files where no name says a split and none but the usual one is asked for.
    """
    by_split: defaultdict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        by_split[_split_of(file.relative_to(path).with_name(_stem(file)).parts)].append(file)
    if split is not None:
        # A split of exactly this name first, e.g. `test_hard`; else files whose name only contains a word for it.
        names = [(_SHARD.sub("", _stem(file)), *file.relative_to(path).parts[:-1]) for file in files]
        exact = [file for file, own_names in zip(files, names, strict=True) if split in own_names]
        usual_name = _split_of((split,))
        # Files whose name says no split are not of one that is none of the usual: it may be a name misspelt.
        chosen = exact or (by_split.get(usual_name, []) if usual_name else [])
        if not chosen and by_split.keys() == {None} and split == usual:
            chosen = files
    else:
        chosen = files if by_split.keys() == {None} else by_split.get(usual, [])
    if not chosen:
        there = "; ".join(f"{name or 'no split'}: {_are(of_split)}" for name, of_split in by_split.items())
        raise DataError(
            f"{path}: no file of the split {split or usual} ({there}); set `split`, or give one file as the path"
        )
    for name, of_split in by_split.items():
        reason = f"split {name}" if name else "its name says no split"
        passed_over += [f"{file.relative_to(path)} ({reason})" for file in of_split if file not in chosen]
    json_files = [file for file in chosen if kind_of(file) == ".json"]
    objects = [file for file in json_files if not head(file).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")]
    if len(objects) < len(chosen):  # settings and metadata have a name of their own in every tool
        passed_over += [f"{file.relative_to(path)} (a JSON object among files of records)" for file in objects]
        chosen = [file for file in chosen if file not in objects]
    remedy = "which may be the same records twice; give one file as the path, or move the others away"
    if len({kind_of(file) for file in chosen}) > 1:
        raise DataError(f"{path}: holds files of several kinds ({_are(chosen)}), {remedy}")
    # Heads first: hashing every file of a large data set would take minutes.
    heads = {file: head(file) for file in chosen}
    num_with = Counter(heads.values())
    alike = [file for file, start in heads.items() if start and num_with[start] > 1]
    seen: dict[object, Path] = {}
    by_name = ((file.with_name(_stem(file)), file) for file in chosen)
    for key, file in itertools.chain(by_name, ((digest_file(file, True), file) for file in alike)):
        if seen.setdefault(key, file) is not file:
            raise DataError(f"{path}: holds {_are((seen[key], file))}, {remedy}")
    return tuple(chosen)


def _split_of(names: Sequence[str]) -> str | None:
    """The split that the outermost of some directory and file names says; None where it says none or several."""
    for part in names:
        said = [split for split, pattern in _NAMED.items() if pattern.search(part)]
        if said:
            return said[0] if len(said) == 1 else None
    return None


def _stem(file: Path) -> str:
    """The name without its suffixes of kind and compression."""
    lowered = file.name.lower()
    return next((file.name[: -len(suffix)] for suffix in SUFFIXES if lowered.endswith(suffix)), file.name)


def _directories(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith((".", "_")))


def _are(paths: Sequence[Path]) -> str:
    """Some names, for messages."""
    shown = ", ".join(path.name for path in paths[:5]) or "none"
    return f"{shown}, ..." if len(paths) > 5 else shown
