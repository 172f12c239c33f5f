"""The model that is trained: one section per policy of trainer/policies, told apart by `type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainer.config.base import FilePath, by_type
from trainer.config.deepgen import DeepGenConfig
from trainer.config.janus import JanusConfig
from trainer.config.mot import MotConfig
from trainer.config.neo import NeoConfig
from trainer.config.network import LoraConfig, NetworkConfig, PolicySection
from trainer.config.own import Code
from trainer.config.vlm import VlmConfig


class TinyConfig(PolicySection):
    """The tiny policy: a small SD3 transformer that writes words."""

    family: ClassVar[str] = "flow"
    formats: ClassVar[tuple[str, ...]] = ("safetensors",)
    starts_from: ClassVar[tuple[str, ...]] = ("checkpoint",)

    type: Literal["tiny"] = Field("tiny", description="Which policy of trainer/policies.")
    checkpoint: FilePath | None = Field(
        None, description="Safetensors file to start from; null starts from random weights."
    )
    num_layers: int = Field(4, ge=1, le=64, description="Transformer blocks.")
    num_heads: int = Field(4, ge=1, le=64, description="Attention heads.")
    head_dim: int = Field(32, ge=8, le=256, description="How many numbers an attention head has for each token.")


# What diffusers reads of a pipeline's repository, without the single-file copies that lie beside it.
_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
DIFFUSERS_FILES = (
    "model_index.json",
    "scheduler/*",
    "tokenizer/*",
    "tokenizer_2/*",
    "tokenizer_3/*",
    *(f"{part}/{pattern}" for part in _PARTS for pattern in ("*.json", "*.safetensors")),
)


class DiffusersConfig(NetworkConfig):
    """What the policies that start from a diffusers folder share."""

    family: ClassVar[str] = "flow"
    formats: ClassVar[tuple[str, ...]] = ("diffusers", "lora")
    starts_from: ClassVar[tuple[str, ...]] = ("pretrained",)
    from_hub: ClassVar[Mapping[str, tuple[str, ...]]] = {"pretrained": DIFFUSERS_FILES}

    pretrained: FilePath = Field(
        description="A model folder as diffusers saves it, with model_index.json; weights of a variant such as fp16 are read "
        "where there are no others. Or an id of the Hugging Face hub, owner/name or owner/name@revision."
    )


class Sd3Config(DiffusersConfig):
    """Stable Diffusion 3 and 3.5."""

    type: Literal["sd3"] = Field(description="Which policy of trainer/policies.")
    lora: LoraConfig | None = Field(None, description="Adapters to train; null trains the whole transformer.")
    max_sequence_length: int = Field(256, ge=1, le=512, description="A prompt is cut off after so many T5 tokens.")


class FluxConfig(DiffusersConfig):
    """FLUX.1."""

    type: Literal["flux"] = Field(description="Which policy of trainer/policies.")
    lora: LoraConfig | None = Field(
        default_factory=LoraConfig, description="Adapters to train; null trains the whole transformer."
    )
    max_sequence_length: int = Field(512, ge=1, le=512, description="A prompt is cut off after so many T5 tokens.")
    distilled_guidance: float | None = Field(
        None, ge=0, description="Guidance that FLUX.1-dev takes as an input; null is 3.5 for it, none for others."
    )


class QwenImageConfig(DiffusersConfig):
    """Qwen-Image."""

    type: Literal["qwen_image"] = Field(description="Which policy of trainer/policies.")
    lora: LoraConfig | None = Field(
        default_factory=LoraConfig, description="Adapters to train; null trains the whole transformer."
    )
    max_sequence_length: int = Field(512, ge=1, le=1024, description="A prompt is cut off after so many tokens.")


class OwnPolicyConfig(DiffusersConfig):
    """A policy of your own: any text-to-image pipeline of diffusers that is a rectified flow."""

    type: Literal["own"] = Field(description="Which policy of trainer/policies.")
    code: Code = Field(
        description="FILE.py:NAME, or module:NAME: a DiffusersFlow that says how a prompt is encoded and a velocity predicted "
        "(docs/tutorials/policy.md)."
    )
    lora: LoraConfig | None = Field(
        default_factory=LoraConfig, description="Adapters to train; null trains the whole transformer."
    )
    max_sequence_length: int = Field(256, ge=1, le=4096, description="A prompt is cut off after so many tokens.")


PolicyConfig = Annotated[
    TinyConfig
    | Sd3Config
    | FluxConfig
    | QwenImageConfig
    | DeepGenConfig
    | VlmConfig
    | JanusConfig
    | MotConfig
    | NeoConfig
    | OwnPolicyConfig,
    Field(discriminator="type"),
]


def sections() -> dict[str, type[PolicySection]]:
    """The section of every policy, by its `type`."""
    return by_type(PolicyConfig)


def drawn_by(raw: Mapping[str, Any]) -> str:
    """How the policy of these unchecked fields is drawn: as `sampling` says, where it can be, else by its usual type of sampling; empty
    where it is not known."""
    policy, sampling = raw.get("policy"), raw.get("sampling")
    name = policy.get("type") if isinstance(policy, Mapping) else getattr(policy, "type", None)
    section = sections().get(name) if isinstance(name, str) else None
    if section is None:
        return ""
    asked = sampling.get("type") if isinstance(sampling, Mapping) else getattr(sampling, "type", None)
    return str(asked) if asked in section.draws_by else section.draws_by[0]
