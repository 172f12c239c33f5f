"""A folder in BAGEL's layout at a tiny size: names and shapes written down from the published files, not asked of the trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, HEADS, KV_HEADS, MLP, VOCABULARY = 32, 4, 2, 48, 300
VIT_WIDTH, VIT_MLP, PATCH, IMAGE = 16, 24, 14, 56
CHANNELS = 16  # of a latent; 2 x 2 of them make a token
SIDE = 6  # of the file's table for latents; the one asked for may be another
HEAD = WIDTH // HEADS
VAE_WIDTHS, PUBLISHED_VAE_WIDTHS = (32, 32, 64, 64), (128, 256, 512, 512)

Shapes = dict[str, tuple[int, ...]]


def network_shapes(layers: int = 2, vit_layers: int = 1) -> Shapes:
    """Of ema.safetensors: all but the autoencoder."""
    found: Shapes = {"language_model.model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for number in range(layers):
        found |= {f"language_model.model.layers.{number}.{name}": shape for name, shape in _layer().items()}
    found |= {f"language_model.model.{name}.weight": (WIDTH,) for name in ("norm", "norm_moe_gen")}
    found |= {"language_model.lm_head.weight": (VOCABULARY, WIDTH)}
    found |= _linear("time_embedder.mlp.0", 256, WIDTH) | _linear("time_embedder.mlp.2", WIDTH, WIDTH)
    found |= _linear("vae2llm", 4 * CHANNELS, WIDTH) | _linear("llm2vae", WIDTH, 4 * CHANNELS)
    found |= {
        "latent_pos_embed.pos_embed": (SIDE**2, WIDTH),
        "vit_pos_embed.pos_embed": ((IMAGE // PATCH) ** 2, WIDTH),
    }
    found |= _linear("connector.fc1", VIT_WIDTH, WIDTH) | _linear("connector.fc2", WIDTH, WIDTH)
    vision = "vit_model.vision_model"
    found |= _linear(f"{vision}.embeddings.patch_embedding", 3 * PATCH**2, VIT_WIDTH)
    found |= {f"{vision}.embeddings.position_embedding.weight": ((IMAGE // PATCH) ** 2, VIT_WIDTH)}
    for number in range(vit_layers):
        layer = f"{vision}.encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{layer}.self_attn.{name}", VIT_WIDTH, VIT_WIDTH)
        found |= _linear(f"{layer}.mlp.fc1", VIT_WIDTH, VIT_MLP) | _linear(f"{layer}.mlp.fc2", VIT_MLP, VIT_WIDTH)
        found |= {f"{layer}.{name}.{w}": (VIT_WIDTH,) for name in ("layer_norm1", "layer_norm2") for w in _BOTH}
    return found | {f"{vision}.post_layernorm.{w}": (VIT_WIDTH,) for w in _BOTH}


_BOTH = ("weight", "bias")


def _layer() -> Shapes:
    found: Shapes = {}
    for twin in ("", "_moe_gen"):
        for name, outputs in (("q", WIDTH), ("k", HEAD * KV_HEADS), ("v", HEAD * KV_HEADS)):
            found |= _linear(f"self_attn.{name}_proj{twin}", WIDTH, outputs)
        found |= {f"self_attn.o_proj{twin}.weight": (WIDTH, WIDTH)}
        found |= {f"self_attn.{name}_norm{twin}.weight": (HEAD,) for name in ("q", "k")}
        found |= {f"mlp{twin}.{name}_proj.weight": (MLP, WIDTH) for name in ("gate", "up")}
        found |= {f"mlp{twin}.down_proj.weight": (WIDTH, MLP)}
        found |= {f"{name}{twin}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
    return found


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vae_shapes(resnets: int = 1, widths: Sequence[int] = VAE_WIDTHS) -> Shapes:
    """Of ae.safetensors, as FLUX publishes it, with `resnets` blocks of each resolution (two as published)."""
    found: Shapes = {}
    last = len(widths) - 1
    found |= _conv("encoder.conv_in", 3, widths[0], 3)
    before = widths[0]
    for level, width in enumerate(widths):
        for block in range(resnets):
            found |= _resnet(f"encoder.down.{level}.block.{block}", before, width)
            before = width
        if level < last:
            found |= _conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    found |= _middle("encoder", widths[-1])
    found |= _conv("encoder.conv_out", widths[-1], 2 * CHANNELS, 3)
    found |= _conv("decoder.conv_in", CHANNELS, widths[-1], 3) | _middle("decoder", widths[-1])
    before = widths[-1]
    for level in range(last, -1, -1):
        for block in range(resnets + 1):
            found |= _resnet(f"decoder.up.{level}.block.{block}", before, widths[level])
            before = widths[level]
        if level:
            found |= _conv(f"decoder.up.{level}.upsample.conv", before, before, 3)
    found |= _norm("decoder.norm_out", before) | _norm("encoder.norm_out", widths[-1])
    return found | _conv("decoder.conv_out", before, 3, 3)


def _middle(side: str, width: int) -> Shapes:
    found = _resnet(f"{side}.mid.block_1", width, width) | _resnet(f"{side}.mid.block_2", width, width)
    for name in ("q", "k", "v", "proj_out"):
        found |= _conv(f"{side}.mid.attn_1.{name}", width, width, 1)
    return found | _norm(f"{side}.mid.attn_1.norm", width)


def _resnet(name: str, inputs: int, outputs: int) -> Shapes:
    found = _norm(f"{name}.norm1", inputs) | _norm(f"{name}.norm2", outputs)
    found |= _conv(f"{name}.conv1", inputs, outputs, 3) | _conv(f"{name}.conv2", outputs, outputs, 3)
    return found if inputs == outputs else found | _conv(f"{name}.nin_shortcut", inputs, outputs, 1)


def _conv(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def drawn(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Random tensors of these shapes in bfloat16, norms about 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        scale = 0.1 if len(shape) == 1 else max(1, torch.Size(shape[1:]).numel()) ** -0.5
        tensor = torch.randn(shape, generator=generator) * scale
        made[name] = (tensor + 1 if "norm" in name and name.endswith("weight") else tensor).to(torch.bfloat16)
    return made


def make_bagel(folder: Path) -> Path:
    """The folder, written. Its JSON files say what the published ones say, which their programs then correct."""
    folder.mkdir(parents=True, exist_ok=True)
    llm = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    }
    vit = {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": VIT_WIDTH,
        "image_size": IMAGE,
        "intermediate_size": VIT_MLP,
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": PATCH,
    }
    for name, fields in (("llm_config.json", llm), ("vit_config.json", vit), ("config.json", {"model_type": "bagel"})):
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")
    save_file(drawn(network_shapes(), 1), folder / "ema.safetensors")
    save_file(drawn(vae_shapes(), 2), folder / "ae.safetensors")
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Bytes, as Qwen's without merges; it has the tags of texts, and lacks those of images."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(tag, special=True) for tag in ("<|im_start|>", "<|im_end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.save_pretrained(folder)
