"""What the sections of policies share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

from pydantic import Field

from trainer.config.base import FilePath, Positive, Section

# Patterns of the files that are fetched of a model of the hub.
TOKENIZER_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
ADAPTER_FILES = ("adapter_config.json", "*.safetensors")


class PolicySection(Section):
    """What is known of every policy before its module is imported: the rest is in its `ENTRY` (trainer/policies/registry.py).

    Attributes:
        family: the folder of trainer/policies that its module is in, under the name of its `type`.
        formats: what `python -m trainer export --to` can write, the usual one first.
        starts_from: the fields that name the files its weights come from.
        from_hub: the fields that may be an id of the Hugging Face hub, with patterns of the files that are needed of it.
        keeps_hub_ids: its module looks the ids up itself, and writes them into what it exports.
        draws_by: the types of `sampling` that it can be drawn by, the usual one first.
        guided_by_images: its images may be guided by their source images, too (the section `guidance` of how it draws).
        given: what program: supervised trains it on: images with texts, conversations, or packs; empty where it does not.
        groups: the names of groups of its parameters, which `optim.groups` may name (`NamesGroups.group_of`).
    """

    family: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    starts_from: ClassVar[tuple[str, ...]]
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    keeps_hub_ids: ClassVar[bool] = False
    draws_by: ClassVar[tuple[str, ...]] = ("flow",)
    guided_by_images: ClassVar[bool] = False
    given: ClassVar[str] = "images"
    groups: ClassVar[tuple[str, ...]] = ("matrices", "rest")

    type: str = Field(description="Which policy of trainer/policies.")


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685) in place of full training."""

    path: FilePath | None = Field(
        None,
        description="Adapters to go on from, of at most this rank: a .safetensors file or its folder, as this trainer, "
        "diffusers or PEFT writes it, or an id of the Hugging Face hub; null starts new ones.",
    )
    rank: int = Field(32, ge=1, le=1024, description="Rank r of the adapters.")
    alpha: Positive = Field(64.0, description="Adapters are scaled by alpha / rank.")
    target_modules: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Ends of the names of the layers that get one; null: all attention projections, in a language model all "
        "linear layers of its blocks.",
    )


class NetworkConfig(PolicySection):
    """How large networks are held and run."""

    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="Type of computations and of frozen weights; trained weights are kept in float32."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute blocks in the backward pass to save memory.")
    compile: bool = Field(
        False,
        description="Compile the network's blocks (needs a C compiler); sampling and replay then differ by rounding, so first ratios are to the first replay.",
    )
    offload_encoders: bool = Field(
        False,
        description="Keep text encoders off the device while they are not needed: they go there at most once a step, where embedding_memory_mb holds its prompts.",
    )
    embedding_cache: FilePath | None = Field(
        None, description="Folder for prompt embeddings, shared by ranks and runs; null keeps them in memory only."
    )
    embedding_memory_mb: int = Field(
        1024, ge=1, description="Memory for prompt embeddings per process, in MiB; the least recently used go first."
    )


class LanguageSettings(Protocol):
    """What the sections of all policies have that read images and texts and write texts."""

    @property
    def pretrained(self) -> str | None: ...

    @property
    def lora(self) -> LoraConfig | None: ...

    @property
    def freeze(self) -> tuple[str, ...]: ...

    @property
    def dtype(self) -> Literal["bfloat16", "float32"]: ...

    @property
    def gradient_checkpointing(self) -> bool: ...

    @property
    def system_prompt(self) -> str | None: ...

    @property
    def max_prompt_tokens(self) -> int: ...

    @property
    def max_images(self) -> int: ...
