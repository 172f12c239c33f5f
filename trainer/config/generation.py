"""The settings of `python -m trainer generate`: each is a flag of the command, under the field's name with dashes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import Positive, Section, Share

Renorm = Literal["none", "global", "channel", "text_channel"]


class GenerationConfig(Section):
    """How a model's pictures and texts are made for a file of prompts. Prompts with source images are edits, or questions."""

    task: Literal["draw", "answer"] = Field(
        "draw", description="draw: pictures of the prompts, or edits of their source images; answer: texts."
    )
    think: bool = Field(False, description="Write a text of reasoning first, and draw after it.")
    refine: int = Field(
        0,
        ge=0,
        le=16,
        description="So many times the picture is looked at, a suggestion is written, and the picture is edited by it.",
    )
    samples: int = Field(1, ge=1, le=1024, description="Pictures or answers of each prompt, from different noise.")
    seed: int = Field(1, ge=0, lt=2**31, description="Of all that is drawn.")
    batch_size: int = Field(8, ge=1, le=1024, description="Prompts that are worked on together.")
    num_inference_steps: int = Field(50, ge=1, le=1000, description="Denoising steps of a picture.")
    shift: Positive = Field(3.0, description="s of the noise levels t = s u / (1 + (s - 1) u), u evenly from 1 to 0.")
    text_guidance: float = Field(4.0, ge=1, description="Guidance by the text; 1 is none and costs half.")
    image_guidance: float = Field(1.5, ge=1, description="Guidance of an edit by its source images; 1 is none.")
    refine_text_guidance: float = Field(3.0, ge=1, description="Guidance by the text where a suggestion is followed.")
    guidance_interval: tuple[Share, Share] = Field(
        (0.4, 1.0), description="Noise levels, low and high, between which there is guidance."
    )
    renorm: Renorm = Field(
        "global",
        description="Guided velocities are no longer than without guidance: of the whole picture (global), of each token (channel), "
        "or of each token before the images guide it (text_channel).",
    )
    renorm_min: Share = Field(0.0, description="No velocity is shortened by more than this factor.")
    height: int | None = Field(
        None, ge=8, description="Pixels; not given: the model's own, or those of an edit's source."
    )
    width: int | None = Field(None, ge=8, description="As height.")
    temperature: float = Field(0.3, ge=0, le=10, description="Of texts; 0 takes the likeliest token.")
    max_new_tokens: int = Field(2048, ge=1, le=65536, description="A text is cut off after so many tokens.")

    @model_validator(mode="after")
    def _fits(self) -> GenerationConfig:
        low, high = self.guidance_interval
        if low >= high:
            raise ValueError(f"guidance_interval = {low:g} {high:g} holds no noise level; give low, then high")
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height = {self.height} and width = {self.width}: give both, or neither")
        if self.task == "answer" and (self.think or self.refine):
            raise ValueError(
                "think and refine are about pictures, and task is answer; leave them out, or set task to draw"
            )
        return self
