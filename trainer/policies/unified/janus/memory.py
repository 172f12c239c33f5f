"""What a step of Janus takes beside what is held all along: caches and copies while it draws, activations while it trains.

Counted from what the code keeps (`trainer.policies.tokens.llama`, `trainer.policies.unified.images`), per token and layer; tests
hold it to what is measured at small size. Axes: d hidden, F inner size of the MLP; a row is a branch of an image, or an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config import Config, GenerateConfig, JanusConfig, TaskSamplingConfig, UnderstandConfig
from trainer.policies.tokens.hub import local_folder
from trainer.policies.unified.images import MOST_LOGITS
from trainer.policies.unified.janus.geometry import TokenIds, is_deepseek, read_fields, to_janus

_FP32, _BF16 = 4, 2
PROMPT_TOKENS = 64  # tokens that a text is taken for; what it really has is known when it is read
# Bytes that the backward pass needs of each token and layer, by d and by F: what norms, projections, rotated heads, attention,
# the gate and its product keep. Norms and the residual stream are in float32 where the weights are.
_BY_D = {("float32", False): 56, ("float32", True): 50, ("bfloat16", False): 42, ("bfloat16", True): 35}
_BY_F = {"float32": 16, "bfloat16": 8}
_LOGIT_COPIES = 7  # of the codes that are scored at a time: both branches, guided, scaled, logarithms, gradients
_WORD_COPIES = 4  # of the words of all answers: logits, in float32, logarithms, a gradient


@dataclass(frozen=True)
class _Network:
    layers: int
    d: int
    inner: int
    keys: int  # numbers of all heads of keys; as many are values
    words: int
    codes: int
    image_tokens: int

    @property
    def weights(self) -> int:
        """Of all layers' matrices."""
        return self.layers * self.d * (2 * self.d + 2 * self.keys + 3 * self.inner)


def working_bytes(config: Config) -> Mapping[str, float]:
    """Bytes of the device at the peak of each part of a step, beside all that is held; the largest decides.

    Raises:
        OSError, ValueError: the model's config.json cannot be read.
    """
    policy, sampling = config.policy, config.sampling
    assert isinstance(policy, JanusConfig) and isinstance(sampling, TaskSamplingConfig), (
        "the configuration has checked it"
    )
    network, found = _network(policy), dict[str, float]()
    tokens = network.image_tokens
    for section in sampling.tasks.given().values():
        rows = section.micro_batch_size
        if isinstance(section, GenerateConfig):
            branches = 2 if section.guidance_scale != 1 else 1
            found["drawing images"] = _writing(policy, network, rows * branches, PROMPT_TOKENS + tokens)
            scored = branches if section.score == "guided" else 1
            logits = min(rows * tokens * network.codes, MOST_LOGITS) * _FP32 * _LOGIT_COPIES
            found["training on images"] = (
                _training(policy, network, scored * rows, tokens, scored * PROMPT_TOKENS) + logits
            )
        elif isinstance(section, UnderstandConfig):
            asked, length = PROMPT_TOKENS + tokens, section.max_new_tokens  # an image that is read has as many features
            found["writing answers"] = _writing(policy, network, rows, asked + length)
            logits = rows * length * network.words * _FP32 * _WORD_COPIES
            prompts = asked * -(-rows // section.group_size)
            found["training on answers"] = _training(policy, network, rows, length, prompts) + logits
    return found


def _writing(policy: JanusConfig, network: _Network, rows: int, columns: int) -> float:
    """Fused copies of the layers' weights, and keys and values of every row's columns and of the prompts', in the compute type."""
    cache = 2 * network.layers * (rows * columns + 2 * PROMPT_TOKENS) * network.keys
    return float((network.weights + cache) * _bytes_each(policy))


def _training(policy: JanusConfig, network: _Network, rows: int, length: int, prompt_tokens: int) -> float:
    """Of `rows` rows of `length` tokens, behind prompts of so many tokens in all, each computed once."""
    tokens, d, inner = rows * length + prompt_tokens, network.d, network.inner
    of_a_layer = tokens * (_BY_D[policy.dtype, policy.lora is not None] * d + _BY_F[policy.dtype] * inner)
    if (
        policy.gradient_checkpointing
    ):  # a layer's input is kept, and one layer computed again; rows have their own prompts
        padded = tokens + rows * PROMPT_TOKENS
        return float(network.layers * padded * d * _FP32 + of_a_layer * padded / tokens)
    # Under an autocast the weights are cast at each product, and the casts are kept until the backward pass.
    casts = network.weights * _BF16 if policy.dtype == "bfloat16" and policy.lora is None else 0
    return float(network.layers * of_a_layer + casts)


def _bytes_each(policy: JanusConfig) -> int:
    return _BF16 if policy.dtype == "bfloat16" else _FP32


def _network(policy: JanusConfig) -> _Network:
    from transformers import JanusConfig as Settings

    folder = local_folder(policy.pretrained, "policy.pretrained", fetch=False)
    found: Any
    if is_deepseek(folder):
        found = to_janus(read_fields(folder), TokenIds(0, 0, 0, 0), str(folder / "config.json"))
    else:
        found = Settings.from_pretrained(folder)
    text, vision = found.text_config, found.vision_config
    width = text.hidden_size // text.num_attention_heads
    return _Network(
        layers=text.num_hidden_layers,
        d=text.hidden_size,
        inner=text.intermediate_size,
        keys=text.num_key_value_heads * width,
        words=text.vocab_size,
        codes=found.vq_config.num_embeddings,
        image_tokens=(vision.image_size // vision.patch_size) ** 2,
    )
