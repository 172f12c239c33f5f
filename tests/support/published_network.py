"""BAGEL's network once more, from descriptions, as formulas over a file's tensors: no class of the trainer, every token computed by both
experts and one of the two taken, attention over the whole mask, rotations as complex numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
EPS = 1e-6


@dataclass(frozen=True)
class Given:
    """A row in the order in which it is said.

    Attributes:
        tokens: words' ids, "patch" or "latent".
        positions: rotary.
        seen_NN: bool: whether the token of the row sees that of the column.
        patches: (V, side * side * 3), of all seen images in order, in [-1, 1]; each image's are `per_image`.
        latents: (G, C), noised as far as they are, and their noise levels (G,).
        side: tokens a side of an image, seen or as latents.
        seen_side, latent_side: of the two tables of positions.
    """

    tokens: list[Any]
    positions: list[int]
    seen_NN: Tensor
    patches: Tensor
    latents: Tensor
    levels: Tensor
    side: int
    seen_side: int
    latent_side: int
    heads: int
    shared_heads: int
    vision_heads: int
    theta: float = 1e6


def outputs(state: State, given: Given) -> tuple[Tensor, Tensor]:
    """Logits (N, vocabulary) of all tokens by the words' head, and velocities (G, C) of the latents."""
    x, is_latent = _embedded(state, given)
    number = 0
    while f"language_model.model.layers.{number}.input_layernorm.weight" in state:
        x = _layer(state, f"language_model.model.layers.{number}.", x, is_latent, given)
        number += 1
    words = _rms(x, state["language_model.model.norm.weight"]) @ state["language_model.lm_head.weight"].T
    drawn = _rms(x[is_latent], state["language_model.model.norm_moe_gen.weight"])
    return words, _linear(state, "llm2vae", drawn)


def _embedded(state: State, given: Given) -> tuple[Tensor, Tensor]:
    width = state["language_model.model.embed_tokens.weight"].shape[1]
    x = torch.zeros(len(given.tokens), width)
    is_patch = torch.tensor([token == "patch" for token in given.tokens])
    is_latent = torch.tensor([token == "latent" for token in given.tokens])
    ids = torch.tensor([token for token in given.tokens if not isinstance(token, str)])
    x[~is_patch & ~is_latent] = state["language_model.model.embed_tokens.weight"][ids]
    if is_patch.any():
        places = _places(given.side, given.seen_side).repeat(len(given.patches) // given.side**2)
        seen = _gelu(_linear(state, "connector.fc1", _vision(state, given, places)))
        x[is_patch] = _linear(state, "connector.fc2", seen) + _sincos(given.seen_side, width)[places]
    places = _places(given.side, given.latent_side).repeat(len(given.latents) // given.side**2)
    rates = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = given.levels[:, None] * rates  # of t in [0, 1], not of thousandths
    time = _linear(state, "time_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))
    time = _linear(state, "time_embedder.mlp.2", time * torch.sigmoid(time))
    x[is_latent] = _linear(state, "vae2llm", given.latents) + time + _sincos(given.latent_side, width)[places]
    return x, is_latent


def _vision(state: State, given: Given, places: Tensor) -> Tensor:
    """SigLIP, each image by itself."""
    root, per_image = "vit_model.vision_model.", given.side**2
    x = _linear(state, f"{root}embeddings.patch_embedding", given.patches)
    x = x + state[f"{root}embeddings.position_embedding.weight"][places]
    images = torch.block_diag(*[torch.ones(per_image, per_image)] * (len(x) // per_image)).bool()
    number = 0
    while f"{root}encoder.layers.{number}.mlp.fc1.weight" in state:
        layer = f"{root}encoder.layers.{number}."
        normed = _layer_norm(state, f"{layer}layer_norm1", x)
        q, k, v = (
            _linear(state, f"{layer}self_attn.{name}_proj", normed).unflatten(1, (given.vision_heads, -1))
            for name in "qkv"
        )
        x = x + _linear(state, f"{layer}self_attn.out_proj", _attended(q, k, v, images))
        inner = _gelu(_linear(state, f"{layer}mlp.fc1", _layer_norm(state, f"{layer}layer_norm2", x)))
        x = x + _linear(state, f"{layer}mlp.fc2", inner)
        number += 1
    return _layer_norm(state, f"{root}post_layernorm", x)


def _layer(state: State, name: str, x: Tensor, is_latent: Tensor, given: Given) -> Tensor:
    def both(values: dict[str, Tensor]) -> Tensor:
        return torch.where(is_latent.view(-1, *[1] * (values[""].dim() - 1)), values["_moe_gen"], values[""])

    twins = ("", "_moe_gen")
    normed = both({twin: _rms(x, state[f"{name}input_layernorm{twin}.weight"]) for twin in twins})
    turn = torch.polar(torch.ones(1), _angles(given, state, name))
    found = []
    for part, heads in (("q", given.heads), ("k", given.shared_heads), ("v", given.shared_heads)):
        mapped = {}
        for twin in twins:
            mapped[twin] = _linear(state, f"{name}self_attn.{part}_proj{twin}", normed).unflatten(1, (heads, -1))
            if part != "v":
                mapped[twin] = _rms(mapped[twin], state[f"{name}self_attn.{part}_norm{twin}.weight"])
        chosen = both(mapped)
        if part != "v":
            first, second = chosen.chunk(2, -1)
            turned = torch.complex(first, second) * turn[:, None]
            chosen = torch.cat([turned.real, turned.imag], -1)
        found.append(chosen.repeat_interleave(given.heads // heads, 1))
    seen = _attended(*found, given.seen_NN)
    x = x + both({twin: seen @ state[f"{name}self_attn.o_proj{twin}.weight"].T for twin in twins})
    out = {}
    for twin in twins:
        mlp, inner = f"{name}mlp{twin}.", _rms(x, state[f"{name}post_attention_layernorm{twin}.weight"])
        gate = inner @ state[f"{mlp}gate_proj.weight"].T
        up = inner @ state[f"{mlp}up_proj.weight"].T
        out[twin] = (gate * torch.sigmoid(gate) * up) @ state[f"{mlp}down_proj.weight"].T
    return x + both(out)


def _angles(given: Given, state: State, name: str) -> Tensor:
    half = len(state[f"{name}self_attn.q_norm.weight"]) // 2
    rates = torch.tensor([given.theta ** (-n / half) for n in range(half)])
    return torch.tensor(given.positions, dtype=torch.float32)[:, None] * rates


def _attended(q: Tensor, k: Tensor, v: Tensor, seen_NN: Tensor) -> Tensor:
    """(N, H * D)."""
    logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    weights = torch.softmax(logits.masked_fill(~seen_NN, -math.inf), -1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def _layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _places(side: int, of: int) -> Tensor:
    """Where an image of side x side tokens lies in a table of `of` x `of`."""
    return torch.tensor([row * of + column for row in range(side) for column in range(side)])


def _sincos(side: int, width: int) -> Tensor:
    """Fixed sinusoids: of the column in the first half, of the row in the second; of each sines first."""
    rates = [10000 ** (-n / (width // 4)) for n in range(width // 4)]
    table = []
    for row in range(side):
        for column in range(side):
            line: list[float] = []
            for place in (column, row):
                line += [math.sin(place * rate) for rate in rates] + [math.cos(place * rate) for rate in rates]
            table.append(line)
    return torch.tensor(table)
