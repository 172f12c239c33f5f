"""NEO's tokenizer: Qwen3's with tokens for images, and how a conversation is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config import ConfigError

START, END = "<|im_start|>", "<|im_end|>"
IMAGE, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
FRAMES = (IMAGE, IMAGE_START, IMAGE_END)
# In the order in which NEO's training kit adds those that are absent.
SPECIAL = (
    *FRAMES,
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    START,
    END,
    "<|action_start|>",
    "<|action_end|>",
    "<|plugin|>",
    "<|interpreter|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load_tokenizer(folder: Path, field: str) -> Any:
    """The tokenizer of a folder with the tokens for images, those that it lacks added, and NEO's way to write a conversation.

    Args:
        field: the configuration's field, for messages.

    Raises:
        ConfigError: there is none that transformers can read.
    """
    from transformers import AddedToken, AutoTokenizer, Qwen3Config

    try:
        # Beside a config.json of NEO's, whose model_type transformers does not know and warns of.
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), config=Qwen3Config(), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{field} = {folder} has no tokenizer that transformers can read: {error}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConfigError(f"{field} = {folder} has no tokenizer.json; write it with transformers' fast tokenizer")
    known = tokenizer.get_vocab()
    missing = [AddedToken(name, special=True, normalized=False) for name in SPECIAL if name not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = END
    return tokenizer


def turn_start(role: str) -> str:
    """What begins a turn."""
    return f"{START}{role}\n"


TURN_END = f"{END}\n"
