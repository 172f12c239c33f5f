"""A small random Qwen2-VL with reward heads in the published layout, and its numbers computed a second time.

The second computation is plain tensor arithmetic on the file's own keys, for sequential positions: no model class, no
processor, no attention kernel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import gelu, silu

from tests.support.tiny_qwen3vl import byte_tokenizer

State = dict[str, Tensor]
PATCH, MERGE, EYE, MIND, HEADS, LAYERS = 4, 2, 32, 48, 2, 2
PIXELS = (PATCH * MERGE * 4) ** 2
REWARD = "<|Reward|>"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEMPLATE = "Look at it. {text_prompt}: how good?" + REWARD


def write_backbone(folder: Path) -> Path:
    """Config, tokenizer with its chat template, and image settings."""
    from transformers import Qwen2VLConfig

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": MIND,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 4, 4], "rope_theta": 10000.0},
            "max_position_embeddings": 512,
        },
        vision_config={
            "depth": LAYERS,
            "embed_dim": EYE,
            "hidden_size": MIND,
            "num_heads": HEADS,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        },
        image_token_id=image_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )
    config.save_pretrained(folder)
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "size": {"shortest_edge": 16, "longest_edge": 1 << 20},
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def random_state(folder: Path, seed: int, heads: Sequence[str], *, old_keys: bool = True) -> State:
    """The backbone's tensors, its vocabulary one token larger, and heads of three layers; by default under the keys of
    the release that HPSv3 was saved with."""
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    config = AutoConfig.from_pretrained(folder)
    config.text_config.vocab_size += 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration(config)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, 0, weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1)
        state = {key: value.detach().clone() for key, value in model.state_dict().items()}
        scales = [key for key in state if ("norm" in key or "ln_q" in key) and key.endswith("weight")]
        state |= {key: state[key] + 1 for key in scales}
        for name in heads:
            for number, (rows, columns) in zip((0, 3, 5), ((16, MIND), (8, 16), (2, 8)), strict=True):
                state[f"{name}.{number}.weight"] = torch.randn(rows, columns) * columns**-0.5
                state[f"{name}.{number}.bias"] = torch.randn(rows) * 0.1
    if old_keys:
        renamed = {"model.language_model.": "model.", "model.visual.": "visual."}
        for new, old in renamed.items():
            state = {old + k.removeprefix(new) if k.startswith(new) else k: v for k, v in state.items()}
    return state


def plain_number(state: State, folder: Path, image: Image.Image, prompt: str, head: str = "rm_head") -> float:
    """HPSv3's score of one image whose sides need no rounding: the first number of the head at the reward token."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    count = image.width * image.height // (PATCH * MERGE) ** 2
    text = TEMPLATE.replace("{text_prompt}", prompt)
    vision = f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
    turn = f"<|im_start|>user{vision}{text}<|im_end|><|im_start|>assistant"  # as the small chat template writes it
    ids = torch.tensor(tokenizer(turn)["input_ids"])
    x = state["model.embed_tokens.weight"][ids]
    x[ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")] = _look(state, image)
    angles = torch.arange(len(ids))[:, None] / 10000 ** (torch.arange(0, 24, 2) / 24)
    cos, sin = (torch.cat([angles, angles], -1)[:, None] for angles in (angles.cos(), angles.sin()))
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        y = _rms(state, f"{layer}.input_layernorm", x)
        q, k, v = (_linear(state, f"{layer}.self_attn.{n}_proj", y).reshape(len(y), -1, 24) for n in "qkv")
        q, k = (each * cos + _turned(each) * sin for each in (q, k))
        k, v = k.expand(-1, HEADS, -1), v.expand(-1, HEADS, -1)
        seen = _attend(q, k, v, mask)
        x = x + seen @ state[f"{layer}.self_attn.o_proj.weight"].T
        y = _rms(state, f"{layer}.post_attention_layernorm", x)
        gate, up = (y @ state[f"{layer}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (silu(gate) * up) @ state[f"{layer}.mlp.down_proj.weight"].T
    row = _rms(state, "model.norm", x)[ids == tokenizer.convert_tokens_to_ids(REWARD)][0]
    for number in (0, 3, 5):
        row = _linear(state, f"{head}.{number}", row)
        row = row.relu() if number != 5 else row
    return float(row[0])


def _look(state: State, image: Image.Image) -> Tensor:
    """[merged patches, MIND]: a ViT over patches, in windows of MERGE x MERGE, with their rows and columns turned in."""
    scaled = (np.asarray(image, np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    places, rows = [], []
    high, wide = image.height // PATCH, image.width // PATCH
    for top in range(0, high, MERGE):
        for left in range(0, wide, MERGE):
            for y in range(top, top + MERGE):
                for x in range(left, left + MERGE):
                    cut = scaled[y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].transpose(2, 0, 1)
                    rows.append(np.stack([cut, cut], 1).reshape(-1))  # a still image is two equal frames
                    places.append((y, x))
    kernel = state["visual.patch_embed.proj.weight"]
    hidden = torch.from_numpy(np.stack(rows)) @ kernel.reshape(EYE, -1).T
    width = EYE // HEADS
    angles = torch.tensor(places)[:, :, None] / 10000 ** (torch.arange(0, width // 2, 2) / (width // 2))
    angles = angles.reshape(len(places), -1)
    cos, sin = (torch.cat([each, each], -1)[:, None] for each in (angles.cos(), angles.sin()))
    for number in range(LAYERS):
        block = f"visual.blocks.{number}"
        q, k, v = (
            _linear(state, f"{block}.attn.qkv", _norm(state, f"{block}.norm1", hidden))
            .reshape(len(places), 3, HEADS, width)
            .unbind(1)
        )
        q, k = (each * cos + _turned(each) * sin for each in (q, k))
        hidden = hidden + _linear(state, f"{block}.attn.proj", _attend(q, k, v, None))
        y = _linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", hidden))
        hidden = hidden + _linear(state, f"{block}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    merged = _norm(state, "visual.merger.ln_q", hidden).reshape(-1, EYE * MERGE**2)
    return _linear(state, "visual.merger.mlp.2", gelu(_linear(state, "visual.merger.mlp.0", merged)))


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    weights = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = (weights if mask is None else weights + mask).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1)


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    root = (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    return centred / root * state[f"{name}.weight"] + state[f"{name}.bias"]


def _rms(state: State, name: str, x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
