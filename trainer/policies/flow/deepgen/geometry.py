"""The sizes of a DeepGen model: everything its networks can be built from, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.config import ConfigError

HEAD_DIM = 64  # of the connector's attention
FUSION_STRIDE = 6  # language-model layers from one fused hidden state to the next


@dataclass(frozen=True)
class ConnectorGeometry:
    """Sizes of all that stands between the language model and the transformer.

    Attributes:
        num_queries: learned queries appended to a prompt.
        lmm_width: hidden size of the language model.
        num_fused: hidden states of the language model that are concatenated on channels.
        width, mlp_width, num_layers: of the connector.
        pooled_width, joint_width: of the transformer's pooled and per-token conditioning.
    """

    num_queries: int
    lmm_width: int
    num_fused: int
    width: int
    mlp_width: int
    num_layers: int
    pooled_width: int
    joint_width: int

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> ConnectorGeometry:
        """The sizes that a checkpoint's tensors have. Raises ConfigError naming tensors that are missing or contradict."""
        needed = (
            "meta_queries",
            "projector_1.weight",
            "projector_2.weight",
            "projector_3.weight",
            "connector.layers.0.mlp.fc1.weight",
        )
        missing = [name for name in needed if name not in shapes]
        if missing:
            raise ConfigError(
                f"the checkpoint has no {', '.join(missing)}: it is no DeepGen checkpoint (it holds {len(shapes)} tensors, "
                f"the first being {', '.join(list(shapes)[:3]) or 'none'})"
            )
        queries, fusion, pooled, joint, fc1 = (shapes[name] for name in needed)
        if fusion[1] % queries[1] or fc1[1] != fusion[0] or fusion[0] % HEAD_DIM:
            raise ConfigError(
                f"the checkpoint's sizes contradict: projector_1.weight {fusion} must take a multiple of meta_queries' "
                f"{queries[1]} channels, give a multiple of {HEAD_DIM}, and fit connector.layers.0.mlp.fc1.weight {fc1}"
            )
        layers = {name.split(".")[2] for name in shapes if name.startswith("connector.layers.")}
        return cls(
            num_queries=queries[0],
            lmm_width=queries[1],
            num_fused=fusion[1] // queries[1],
            width=fusion[0],
            mlp_width=fc1[0],
            num_layers=len(layers),
            pooled_width=pooled[0],
            joint_width=joint[0],
        )


@dataclass(frozen=True)
class Geometry:
    """What every network is built from: the keyword arguments of the libraries' own classes, and the connector's sizes.

    Attributes:
        lmm: of transformers' Qwen2_5_VLConfig.
        transformer: of diffusers' SD3Transformer2DModel.
        vae: of diffusers' AutoencoderKL.
    """

    lmm: Mapping[str, Any]
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    connector: ConnectorGeometry = field(repr=False)


def full_geometry() -> Geometry:
    """The published model: Qwen2.5-VL-3B, six connector layers, an SD3.5-medium transformer and its autoencoder."""
    return Geometry(
        lmm={
            "text_config": {
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 128000,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
        transformer={
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
            "qk_norm": "rms_norm",
        },
        vae={
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        connector=ConnectorGeometry(
            num_queries=128,
            lmm_width=2048,
            num_fused=6,
            width=2048,
            mlp_width=11946,
            num_layers=6,
            pooled_width=2048,
            joint_width=4096,
        ),
    )
