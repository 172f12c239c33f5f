"""A native model grown from a Qwen3 language model (NEO, arXiv 2510.14979, section 3; its training kit's own start).

Layer i of the language model becomes layer i + extra. Its new queries for rows and columns start from its own queries, the new keys
from zero, so that they add nothing to any attention: with no new layers, texts have the logits that they had.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.config import ConfigError
from trainer.policies.unified.neo.geometry import NeoGeometry
from trainer.policies.unified.neo.network import NeoNetwork
from trainer.policies.weight_files import weight_files

SPREAD = 0.02  # standard deviation of new matrices where the language model's own is not known; published Qwen3 have it
_TARGET = "language_model.model.layers"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_language(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Qwen3 folder in float32, by their own names. Raises ConfigError where they cannot be read."""
    try:
        found = {name: tensor.float() for path in weight_files(folder) for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder}: its weights cannot be read: {error}; download it again") from error
    if _EMBEDDING not in found:
        raise ConfigError(
            f"policy.grow.language = {folder} holds no {_EMBEDDING}; give a Qwen3 folder with safetensors files"
        )
    found.setdefault(_HEAD, found[_EMBEDDING])  # tied: the head is the embedding
    return found


@torch.no_grad()
def grow(network: NeoNetwork, language: Mapping[str, Tensor], where: str, spread: float = SPREAD) -> None:
    """Fill a network with the language model's weights, and its new parts as NEO begins them.

    New layers and the patch embedding are drawn from torch's generator, norms are 1 and biases 0; rows of the embedding and the head
    for tokens that the language model did not have are drawn, too.

    Args:
        language: as `read_language` gives it.
        where: the folder, for messages.
        spread: standard deviation of what is drawn: the language model's `initializer_range`, which goes with its width.

    Raises:
        ConfigError: tensors are missing, of other shapes, or of no use.
    """
    geometry = network.geometry
    extra = geometry.extra_layers
    assert extra is not None, "it grows by a known number of layers"
    fresh = _fresh(network, spread)
    state = dict(fresh)
    for name, tensor in language.items():
        if name in (_EMBEDDING, _HEAD):
            state[f"language_model.{name}"][: len(tensor)] = tensor
            continue
        state[_shifted(name, extra)] = tensor.clone()
    if unknown := sorted(state.keys() - fresh.keys()):
        raise ConfigError(f"{where} has {len(unknown)} tensors that a Qwen3 has not, first {unknown[0]}")
    for number in range(extra, geometry.num_layers):
        attention = f"{_TARGET}.{number}.self_attn"
        state[f"{attention}.q_proj_hw.weight"] = image_queries(state[f"{attention}.q_proj.weight"], geometry)
        state[f"{attention}.k_proj_hw.weight"] = torch.zeros_like(state[f"{attention}.k_proj_hw.weight"])
    expected = {f"{_shifted(name, extra)}" for name in _names_of(geometry)} | {"language_model.model.norm.weight"}
    given = {_shifted(name, extra) for name in language}
    if lacking := sorted(expected - given):
        raise ConfigError(f"{where} lacks {len(lacking)} weights, first {lacking[0]} (as it would be called here)")
    for name, tensor in state.items():
        if tensor.shape != fresh[name].shape:
            raise ConfigError(
                f"{where}: {name} would be {tuple(tensor.shape)}, but its config.json makes it {tuple(fresh[name].shape)}; download it again"
            )
    network.load_state_dict(state, strict=True)


def image_queries(queries: Tensor, geometry: NeoGeometry) -> Tensor:
    """The weight of queries along rows and columns, from that along time.

    A head's numbers in quarters are q1 to q4. Positions turn q1 with q3 fastest, so these are taken for rows, and again for
    columns: [q1 q3 | q1 q3].
    """
    heads = queries.unflatten(0, (geometry.num_heads, 4, geometry.head_dim // 4))
    half = heads[:, [0, 2]]
    return torch.cat([half, half], 1).flatten(0, 2)


def _fresh(network: NeoNetwork, spread: float) -> dict[str, Tensor]:
    """Every tensor as it is where nothing is known: matrices drawn in order of their names, norms 1, biases 0."""
    state = {}
    for name, tensor in network.state_dict().items():
        if "norm" in name:
            state[name] = torch.ones(tensor.shape)
        elif name.endswith("bias"):
            state[name] = torch.zeros(tensor.shape)
        else:
            state[name] = torch.randn(tensor.shape) * spread
    return state


def _names_of(geometry: NeoGeometry) -> list[str]:
    """Qwen3's own names of what its layers must have."""
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + ["self_attn.q_norm", "self_attn.k_norm"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    own = geometry.num_layers - (geometry.extra_layers or 0)
    return [f"model.layers.{number}.{part}.weight" for number in range(own) for part in parts]


def _shifted(name: str, extra: int) -> str:
    """NEO's name of a tensor of the language model."""
    pieces = name.split(".")
    if pieces[:2] == ["model", "layers"]:
        pieces[2] = str(int(pieces[2]) + extra)
    return ".".join(["language_model", *pieces])
