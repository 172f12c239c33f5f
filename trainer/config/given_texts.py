"""How many given texts a step takes, and how they become micro-batches: conversations, or pairs of answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.texts import TextFileConfig


class TextBatchConfig(TextFileConfig):
    """What conversations and pairs of answers share."""

    batch_size: int = Field(8, ge=1, description="Rows of a step, over all ranks.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Rows per forward pass: those of a rank are sorted by length, and each pass is padded to its own longest; "
        "null takes all of a rank.",
    )
    max_tokens: int | None = Field(
        None,
        ge=2,
        description="A longer text, places of images included, is cut off at its end; one that would lose part of an image or all "
        "of its answer is passed over by name. null: none is cut.",
    )

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> TextBatchConfig:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} is more than batch_size = {self.batch_size}, all rows of a step; "
                "lower it or leave it out"
            )
        return self


class ConversationsConfig(TextBatchConfig):
    """Conversations: what the assistant says in them is learnt."""

    reduction: Literal["token", "sample", "root"] = Field(
        "token",
        description="token: every token weighs the same; sample: every conversation does; root: in between, each token 1 / the square "
        "root of its conversation's number of them.",
    )


class AnswersConfig(TextBatchConfig):
    """Pairs of answers to a prompt, of which one is preferred."""

    type: Literal["answers"] = Field(description="What is compared: images, or answers in text.")
