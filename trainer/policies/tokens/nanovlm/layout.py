"""The tensors of a nanoVLM file and those of transformers' Idefics3: the same numbers by other names.

Nothing is computed, so logits are equal to the last bit. Three things are more than a new name: the vision encoder's query,
key and value projections are one matrix in nanoVLM; its positions have an axis of length 1 in front; and the rotary
frequencies, which no file needs, are written into it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.config import ConfigError
from trainer.config.nanovlm import NanoVlmConfig

EMBEDDING, HEAD = "decoder.token_embedding.weight", "decoder.head.weight"
FREQUENCIES = "decoder.rotary_embd.inv_freq"
_POSITIONS = "vision_encoder.patch_embedding.position_embedding"
_VISION, _TEXT = "model.vision_model", "model.text_model"
_SHOWN = 3

# Parts of module names, nanoVLM's to Idefics3's.
_VISION_BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT_BLOCK = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.gate_proj": "mlp.gate_proj",
    "mlp.up_proj": "mlp.up_proj",
    "mlp.down_proj": "mlp.down_proj",
}


def modules(settings: NanoVlmConfig) -> dict[str, str]:
    """Idefics3's name of every module with weights that has a twin of its own, by nanoVLM's name of it."""
    names = {
        "vision_encoder.patch_embedding.conv": f"{_VISION}.embeddings.patch_embedding",
        "vision_encoder.layer_norm": f"{_VISION}.post_layernorm",
        "MP.proj": "model.connector.modality_projection.proj",
        "decoder.norm": f"{_TEXT}.norm",
        "decoder.token_embedding": f"{_TEXT}.embed_tokens",
        "decoder.head": "lm_head",
    }
    for i in range(settings.vit_n_blocks):
        for ours, theirs in _VISION_BLOCK.items():
            names[f"vision_encoder.blocks.{i}.{ours}"] = f"{_VISION}.encoder.layers.{i}.{theirs}"
    for i in range(settings.lm_n_blocks):
        for ours, theirs in _TEXT_BLOCK.items():
            names[f"decoder.blocks.{i}.{ours}"] = f"{_TEXT}.layers.{i}.{theirs}"
    return names


def fused(settings: NanoVlmConfig) -> dict[str, tuple[str, str, str]]:
    """Idefics3's query, key and value projections, by nanoVLM's name of the matrix that holds the three above one another."""
    names = {}
    for i in range(settings.vit_n_blocks):
        attention = f"{_VISION}.encoder.layers.{i}.self_attn"
        names[f"vision_encoder.blocks.{i}.attn.qkv_proj"] = (
            f"{attention}.q_proj",
            f"{attention}.k_proj",
            f"{attention}.v_proj",
        )
    return names


def key_table(settings: NanoVlmConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of nanoVLM's model.safetensors, by name. Of tied weights only the head is in the file."""
    vit, mlp, side = settings.vit_hidden_dim, settings.vit_inter_dim, settings.vit_patch_size
    width, inter, rows = settings.lm_hidden_dim, settings.lm_inter_dim, settings.lm_vocab_size
    head_dim = width // settings.lm_n_heads
    grouped = head_dim * settings.lm_n_kv_heads
    shapes: dict[str, tuple[int, ...]] = {
        _POSITIONS: (1, settings.patches_a_side**2, vit),
        "vision_encoder.patch_embedding.conv.weight": (vit, 3, side, side),
        "vision_encoder.patch_embedding.conv.bias": (vit,),
        "vision_encoder.layer_norm.weight": (vit,),
        "vision_encoder.layer_norm.bias": (vit,),
        "MP.proj.weight": (width, vit * settings.mp_pixel_shuffle_factor**2),
        "decoder.norm.weight": (width,),
        HEAD: (rows, width),
        FREQUENCIES: (head_dim // 2,),
    }
    if not settings.lm_tie_weights:
        shapes[EMBEDDING] = (rows, width)
    linear = {
        "attn.qkv_proj": (3 * vit, vit),
        "attn.out_proj": (vit, vit),
        "mlp.fc1": (mlp, vit),
        "mlp.fc2": (vit, mlp),
    }
    norms: dict[str, tuple[int, ...]] = {"ln1": (vit,), "ln2": (vit,)}
    for i in range(settings.vit_n_blocks):
        for name, shape in (linear | norms).items():
            shapes[f"vision_encoder.blocks.{i}.{name}.weight"] = shape
            shapes[f"vision_encoder.blocks.{i}.{name}.bias"] = shape[:1]
    decoder: dict[str, tuple[int, ...]] = {
        "norm1": (width,),
        "norm2": (width,),
        "attn.q_proj": (width, width),
        "attn.k_proj": (grouped, width),
        "attn.v_proj": (grouped, width),
        "attn.out_proj": (width, width),
        "mlp.gate_proj": (inter, width),
        "mlp.up_proj": (inter, width),
        "mlp.down_proj": (width, inter),
    }
    for i in range(settings.lm_n_blocks):
        shapes |= {f"decoder.blocks.{i}.{name}.weight": shape for name, shape in decoder.items()}
    return shapes


def frequencies(settings: NanoVlmConfig) -> Tensor:
    """The rotary frequencies base^(-2i / head_dim), float32, as nanoVLM computes and stores them."""
    head_dim = settings.lm_hidden_dim // settings.lm_n_heads
    return 1.0 / (settings.lm_re_base ** (torch.arange(0, head_dim, 2).float() / head_dim))


def to_idefics3(tensors: Mapping[str, Tensor], settings: NanoVlmConfig, where: str) -> dict[str, Tensor]:
    """The tensors of a nanoVLM file by Idefics3's names.

    Args:
        where: the file, for messages.

    Raises:
        ConfigError: tensors are missing or left over, a shape is another than the settings say, or the frequencies are not
            those of `lm_re_base`.
    """
    given = _with_head(tensors, settings, where)
    _check_keys(given, settings, where)
    stored = given[FREQUENCIES].float()
    if not torch.allclose(
        stored, frequencies(settings), rtol=1e-2 if given[FREQUENCIES].dtype != torch.float32 else 1e-5
    ):
        raise ConfigError(
            f"{where}: {FREQUENCIES} is not what lm_re_base = {settings.lm_re_base:g} gives (last {stored[-1].item():g} against "
            f"{frequencies(settings)[-1].item():g}); correct lm_re_base in config.json"
        )
    state = {}
    for ours, theirs in modules(settings).items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in given:
                state[f"{theirs}.{kind}"] = given[f"{ours}.{kind}"]
    for ours, parts in fused(settings).items():
        for kind in ("weight", "bias"):
            for part, tensor in zip(parts, given[f"{ours}.{kind}"].chunk(3), strict=True):
                state[f"{part}.{kind}"] = tensor
    state[f"{_VISION}.embeddings.position_embedding.weight"] = given[_POSITIONS][0]
    if settings.lm_tie_weights:
        state[f"{_TEXT}.embed_tokens.weight"] = given[HEAD]
    return state


def to_nanovlm(state: Mapping[str, Tensor], settings: NanoVlmConfig) -> dict[str, Tensor]:
    """The tensors of an Idefics3 network by nanoVLM's names: exactly the `key_table` of the settings, no tensor shared."""
    tensors = {}
    for ours, theirs in modules(settings).items():
        if ours == "decoder.token_embedding" and settings.lm_tie_weights:
            continue
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in state:
                tensors[f"{ours}.{kind}"] = state[f"{theirs}.{kind}"].contiguous()
    for ours, parts in fused(settings).items():
        for kind in ("weight", "bias"):
            tensors[f"{ours}.{kind}"] = torch.cat([state[f"{part}.{kind}"] for part in parts])
    tensors[_POSITIONS] = state[f"{_VISION}.embeddings.position_embedding.weight"][None].contiguous()
    tensors[FREQUENCIES] = frequencies(settings)
    return tensors


def _with_head(tensors: Mapping[str, Tensor], settings: NanoVlmConfig, where: str) -> dict[str, Tensor]:
    """With the head of tied weights by its own name, whichever of the two names the file has, and no embedding beside it."""
    given = dict(tensors)
    if settings.lm_tie_weights and EMBEDDING in given:
        embedding = given.pop(EMBEDDING)
        if not torch.equal(given.setdefault(HEAD, embedding), embedding):
            raise ConfigError(
                f"{where}: {EMBEDDING} and {HEAD} differ, but config.json says lm_tie_weights = true; set it to false"
            )
    given.setdefault(FREQUENCIES, frequencies(settings))  # some converters leave out what can be computed
    return given


def _check_keys(given: Mapping[str, Tensor], settings: NanoVlmConfig, where: str) -> None:
    table = key_table(settings)
    missing, strange = sorted(table.keys() - given.keys()), sorted(given.keys() - table.keys())
    if missing or strange:
        raise ConfigError(
            f"{where} is not the model of its config.json: {len(missing)} tensors are missing{_first(missing)}, {len(strange)} "
            f"are unknown{_first(strange)}; download the folder again, or correct the sizes in config.json"
        )
    for name, shape in table.items():
        if tuple(given[name].shape) != shape:
            raise ConfigError(
                f"{where}: {name} has shape {tuple(given[name].shape)}, by config.json it has {shape}; the two files do not "
                f"belong together"
            )


def _first(names: list[str]) -> str:
    return f" ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})" if names else ""
