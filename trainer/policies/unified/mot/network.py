"""The network by BAGEL's names: a decoder of two experts, a vision encoder, and what leads in and out of the two.

Axes: U tokens of words and seen images, G latent tokens, T words and tags, V patches of seen images, I images that are drawn or read
by their latents, C numbers of a latent token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.policies.unified.attends import Attends, Pair
from trainer.policies.unified.mot.geometry import TIME_WIDTH, Geometry, LanguageGeometry
from trainer.policies.unified.mot.layers import MotLayer, RmsNorm, turning
from trainer.policies.unified.mot.vision import VisionTower


@dataclass(frozen=True)
class Tokens:
    """What the network reads.

    Attributes:
        words_T: ids of words and of the tags around images.
        patches: (V, colours in a patch) of all seen images.
        patch_places_V: their places in the table of positions.
        patch_lengths: patches of each seen image.
        order_U: where each token of the first kind is found in words_T followed by the seen patches.
        positions_U, positions_G: rotary positions.
        latents: (G, C), noised as far as they are.
        latent_places_G: their places in the table of positions.
        image_G: the image that a latent token belongs to.
        levels_I: noise levels of the images, 0 where they are clean.
    """

    words_T: Tensor
    patches: Tensor
    patch_places_V: Tensor
    patch_lengths: Sequence[int]
    order_U: Tensor
    positions_U: Tensor
    latents: Tensor
    latent_places_G: Tensor
    image_G: Tensor
    levels_I: Tensor
    positions_G: Tensor


class _Decoder(nn.Module):
    def __init__(self, geometry: LanguageGeometry) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(geometry.vocab_size, geometry.hidden_size)
        self.layers = nn.ModuleList(MotLayer(geometry) for _ in range(geometry.num_hidden_layers))
        self.norm = RmsNorm(geometry.hidden_size, geometry.rms_norm_eps)
        self.norm_moe_gen = RmsNorm(geometry.hidden_size, geometry.rms_norm_eps)


class _LanguageModel(nn.Module):
    def __init__(self, geometry: LanguageGeometry) -> None:
        super().__init__()
        self.model = _Decoder(geometry)
        self.lm_head = nn.Linear(geometry.hidden_size, geometry.vocab_size, bias=False)


class Connector(nn.Module):
    """From the vision encoder's width to the decoder's."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return out


class TimeEmbedder(nn.Module):
    """Noise levels t in [0, 1] (N,) to (N, width): sinusoids of t itself, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, levels_N: Tensor) -> Tensor:
        half = TIME_WIDTH // 2
        places = torch.arange(half, device=levels_N.device, dtype=torch.float32)
        angles = levels_N.float()[:, None] * torch.exp(-math.log(10000.0) * places / half)
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))
        return out


class PositionTable(nn.Module):
    """Fixed sinusoids of columns and rows, (side * side, width): computed, never trained, and in the files all the same."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(sinusoids_2d(side, width), requires_grad=False)

    def forward(self, places_N: Tensor) -> Tensor:
        return self.pos_embed[places_N]


class ConstantWords:
    """Implements `Attends`: what words and seen images make of latents has no gradient. With their expert frozen, no gradient passes
    through them at all, and nothing of them is kept for the backward pass."""

    def __init__(self, attends: Attends) -> None:
        self._attends = attends

    def __call__(self, layer: int, q: Pair, k: Pair, v: Pair) -> Pair:
        und, gen = self._attends(layer, q, k, v)
        return und.detach(), gen


class MotNetwork(nn.Module):
    """All that is trained. Starts with what torch draws; `init.initialize` is how a fresh model starts.

    Attributes:
        recompute: recompute layers in the backward pass, those of the vision encoder too.
        constant_words: no gradient passes through words and seen images.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        width, vision = geometry.language.hidden_size, geometry.vision
        self.geometry = geometry
        self.recompute = self.constant_words = False
        self.language_model = _LanguageModel(geometry.language)
        self.vit_model = VisionTower(vision)
        self.connector = Connector(vision.hidden_size, width)
        self.time_embedder = TimeEmbedder(width)
        self.vae2llm = nn.Linear(geometry.token_channels, width)
        self.llm2vae = nn.Linear(width, geometry.token_channels)
        self.latent_pos_embed = PositionTable(geometry.max_latent_size, width)
        self.vit_pos_embed = PositionTable(vision.side, width)

    def forward(self, tokens: Tokens, attends: Attends) -> Pair:
        """What the decoder makes of both kinds of tokens, normed: (U, width), (G, width)."""
        decoder = self.language_model.model
        if self.constant_words:
            attends = ConstantWords(attends)
        und, gen = self.embed(tokens)
        turns = turning(tokens.positions_U, self.geometry.language), turning(tokens.positions_G, self.geometry.language)
        for number, layer in enumerate(decoder.layers):
            if self.recompute and torch.is_grad_enabled():
                und, gen = checkpoint(layer, number, und, gen, turns, attends, use_reentrant=False)
            else:
                und, gen = layer(number, und, gen, turns, attends)
        return decoder.norm(und), decoder.norm_moe_gen(gen)

    def embed(self, tokens: Tokens) -> Pair:
        """What goes into the decoder: (U, width), (G, width). Every part runs, on nothing where there is nothing, so that all
        parameters have gradients on every rank."""
        words = self.language_model.model.embed_tokens(tokens.words_T)
        recompute = self.recompute and torch.is_grad_enabled()
        seen = self.vit_model(tokens.patches, tokens.patch_places_V, tokens.patch_lengths, recompute=recompute)
        seen = self.connector(seen)
        seen = seen + self.vit_pos_embed(tokens.patch_places_V).to(seen.dtype)
        words = words.to(
            seen.dtype
        )  # under autocast the decoder's sums are kept in the type of computations, as published
        # Looked up and not indexed: of an index that repeats rows, several threads add up the gradients in the order in which they
        # come, so that two runs are not one (0098).
        levels = functional.embedding(tokens.image_G, self.time_embedder(tokens.levels_I))
        gen = self.vae2llm(tokens.latents) + levels
        gen = gen + self.latent_pos_embed(tokens.latent_places_G).to(gen.dtype)
        return torch.cat([words, seen])[tokens.order_U], gen

    def logits(self, und: Tensor) -> Tensor:
        """Of the next word, (..., vocabulary)."""
        out: Tensor = self.language_model.lm_head(und)
        return out

    def velocity(self, gen: Tensor) -> Tensor:
        """v = noise - data, (..., C), float32."""
        out: Tensor = self.llm2vae(gen)
        return out.float()


def sinusoids_2d(side: int, width: int) -> Tensor:
    """(side * side, width), float32: sines and cosines of the column in the first half, of the row in the second; rows one after
    another (as masked autoencoders have them, arXiv 2111.06377)."""
    column = torch.arange(side).repeat(side)
    row = torch.arange(side).repeat_interleave(side)
    return torch.cat([_sinusoids(column, width // 2), _sinusoids(row, width // 2)], dim=1)


def _sinusoids(place_N: Tensor, width: int) -> Tensor:
    half = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angles = place_N.double()[:, None] * 10000.0**-half
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def initialize(network: MotNetwork) -> None:
    """Weights of a fresh small model, drawn from torch's generator: N(0, 1 / inputs), what is added to a layer's input divided by
    sqrt(2 layers), embeddings N(0, 1), and a head so small that all words are about as likely. What leads to latents is 0, so that
    the first error is that of predicting nothing."""
    layers = network.geometry.language.num_hidden_layers
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if "layers." in name and name.removesuffix("_moe_gen").endswith(("o_proj", "out_proj", "down_proj", "fc2")):
                module.weight.data /= math.sqrt(2 * layers)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    nn.init.normal_(network.language_model.lm_head.weight, std=0.02)
    nn.init.zeros_(network.llm2vae.weight)
