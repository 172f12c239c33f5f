"""DeepGen checkpoints: the files they come in, the names they use, and the language model's adapters, which are merged.

A checkpoint holds the queries, the projectors, the connector and the transformer, and before RL also what supervised
training changed in the language model: whole weights, or PEFT adapters on every linear layer and on the embedding.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.config import ConfigError

LORA_ALPHA = 128.0  # DeepGen's; the rank is the adapters' own
_SHOWN = 3  # names that a message gives
_FILES = ("model.safetensors.index.json", "model.safetensors", "model.pt", "model.pth", "pytorch_model.bin")
_PICKLED = (".pt", ".pth", ".bin")
_LINEAR_ADAPTER = ["lora_A.default.weight", "lora_B.default.weight"]
_EMBEDDING_ADAPTER = ["lora_embedding_A.default", "lora_embedding_B.default"]
_ADAPTER = re.compile(rf"\.({'|'.join(map(re.escape, _LINEAR_ADAPTER + _EMBEDDING_ADAPTER))})$")
# Not read: the autoencoder and the head are the base models' own, averages belong to another training.
_IGNORED = ("vae.", "ema.", "lmm.lm_head.")


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint that is not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def open_checkpoint(path: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint under the names of `DeepGenNetworks`, with PEFT's additions to them.

    Args:
        path: a .safetensors file, the index of its shards, a .pt / .pth / .bin file of tensors, or a folder with one.

    Raises:
        ConfigError: nothing there, a damaged file, or two tensors under one name; the message says which.
    """
    file = _find(path)
    stored = _open_pickled(file) if file.suffix in _PICKLED else _open_safetensors(file)
    found: dict[str, Stored] = {}
    for name, tensor in stored.items():
        ours = canonical_name(name)
        if ours in found:
            raise ConfigError(f"{file} holds {ours} twice, the second time as {name}")
        found[ours] = tensor
    return found


def canonical_name(name: str) -> str:
    """A published name as `DeepGenNetworks` has it: without wrappers' prefixes, the language model in today's layout.

    Older transformers put the vision tower at lmm.visual and the decoder at lmm.model; newer ones, both below lmm.model.
    """
    for prefix in ("module.", "model."):
        name = name.removeprefix(prefix)
    inner = name.removeprefix("lmm.")
    if inner == name:
        return name
    if inner.startswith(("model.visual.", "model.language_model.")):
        return f"lmm.{inner.removeprefix('model.')}"
    return f"lmm.language_model.{inner.removeprefix('model.')}" if inner.startswith("model.") else name


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"policy.checkpoint = {path} does not exist; give the file or folder of a DeepGen checkpoint")
    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    if found is None:
        there = ", ".join(sorted(each.name for each in path.iterdir())[:_SHOWN]) or "nothing"
        raise ConfigError(
            f"policy.checkpoint = {path} holds none of {', '.join(_FILES)} (there: {there}); give the file itself"
        )
    return found


def _open_safetensors(file: Path) -> dict[str, Stored]:
    shards = _shards(file) if file.suffix == ".json" else [file]
    found = {}
    for shard in shards:
        try:
            opened = safe_open(shard, framework="pt")  # stays open as long as its tensors may be read
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                shape = tuple(opened.get_slice(name).get_shape())
                found[name] = Stored(shape, functools.partial(opened.get_tensor, name))
        except FileNotFoundError as error:
            raise ConfigError(f"{shard} is missing, one of the {len(shards)} shards that {file} names") from error
        except SafetensorError as error:
            raise ConfigError(f"{shard} is no safetensors file or a damaged one: {error}") from error
    return found


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no index of safetensors shards ({error}): it needs a `weight_map`") from error
    return [index.parent / name for name in names]


def _open_pickled(file: Path) -> dict[str, Stored]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a zip, pickle or type error, depending on what is wrong
        raise ConfigError(f"{file} is no file of tensors alone, or a damaged one: {error}") from error
    for key in ("state_dict", "module"):
        loaded = loaded[key] if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping) else loaded
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{file} holds a {type(loaded).__name__}, not tensors by name")
    return {
        name: Stored(tuple(tensor.shape), functools.partial(lambda kept: kept, tensor))
        for name, tensor in loaded.items()
        if isinstance(tensor, Tensor)
    }


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors, by name.

    Attributes:
        loaded: copied. merged: weights of the language model that an adapter was added to.
        unexpected: no network has them. ignored: read from the base models instead.
    """

    loaded: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (
            f"{len(self.loaded)} tensors loaded, {len(self.merged)} adapters merged, {len(self.ignored)} left aside"
        )
        bare = not any(name.startswith("lmm.") for name in self.loaded + self.merged)
        note = "; nothing for the language model, which has Qwen's own weights" if bare else ""
        return f"{counts}, {named(self.unexpected, 'unexpected')}{note}"


def named(names: list[str], what: str) -> str:
    """How many, and the first of them."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:_SHOWN])}{more})" if names else "")


@torch.no_grad()
def load_into(targets: Mapping[str, Tensor], stored: Mapping[str, Stored], *, path: Path) -> LoadReport:
    """Copy a checkpoint into the networks, `targets` being their state dict, and merge its adapters.

    All but the language model and the autoencoder must be in the checkpoint; those two have their base models' weights.

    Raises:
        ConfigError: a tensor is missing or has another shape, or half of an adapter is there.
    """
    needed = [name for name in targets if not name.startswith(("lmm.", "vae."))]
    missing = [name for name in needed if name not in stored]
    if missing:
        raise ConfigError(f"the checkpoint {path} is incomplete: {named(missing, 'tensors missing')} of {len(needed)}")
    report = LoadReport()
    adapters: dict[str, dict[str, Stored]] = {}
    for name, tensor in stored.items():
        plain = name.replace(".base_layer.", ".")
        if name.startswith(_IGNORED):
            report.ignored.append(name)
        elif found := _ADAPTER.search(name):
            adapters.setdefault(name[: found.start()], {})[found[1]] = tensor
        elif plain in targets:
            _copy(targets[plain], tensor, plain, path)
            report.loaded.append(name)
        else:
            report.unexpected.append(name)
    for layer, halves in adapters.items():
        weight = f"{layer}.weight"
        if weight not in targets:
            report.unexpected.append(f"{layer}.lora")
            continue
        if sorted(halves) not in (_LINEAR_ADAPTER, _EMBEDDING_ADAPTER):
            raise ConfigError(f"the checkpoint {path} has of the adapter of {layer} but {', '.join(sorted(halves))}")
        a, b = (halves[kind].read().to(targets[weight].device, torch.float32) for kind in sorted(halves))
        _merge(targets[weight], a, b, weight, path, transposed=sorted(halves) == _EMBEDDING_ADAPTER)
        report.merged.append(weight)
    return report


def _copy(target: Tensor, tensor: Stored, name: str, path: Path) -> None:
    if tensor.shape != tuple(target.shape):
        raise ConfigError(
            f"{path}: {name} has the shape {tensor.shape}, the model's is {tuple(target.shape)}; the checkpoint belongs to "
            "another size of policy.sd3_path or policy.qwen_path"
        )
    target.copy_(tensor.read())


def _merge(weight: Tensor, a: Tensor, b: Tensor, name: str, path: Path, *, transposed: bool) -> None:
    """W + (alpha / r) B A in float32 (LoRA, arXiv 2106.09685, section 4.1); an embedding holds its weight transposed."""
    if a.shape[0] != b.shape[1]:
        raise ConfigError(f"{path}: the adapter of {name} has the ranks {a.shape[0]} and {b.shape[1]}")
    delta = LORA_ALPHA / len(a) * (b @ a)
    delta = delta.T if transposed else delta
    if delta.shape != weight.shape:
        raise ConfigError(f"{path}: the adapter of {name} gives {tuple(delta.shape)}, not {tuple(weight.shape)}")
    weight.copy_(weight.float() + delta)
