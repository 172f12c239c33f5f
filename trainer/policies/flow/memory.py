"""What a step of SD3 and SD3.5 takes beside what is held all along: activations for the backward pass, and images while they are decoded.

Counted from what autograd keeps of each block on CUDA under autocast to bfloat16, which tests count anew; a GPU has not been asked.
Compiled blocks keep less. Attention is one that keeps no probabilities. Axes: d hidden.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.policy import Sd3Config
from trainer.policies.flow.frozen import PIXELS_AT_ONCE

if TYPE_CHECKING:
    from trainer.config import Config

_BF16 = 2
_CLIP_TOKENS = 77  # before those of T5
# Gradients that are alive while one block goes back, by d and token: two inner products of the MLP, and the stream's.
_GOING_BACK = 24
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


# A block with a second attention of images, one without, and the last, whose texts go no further. By adapters only what they and
# the gradients behind them need is kept, and of the first block nothing before its first adapter.
_FULL = {"dual": Block(111.4, 74.2, 43), "plain": Block(74.2, 74.2, 36), "last": Block(74.2, 42.2, 23)}
_LORA = {"dual": Block(64.5, 44.3), "plain": Block(44.3, 44.3), "last": Block(44.3, 30.3), "first": Block(40.3, 40.3)}
# SD3 before 3.5: queries and keys have no norm, so their bfloat16 is all that is kept of them; no block has a second attention.
_FULL_PLAIN = {"plain": Block(54.1, 54.1, 36), "last": Block(54.1, 22.1, 23)}
_LORA_PLAIN = {"plain": Block(32.2, 32.2), "last": Block(32.2, 18.2), "first": Block(28.2, 28.2)}
_AROUND_FULL, _AROUND_LORA = Block(10.1, 0.0, 4), Block(4.0, 0.0)  # patches, embeddings, and what comes out


def working_bytes(config: Config) -> Mapping[str, float]:
    """Bytes of the device at the peak of each part of a step, beside all that is held; the largest decides.

    Nothing is said of float32. Source images are not counted.

    Raises:
        OSError, ValueError: the folder's files cannot be read.
    """
    policy, sampling = config.policy, config.sampling
    assert isinstance(policy, Sd3Config) and sampling.type == "flow", "the configuration has checked it"
    network = json.loads((Path(policy.pretrained) / "transformer/config.json").read_text(encoding="utf-8"))
    vae = json.loads((Path(policy.pretrained) / "vae/config.json").read_text(encoding="utf-8"))
    if policy.dtype != "bfloat16":
        return {}
    factor = 2 ** (len(vae.get("block_out_channels", (0,) * 4)) - 1)
    own = network["sample_size"] * factor
    height, width = sampling.height or own, sampling.width or own
    images = config.optim.micro_batch_size or sampling.micro_batch_size
    both = sampling.guidance_scale != 1 and sampling.guidance_gradient == "both"
    tokens = height * width // (factor * network["patch_size"]) ** 2
    rows = images * (2 if both else 1)
    found = {f"training on {images} images": training_bytes(network, policy, rows, tokens)}
    decoded = min(
        max(sampling.micro_batch_size, config.evaluation.batch_size), max(1, PIXELS_AT_ONCE // (height * width))
    )
    widest = max(vae.get("block_out_channels", (0,))[:2])
    found[f"decoding {decoded} images"] = float(decoded * height * width * widest * _BF16 * _DECODER_COPIES)
    return found


def training_bytes(network: Mapping[str, Any], policy: Sd3Config, rows: int, tokens: int) -> float:
    """Bytes at the peak of a forward and a backward pass.

    Args:
        network: its published configuration.
        rows: images, those without a prompt included.
        tokens: of an image.
    """
    d = network["num_attention_heads"] * network["attention_head_dim"]
    texts = _CLIP_TOKENS + policy.max_sequence_length
    is_plain = network.get("qk_norm") is None
    if policy.lora is None:
        by_kind, around = _FULL_PLAIN if is_plain else _FULL, _AROUND_FULL
    else:
        by_kind, around = _LORA_PLAIN if is_plain else _LORA, _AROUND_LORA

    def kept(block: Block) -> float:
        return float(rows * d * (tokens * block.image + texts * block.text) + _BF16 * block.weights * d * d)

    kinds = _kinds(network)
    if policy.lora is not None:
        kinds[0] = "first"
    total = kept(around) + (0 if policy.lora else rows * texts * network["joint_attention_dim"] * _BF16)
    total += rows * d * (tokens + texts) * _GOING_BACK
    if policy.gradient_checkpointing:  # what goes into each block, and one block computed again
        carried = len(kinds) * rows * d * (tokens + texts) * _BF16
        return total + carried + max(kept(by_kind[kind]) for kind in kinds)
    return total + sum(kept(by_kind[kind]) for kind in kinds)


def _kinds(network: Mapping[str, Any]) -> list[str]:
    """Of each block in turn."""
    layers, dual = network["num_layers"], set(network.get("dual_attention_layers") or ())
    return ["last" if layer == layers - 1 else "dual" if layer in dual else "plain" for layer in range(layers)]
