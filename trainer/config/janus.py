"""The policy that reads images and texts, writes texts and draws images by tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath
from trainer.config.network import MODEL_FILES, LoraConfig, PolicySection

JanusPart = Literal["language", "vision", "aligner", "generation"]
PARTS: tuple[JanusPart, ...] = ("language", "vision", "aligner", "generation")


class JanusConfig(PolicySection):
    """Janus and Janus-Pro: one language model that answers questions about images and draws images."""

    family: ClassVar[str] = "unified"
    formats: ClassVar[tuple[str, ...]] = ("hf", "lora", "deepseek")
    starts_from: ClassVar[tuple[str, ...]] = ("pretrained",)
    # DeepSeek's folders on the hub hold pickles and no safetensors.
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {"pretrained": (*MODEL_FILES, "*.bin")}
    keeps_hub_ids: ClassVar[bool] = True
    draws_by: ClassVar[tuple[str, ...]] = ("tasks",)
    given: ClassVar[str] = ""
    groups: ClassVar[tuple[str, ...]] = PARTS

    type: Literal["janus"] = Field(description="Which policy of trainer/policies.")
    pretrained: FilePath = Field(
        description="A model folder in transformers' layout (model_type janus) or in DeepSeek's (multi_modality, as "
        "deepseek-ai/Janus-Pro-1B), or an id of the Hugging Face hub."
    )
    converted: FilePath | None = Field(
        None,
        description="Folder that a model in DeepSeek's layout is converted into at the first start, as safetensors in "
        "transformers' layout; null is `transformers` inside the model's own folder.",
    )
    lora: LoraConfig | None = Field(None, description="Adapters to train; null trains the parts that are not frozen.")
    freeze: tuple[JanusPart, ...] = Field(
        ("vision", "aligner", "generation"),
        description="Parts that are not trained: language (with its head), vision, aligner, generation (embeddings, aligner and "
        "head of image tokens). The decoder of image tokens never is.",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16",
        description="Type of computations, and with adapters of the model's own weights; all others are in float32.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute layers in the backward pass to save memory.")
    system_prompt: str | None = Field(
        None,
        description="Text of a system turn before every question, in place of the processor's own sentence; null leaves that. "
        "Prompts to draw have none.",
    )
    max_prompt_tokens: int = Field(
        2048, ge=1, description="A prompt with more tokens, those of its images included, is refused by name."
    )
    max_images: int = Field(4, ge=0, le=64, description="A question with more images is refused by name.")
    check_sight: bool = Field(
        True,
        description="Before the first step, prove on its first rows that images move the answers, that no row depends on its "
        "neighbours, and that what is drawn is what is trained on; a failure stops the run.",
    )

    @model_validator(mode="after")
    def _something_trains(self) -> JanusConfig:
        if set(self.freeze) == set(PARTS):
            raise ValueError(f"freeze = [{', '.join(self.freeze)}] leaves nothing to train; leave a part out")
        return self
