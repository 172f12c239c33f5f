"""The tokenizer and the image processor of a folder in DeepSeek's layout, as transformers has them, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.config import ConfigError
from trainer.policies.unified.janus.geometry import TokenIds

OWN_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
PAD_TAG = "<｜▁pad▁｜>"  # of another id in each size: 100002 in Janus-Pro-1B, 100015 in Janus-Pro-7B
_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_TAGS = {
    "image_tag": "<image_placeholder>",
    "image_start_tag": "<begin_of_image>",
    "image_end_tag": "<end_of_image>",
    "pad_tag": PAD_TAG,
}
_IMAGE_FIELDS = ("image_mean", "image_std", "min_size", "rescale_factor", "do_normalize")
# A turn is a role, a colon, its text and what closes it; a prompt ends in the assistant's role. An image has a line of its own.
_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{ 'USER: ' }}
  {%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}
  {%- endif -%}
  {%- if message['content'] is string -%}{{ message['content'] | trim }}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {{ '' if loop.first else '\\n' }}{{ 'IMAGE' }}{{ '' if loop.last or loop.nextitem['type'] == 'image' else '\\n' }}
      {%- else -%}{{ part['text'] | trim }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{ 'END' if message['role'] == 'assistant' else '\\n\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of DeepSeek's tokenizer.json, just as it is, with the tags of images and the padding that Janus draws with.

    The class that the file names is not asked: transformers' own for Llama would split texts in SentencePiece's way, and this
    tokenizer splits bytes.

    Raises:
        ConfigError: a file is missing or damaged, or the tokenizer lacks a tag.
    """
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    settings, tags = _json(folder / "tokenizer_config.json"), tags_of(folder)
    named = {**_json(folder / "special_tokens_map.json", needed=False), **settings}
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            bos_token=_content(named.get("bos_token"), _BEGIN),
            eos_token=_content(named.get("eos_token"), _END),
            pad_token=tags["pad_tag"],
            add_bos_token=bool(settings.get("add_bos_token", True)),
            model_max_length=int(settings.get("model_max_length", 16384)),
            clean_up_tokenization_spaces=False,
            extra_special_tokens={
                "image_token": tags["image_tag"],
                "boi_token": tags["image_start_tag"],
                "eoi_token": tags["image_end_tag"],
            },
        )
    except Exception as error:  # tokenizers raises this very class where a file is damaged
        raise ConfigError(f"{path} cannot be read as a tokenizer: {error}; download the folder again") from error
    _check_tags(path, tags)
    return tokenizer


def ids_of(tokenizer: Any) -> TokenIds:
    """The ids that the network's configuration needs."""
    image = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    return TokenIds(tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, image)


def write_transformers(folder: Path, tokenizer: Any, source: Path, side: int, num_image_tokens: int) -> None:
    """The files that transformers' Janus processor is loaded from.

    Args:
        source: DeepSeek's folder.
        side: of an image that the vision tower reads, in pixels.
        num_image_tokens: features of such an image.
    """
    tokenizer.save_pretrained(folder)
    given = _json(source / "preprocessor_config.json")
    image = {"image_processor_type": "JanusImageProcessor", "size": {"height": side, "width": side}}
    image |= {name: given[name] for name in _IMAGE_FIELDS if name in given}
    processor = {
        "processor_class": "JanusProcessor",
        "num_image_tokens": num_image_tokens,
        "use_default_system_prompt": True,  # before questions, as DeepSeek's; a prompt to draw has none
    }
    _write(folder / "preprocessor_config.json", image)
    _write(folder / "processor_config.json", processor)
    (folder / "chat_template.jinja").write_text(template_of(tokenizer), encoding="utf-8")


def template_of(tokenizer: Any) -> str:
    """DeepSeek's conversation format: Janus-Pro's roles are tokens of their own, Janus's are words."""
    roles = ("<|User|>", "<|Assistant|>") if "<|User|>" in tokenizer.get_vocab() else ("User", "Assistant")
    written = _TEMPLATE.replace("USER", roles[0]).replace("ASSISTANT", roles[1])
    return written.replace("IMAGE", tokenizer.image_token).replace("END", tokenizer.eos_token)


def write_deepseek(folder: Path, processor: Any, base: Path | None) -> None:
    """The tokenizer's and processor's files by DeepSeek's names: the base's own where it has them, else made anew.

    Args:
        base: a folder in DeepSeek's layout that the model started from, if it did.
    """
    if base is not None:
        for name in OWN_FILES:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        return
    tokenizer, images = processor.tokenizer, processor.image_processor
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    begins = bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    settings = {**named, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": begins}
    _write(folder / "tokenizer_config.json", {**settings, "model_max_length": min(tokenizer.model_max_length, 2**31)})
    _write(folder / "special_tokens_map.json", named)
    image = {"image_processor_type": "VLMImageProcessor", "image_size": images.size["height"]}
    image |= {name: getattr(images, name) for name in _IMAGE_FIELDS}
    _write(folder / "preprocessor_config.json", image)
    own = {
        "processor_class": "VLChatProcessor",
        "image_tag": processor.image_token,
        "image_start_tag": processor.image_start_token,
        "image_end_tag": processor.image_end_token,
        "pad_tag": tokenizer.pad_token,
        "num_image_tokens": processor.num_image_tokens,
        "sft_format": "deepseek",
        "add_special_token": False,
        "mask_prompt": True,
        "ignore_id": -100,
    }
    _write(folder / "processor_config.json", own)


def tags_of(folder: Path) -> dict[str, str]:
    """The tags of images and padding that a folder's processor_config.json names, else DeepSeek's."""
    given = _json(folder / "processor_config.json", needed=False)
    return {name: str(given.get(name, usual)) for name, usual in _TAGS.items()}


def _check_tags(path: Path, tags: Mapping[str, str]) -> None:
    """Raises ConfigError where a tag is no token of the file: the network has no embedding for it."""
    fields = _json(path)
    known = {each["content"] for each in fields.get("added_tokens", ())} | set(
        (fields.get("model") or {}).get("vocab", ())
    )
    if lacking := [tag for tag in tags.values() if tag not in known]:
        raise ConfigError(
            f"{path} has no token {lacking[0]}, which Janus marks images or pads with; give the model's own tokenizer"
        )


def _content(token: Any, usual: str) -> str:
    """A special token, which tokenizer_config.json names by a string or describes."""
    return str(token["content"] if isinstance(token, dict) else token or usual)


def _json(path: Path, *, needed: bool = True) -> dict[str, Any]:
    if not needed and not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; download the folder again") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} holds no fields; download the folder again")
    return fields


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
