"""The policy that reads images and texts and writes texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, get_args

from pydantic import Field, model_validator

from trainer.config.base import FilePath
from trainer.config.nanovlm import InitializeConfig
from trainer.config.network import MODEL_FILES, LoraConfig, PolicySection

Part = Literal["vision", "projector", "language"]


class VlmConfig(PolicySection):
    """A vision-language model: any image-text-to-text model of transformers."""

    family: ClassVar[str] = "tokens"
    formats: ClassVar[tuple[str, ...]] = ("hf", "lora", "nanovlm")
    starts_from: ClassVar[tuple[str, ...]] = ("pretrained",)
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {"pretrained": MODEL_FILES}
    keeps_hub_ids: ClassVar[bool] = True
    draws_by: ClassVar[tuple[str, ...]] = ("tokens",)
    given: ClassVar[str] = "conversations"
    groups: ClassVar[tuple[str, ...]] = get_args(Part)

    type: Literal["vlm"] = Field(description="Which policy of trainer/policies.")
    pretrained: FilePath | None = Field(
        None,
        description="A model folder as transformers or nanoVLM saves it, or an id of the Hugging Face hub, which is fetched "
        "into its cache once (HF_HUB_OFFLINE=1 takes what is there).",
    )
    initialize: InitializeConfig | None = Field(
        None, description="A fresh nanoVLM model in place of pretrained; null starts from pretrained."
    )
    lora: LoraConfig | None = Field(None, description="Adapters to train; null trains the whole model.")
    freeze: tuple[Part, ...] = Field((), description="Parts that are not trained: vision, projector, language.")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16",
        description="Type of computations, and with adapters of the model's own weights; all others are in float32.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute layers in the backward pass to save memory.")
    system_prompt: str | None = Field(None, description="Text of a system turn before every prompt; null is none.")
    max_prompt_tokens: int = Field(
        2048, ge=1, description="A prompt with more tokens, those of its images included, is refused by name."
    )
    max_images: int = Field(4, ge=0, le=64, description="A prompt with more images is refused by name.")

    check_sight: bool = Field(
        True,
        description="Before the first step, prove on its first rows that images move the answers, that no row depends on its "
        "neighbours, and that what is drawn is what is trained on; a failure stops the run.",
    )

    @model_validator(mode="after")
    def _one_start(self) -> VlmConfig:
        if (self.pretrained is None) == (self.initialize is None):
            given = "neither" if self.pretrained is None else "both"
            raise ValueError(f"{given} of pretrained and initialize is given; name a model, or have a fresh one made")
        return self

    @model_validator(mode="after")
    def _something_trains(self) -> VlmConfig:
        if self.lora is None and set(self.freeze) == {"vision", "projector", "language"}:
            raise ValueError("freeze = [vision, projector, language] leaves nothing to train; leave a part out")
        return self
