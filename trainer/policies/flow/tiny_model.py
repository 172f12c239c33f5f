"""The networks of the tiny policy: an SD3 transformer, a character-level text encoder and a PCA codec.

Everything is small enough for two CPU cores: 24x48 RGB images, a latent of 48x3x6, about 2.4 M parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from machine.called import command
from machine.transfers import sent
from trainer.config import ConfigError, TinyConfig
from trainer.policies.flow.tiny_network import TinyTransformer
from trainer.policies.pca_codec import PcaCodec
from trainer.quickstart.words import ALPHABET, HEIGHT, INKS, WIDTH

PATCH = 8
LATENT_SHAPE = (48, HEIGHT // PATCH, WIDTH // PATCH)
MAX_CHARS = 4
NUM_TOKENS = MAX_CHARS + 1  # the characters, then the ink
PAD = 0
_QUOTED = re.compile(r'"([^"]*)"')


def tokenize(text: str) -> list[int]:
    """Token ids of a prompt such as `the word "K7QX" in red`: the quoted characters and the ink.

    Raises:
        ValueError: no quoted text, a character outside the alphabet, too many of them, or not exactly one ink.
    """
    quoted = _QUOTED.search(text)
    if quoted is None or not 1 <= len(quoted.group(1)) <= MAX_CHARS:
        raise ValueError(f"the tiny policy draws one quoted word of 1 to {MAX_CHARS} characters; got {text!r}")
    unknown = [c for c in quoted.group(1) if c not in ALPHABET]
    if unknown:
        raise ValueError(f"the tiny policy cannot draw {unknown[0]!r} of {text!r}; its characters are {ALPHABET}")
    rest = text[: quoted.start()] + text[quoted.end() :]
    inks = [ink for ink in INKS if re.search(rf"\b{ink}\b", rest)]
    if len(inks) != 1:
        raise ValueError(f"{text!r} names {len(inks)} of the tiny policy's inks; it needs one of {', '.join(INKS)}")
    chars = [1 + ALPHABET.index(c) for c in quoted.group(1)]
    chars += [PAD] * (MAX_CHARS - len(chars))
    return [*chars, 1 + len(ALPHABET) + list(INKS).index(inks[0])]


class CharEncoder(nn.Module):
    """Characters and ink to (B, 5, width) token states and a (B, width) pooled state. All-PAD is the empty prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(1 + len(ALPHABET) + len(INKS), width)
        self.position = nn.Parameter(torch.randn(NUM_TOKENS, width) * 0.02)
        self.pool = nn.Linear(NUM_TOKENS * width, width)

    def forward(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        states = self.embed(tokens_BL) + self.position
        return states, self.pool(states.flatten(1))


class TinyModel(nn.Module):
    """Text encoder, transformer and codec in one module: what the checkpoint holds."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.codec = PcaCodec(PATCH, LATENT_SHAPE[0])
        self.text = CharEncoder(width)
        self.transformer = TinyTransformer(
            grid=max(LATENT_SHAPE[1:]),
            channels=LATENT_SHAPE[0],
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
        )
        self.transformer.start_at_zero()

    def velocity(self, x: Tensor, sigma_B: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """v = noise - data at noise level sigma in [0, 1]; x (B, 48, 3, 6)."""
        out: Tensor = self.transformer(x, sigma_B * 1000.0, states, pooled)
        return out

    def save(self, path: Path, about: str) -> None:
        """Write all weights in 16 bit, with a paragraph on how they were made."""
        half = {name: tensor.to(torch.float16).contiguous() for name, tensor in self.state_dict().items()}
        save_file(half, str(path), metadata={"about": about})

    def load(self, path: Path) -> str:
        """Load a file that `save` wrote; returns its paragraph. Raises ConfigError."""
        if not path.is_file():
            raise ConfigError(
                f"no checkpoint at {path}; `{command('sft')} configs/quickstart_base.yaml` makes the quickstart's"
            )
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                about = str((file.metadata() or {}).get("about", ""))
        except SafetensorError as error:
            raise ConfigError(f"policy.checkpoint = {path} is no safetensors file or a damaged one: {error}") from error
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            raise ConfigError(f"{path} does not fit policy.num_layers, num_heads, head_dim: {error}") from error
        return about


def token_tensor(texts: Sequence[str], device: torch.device) -> Tensor:
    """(B, 5) int64 token ids."""
    return sent(torch.tensor([tokenize(text) for text in texts], dtype=torch.int64), device)


def to_pixels(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] to (B, H, W, 3) uint8."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
