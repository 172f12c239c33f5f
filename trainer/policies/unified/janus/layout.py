"""Janus's tensors by DeepSeek's names and by transformers': one table, read in both directions.

Three things differ beyond the names. The vision tower's attention has one matrix whose thirds are queries, keys and values;
its positions have a leading axis of 1; and DeepSeek's files hold tensors that nothing reads: the tower's pooling and a count of
which codes were used. Everything else is the same numbers by another name (github.com/deepseek-ai/Janus, janus/models).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.config import ConfigError

_TOWER = "vision_model.vision_tower"
_POSITIONS = f"{_TOWER}.pos_embed"
CODEBOOK_USED = "gen_vision_model.quantize.codebook_used"
CODEBOOK_USED_LENGTH = 65536  # whatever the size of the codebook
_UNUSED = (f"{_TOWER}.attn_pool.", CODEBOOK_USED)
_THIRDS = ("q_proj", "k_proj", "v_proj")
_SHOWN = 3

# transformers' beginnings of names with DeepSeek's, the longest first where one begins with another.
_BEGINNINGS = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.generation_embeddings.", "gen_embed."),
    ("model.generation_aligner.", "gen_aligner."),
    ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
    ("model.generation_head.vision_head.", "gen_head.vision_head."),
    ("model.aligner.", "aligner."),
    ("model.vqmodel.", "gen_vision_model."),
    ("model.vision_model.embeddings.patch_embedding.", f"{_TOWER}.patch_embed.proj."),
    ("model.vision_model.embeddings.position_embedding.weight", _POSITIONS),
    ("model.vision_model.post_layernorm.", f"{_TOWER}.norm."),
    ("model.vision_model.encoder.layers.", f"{_TOWER}.blocks."),
)
# What differs inside a name, by DeepSeek's beginning of it.
_INSIDE: dict[str, tuple[tuple[str, str], ...]] = {
    f"{_TOWER}.blocks.": (
        ("layer_norm1.", "norm1."),
        ("layer_norm2.", "norm2."),
        ("self_attn.projection_layer.", "attn.proj."),
    ),
    "gen_vision_model.": (
        ("encoder.down.", "encoder.conv_blocks."),
        ("decoder.up.", "decoder.conv_blocks."),
        (".block.", ".res."),
        ("mid.block_1.", "mid.0."),
        ("mid.attn_1.", "mid.1."),
        ("mid.block_2.", "mid.2."),
    ),
    # A row of layers with activations, which have no weights, at the odd places.
    "aligner.": (("fc1.", "layers.0."),),
    "gen_aligner.": (("fc1.", "layers.0."),),
}
_ATTENTION = re.compile(rf"({re.escape(_TOWER)}\.blocks\.\d+)\.self_attn\.({'|'.join(_THIRDS)})\.(weight|bias)")
_HIDDEN = re.compile(r"(aligner|gen_aligner)\.hidden_layers\.(\d+)\.")


@dataclass(frozen=True)
class Source:
    """Where transformers' tensors are found in a file of DeepSeek's.

    Attributes:
        shape: of DeepSeek's tensor.
        names: transformers' names of it, in order: three for queries, keys and values, whose rows follow one another; else one.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]


Table = Mapping[str, Source]


def table_of(config: Any) -> dict[str, Source]:
    """DeepSeek's tensors that a network of this `JanusConfig` of transformers is made of, by their names.

    Nothing is allocated: a network on the meta device gives names and shapes.
    """
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        state = JanusForConditionalGeneration(config).state_dict()
    names: dict[str, list[str]] = {}
    for name in state:
        names.setdefault(deepseek_name(name), []).append(name)
    table = {}
    for source, found in names.items():
        shapes = [tuple(state[name].shape) for name in found]
        rows = sum(shape[0] for shape in shapes)
        shape = (1, *shapes[0]) if source == _POSITIONS else (rows, *shapes[0][1:])
        table[source] = Source(shape, tuple(sorted(found, key=_third)))
    return table


def deepseek_name(name: str) -> str:
    """DeepSeek's name of the tensor that transformers calls `name`. Three of transformers' may be one of DeepSeek's."""
    begin, beginning = next((pair for pair in _BEGINNINGS if name.startswith(pair[0])), ("", ""))
    if not beginning:
        raise KeyError(f"{name} is no tensor of a Janus model")
    renamed = beginning + name.removeprefix(begin)
    if (match := _ATTENTION.fullmatch(renamed)) is not None:
        return f"{match[1]}.attn.qkv.{match[3]}"
    for ours, theirs in next((pairs for start, pairs in _INSIDE.items() if renamed.startswith(start)), ()):
        renamed = renamed.replace(ours, theirs)
    return _HIDDEN.sub(lambda match: f"{match[1]}.layers.{2 * (int(match[2]) + 1)}.", renamed)


def to_transformers(tensors: Mapping[str, Tensor], table: Table, where: str) -> dict[str, Tensor]:
    """Tensors of one file of DeepSeek's by transformers' names; what nothing reads is left out.

    Args:
        where: the file, for messages.

    Raises:
        ConfigError: a tensor is unknown, or has another shape than the table's.
    """
    state: dict[str, Tensor] = {}
    strange = sorted(name for name in tensors if name not in table and not is_unused(name))
    if strange:
        raise ConfigError(
            f"{where} holds {len(strange)} tensors that no Janus model of this config.json has{_first(strange)}; correct "
            "config.json, or give the model's own file"
        )
    for name, tensor in tensors.items():
        if (source := table.get(name)) is None:
            continue
        if tuple(tensor.shape) != source.shape:
            raise ConfigError(
                f"{where}: {name} has the shape {tuple(tensor.shape)}, by config.json it has {source.shape}; the two files do "
                "not belong together"
            )
        whole = tensor[0] if name == _POSITIONS else tensor
        # Contiguous rows: a third of a contiguous matrix is one as well, and safetensors copies each alone.
        state |= dict(zip(source.names, whole.chunk(len(source.names)), strict=True))
    return state


def check_whole(found: Iterable[str], table: Table, where: str) -> None:
    """Raises ConfigError where tensors of the table are in none of a model's files; `found` are all names in them."""
    missing = sorted(table.keys() - set(found))
    if missing:
        raise ConfigError(
            f"{where} lacks {len(missing)} of the {len(table)} tensors of a Janus model of its config.json{_first(missing)}; "
            "download the folder again, or correct config.json"
        )


def to_deepseek(state: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The tensors of a network of transformers by DeepSeek's names: exactly those of the table, and no storage shared."""
    tensors = {}
    for name, source in table.items():
        parts = [state[each] for each in source.names]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        tensors[name] = whole[None] if name == _POSITIONS else whole
    return tensors


def is_unused(name: str) -> bool:
    """Whether DeepSeek's files may hold a tensor of this name that no computation of Janus reads."""
    return name.startswith(_UNUSED)


def _third(name: str) -> int:
    return next((number for number, part in enumerate(_THIRDS) if f".{part}." in name), 0)


def _first(names: list[str]) -> str:
    return f" ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
