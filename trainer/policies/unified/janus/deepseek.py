"""Folders in DeepSeek's layout: converted once into transformers', from which all starts go, and written."""

from __future__ import annotations

import fcntl
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.config import ConfigError
from trainer.policies.unified.janus.geometry import read_fields, to_fields, to_janus
from trainer.policies.unified.janus.layout import (
    CODEBOOK_USED,
    CODEBOOK_USED_LENGTH,
    check_whole,
    is_unused,
    table_of,
    to_deepseek,
    to_transformers,
)
from trainer.policies.unified.janus.processing import ids_of, read_tokenizer, write_deepseek, write_transformers

_INSIDE = "transformers"  # of DeepSeek's folder, where nothing else is named
_RECORD = "converted.json"
_SHARD_BYTES = 5 * 10**9
_GB = 10**9


def converted(folder: Path, named: Path | None) -> Path:
    """The folder in transformers' layout that a folder in DeepSeek's is converted into: at the first start, then found again.

    Processes that start together wait for the one that converts. A folder whose source has changed since is made anew.

    Args:
        named: `policy.converted`; None is a folder inside DeepSeek's.

    Raises:
        ConfigError: files are missing, damaged or of another model, or the folder cannot be written.
    """
    target = folder / _INSIDE if named is None else named
    files = source_files(folder)
    record = {each.name: [each.stat().st_size, each.stat().st_mtime_ns] for each in files}
    if _record(target) == record:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            if _record(target) != record:  # else another process has made it while this one waited
                _refuse_others(target)
                size = sum(each.stat().st_size for each in files) / _GB
                print(f"policy.pretrained = {folder}: {size:.3g} GB are converted once, into {target}", file=sys.stderr)
                _convert(folder, files, Path(scratch) / "made")
                (Path(scratch) / "made" / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
                if target.exists():
                    target.rename(Path(scratch) / "old")
                (Path(scratch) / "made").rename(target)
    except OSError as error:
        raise ConfigError(
            f"policy.pretrained = {folder} is in DeepSeek's layout and is converted once into {target}, which cannot be written "
            f"({error}); set policy.converted to a folder with room for as much again"
        ) from error
    return target


def source_files(folder: Path) -> list[Path]:
    """The weight files of a folder in DeepSeek's layout: safetensors where there are any, else pickles.

    Raises:
        ConfigError: there are none, or one that an index names is missing.
    """
    for plain, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / plain).is_file():
            return [folder / plain]
        if (folder / index).is_file():
            try:
                named = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise ConfigError(f"{folder / index} names no files ({error}); download the folder again") from error
            files = [folder / Path(name).name for name in sorted(set(named))]
            if missing := [each for each in files if not each.is_file()]:
                raise ConfigError(f"{folder / index} names {missing[0].name}, which is not there; download it too")
            return files
    raise ConfigError(
        f"{folder} holds no weights: DeepSeek's are in pytorch_model.bin, in its shards with an index, or in model.safetensors"
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file. A pickle is read by a reader that builds tensors and runs nothing (`weights_only`).

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{path} cannot be read as tensors alone ({first}); nothing in it was run. Download it again, or save its tensors "
            "as safetensors where you trust it"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise ConfigError(
            f"{path} holds something else than tensors by name; give the model's weights, not a checkpoint"
        )
    return tensors


def write_folder(network: Any, processor: Any, folder: Path, dtype: torch.dtype, base: Path | None) -> None:
    """A folder as DeepSeek publishes it, with safetensors in place of the pickle.

    Args:
        network: of transformers, adapters merged.
        base: the folder in DeepSeek's layout that the model started from, if it did: tokenizer files are its own, and so are
            tensors that nothing reads.
    """
    table = table_of(network.config)
    tensors = {name: each.to(dtype).cpu() for name, each in to_deepseek(network.state_dict(), table).items()}
    tensors |= {name: each.to(dtype) for name, each in _unused(base).items()}
    tensors.setdefault(CODEBOOK_USED, torch.zeros(CODEBOOK_USED_LENGTH, dtype=dtype))  # its reader is strict about it
    _save(tensors, folder)
    name = str(dtype).removeprefix("torch.")
    fields = to_fields(network.config, name) if base is None else {**read_fields(base), "torch_dtype": name}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    write_deepseek(folder, processor, base)


def _convert(folder: Path, files: list[Path], made: Path) -> None:
    """One file of transformers' for each of DeepSeek's: no more than one is in memory, and that as the system pleases."""
    made.mkdir()
    tokenizer, where = read_tokenizer(folder), str(folder / "config.json")
    config = to_janus(read_fields(folder), ids_of(tokenizer), where)
    table = table_of(config)
    found: list[str] = []
    weights: dict[str, str] = {}
    kinds: dict[torch.dtype, None] = {}
    for number, path in enumerate(files, 1):
        tensors = read_file(path)
        found += tensors
        state = {name: each.contiguous() for name, each in to_transformers(tensors, table, str(path)).items()}
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(state, made / name, metadata={"format": "pt"})
        weights |= dict.fromkeys(state, name)
        kinds |= dict.fromkeys(each.dtype for each in state.values())
    check_whole(found, table, str(folder))
    if len(files) > 1:
        index = {"metadata": {}, "weight_map": weights}
        (made / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config.dtype = str(next(iter(kinds))).removeprefix("torch.")
    config.architectures = ["JanusForConditionalGeneration"]
    config.save_pretrained(made)
    begin = tokenizer.convert_tokens_to_ids(tokenizer.boi_token)
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "guidance_scale": 5,
        "generation_kwargs": {"boi_token_id": begin},
    }
    (made / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    vision = config.vision_config
    write_transformers(made, tokenizer, folder, vision.image_size, vision.num_image_tokens)


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    """One safetensors file, or as many as keep each below what file systems and hubs take, with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if held and held + tensor.nbytes > _SHARD_BYTES:
            shards.append({})
            held = 0
        shards[-1][name] = tensor.contiguous()
        held += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weights: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weights |= dict.fromkeys(shard, name)
    total = sum(each.nbytes for each in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _unused(base: Path | None) -> dict[str, Tensor]:
    """Of the base's own files, the tensors that nothing reads: written again, so that the way there and back loses nothing."""
    if base is None:
        return {}
    return {name: each for path in source_files(base) for name, each in read_file(path).items() if is_unused(name)}


def _record(folder: Path) -> Any:
    """What a converted folder was made of; None where there is none."""
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _refuse_others(target: Path) -> None:
    """Raises ConfigError where the folder holds something that no conversion wrote."""
    if target.exists() and _record(target) is None and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{target} is where a model in DeepSeek's layout would be converted into, and holds something else; set "
            "policy.converted to an empty or new folder"
        )


def _is_zip(path: Path) -> bool:
    """Whether a pickle is in today's format, which can be read where it lies."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time inside the block, among those that convert into `target`."""
    lock = target.parent / f".{target.name}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
