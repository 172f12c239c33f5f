"""What policies say of prompts with images to start from, which only some can draw from."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config import ConfigError
from trainer.types import Prompt


def refuse_sources(prompts: Sequence[Prompt], policy: str) -> None:
    """Raises ConfigError naming the first prompt that asks for an edit, of a policy that only draws from text."""
    for prompt in prompts:
        if prompt.source_images:
            raise ConfigError(
                f"prompt {prompt.id!r} of data set {prompt.dataset!r} has source_images, but policy.type = {policy} draws "
                f"from text alone: use sd3 or deepgen for edits, or leave them out (first {prompt.source_images[0]}): in another "
                "project's file that is the field of the images, such as image or ref_image"
            )
