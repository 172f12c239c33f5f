"""The section of the DeepGen policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from trainer.config.base import FilePath
from trainer.config.network import MODEL_FILES, LoraConfig, NetworkConfig


def _from_environment(name: str) -> Callable[[], str | None]:
    """What the variable holds when the configuration is read, so that the run's own config.yaml states it."""
    return lambda: os.environ.get(name) or None


# Pickles, too: they are read as tensors alone.
CHECKPOINT_FILES = ("model*.safetensors", "model.safetensors.index.json", "model.pt", "model.pth", "pytorch_model.bin")


class DeepGenConfig(NetworkConfig):
    """DeepGen: Qwen2.5-VL with learned queries in front of an SD3.5 transformer."""

    family: ClassVar[str] = "flow"
    formats: ClassVar[tuple[str, ...]] = ("deepgen", "deepgen_pt")
    starts_from: ClassVar[tuple[str, ...]] = ("sd3_path", "qwen_path", "checkpoint")
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sd3_path": ("transformer/*", "vae/*", "scheduler/*"),
        "qwen_path": MODEL_FILES,
        "checkpoint": CHECKPOINT_FILES,
        "lmm_checkpoint": CHECKPOINT_FILES,
    }

    type: Literal["deepgen"] = Field(description="Which policy of trainer/policies.")
    sd3_path: FilePath | None = Field(
        default_factory=_from_environment("SD3_5_MODEL_NAME_OR_PATH"),
        description="Folder of the SD3.5 Kontext model (transformer, vae, scheduler); null: SD3_5_MODEL_NAME_OR_PATH.",
    )
    qwen_path: FilePath | None = Field(
        default_factory=_from_environment("QWEN2_5_VL_MODEL_NAME_OR_PATH"),
        description="Folder of Qwen2.5-VL-3B-Instruct; null: the environment's QWEN2_5_VL_MODEL_NAME_OR_PATH.",
    )
    checkpoint: FilePath | None = Field(
        default_factory=_from_environment("CHECKPOINT"),
        description="DeepGen weights to start from, a file or a folder; null: the environment's CHECKPOINT.",
    )
    lmm_checkpoint: FilePath | None = Field(
        None,
        description="Weights whose part of the language model is taken where checkpoint has none: those before RL.",
    )
    conditioning: Literal["single", "padded"] = Field(
        "single",
        description="single: a prompt is encoded alone, so that no image depends on another's prompt. padded: as the first "
        "DeepGen trainer did, with a micro-batch's prompts padded to the longest and the padding read.",
    )
    image_size: int = Field(
        512,
        ge=32,
        multiple_of=32,
        description="Side of an image where sampling gives none, in pixels; source images are brought to this size squared.",
    )
    lora: LoraConfig | None = Field(None, description="Adapters to train; null trains the whole transformer.")
