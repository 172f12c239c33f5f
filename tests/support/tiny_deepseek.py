"""A Janus in DeepSeek's layout with random weights: its config.json, its names of tensors, its tokenizer that splits bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIDE, PATCH, CODES = 32, 8, 24
WIDTH, LAYERS, MLP = 64, 2, 96  # of the language model
PAD_TAG = "<｜▁pad▁｜>"
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
TAGS = ("<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>")


def published_fields(*, large: bool = False) -> dict[str, Any]:
    """config.json of Janus-Pro-1B, or of Janus-Pro-7B."""
    width, layers, heads, mlp = (4096, 30, 32, 11008) if large else (2048, 24, 16, 5632)
    language = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads}
    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": 384,
                "model_name": "siglip_large_patch16_384",
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": _projector("aligner", 1024, width),
        "gen_aligner_config": _projector("gen_aligner", 8, width),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {"image_token_embed": width, "image_token_size": 16384, "n_embed": width},
        },
        "gen_vision_config": {
            "cls": "VQ-16",
            "model_type": "gen_vision",
            "params": {"image_token_size": 16384, "n_embed": 8},
        },
        "language_config": {
            "hidden_size": width,
            "intermediate_size": mlp,
            "max_position_embeddings": 16384,
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": 102400,
            **language,
        },
    }


def tiny_fields(vocab_size: int) -> dict[str, Any]:
    """The same of a small model: sizes that DeepSeek's code has no name for are beside the name."""
    fields = published_fields()
    fields["torch_dtype"] = "float32"
    fields["vision_config"]["params"] |= {
        "image_size": SIDE,
        "patch_size": PATCH,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "mlp_ratio": 2.0,
    }
    fields["gen_vision_config"]["params"] |= {
        "image_token_size": CODES,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 2],
        "num_res_blocks": 1,
        "latent_channels": 16,
    }
    fields["aligner_config"] = _projector("aligner", 32, WIDTH)
    fields["gen_aligner_config"] = _projector("gen_aligner", 8, WIDTH)
    fields["gen_head_config"]["params"] = {"image_token_embed": WIDTH, "image_token_size": CODES, "n_embed": WIDTH}
    fields["language_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "max_position_embeddings": 512,
        "vocab_size": vocab_size,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    return fields


def make_deepseek(folder: Path, seed: int = 0, *, shards: int = 0) -> dict[str, Tensor]:
    """Write a folder as DeepSeek publishes one, with a pickle of weights; gives the weights.

    Args:
        shards: as many files with an index in place of one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_tokenizer(folder)
    fields = tiny_fields(vocab_size)
    (folder / "config.json").write_text(json.dumps(fields))
    image = {"image_processor_type": "VLMImageProcessor", "image_size": SIDE, "min_size": 8, "do_normalize": True}
    mean = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(image | mean))
    own = {"processor_class": "VLChatProcessor", "image_tag": TAGS[0], "num_image_tokens": (SIDE // PATCH) ** 2}
    (folder / "processor_config.json").write_text(json.dumps({**own, "sft_format": "deepseek"}))
    weights = random_weights(fields, seed)
    if not shards:
        torch.save(weights, folder / "pytorch_model.bin")
        return weights
    names = list(weights)
    files = {name: f"pytorch_model-{place % shards + 1:05d}-of-{shards:05d}.bin" for place, name in enumerate(names)}
    for file in sorted(set(files.values())):
        torch.save({name: weights[name] for name in names if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return weights


def random_weights(fields: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Every tensor of DeepSeek's file, in no matrix so small that a wrong one would go unseen."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(fields, pooling=True).items():
        if name.endswith("codebook_used"):
            weights[name] = torch.zeros(shape)
        elif len(shape) == 1:  # norms around 1, biases too: no two alike
            weights[name] = 1 + 0.2 * torch.randn(shape, generator=generator)
        else:
            weights[name] = torch.randn(shape, generator=generator) * (2 / shape[-1]) ** 0.5
    return weights


def shapes(fields: Mapping[str, Any], *, pooling: bool = False) -> dict[str, tuple[int, ...]]:
    """DeepSeek's names and shapes, written out.

    Args:
        pooling: some of the tower's pooling, too, which nothing reads.
    """
    found: dict[str, tuple[int, ...]] = {}
    vision, vq = fields["vision_config"]["params"], fields["gen_vision_config"]["params"]
    width, tower = vision.get("width", 1024), "vision_model.vision_tower"
    patch, inner = vision.get("patch_size", 16), int(width * vision.get("mlp_ratio", 4))

    def both(name: str, *shape: int) -> None:
        """A layer's weight, and a bias of as many numbers as it has outputs."""
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, (shape[0],)

    found[f"{tower}.pos_embed"] = (1, (vision["image_size"] // patch) ** 2, width)
    both(f"{tower}.patch_embed.proj", width, 3, patch, patch)
    for number in range(vision.get("layers", 24)):
        block = f"{tower}.blocks.{number}"
        both(f"{block}.norm1", width)
        both(f"{block}.attn.qkv", 3 * width, width)
        both(f"{block}.attn.proj", width, width)
        both(f"{block}.norm2", width)
        both(f"{block}.mlp.fc1", inner, width)
        both(f"{block}.mlp.fc2", width, inner)
    both(f"{tower}.norm", width)
    if pooling:
        found[f"{tower}.attn_pool.latent"] = (1, 1, width)
        both(f"{tower}.attn_pool.q", width, width)
        both(f"{tower}.attn_pool.kv", 2 * width, width)
    for name, inputs in (("aligner", width), ("gen_aligner", vq["n_embed"])):
        out = fields[f"{name}_config"]["params"]["n_embed"]
        both(f"{name}.layers.0", out, inputs)
        both(f"{name}.layers.2", out, out)
    head = fields["gen_head_config"]["params"]
    both("gen_head.output_mlp_projector", head["image_token_embed"], head["n_embed"])
    both("gen_head.vision_head", head["image_token_size"], head["image_token_embed"])
    found["gen_embed.weight"] = (vq["image_token_size"], vq["n_embed"])
    _vq_shapes(found, both, vq)
    language, root = fields["language_config"], "language_model.model"
    hidden, mlp = language["hidden_size"], language["intermediate_size"]
    found[f"{root}.embed_tokens.weight"] = (language["vocab_size"], hidden)
    for number in range(language["num_hidden_layers"]):
        layer = f"{root}.layers.{number}"
        for name in "qkvo":
            found[f"{layer}.self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            found[f"{layer}.mlp.{name}_proj.weight"] = (mlp, hidden)
        found[f"{layer}.mlp.down_proj.weight"] = (hidden, mlp)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}.{name}.weight"] = (hidden,)
    found[f"{root}.norm.weight"] = (hidden,)
    found["language_model.lm_head.weight"] = (language["vocab_size"], hidden)
    return found


def _vq_shapes(found: dict[str, tuple[int, ...]], both: Any, vq: Mapping[str, Any]) -> None:
    """Encoder, codebook and decoder of image tokens."""
    root, base, latent = "gen_vision_model", vq.get("base_channels", 128), vq.get("latent_channels", 256)
    multiplier, count = vq.get("channel_multiplier", [1, 1, 2, 2, 4]), vq.get("num_res_blocks", 2)
    widths = [base * each for each in multiplier]

    def residual(name: str, inputs: int, outputs: int) -> None:
        both(f"{name}.norm1", inputs)
        both(f"{name}.conv1", outputs, inputs, 3, 3)
        both(f"{name}.norm2", outputs)
        both(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            both(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    def attention(name: str, channels: int) -> None:
        both(f"{name}.norm", channels)
        for each in ("q", "k", "v", "proj_out"):
            both(f"{name}.{each}", channels, channels, 1, 1)

    def middle(name: str, channels: int) -> None:
        residual(f"{name}.0", channels, channels)
        attention(f"{name}.1", channels)
        residual(f"{name}.2", channels, channels)

    def levels(name: str, order: list[int], inputs: int, blocks: int, last: str) -> int:
        for level, width in enumerate(order):
            for number in range(blocks):
                residual(f"{name}.{level}.res.{number}", inputs, width)
                inputs = width
                if width is order[-1 if last == "downsample" else 0] and level == (
                    len(order) - 1 if last == "downsample" else 0
                ):
                    attention(f"{name}.{level}.attn.{number}", width)
            if level < len(order) - 1:
                both(f"{name}.{level}.{last}.conv", width, width, 3, 3)
        return inputs

    both(f"{root}.encoder.conv_in", base, 3, 3, 3)
    top = levels(f"{root}.encoder.conv_blocks", widths, base, count, "downsample")
    middle(f"{root}.encoder.mid", top)
    both(f"{root}.encoder.norm_out", top)
    both(f"{root}.encoder.conv_out", latent, top, 3, 3)
    found[f"{root}.quantize.embedding.weight"] = (vq["image_token_size"], vq["n_embed"])
    found[f"{root}.quantize.codebook_used"] = (65536,)
    both(f"{root}.quant_conv", vq["n_embed"], latent, 1, 1)
    both(f"{root}.post_quant_conv", latent, vq["n_embed"], 1, 1)
    both(f"{root}.decoder.conv_in", top, latent, 3, 3)
    middle(f"{root}.decoder.mid", top)
    bottom = levels(f"{root}.decoder.conv_blocks", widths[::-1], top, count + 1, "upsample")
    both(f"{root}.decoder.norm_out", bottom)
    both(f"{root}.decoder.conv_out", 3, bottom, 3, 3)


def write_tokenizer(folder: Path) -> int:
    """tokenizer.json and its settings, as DeepSeek's: bytes, a class name that says Llama, and a padding that is none of Janus's.

    Gives the number of rows of the embedding, a few more than there are tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {each: number for number, each in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("r", "e"), ("re", "d")]
    for first, second in merges:
        vocab[first + second] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (BEGIN, END, PAD_TAG, *TAGS)])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": BEGIN, "eos_token": END, "pad_token": END}
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "model_max_length": 16384}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    return int(tokenizer.get_vocab_size()) + 3


def _projector(name: str, inputs: int, width: int) -> dict[str, Any]:
    params = {"depth": 2, "input_dim": inputs, "n_embed": width, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": name, "params": params}
