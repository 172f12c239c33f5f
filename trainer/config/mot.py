"""The unified policy of two experts: texts and seen images by one, latents of images by the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Name, Section
from trainer.config.network import MODEL_FILES, PolicySection

MotPart = Literal["language", "vision", "connector", "generation"]
MOT_PARTS: tuple[MotPart, ...] = ("language", "vision", "connector", "generation")
_UNDERSTANDING = {"language", "vision", "connector"}
Attention = Literal["auto", "dense", "rows", "flex"]


class MotSizes(Section):
    """A fresh small model, with a tokenizer of whole words and a linear codec of patches."""

    hidden_size: int = Field(128, ge=8, description="Width: how many numbers a token has.")
    num_layers: int = Field(4, ge=1, description="Layers, each with two experts.")
    num_heads: int = Field(4, ge=1, description="Attention heads.")
    num_kv_heads: int = Field(4, ge=1, description="Heads of keys and values.")
    intermediate_size: int = Field(256, ge=8, description="Width of the MLPs.")
    image_size: int = Field(32, ge=8, description="Side of the images it draws, in pixels.")
    vision_layers: int = Field(1, ge=0, description="Layers of the vision encoder.")
    words: tuple[Name, ...] = Field((), description="Words that are one token each; all else is spelt in letters.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> MotSizes:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size}, num_heads = {self.num_heads} and num_kv_heads = {self.num_kv_heads} must divide "
                "one another in this order; change one"
            )
        if self.hidden_size // self.num_heads % 4 or self.image_size % 8:
            raise ValueError(
                f"hidden_size / num_heads = {self.hidden_size // self.num_heads} must be a multiple of 4, and image_size = "
                f"{self.image_size} of 8; change one"
            )
        return self


class MotConfig(PolicySection):
    """A Mixture-of-Transformers in BAGEL's layout: it reads texts and images, writes texts, and draws by flow matching."""

    family: ClassVar[str] = "unified"
    formats: ClassVar[tuple[str, ...]] = ("bagel",)
    starts_from: ClassVar[tuple[str, ...]] = ("pretrained", "weights")
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {"pretrained": MODEL_FILES, "weights": MODEL_FILES}
    draws_by: ClassVar[tuple[str, ...]] = ("flow", "tasks")
    guided_by_images: ClassVar[bool] = True
    given: ClassVar[str] = "packs"
    max_images: ClassVar[int] = 16  # of a question

    type: Literal["mot"] = Field(description="Which policy of trainer/policies.")
    pretrained: FilePath | None = Field(
        None,
        description="A folder in BAGEL's layout: llm_config.json, vit_config.json, ema.safetensors, ae.safetensors, tokenizer files.",
    )
    weights: FilePath | None = Field(
        None,
        description="A folder such as 0030000/ with ema.safetensors or model.safetensors to start from in place of `pretrained`'s weights.",
    )
    use_ema: bool = Field(
        True, description="Start from the averaged weights (ema.safetensors) where a folder has both."
    )
    initialize: MotSizes | None = Field(None, description="A fresh small model in place of `pretrained`.")
    freeze: tuple[MotPart, ...] = Field(
        (),
        description="Parts that are not trained: language (the understanding expert with embeddings and head), vision, connector, "
        "generation (the generation expert with its projections). The codec never is.",
    )
    constant_words: bool = Field(
        False,
        description="No gradient passes through words and seen images, as with UniReason's freeze_und: saves memory, for a gradient "
        "that is not quite right. Needs language, vision and connector to be frozen.",
    )
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Type of computations.")
    gradient_checkpointing: bool = Field(False, description="Recompute layers in the backward pass to save memory.")
    attention: Attention = Field(
        "auto",
        description="How packs are attended: flex compiles a sparse kernel (GPU), rows attends each row by itself (CPU), dense builds "
        "the whole mask; auto is flex on a GPU, else rows.",
    )
    max_latent_size: int = Field(64, ge=1, description="Latent patches a side that positions are made for.")
    interpolate_positions: bool = Field(
        False,
        description="Spread the patches of every image over the whole tables of positions, as BAGEL's interpolate_pos does; else patch i of a "
        "side has position i. Weights go with the way they were trained.",
    )

    @model_validator(mode="after")
    def _one_start(self) -> MotConfig:
        if (self.pretrained is None) == (self.initialize is None):
            given = "neither" if self.pretrained is None else "both"
            raise ValueError(f"{given} of pretrained and initialize is given; name a model, or have a fresh one made")
        if self.weights is not None and self.pretrained is None:
            raise ValueError("policy.weights belongs to policy.pretrained, which holds the configuration; give both")
        if set(self.freeze) == set(MOT_PARTS):
            raise ValueError(f"freeze = [{', '.join(self.freeze)}] leaves nothing to train; leave a part out")
        if self.constant_words and not set(self.freeze) >= _UNDERSTANDING:
            raise ValueError(
                f"constant_words belongs to freeze = [language, vision, connector], of which [{', '.join(self.freeze)}] lacks some; "
                "give these, or leave it out"
            )
        return self
