"""Model FLOPs of a forward pass by formula: two for each multiplication of matrices, nothing for what is elementwise.

A test holds them to torch's flop counter. A pass with gradients is three of them where all weights are trained, and about two by
adapters, whatever is computed again (PaLM, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TIME_FEATURES = 256  # of diffusers' embedding of the noise level


def sd3_forward(geometry: Mapping[str, Any], height: int, width: int, text_tokens: int) -> float:
    """One velocity of one image by an MMDiT (arXiv 2403.03206), SD3.5's second attention of images included.

    Args:
        geometry: of a diffusers SD3Transformer2DModel.
        height, width: of the latents.
        text_tokens: that the image's tokens attend to.
    """
    d = geometry["num_attention_heads"] * geometry["attention_head_dim"]
    patch = geometry["patch_size"] ** 2
    n, t, layers = height * width // patch, text_tokens, geometry["num_layers"]
    dual = set(geometry["dual_attention_layers"])
    # The patches, the texts, noise level and pooled text, and what comes out.
    total = 2 * n * geometry["in_channels"] * patch * d
    total += 2 * t * geometry["joint_attention_dim"] * d
    total += 2 * (_TIME_FEATURES + d + geometry["pooled_projection_dim"] + d) * d
    total += 2 * d * 2 * d + 2 * n * d * geometry["out_channels"] * patch
    for layer in range(layers):
        last = layer == layers - 1  # its texts are attended to, and go no further
        total += 2 * d * d * ((9 if layer in dual else 6) + (2 if last else 6))  # the modulations
        total += 2 * d * d * (4 * n + (3 if last else 4) * t) + 4 * (n + t) ** 2 * d
        total += 16 * d * d * (n + (0 if last else t))
        if layer in dual:
            total += 8 * n * d * d + 4 * n * n * d
    return float(total)


def decoder_forward(
    weights: float, head: float, hidden: int, layers: int, *, tokens: float, predicted: float, keys: float
) -> float:
    """Tokens through a decoder's layers: 2 a weight and token, and 4 `hidden` a layer for each key that a token sees.

    Args:
        weights: of all layers.
        head: weights of the output layer, which `predicted` of the tokens go through.
        keys: that all tokens together see, in one layer: half a square where attention is causal.
    """
    return 2 * weights * tokens + 2 * head * predicted + 4 * hidden * layers * keys


def training_factor(trained: int, all_of_them: int) -> float:
    """Forward passes that one with gradients counts for: the gradients of activations are one more, those of the trained weights
    one more by their share."""
    return 2.0 + trained / all_of_them
