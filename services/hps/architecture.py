"""The size of an open_clip ViT, read from the shapes of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.hps.checkpoint import SOURCE, CheckpointError

Shape = tuple[int, ...]

BLOCK_KEY = re.compile(r"((?:visual\.)?transformer)\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")

# Heads leave no trace in the shapes. open_clip's heads are 64 wide, and 80 in the vision tower of ViT-H-14.
_HEAD_WIDTHS = {1280: 80}
_HEAD_WIDTH, _WIDEST = 64, 1280


@dataclass(frozen=True)
class Tower:
    """A transformer: `width` and the `inner` width of its MLPs in features."""

    width: int
    inner: int
    layers: int
    heads: int

    def shapes(self, name: str) -> dict[str, Shape]:
        """Of its blocks' weights, by open_clip's keys."""
        width, inner = self.width, self.inner
        matrices = {
            "attn.in_proj_": (3 * width, width),
            "attn.out_proj.": (width, width),
            "mlp.c_fc.": (inner, width),
            "mlp.c_proj.": (width, inner),
        }
        shapes: dict[str, Shape] = {}
        for number in range(self.layers):
            block = f"{name}.resblocks.{number}."
            for part, shape in matrices.items():
                shapes |= {f"{block}{part}weight": shape, f"{block}{part}bias": shape[:1]}
            shapes |= _norm(f"{block}ln_1", width) | _norm(f"{block}ln_2", width)
        return shapes

    def config(self) -> dict[str, Any]:
        """As transformers' configurations name it."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_act": "gelu",  # transformers' default approximates it and gives other features
            "layer_norm_eps": 1e-5,
        }


@dataclass(frozen=True)
class Architecture:
    """Both towers; image and patch sizes in pixels, `vocabulary` and `context` in tokens, `projection` in features."""

    vision: Tower
    text: Tower
    image_size: int
    patch: int
    vocabulary: int
    context: int
    projection: int

    @classmethod
    def derive(cls, shapes: Mapping[str, Shape]) -> Architecture:
        """From the shapes of open_clip's keys. Raises CheckpointError when they are not those of a ViT."""
        try:
            width, _, patch, _ = shapes["visual.conv1.weight"]
            positions, _ = shapes["visual.positional_embedding"]
            vocabulary, text_width = shapes["token_embedding.weight"]
            context, _ = shapes["positional_embedding"]
            _, projection = shapes["text_projection"]
            vision = _tower("visual.transformer", width, shapes)
            text = _tower("transformer", text_width, shapes)
        except KeyError as error:
            some = ", ".join(sorted(shapes)[:3]) or "none"
            raise CheckpointError(
                f"not an open_clip ViT: no {error} among the {len(shapes)} keys ({some}, ...); {SOURCE}"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"not an open_clip ViT: {error}; {SOURCE}") from error
        image_size = math.isqrt(positions - 1) * patch
        return cls(vision, text, image_size, patch, vocabulary, context, projection)

    def shapes(self) -> dict[str, Shape]:
        """Every key of a published checkpoint of this architecture with its shape."""
        vision, text = self.vision.width, self.text.width
        shapes: dict[str, Shape] = {
            "logit_scale": (),
            "visual.conv1.weight": (vision, 3, self.patch, self.patch),
            "visual.class_embedding": (vision,),
            "visual.positional_embedding": ((self.image_size // self.patch) ** 2 + 1, vision),
            "visual.proj": (vision, self.projection),
            "token_embedding.weight": (self.vocabulary, text),
            "positional_embedding": (self.context, text),
            "text_projection": (text, self.projection),
        }
        shapes |= _norm("visual.ln_pre", vision) | _norm("visual.ln_post", vision) | _norm("ln_final", text)
        return shapes | self.vision.shapes("visual.transformer") | self.text.shapes("transformer")

    def config(self) -> dict[str, Any]:
        """The arguments of transformers' CLIPConfig."""
        text = self.text.config() | {"vocab_size": self.vocabulary, "max_position_embeddings": self.context}
        text |= {"bos_token_id": self.vocabulary - 2, "eos_token_id": self.vocabulary - 1}
        vision = self.vision.config() | {"image_size": self.image_size, "patch_size": self.patch}
        shared = {"projection_dim": self.projection}
        return {"text_config": text | shared, "vision_config": vision | shared, **shared}


def check_shapes(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raises CheckpointError naming what is missing, unexpected or of another shape."""
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [
        f"{key} {list(found[key])} instead of {list(shape)}"
        for key, shape in sorted(expected.items())
        if key in found and found[key] != shape
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
    problems = [f"{len(keys)} {what}: {_some(keys)}" for what, keys in lists if keys]
    if problems:
        raise CheckpointError(f"of {len(expected)} keys {'; '.join(problems)}; {SOURCE}")


def _tower(name: str, width: int, shapes: Mapping[str, Shape]) -> Tower:
    head = _HEAD_WIDTHS.get(width, _HEAD_WIDTH)
    if width % head or width > _WIDEST:
        raise ValueError(f"{name} is {width} wide, which is no multiple of {head} up to {_WIDEST}")
    blocks = {match[2] for key in shapes if (match := BLOCK_KEY.fullmatch(key)) and match[1] == name}
    return Tower(width, shapes[f"{name}.resblocks.0.mlp.c_fc.weight"][0], len(blocks), width // head)


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
