"""What a step of SD3, FLUX and Qwen-Image takes beside what is held all along: activations for the backward pass, and images while they are decoded.

Counted from what autograd keeps of each block on CUDA under autocast to bfloat16, which tests count anew; a GPU has not been asked.
Compiled blocks keep less. Attention is one that keeps no probabilities. Axes: d hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.policy import FluxConfig, QwenImageConfig, Sd3Config
from trainer.policies.flow.frozen import PIXELS_AT_ONCE
from trainer.policies.flow.packing import PATCH

if TYPE_CHECKING:
    from trainer.config import Config

Joint = Sd3Config | FluxConfig | QwenImageConfig  # texts and images in one attention
_BF16 = 2
_CLIP_TOKENS = 77  # before those of T5
# Gradients that are alive while one block goes back, by d and token: two inner products of the MLP, and the stream's.
_GOING_BACK = 24
_OWN_SIDE = 128  # of latents, where a network's configuration has none
_DECODER_COPIES = 4  # of the widest features of the autoencoder's decoder, as for Janus


@dataclass(frozen=True)
class Block:
    """What the backward pass needs of a block.

    Attributes:
        image, text: bytes by d of each of an image's and a text's tokens: what comes into norms, modulations and projections, each
            projection's own cast of it, queries and keys before their norms, in them in float32, and as attention takes them, gates.
        weights: matrices of d x d, of which a cast to bfloat16 is kept where they are trained.
    """

    image: float
    text: float
    weights: int = 0


@dataclass(frozen=True)
class Table:
    """What is kept of each kind of block, around the blocks, and bytes of each number that encoders give for a text's token."""

    blocks: Mapping[str, Block]
    around: Block
    given: int = 0


# A block with a second attention of images, one without, and the last, whose texts go no further. By adapters only what they and
# the gradients behind them need is kept, and of the first block nothing before its first adapter.
_AROUND_FULL, _AROUND_LORA = Block(10.1, 0.0, 4), Block(4.0, 0.0)  # patches, embeddings, and what comes out
_SD35 = Table(
    {"dual": Block(111.4, 74.2, 43), "plain": Block(74.2, 74.2, 36), "last": Block(74.2, 42.2, 23)}, _AROUND_FULL, 2
)
_SD35_LORA = Table(
    {"dual": Block(64.5, 44.3), "plain": Block(44.3, 44.3), "last": Block(44.3, 30.3), "first": Block(40.3, 40.3)},
    _AROUND_LORA,
)
# SD3 before 3.5: queries and keys have no norm, so their bfloat16 is all that is kept of them; no block has a second attention.
_SD3 = Table({"plain": Block(54.1, 54.1, 36), "last": Block(54.1, 22.1, 23)}, _AROUND_FULL, 2)
_SD3_LORA = Table({"plain": Block(32.2, 32.2), "last": Block(32.2, 18.2), "first": Block(28.2, 28.2)}, _AROUND_LORA)
# FLUX has blocks of one stream behind those of two; Qwen-Image norms what the encoder gives.
_FLUX = Table({"plain": Block(70.1, 70.1, 36), "single": Block(60.1, 60.1, 15)}, Block(10.1, 0.0, 5), 2)
_FLUX_LORA = Table({"first": Block(36.3, 36.3), "plain": Block(40.2, 40.2), "single": Block(34.2, 34.2)}, _AROUND_LORA)
_QWEN = Table({"plain": Block(74.1, 74.1, 36)}, Block(10.1, 0.0, 4), 6)
_QWEN_LORA = Table({"first": Block(40.2, 40.2), "plain": Block(44.2, 44.2)}, _AROUND_LORA)


def working_bytes(config: Config) -> Mapping[str, float]:
    """Bytes of the device at the peak of each part of a step, beside all that is held; the largest decides.

    Nothing is said of float32, nor of what Qwen-Image's decoder takes. Source images are not counted; prompts are as long as they may be.

    Raises:
        OSError, ValueError: the folder's files cannot be read.
    """
    policy, sampling = config.policy, config.sampling
    assert isinstance(policy, Joint) and sampling.type == "flow", "the configuration has checked it"
    network = json.loads((Path(policy.pretrained) / "transformer/config.json").read_text(encoding="utf-8"))
    vae = json.loads((Path(policy.pretrained) / "vae/config.json").read_text(encoding="utf-8"))
    if policy.dtype != "bfloat16":
        return {}
    widths = vae.get("block_out_channels")  # Qwen-Image's is an autoencoder of videos, which has other fields
    factor = 2 ** (len(widths) - 1 if widths else len(vae["temperal_downsample"]))
    own = network.get("sample_size", _OWN_SIDE) * factor
    height, width = sampling.height or own, sampling.width or own
    images = config.optim.micro_batch_size or sampling.micro_batch_size
    both = sampling.guidance_scale != 1 and sampling.guidance_gradient == "both"
    patch = network["patch_size"] if isinstance(policy, Sd3Config) else PATCH
    tokens = height * width // (factor * patch) ** 2
    rows = images * (2 if both else 1)
    found = {f"training on {images} images": training_bytes(network, policy, rows, tokens)}
    if not widths:
        return found
    decoded = min(
        max(sampling.micro_batch_size, config.evaluation.batch_size), max(1, PIXELS_AT_ONCE // (height * width))
    )
    found[f"decoding {decoded} images"] = float(decoded * height * width * max(widths[:2]) * _BF16 * _DECODER_COPIES)
    return found


def training_bytes(network: Mapping[str, Any], policy: Joint, rows: int, tokens: int) -> float:
    """Bytes at the peak of a forward and a backward pass.

    Args:
        network: its published configuration.
        rows: images, those without a prompt included.
        tokens: of an image.
    """
    d = network["num_attention_heads"] * network["attention_head_dim"]
    texts = policy.max_sequence_length + (_CLIP_TOKENS if isinstance(policy, Sd3Config) else 0)
    table, kinds = _table(network, policy), _kinds(network, policy)

    def kept(block: Block) -> float:
        return float(rows * d * (tokens * block.image + texts * block.text) + _BF16 * block.weights * d * d)

    total = kept(table.around) + rows * texts * network["joint_attention_dim"] * table.given
    total += rows * d * (tokens + texts) * _GOING_BACK
    if policy.gradient_checkpointing:  # what goes into each block, and one block computed again
        carried = len(kinds) * rows * d * (tokens + texts) * _BF16
        return total + carried + max(kept(table.blocks[kind]) for kind in kinds)
    return total + sum(kept(table.blocks[kind]) for kind in kinds)


def _table(network: Mapping[str, Any], policy: Joint) -> Table:
    by_adapters = policy.lora is not None
    if isinstance(policy, FluxConfig):
        return _FLUX_LORA if by_adapters else _FLUX
    if isinstance(policy, QwenImageConfig):
        return _QWEN_LORA if by_adapters else _QWEN
    if network.get("qk_norm") is None:
        return _SD3_LORA if by_adapters else _SD3
    return _SD35_LORA if by_adapters else _SD35


def _kinds(network: Mapping[str, Any], policy: Joint) -> list[str]:
    """Of each block in turn."""
    layers, dual = network["num_layers"], set(network.get("dual_attention_layers") or ())
    found = ["dual" if layer in dual else "plain" for layer in range(layers)]
    if isinstance(policy, Sd3Config):
        found[-1] = "last"
    if policy.lora is not None:
        found[0] = "first"
    return found + ["single"] * network.get("num_single_layers", 0)
