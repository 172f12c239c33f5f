"""Published weights (open_clip's keys) as weights of transformers' CLIPModel."""

from __future__ import annotations

import json
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from services.hps.architecture import BLOCK_KEY, Architecture, Shape, check_shapes
from services.hps.checkpoint import (
    CONFIG_NAME,
    SHA256_FIELD,
    SOURCE,
    VERSION_FIELD,
    WEIGHTS_NAME,
    Checkpoint,
    CheckpointError,
)
from services.hps.vocabulary import write_merges

if TYPE_CHECKING:
    from services.hps.tokenizer import Merge

State = dict[str, torch.Tensor]

# A constant of the architecture, which older releases of open_clip saved along.
_RECOMPUTED = "attn_mask"

_RENAMED = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_TOWERS = {"visual.transformer": "vision_model", "transformer": "text_model"}
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def read_published(path: Path) -> State:
    """The tensors of a published checkpoint by open_clip's keys, in the file's dtype, mapped rather than read.

    Only tensors and plain containers are unpickled. Raises CheckpointError.
    """
    try:
        # Files older than the zip format cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # What torch says besides is how to load it unsafely.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split(". ")[0][:200]
        raise CheckpointError(
            f"checkpoint {path}: refused, it is damaged or holds more than tensors ({reason}); {SOURCE}"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read, is it complete? ({error}); {SOURCE}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"checkpoint {path}: holds no state dict of tensors, bare or as `state_dict`; {SOURCE}")
    return {str(key): value for key, value in state.items() if key != _RECOMPUTED}


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    return {key: tuple(value.shape) for key, value in state.items()}


def to_clip_state(state: Mapping[str, torch.Tensor]) -> tuple[Architecture, State]:
    """The architecture, and the same weights under CLIPModel's keys, as views of the given tensors.

    Raises CheckpointError naming every kind of difference from a complete checkpoint.
    """
    shapes = shapes_of(state)
    architecture = Architecture.derive(shapes)
    check_shapes(shapes, architecture.shapes())
    return architecture, dict(pair for key, value in state.items() for pair in _renamed(key, value))


def write_folder(checkpoint: Checkpoint, merges: list[Merge], out: Path) -> int:
    """Convert a published file to a folder (weights, config, vocabulary), under its name only when complete.

    Dtypes stay. Returns the number of parameters. Raises CheckpointError, also when `out` exists.
    """
    from safetensors.torch import save_file

    if checkpoint.converted:
        raise CheckpointError(f"checkpoint {checkpoint.path}: is a converted folder already")
    if out.exists():
        raise CheckpointError(f"{out} exists: remove it or name another folder")
    architecture, state = to_clip_state(read_published(checkpoint.path))
    weights = {key: value.contiguous() for key, value in state.items()}
    config = {"model_type": "clip", "architectures": ["CLIPModel"], **architecture.config()}
    config |= {VERSION_FIELD: checkpoint.version, SHA256_FIELD: checkpoint.sha256}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        partial = Path(scratch, out.name)
        partial.mkdir()
        save_file(weights, partial / WEIGHTS_NAME, metadata={"format": "pt"})
        (partial / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        # safetensors lets only its owner read the file; the service in a container is another user.
        (partial / WEIGHTS_NAME).chmod((partial / CONFIG_NAME).stat().st_mode)
        write_merges(merges, partial)
        partial.rename(out)
    return sum(value.numel() for value in weights.values())


def _renamed(key: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if key in _RENAMED:
        yield _RENAMED[key], value
    elif key in _TRANSPOSED:
        yield _TRANSPOSED[key], value.T
    else:
        match = BLOCK_KEY.fullmatch(key)
        assert match is not None  # `check_shapes` admits no other key
        tower, number, part, kind = match.groups()
        layer = f"{_TOWERS[tower]}.encoder.layers.{number}"
        if part == "attn.in_proj":
            for name, third in zip("qkv", value.chunk(3), strict=True):
                yield f"{layer}.self_attn.{name}_proj.{kind}", third
        else:
            yield f"{layer}.{_IN_BLOCK[part]}.{kind}", value
