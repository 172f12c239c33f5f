"""A DeepGen with random weights, made on the spot: the two base models' folders and a checkpoint as published ones are.

Its pictures are noise, but every part is there: learned queries, fused hidden states, dual attention, adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.tiny_qwen3vl import byte_tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer.policies.flow.deepgen.geometry import Geometry

IMAGE_SIZE = 32
LORA_RANK = 4


@dataclass(frozen=True)
class TinyDeepGen:
    """Where its parts are, as the policy's section takes them."""

    sd3_path: Path
    qwen_path: Path
    checkpoint: Path

    def section(self, **more: Any) -> dict[str, Any]:
        paths = {"sd3_path": str(self.sd3_path), "qwen_path": str(self.qwen_path), "checkpoint": str(self.checkpoint)}
        return {"type": "deepgen", "dtype": "float32", "image_size": IMAGE_SIZE, **paths, **more}


def geometry() -> Geometry:
    """Two fused hidden states of 13 layers, two connector layers of two heads, two transformer blocks, one of them dual."""
    from trainer.policies.flow.deepgen.geometry import ConnectorGeometry, Geometry

    number = byte_tokenizer().convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return Geometry(
        lmm={
            "text_config": {
                "vocab_size": len(byte_tokenizer()),
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 13,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "rms_norm_eps": 1e-6,
                "rope_parameters": rope,
                "bos_token_id": number("<|endoftext|>"),
                "eos_token_id": number("<|im_end|>"),
                "pad_token_id": number("<|endoftext|>"),
                "tie_word_embeddings": True,
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 64,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [1],
            },
            "image_token_id": number("<|image_pad|>"),
            "video_token_id": number("<|video_pad|>"),
            "vision_start_token_id": number("<|vision_start|>"),
            "vision_end_token_id": number("<|vision_end|>"),
            "tie_word_embeddings": True,
        },
        transformer={
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 48,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 40,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        vae={
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": IMAGE_SIZE,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        connector=ConnectorGeometry(
            num_queries=4,
            lmm_width=64,
            num_fused=2,
            width=128,
            mlp_width=96,
            num_layers=2,
            pooled_width=40,
            joint_width=48,
        ),
    )


def make_deepgen(folder: Path, seed: int = 0) -> TinyDeepGen:
    """Write the base models, and a checkpoint with queries, connector, transformer and the language model's adapters."""
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from trainer.policies.flow.deepgen.networks import DeepGenNetworks

    made = TinyDeepGen(folder / "sd3", folder / "qwen", folder / "deepgen.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = geometry()
        lmm = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**sizes.lmm))
        lmm.save_pretrained(made.qwen_path)
        byte_tokenizer().save_pretrained(made.qwen_path)
        SD3Transformer2DModel(**sizes.transformer).save_pretrained(made.sd3_path / "transformer")
        AutoencoderKL(**sizes.vae).save_pretrained(made.sd3_path / "vae")
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(made.sd3_path / "scheduler")
        trained = DeepGenNetworks.from_geometry(sizes)
        spread(trained.transformer)
        tensors = {
            name: tensor.clone()
            for name, tensor in trained.state_dict().items()
            if not name.startswith(("lmm.", "vae."))
        }
        save_file(tensors | adapters(lmm), made.checkpoint)
    return made


def spread(network: nn.Module) -> None:
    """Weights large enough that every input shows in the output."""
    import torch

    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def adapters(lmm: nn.Module) -> dict[str, Tensor]:
    """PEFT's adapters of every linear layer and of the embedding, by published names (transformers 4.51)."""
    import torch
    from torch import nn

    found = {}
    for name, module in lmm.named_modules():
        published = f"lmm.{published_name(name)}"
        if isinstance(module, nn.Linear):
            found[f"{published}.lora_A.default.weight"] = torch.randn(LORA_RANK, module.in_features) * 0.01
            found[f"{published}.lora_B.default.weight"] = torch.randn(module.out_features, LORA_RANK) * 0.01
        elif isinstance(module, nn.Embedding):
            found[f"{published}.lora_embedding_A.default"] = torch.randn(LORA_RANK, module.num_embeddings) * 0.01
            found[f"{published}.lora_embedding_B.default"] = torch.randn(module.embedding_dim, LORA_RANK) * 0.01
    return found


def published_name(name: str) -> str:
    """A name of today's Qwen2_5_VLForConditionalGeneration as transformers 4.51 had it."""
    return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")


def published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors behind the prefixes of its wrappers."""
    return {f"module.model.{name}": tensor for name, tensor in tensors.items()}
