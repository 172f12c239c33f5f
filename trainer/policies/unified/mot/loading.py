"""Where a Mixture-of-Transformers comes from: a folder in BAGEL's layout, or fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.config import ConfigError
from trainer.config.mot import MotConfig
from trainer.policies.lora import compute_dtype
from trainer.policies.unified.mot.codec import LINEAR_FILE, Codec, LinearCodec
from trainer.policies.unified.mot.flux_vae import FLUX_FILE, FluxCodec
from trainer.policies.unified.mot.geometry import fresh_geometry, read_geometry
from trainer.policies.unified.mot.network import MotNetwork, initialize, sinusoids_2d
from trainer.policies.unified.mot.parts import held_as
from trainer.policies.unified.mot.words import Words

AVERAGED, PLAIN = "ema.safetensors", "model.safetensors"
# Sinusoids that anybody can compute: BAGEL's own files hold them for the size of one training or another.
COMPUTED = ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed")
_NAMED = 3


def load(config: MotConfig, device: torch.device) -> tuple[MotNetwork, Codec, Words, str]:
    """The network in float32, its codec, its tokenizer, and a sentence on where they come from.

    Raises:
        ConfigError: files are missing, damaged, or of another model.
    """
    if config.initialize is not None:
        words = Words.fresh(config.initialize.words)
        geometry = fresh_geometry(config.initialize, len(words), config.max_latent_size)
        network = MotNetwork(replace(geometry, interpolated=config.interpolate_positions))
        initialize(network)
        return network, LinearCodec.fitted(config.initialize.image_size, device), words, "Random weights."
    assert config.pretrained is not None, "the configuration has checked it"
    folder = Path(config.pretrained)
    codec = load_codec(folder, device, compute_dtype(config))
    geometry = read_geometry(folder, codec.channels * codec.latent_patch**2, config.max_latent_size)
    with torch.device("meta"):
        network = MotNetwork(replace(geometry, interpolated=config.interpolate_positions))
    path, words = weights_file(config), Words.load(folder)
    fill(network, path, config)
    grow(network, len(words))
    return network, codec, words, f"Started from {path}."


def load_codec(folder: Path, device: torch.device, dtype: torch.dtype) -> Codec:
    """The folder's codec. Raises ConfigError where it has none."""
    if (folder / FLUX_FILE).is_file():
        return FluxCodec(folder / FLUX_FILE, device, dtype)
    if (folder / LINEAR_FILE).is_file():
        return LinearCodec.load(folder / LINEAR_FILE, device)
    raise ConfigError(
        f"policy.pretrained = {folder} has neither {FLUX_FILE} (FLUX's autoencoder) nor {LINEAR_FILE} (of a small model): images "
        "cannot be drawn; download it too"
    )


def weights_file(config: MotConfig) -> Path:
    """The file that the weights come from: averaged ones, or those that were trained. Raises ConfigError where there is none."""
    assert config.pretrained is not None, "the configuration has checked it"
    field, folder = ("pretrained", config.pretrained) if config.weights is None else ("weights", config.weights)
    for name in (AVERAGED, PLAIN) if config.use_ema else (PLAIN, AVERAGED):
        if (path := Path(folder) / name).is_file():
            return path
    raise ConfigError(f"policy.{field} = {folder} has neither {AVERAGED} nor {PLAIN}; name a folder that has one")


def fill(network: MotNetwork, path: Path, config: MotConfig) -> None:
    """Gives a network on the meta device the weights of a file.

    Raises:
        ConfigError: a weight is missing, unknown or of another shape; only the two tables of positions may be.
    """
    wanted = network.state_dict()
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
            check_names(shapes, {name: tuple(each.shape) for name, each in wanted.items()}, path)
            state = {name: file.get_tensor(name).to(held_as(name, config)) for name in shapes if name not in COMPUTED}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}; download it again") from error
    state |= computed_tables(network)
    network.load_state_dict(state, assign=True)


def grow(network: MotNetwork, vocabulary: int) -> None:
    """Rows for tags that the tokenizer lacked, where the weights have no spare ones: each the mean of all others."""
    language = network.language_model
    for module in (language.model.embed_tokens, language.lm_head):
        if (lacking := vocabulary - len(module.weight)) > 0:
            mean = module.weight.detach().mean(0, keepdim=True)
            module.weight = nn.Parameter(torch.cat([module.weight.detach(), mean.expand(lacking, -1)]))
    rows = max(vocabulary, network.geometry.language.vocab_size)
    network.geometry = replace(network.geometry, language=replace(network.geometry.language, vocab_size=rows))


def check_names(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raises ConfigError where a file's tensors are not the network's; only the two tables of positions may differ."""
    problems = {
        "lacks": [name for name in wanted if name not in found and name not in COMPUTED],
        "has, and the network has not,": [name for name in found if name not in wanted],
        "has in another shape": [
            f"{name} {list(found[name])} in place of {list(wanted[name])}"
            for name in wanted
            if name in found and found[name] != wanted[name] and name not in COMPUTED
        ],
    }
    said = [f"{what} {len(names)}, first {', '.join(names[:_NAMED])}" for what, names in problems.items() if names]
    if said:
        raise ConfigError(
            f"{path} does not fit llm_config.json and vit_config.json beside it: it {'; it '.join(said)}. Download it again, or give "
            "the files that belong to it"
        )


def computed_tables(network: MotNetwork) -> dict[str, Tensor]:
    """The two tables of positions, by name, as the network's geometry asks for them."""
    geometry = network.geometry
    width = geometry.language.hidden_size
    sides = geometry.max_latent_size, geometry.vision.side
    return {name: sinusoids_2d(side, width) for name, side in zip(COMPUTED, sides, strict=True)}
