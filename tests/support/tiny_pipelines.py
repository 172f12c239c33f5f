"""Diffusers folders with random weights and tokenizers made on the spot: small enough for a test, no hub.

Each has the parts and the files of the published model, so that what loads one loads the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

GUIDED = [
    ("float32", False, "both"),
    ("float32", True, "both"),
    ("bfloat16", False, "both"),
    ("bfloat16", True, "both"),
    ("bfloat16", True, "conditional"),
]
"""What guided replays are tried with: dtype, recomputation, and which halves of guidance have a gradient."""
LATENT_CHANNELS = 4
WIDTH = 32  # of every text encoder
T5_TOKENS = 8


def make_sd3(
    folder: Path, *, t5: bool = True, hidden_size: int = 32, num_layers: int = 2, sample_size: int = 8, seed: int = 0
) -> Path:
    """Write a tiny Stable Diffusion 3.5: dual attention in the first block, a VAE of factor 2; gives `folder`.

    Args:
        t5: with the T5 encoder, which published folders may lack.
        sample_size: edge of the model's own latents; its pictures are twice that.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=sample_size,
            pos_embed_max_size=2 * sample_size,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=num_layers,
            attention_head_dim=hidden_size // 2,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=hidden_size,
            pooled_projection_dim=2 * WIDTH,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        _spread(transformer)
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(),
            text_encoder=_clip(projected=True),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_clip(projected=True),
            tokenizer_2=_clip_tokenizer(),
            text_encoder_3=_t5(2 * WIDTH) if t5 else None,
            tokenizer_3=_t5_tokenizer() if t5 else None,
        )
    pipeline.save_pretrained(folder)
    return folder


def make_flux(folder: Path, *, guidance: bool = True, seed: int = 0) -> Path:
    """Write a tiny FLUX.1: dev where it takes a guidance, else schnell; gives `folder`."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 6, 6),
        )
        _spread(transformer)
        pipeline = FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance, base_shift=0.5, max_shift=1.15
            ),
            vae=_vae(),
            text_encoder=_clip(projected=False),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_t5(WIDTH),
            tokenizer_2=_t5_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return folder


def make_qwen_image(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny Qwen-Image; gives `folder`."""
    import torch
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = QwenImageTransformer2DModel(
            in_channels=4 * LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
        _spread(transformer)
        pipeline = QwenImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02
            ),
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=LATENT_CHANNELS,
                dim_mult=[1, 1],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[1.5, 2.0, 1.2, 0.8],
            ),
            text_encoder=_qwen(),
            tokenizer=_qwen_tokenizer(),
        )
    pipeline.save_pretrained(folder)
    return folder


def make_auraflow(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny AuraFlow, which no policy that comes along draws with; gives `folder`."""
    import torch
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=WIDTH,
            pos_embed_max_size=256,
        )
        _spread(transformer)
        encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(_t5_tokenizer()),
                d_model=WIDTH,
                d_kv=16,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                dropout_rate=0.0,
            )
        )
        pipeline = AuraFlowPipeline(
            tokenizer=_t5_tokenizer(),
            text_encoder=encoder,
            vae=_vae(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    pipeline.save_pretrained(folder)
    return folder


def _letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _clip_tokenizer() -> Any:
    """One token per byte."""
    from transformers import CLIPTokenizer

    tokens = [*_letters(), *(f"{letter}</w>" for letter in _letters()), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _clip(*, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    _spread(encoder)
    return encoder


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_t5_tokenizer()), d_model=width, d_kv=16, d_ff=64, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config)


def _qwen_tokenizer() -> Any:
    """One token per byte."""
    from transformers import Qwen2Tokenizer

    vocabulary = {letter: n for n, letter in enumerate(_letters())}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def _qwen() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(_qwen_tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    _spread(encoder)
    return encoder


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _spread(module: Any) -> None:
    """Weights large enough that outputs depend on every input: at the usual start they hardly do."""
    import torch

    for parameter in module.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
