"""Processors of transformers that read images with Pillow, on machines without torchvision too.

Processors of families that also read videos ask for a video processor, and that for torchvision. Prompts here have images
alone, so these are put together from their other parts.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer.config import ConfigError

# SmolVLM's own asks for a package that spells numbers, for videos. Idefics3's writes the same text for the same tiles.
_IN_PLACE_OF = {"SmolVLMProcessor": ("idefics3", "Idefics3Processor")}


def load_processor(folder: Path, model_type: str) -> Any:
    """The processor of a folder: its tokenizer and its image processor on Pillow.

    Raises:
        ConfigError: a file is missing, or transformers has no processor for this type of model.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    place = f"policy.pretrained = {folder}"
    try:
        kind, is_own = _processor_class(model_type)
        if is_own and "video_processor" not in kind.get_attributes():
            return AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        parts = {
            "image_processor": AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
            "tokenizer": AutoTokenizer.from_pretrained(folder, local_files_only=True),
        }
        return _image_only(kind, folder, parts)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"{place}: its processor cannot be loaded: {error}; the folder needs preprocessor_config.json and the tokenizer's "
            "files"
        ) from error


def _processor_class(model_type: str) -> tuple[Any, bool]:
    """The class that reads for models of this type, and whether it is the one that transformers names."""
    from transformers import AutoConfig
    from transformers.models.auto import processing_auto

    name = getattr(processing_auto, "PROCESSOR_MAPPING_NAMES", {}).get(model_type)
    if name is None:
        raise ValueError(f"transformers has no processor for models of type {model_type}")
    is_own = name not in _IN_PLACE_OF
    module, name = _IN_PLACE_OF.get(name) or (AutoConfig.for_model(model_type).__module__.split(".")[-2], name)
    return getattr(import_module(f"transformers.models.{module}"), name), is_own


def _image_only(kind: Any, folder: Path, parts: dict[str, Any]) -> Any:
    """A processor of this kind with no video processor. What its own file sets is taken over."""

    def check_argument(self: Any, name: str, argument: Any) -> Any:
        return None if argument is None else kind.check_argument_for_proper_class(self, name, argument)

    settings, _ = kind.get_processor_dict(str(folder), local_files_only=True)
    takes = inspect.signature(kind.__init__).parameters.keys() - {"self", "kwargs", *kind.get_attributes()}
    chosen = {name: value for name, value in settings.items() if name in takes}
    chosen.setdefault("chat_template", parts["tokenizer"].chat_template)
    # Its own name stays: files and messages give it.
    without = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check_argument})
    absent = dict.fromkeys(name for name in kind.get_attributes() if name not in parts)
    return without(**parts, **absent, **chosen)
