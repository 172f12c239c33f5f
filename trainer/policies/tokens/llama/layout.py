"""Where a model of transformers keeps the parts of its language model, and whether they are computed as Llama's are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Decoder layers by class name. Each is norm, attention, residual, norm, gated MLP, residual; queries and keys may have a norm
# per head; nothing is scaled, capped or skipped on the way. A relative that differs inside (Gemma, Granite, SmolLM3) has a
# name of its own, so it is not taken for one of these.
LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3DecoderLayer",
    "Qwen3VLTextDecoderLayer",
)

# Frequencies of these depend on the position alone; those of `dynamic` and `longrope` also on the length of the text.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class TextModel:
    """The parts of a language model inside `network`; adapters and hooks stay where they are.

    Attributes:
        inner: the model without its head: what turns ids and images into hidden states.
        text: the language model in it, which has `embed_tokens`, `layers`, `norm` and `rotary_emb`.
        head: the linear layer that makes logits.
        eps: of its norms.
        heads, key_heads, width: attention heads, heads of keys and values, and their size.
    """

    inner: Any
    text: Any
    head: nn.Module
    eps: float
    heads: int
    key_heads: int
    width: int

    @property
    def layers(self) -> Sequence[Any]:
        return list(self.text.layers)[: self.text.config.num_hidden_layers]

    @property
    def weight(self) -> Tensor:
        """One of its weights, for device and type."""
        weight: Tensor = self.text.norm.weight
        return weight


def text_model(network: nn.Module) -> TextModel:
    """The parts of a network. Raises ValueError saying why it cannot be computed by hand."""
    if (reason := supports(network)) is not None:
        raise ValueError(reason)
    plain: Any = _without_adapters(network)
    text = _language_models(plain)[0]
    config = text.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return TextModel(
        plain.base_model,
        text,
        plain.get_output_embeddings(),
        config.rms_norm_eps,
        config.num_attention_heads,
        config.num_key_value_heads,
        width,
    )


def supports(network: nn.Module) -> str | None:
    """Why the layers of this network cannot be computed by hand; None where they can."""
    if is_cut(network):
        return "its weights are cut among the ranks (ZeRO-3), and only its own forward pass gathers them"
    plain: Any = _without_adapters(network)
    found = _language_models(plain)
    if len(found) != 1:
        return f"{type(plain).__name__} has {len(found)} parts with embed_tokens, layers, norm and rotary_emb, not one"
    if plain is found[0] or plain.get_output_embeddings() is None:
        return f"{type(plain).__name__} has no head that makes logits"
    return _unlike_llama(found[0]) or _unknown_adapter(network)


def is_cut(network: nn.Module) -> bool:
    """Whether DeepSpeed's ZeRO-3 has cut the parameters, so that a rank holds a part of each."""
    return any(hasattr(parameter, "ds_id") for parameter in network.parameters())


def _unlike_llama(text: Any) -> str | None:
    config, names = text.config, {type(layer).__name__ for layer in text.layers}
    if unknown := sorted(names - set(LAYERS)):
        return f"layers of {type(text).__name__} are {', '.join(unknown)}; known are {', '.join(LAYERS)}"
    kind = config.rope_parameters["rope_type"]
    if kind not in ROPE_TYPES:
        return f"rope_type {kind} makes positions depend on the length of the text; known are {', '.join(ROPE_TYPES)}"
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in text.layers]
    if "MistralDecoderLayer" in names:  # which reads its window from the configuration
        windows.append(getattr(config, "sliding_window", None))
    if any(windows):
        return f"attention of {type(text).__name__} has a sliding window"
    return None


def _unknown_adapter(network: nn.Module) -> str | None:
    """Adapters must be plain ones, W + scale * B A, on linear layers; PEFT gives others their own variants."""
    for name, module in network.named_modules():
        if "lora_A" not in module._modules:
            continue
        variants: Any = getattr(module, "lora_variant", None)
        if variants or not isinstance(module.get_base_layer(), nn.Linear):
            return f"the adapter of {name} is not of the form W + B A"
    return None


def _without_adapters(network: Any) -> Any:
    """The model of transformers inside PEFT's, whose layers are PEFT's."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def _language_models(network: nn.Module) -> list[Any]:
    parts = {"embed_tokens", "layers", "norm", "rotary_emb"}
    return [module for module in network.modules() if parts <= module._modules.keys()]
