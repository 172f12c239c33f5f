"""What the model libraries log and nobody needs is left out."""

from __future__ import annotations

import logging

# That they would rather have torchvision, at the import of every pipeline; and of every long prompt, among the lines of
# progress, what is cut off. The start counts the prompts that are, once for all (`Entry.text_limits`).
_UNWANTED = (
    "requires torchvision",
    "part of your input was truncated because",
    "sequence length is longer than the specified maximum",
)


def quieten() -> None:
    """Leave these lines out of what transformers and diffusers log. Call it before a pipeline is imported."""
    from diffusers.utils.logging import get_logger as of_diffusers
    from transformers.utils.logging import get_logger as of_transformers

    of_diffusers()  # makes the handler that the filter is put on
    of_transformers()
    for library in ("diffusers", "transformers"):
        for handler in logging.getLogger(library).handlers:
            handler.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(each in message for each in _UNWANTED)
