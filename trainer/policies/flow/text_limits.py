"""How much of a prompt a policy's text encoders read, found by its tokenizers alone: no weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import ConfigError, DiffusersConfig, PolicyConfig


@dataclass(frozen=True)
class TextLimit:
    """An encoder that reads the beginning of a long prompt.

    Attributes:
        encoder: its name, as people know it.
        tokens: how many it reads, those of the frame around a text included.
        lost_from: maps a text to the place of its first character that is not read; None where all of it is.
        setting: the field that raises the limit; None where the model has no more.
    """

    encoder: str
    tokens: int
    lost_from: Callable[[str], int | None]
    setting: str | None = None


def text_limits(config: PolicyConfig) -> list[TextLimit]:
    """The limits of a policy, the narrowest first; none where it reads any prompt whole, or refuses a longer one.

    Raises:
        ConfigError: a tokenizer of the folder cannot be loaded.
    """
    if not isinstance(config, DiffusersConfig):
        return []  # tiny refuses what it cannot draw; DeepGen's language model reads 128,000 tokens
    tokenizers = _tokenizers(config)
    if config.type == "qwen_image":
        # Its frame is cut off before and after, so that all these tokens are the prompt's.
        return [_limit("Qwen2.5-VL", tokenizers["tokenizer"], config.max_sequence_length, frame=0, raised=True)]
    clip, t5 = tokenizers["tokenizer"], tokenizers.get("tokenizer_3" if config.type == "sd3" else "tokenizer_2")
    limits = [_limit("CLIP", clip, clip.model_max_length)]
    if t5 is not None:
        limits.append(_limit("T5", t5, config.max_sequence_length, raised=True))
    return sorted(limits, key=lambda limit: limit.tokens)


def _limit(encoder: str, tokenizer: Any, tokens: int, *, frame: int | None = None, raised: bool = False) -> TextLimit:
    read = tokens - (tokenizer.num_special_tokens_to_add() if frame is None else frame)

    def lost_from(text: str) -> int | None:
        if len(text.encode()) <= read:
            return None  # a token is a byte at least
        # verbose: else it says of the first long text that it is one.
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        return int(offsets[read][0]) if len(offsets) > read else None

    return TextLimit(encoder, tokens, lost_from, "policy.max_sequence_length" if raised else None)


def _tokenizers(config: DiffusersConfig) -> dict[str, Any]:
    """The tokenizers that the folder's index names, as its pipeline loads them."""
    import transformers

    index = Path(config.pretrained) / "model_index.json"
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        return {
            name: getattr(transformers, part[1]).from_pretrained(index.parent / name, local_files_only=True)
            for name, part in parts.items()
            if name.startswith("tokenizer") and part[1] is not None
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"policy.pretrained = {config.pretrained}: its tokenizers cannot be loaded ({error}); save or download the "
            "folder again"
        ) from error
