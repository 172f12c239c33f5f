"""Features of images from files: a row of numbers for each row of a source. Nothing of a file is run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.config.paths import nearest_path
from trainer.data.prompts.checks import DataError

Features = NDArray[np.float32]  # (N, d)
MAX_BYTES: Final = 64 * 1024**3
MAX_WIDTH: Final = 65_536
_KINDS: Final = ("float16", "float32", "float64")


def load_features(flag: str, path: Path, rows: int, wanted: Sequence[int]) -> Features:
    """The features of the rows that are wanted.

    Args:
        flag: what names the file, for messages.
        path: a .npy file (N, d), or .safetensors with one such tensor; float16, float32 or float64.
        rows: N, how many rows the source has.

    Returns:
        float32 (len(wanted), d), each of length 1, so that a dot product is a cosine.

    Raises:
        DataError: no such file, another format, another shape or type, too large, not finite, or all zero.
    """
    if not path.is_file():
        raise DataError(f"{flag}: no file at {path.absolute()}; {nearest_path(path)}")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{flag} {path} has {path.stat().st_size} bytes, more than {MAX_BYTES}; give fewer features")
    readers = {".npy": _npy, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise DataError(f"{flag} {path} ends in neither of {', '.join(readers)}; save the features as one of these")
    table = readers[path.suffix](f"{flag} {path}", path)
    if len(table) != rows:
        raise DataError(
            f"{flag} {path} has {len(table)} rows, but the file that it is of has {rows}; give a row of features for each"
        )
    return normalised(f"{flag} {path}", np.asarray(table[np.asarray(wanted, dtype=np.int64)], dtype=np.float32))


def normalised(where: str, features: Features) -> Features:
    """Each row divided by its length. Raises DataError: numbers that are not finite, or a row of zeros."""
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    for place in np.flatnonzero(~np.isfinite(lengths) | (lengths == 0)):
        what = "is all zero" if lengths[place] == 0 else "has numbers that are not finite"
        raise DataError(
            f"{where}: row {place + 1} of those that are used {what}, so it has no direction; compute it again"
        )
    return np.asarray(features / lengths[:, None], dtype=np.float32)


def _check(where: str, shape: Sequence[int], kind: str) -> None:
    if len(shape) != 2 or not shape[1]:
        raise DataError(
            f"{where} has the shape {tuple(shape)}; features are (rows, numbers), flattened where they are not"
        )
    if shape[1] > MAX_WIDTH:
        raise DataError(f"{where} has {shape[1]} numbers a row, more than {MAX_WIDTH}; pool the features first")
    if kind not in _KINDS:
        raise DataError(f"{where} has numbers of type {kind}; save them as one of {', '.join(_KINDS)}")


def _npy(where: str, path: Path) -> Any:
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:  # a pickle, a broken header, a file that is cut off
        raise DataError(f"{where} is no array of numbers in NumPy's format ({error})") from error
    if not isinstance(table, np.ndarray):
        raise DataError(f"{where} holds several arrays; save one by numpy.save")
    _check(where, table.shape, str(table.dtype))
    return table


def _safetensors(where: str, path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise DataError(f"{where} holds {', '.join(names) or 'no tensors'}; save one tensor, of all rows")
            kinds = {"F16": "float16", "F32": "float32", "F64": "float64"}
            whole = file.get_slice(names[0])
            kind = whole.get_dtype()
            _check(f"{where}: {names[0]}", whole.get_shape(), kinds.get(kind, kind))
            return file.get_tensor(names[0])
    except SafetensorError as error:
        raise DataError(f"{where} is not in the format of safetensors ({error})") from error


def write_features(path: Path, features: Features) -> None:
    """Keep computed features, by the file's ending."""
    if path.suffix == ".npy":
        np.save(path, features, allow_pickle=False)
        return
    from safetensors.numpy import save_file

    save_file({"features": features}, path)
