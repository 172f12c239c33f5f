"""The policy that reads images and texts and writes texts."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath
from trainer.config.network import LoraConfig, PolicySection

Part = Literal["vision", "projector", "language"]


class VlmConfig(PolicySection):
    """A vision-language model: any image-text-to-text model of transformers."""

    family: ClassVar[str] = "tokens"
    formats: ClassVar[tuple[str, ...]] = ("hf",)
    starts_from: ClassVar[tuple[str, ...]] = ("pretrained",)

    type: Literal["vlm"] = Field(description="Which policy of trainer/policies.")
    pretrained: FilePath = Field(description="A model folder as transformers saves it: model, processor and tokenizer.")
    lora: LoraConfig | None = Field(None, description="Adapters to train; null trains the whole model.")
    freeze: tuple[Part, ...] = Field((), description="Parts that are not trained: vision, projector, language.")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Type of computations and of frozen weights; trained weights are kept in float32."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute layers in the backward pass to save memory.")
    system_prompt: str | None = Field(None, description="Text of a system turn before every prompt; null is none.")
    max_prompt_tokens: int = Field(
        2048, ge=1, description="A prompt with more tokens, those of its images included, is refused by name."
    )
    max_images: int = Field(4, ge=0, le=64, description="A prompt with more images is refused by name.")

    @model_validator(mode="after")
    def _something_trains(self) -> VlmConfig:
        if self.lora is None and set(self.freeze) == {"vision", "projector", "language"}:
            raise ValueError("freeze = [vision, projector, language] leaves nothing to train; leave a part out")
        return self
