"""Small random CLIP and SigLIP folders in the published layouts, and CLIP's computation written a second time.

The second computation is plain tensor arithmetic on the folder's own keys: no model class, no processor.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE, PATCH, CONTEXT, E = 32, 8, 16, 24
START, END = "<|startoftext|>", "<|endoftext|>"


def write_clip(folder: Path, seed: int, *, projection: int = E) -> Path:
    """A CLIPModel of about 100,000 parameters as openai/clip-vit-large-patch14 is laid out."""
    from transformers import CLIPConfig, CLIPModel

    vocabulary = write_clip_tokenizer(folder, CONTEXT)
    tower = {"num_hidden_layers": 2, "intermediate_size": 64, "hidden_size": 32, "num_attention_heads": 2}
    text = tower | {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
    }
    config = CLIPConfig(
        text_config=text, vision_config=tower | {"image_size": IMAGE, "patch_size": PATCH}, projection_dim=projection
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    _widen(model)
    model.save_pretrained(folder)
    write_processor(folder, IMAGE)
    return folder


def write_processor(folder: Path, side: int) -> None:
    """How openai/clip-vit-large-patch14 prepares its images, for a square of `side` pixels."""
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_siglip(folder: Path, seed: int) -> Path:
    """A SiglipModel; its processor squeezes every image into a square, its prompts are filled up to the context."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    words = ["<pad>", "</s>", "<unk>", "a", "red", "cat", "dog", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=CONTEXT
    )
    fast.save_pretrained(folder)
    tower = {"num_hidden_layers": 2, "intermediate_size": 64, "hidden_size": 32, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config=tower | {"vocab_size": len(words), "max_position_embeddings": CONTEXT},
        vision_config=tower | {"image_size": IMAGE, "patch_size": PATCH},
    )
    torch.manual_seed(seed)
    SiglipModel(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": IMAGE, "width": IMAGE},
        "resample": 3,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_aesthetic(path: Path, seed: int, width: int = E, inner: Sequence[int] = (16, 12, 8, 4)) -> dict[str, Tensor]:
    """The published head's layers, 0, 2, 4, 6 and 7, with small widths."""
    torch.manual_seed(seed)
    sizes = [width, *inner, 1]
    state = {}
    for number, (given, made) in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True):
        state |= {f"layers.{number}.weight": torch.randn(made, given), f"layers.{number}.bias": torch.randn(made)}
    torch.save(state, path)
    return state


@dataclass(frozen=True)
class PlainClip:
    """Unit vectors by CLIP's published formulas (pre-norm blocks, quick GELU, end token pooled) from a folder's keys."""

    state: dict[str, Tensor]
    tokens: dict[str, int]

    @classmethod
    def read(cls, folder: Path) -> PlainClip:
        return cls(load_file(folder / "model.safetensors"), json.loads((folder / "vocab.json").read_text()))

    @property
    def scale(self) -> float:
        return float(self.state["logit_scale"].exp())

    def image(self, image: Image.Image) -> Tensor:
        """[E] of an RGB image."""
        patches = _pixels(image).reshape(3, IMAGE // PATCH, PATCH, IMAGE // PATCH, PATCH)
        rows = patches.permute(1, 3, 0, 2, 4).reshape((IMAGE // PATCH) ** 2, -1)
        kernel = self.state["vision_model.embeddings.patch_embedding.weight"]
        x = torch.cat(
            [self.state["vision_model.embeddings.class_embedding"][None], rows @ kernel.reshape(len(kernel), -1).T]
        )
        x = x + self.state["vision_model.embeddings.position_embedding.weight"]
        x = self._blocks(self._norm(x, "vision_model.pre_layrnorm"), "vision_model", mask=None)
        return _unit(self._norm(x[0], "vision_model.post_layernorm") @ self.state["visual_projection.weight"].T)

    def text(self, words: Sequence[str]) -> Tensor:
        """[E] of single letters spelled as the vocabulary has them, each a word's end or not."""
        ids = [*[self.tokens[START], *(self.tokens[word] for word in words)][: CONTEXT - 1], self.tokens[END]]
        x = self.state["text_model.embeddings.token_embedding.weight"][torch.tensor(ids)]
        x = x + self.state["text_model.embeddings.position_embedding.weight"][: len(ids)]
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        x = self._norm(self._blocks(x, "text_model", mask), "text_model.final_layer_norm")
        return _unit(x[-1] @ self.state["text_projection.weight"].T)

    def _blocks(self, x: Tensor, tower: str, mask: Tensor | None) -> Tensor:
        for number in range(2):
            block = f"{tower}.encoder.layers.{number}"
            y = self._norm(x, f"{block}.layer_norm1")
            q, k, v = (self._linear(y, f"{block}.self_attn.{name}_proj").reshape(len(y), 2, 16) for name in "qkv")
            weights = torch.einsum("qhd,khd->hqk", q, k) / 4  # the root of a head's 16 features
            weights = (weights if mask is None else weights + mask).softmax(-1)
            x = x + self._linear(
                torch.einsum("hqk,khd->qhd", weights, v).reshape(len(y), -1), f"{block}.self_attn.out_proj"
            )
            y = self._linear(self._norm(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1")
            x = x + self._linear(y * torch.sigmoid(1.702 * y), f"{block}.mlp.fc2")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def _norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        root = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / root * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]


def spell(text: str) -> list[str]:
    """The tokens of lower-case ASCII words under a vocabulary without merges."""
    return [letter + ("</w>" if n == len(word) - 1 else "") for word in text.split() for n, letter in enumerate(word)]


def _pixels(image: Image.Image) -> Tensor:
    """[3, IMAGE, IMAGE]: the short side scaled to IMAGE by Pillow's cubic, the middle cut out, normalised."""
    short = min(image.size)
    width, height = (int(IMAGE * side / short) for side in image.size)
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (height - IMAGE) // 2, (width - IMAGE) // 2
    middle = scaled[top : top + IMAGE, left : left + IMAGE]
    return torch.from_numpy((middle - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).permute(2, 0, 1)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm()


def _widen(model: torch.nn.Module) -> None:
    """transformers starts weights so small that all images look alike; these tell them apart."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "embedding" not in name:
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif "embedding" in name:
                weight.normal_(0, 0.5)


def write_clip_tokenizer(folder: Path, context: int) -> dict[str, int]:
    """CLIP's byte letters without any merges: every letter is a token, the last of a word another one."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    words = [*letters, *(letter + "</w>" for letter in letters), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    tokenizer = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": context}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return vocabulary
