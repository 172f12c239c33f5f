"""The native policy: one transformer that reads patches of images and words alike, grown from a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Positive, Section
from trainer.config.mot import Attention
from trainer.config.network import MODEL_FILES, LoraConfig, PolicySection


class GrowConfig(Section):
    """A fresh native model from a Qwen3 folder: its layers behind new ones, patches in place of a vision encoder."""

    language: FilePath = Field(description="A Qwen3 folder, as transformers saves it.")
    tokenizer: FilePath | None = Field(None, description="Folder of the tokenizer; null is that of `language`.")
    extra_layers: int = Field(12, ge=0, description="New layers before the language model's own (the pre-buffer).")
    vision_hidden_size: int = Field(1024, ge=8, description="Width of the patch embedding.")
    patch_size: int = Field(16, ge=1, description="Side of a patch, in pixels.")
    downsample_ratio: Positive = Field(0.5, description="Patches a side become so many tokens a side.")
    rope_theta_hw: Positive = Field(10000.0, description="Base of the rotary frequencies of rows and columns.")
    rope_theta_vision: Positive = Field(10000.0, description="Base of those of the patch embedding.")


class NeoConfig(PolicySection):
    """A native vision-language model in NEO's layout: no vision encoder; patches are tokens."""

    family: ClassVar[str] = "unified"
    formats: ClassVar[tuple[str, ...]] = ("neo",)
    starts_from: ClassVar[tuple[str, ...]] = ("pretrained",)
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {"pretrained": MODEL_FILES}
    draws_by: ClassVar[tuple[str, ...]] = ("tokens",)
    given: ClassVar[str] = "packs"
    groups: ClassVar[tuple[str, ...]] = ("patches", "new_layers", "rows_columns", "language")

    type: Literal["neo"] = Field(description="Which policy of trainer/policies.")
    pretrained: FilePath | None = Field(None, description="A model folder in NEO's layout (model_type neo_chat).")
    grow: GrowConfig | None = Field(None, description="A fresh model from a language model, in place of `pretrained`.")
    extra_layers: int | None = Field(
        None,
        ge=0,
        description="How many layers of `pretrained` are new, its first ones; null takes extra_num_layers of its config.json.",
    )
    train: Literal["all", "stage_1"] = Field(
        "all",
        description="What is trained: all of it, or stage 1's set: patch embedding, new layers, and the row and column queries and "
        "keys of the language model's own.",
    )
    min_pixels: int = Field(12544, ge=1, description="An image is scaled to at least so many pixels.")
    max_pixels: int = Field(262144, ge=1, description="An image is scaled to at most so many pixels.")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="Type of computations.")
    gradient_checkpointing: bool = Field(False, description="Recompute layers in the backward pass to save memory.")
    attention: Attention = Field("auto", description="How packs are attended, as for the policy mot.")
    system_prompt: str | None = Field(None, description="Text of a system turn before every prompt; null is none.")
    max_prompt_tokens: int = Field(8192, ge=1, description="A prompt with more tokens is refused by name.")
    max_images: int = Field(16, ge=0, le=1024, description="A prompt with more images is refused by name.")

    check_sight: bool = Field(
        True,
        description="Before the first step of RL, prove on its first prompts that images move the answers, that no row depends on its "
        "neighbours, and that what is drawn is what is trained on; a failure stops the run.",
    )

    @property
    def lora(self) -> LoraConfig | None:
        """It has no adapters: all of a part is trained, or none of it."""
        return None

    @property
    def freeze(self) -> tuple[str, ...]:
        """Parts are frozen by `train`."""
        return ()

    @model_validator(mode="after")
    def _one_start(self) -> NeoConfig:
        if (self.pretrained is None) == (self.grow is None):
            given = "neither" if self.pretrained is None else "both"
            raise ValueError(f"{given} of pretrained and grow is given; name a model, or have one grown")
        if self.grow is not None and self.extra_layers is not None:
            raise ValueError("extra_layers says how many layers of `pretrained` are new; here it is grow.extra_layers")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels = {self.min_pixels} is more than max_pixels = {self.max_pixels}; lower it")
        return self
