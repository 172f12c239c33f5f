"""How much of a prompt the text encoders of a diffusers folder read, found by its tokenizers alone: no weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import ConfigError, DiffusersConfig, QwenImageConfig
from trainer.policies.registry import TextLimit


def clip_and_t5(config: Any, *, t5: str) -> list[TextLimit]:
    """The limits of a policy that reads prompts with CLIP and T5, the narrowest first.

    Args:
        t5: the folder of T5's tokenizer; a folder without it reads with CLIP alone.

    Raises:
        ConfigError: a tokenizer of the folder cannot be loaded.
    """
    tokenizers = _tokenizers(config)
    clip = tokenizers["tokenizer"]
    limits = [_limit("CLIP", clip, clip.model_max_length)]
    if t5 in tokenizers:
        limits.append(_limit("T5", tokenizers[t5], config.max_sequence_length, raised=True))
    return sorted(limits, key=lambda limit: limit.tokens)


def any_tokenizers(config: Any) -> list[TextLimit]:
    """The limits of a policy of the user's own, by the tokenizers of its folder and the length that the recipe gives, the narrowest first.
    Raises ConfigError where a tokenizer cannot be loaded."""
    most = config.max_sequence_length
    limits = [
        _limit(name, each, min(each.model_max_length, most), raised=True) for name, each in _tokenizers(config).items()
    ]
    return sorted(limits, key=lambda limit: limit.tokens)


def qwen(config: QwenImageConfig) -> list[TextLimit]:
    """The limit of Qwen-Image. Raises ConfigError where its tokenizer cannot be loaded."""
    # The frame around a prompt is cut off before and after, so that all these tokens are the prompt's.
    return [_limit("Qwen2.5-VL", _tokenizers(config)["tokenizer"], config.max_sequence_length, frame=0, raised=True)]


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
