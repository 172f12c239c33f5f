"""Which files of a folder or of a hub's data set are a split's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from machine.hub import HubError, fetch_folder, is_hub_id
from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError
from trainer.data.rows.files import JoinedRows, RowFile, open_file

_SUFFIXES = (".parquet", ".jsonl", ".json")
_ALIASES = {
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
    "train": ("train", "training"),
}
_NOT_DATA = frozenset(("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "package.json"))


def open_split(path: Path, format: str, split: str) -> JoinedRows:
    """The rows of a split of a file, a folder or a hub id. A file is one split, whatever it is called.

    Raises:
        DataError: nothing is there, the split is not among the folder's, or a file cannot be read.
    """
    if path.is_dir():
        return _folder(path, format, split)
    if is_hub_id(path):
        return _folder(_from_hub(path.as_posix()), format, split)
    if not path.exists():
        refuse_missing(path)
    return JoinedRows([open_file(path, format, split)])


def check_there(path: Path) -> None:
    """Raises DataError about a path that is neither there nor an id of the hub, of which nothing is asked yet."""
    if not path.exists() and not is_hub_id(path):
        refuse_missing(path)


def refuse_missing(path: Path) -> NoReturn:
    """Raises DataError about a path that is not there."""
    raise DataError(
        f"no data at {path.absolute()}; {nearest_path(path)} (`path` counts from the working directory; a hub id is owner/name)"
    )


def _folder(folder: Path, format: str, split: str) -> JoinedRows:
    if (folder / "dataset_dict.json").is_file():  # save_to_disk of a DatasetDict: a folder for each split
        names = sorted(each.name for each in folder.iterdir() if (each / "state.json").is_file())
        found = next((name for name in names if name in _names(split)), None)
        if found is None:
            raise _no_split(folder, split, names)
        return _saved(folder / found)
    if (folder / "state.json").is_file():
        return _saved(folder)
    files = [
        each
        for each in sorted(folder.rglob("*"))
        if each.suffix.lower() in _suffixes(format) and _is_data(each, folder)
    ]
    marked = {each: _split_of(each.relative_to(folder)) for each in files}
    of_split = [each for each in files if marked[each] in (split, _kin(split))]
    if not of_split and not any(marked.values()):
        of_split = files
    if not of_split:
        if files:
            raise _no_split(folder, split, sorted({name for name in marked.values() if name}))
        wanted = ", ".join(_suffixes(format))
        raise DataError(f"{folder.absolute()} holds no data: no file that ends in {wanted}, and no saved data set")
    kinds = sorted({each.suffix for each in of_split})
    if len(kinds) > 1:
        raise DataError(
            f"{folder.absolute()}: split {split} is there as {' and '.join(kinds)}; choose one by `format`, or name a file as `path`"
        )
    return JoinedRows([open_file(each, format, split) for each in of_split])


def _saved(folder: Path) -> JoinedRows:
    """What `save_to_disk` wrote: Arrow files in the order that its state names."""
    try:
        state: Any = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(each["filename"]) for each in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'}: not the state of a saved data set ({error!r})") from error
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{folder}: a saved selection of rows; save it again with flatten_indices(), or as Parquet")
    if any(Path(name).name != name for name in names):
        raise DataError(f"{folder / 'state.json'}: names files outside its folder: {', '.join(names)}")
    files: list[RowFile] = [open_file(folder / name, "arrow", "train") for name in names]
    return JoinedRows(files)


def _is_data(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder).parts
    return path.is_file() and path.name not in _NOT_DATA and not any(part.startswith((".", "_")) for part in inside)


def _suffixes(format: str) -> Sequence[str]:
    return _SUFFIXES if format == "auto" else (f".{format}",)


def _split_of(path: Path) -> str | None:
    """The split that a path's words name, as in data/train-00000-of-00002.parquet; None where none does."""
    words = [word for part in path.with_suffix("").parts for word in re.split(r"[^A-Za-z]+", part.lower())]
    return next((kin for word in words for kin, names in _ALIASES.items() if word in names), None)


def _kin(split: str) -> str | None:
    """What `_split_of` calls a split of this name."""
    return next((kin for kin, names in _ALIASES.items() if split.lower() in names), None)


def _names(split: str) -> Sequence[str]:
    kin = _kin(split)
    return (split, *(_ALIASES[kin] if kin else ()))


def _no_split(folder: Path, split: str, there: Sequence[str]) -> DataError:
    return DataError(
        f"{folder.absolute()} has no split called {split}; there are: {', '.join(there) or 'none'}; give one of them as `split`"
    )


def _from_hub(name: str) -> Path:
    """The folder of a hub's data set, fetched once into the hub's own cache."""
    try:
        return fetch_folder(name, "path", None, data_set=True)
    except HubError as error:
        raise DataError(str(error)) from error
