"""What a step of Janus takes beside what is held all along: caches and copies while it draws, activations while it trains.

Counted from what the code keeps (`trainer.policies.tokens.llama`, `trainer.policies.unified.images`), per token and layer; tests
hold it to what is measured at small size. The image encoder counts as frozen, as it is by default. Axes: d hidden, F inner size
of the MLP; a row is a branch of an image, or an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import Config, GenerateConfig, JanusConfig, TaskSamplingConfig, UnderstandConfig
from trainer.policies.tokens.hub import local_folder
from trainer.policies.unified.images import MOST_LOGITS
from trainer.policies.unified.janus.geometry import TokenIds, is_deepseek, read_fields, to_janus
from trainer.policies.unified.janus.model import MOST_DECODED

_FP32, _BF16 = 4, 2
PROMPT_TOKENS = 64  # tokens that a text is taken for; what it really has is known when it is read
# Bytes that the backward pass needs of each token and layer, by d and by F: what norms, projections, rotated heads, attention,
# the gate and its product keep. Norms and the residual stream are in float32 where the weights are.
_BY_D = {("float32", False): 48, ("float32", True): 40, ("bfloat16", False): 44, ("bfloat16", True): 30}
_BY_F = {"float32": 16, "bfloat16": 8}
# Of all logits that are scored at a time, in float32: logarithms, their gradient, that of the logits; with guidance two branches'.
_LOGIT_COPIES = {1: 3, 2: 5}
# Bytes for each token of the vocabulary while one is drawn: logits, scaled, logarithms, and shares and their sums in float64.
_CHOOSING = 32
_UNTRAINED = {"none": 1.0}  # a section's rewards, where a task is evaluated and has no section
_DECODER_COPIES = 4  # of the widest features of the decoder of image tokens


@dataclass(frozen=True)
class _Network:
    layers: int
    d: int
    inner: int
    keys: int  # numbers of all heads of keys; as many are values
    words: int
    codes: int
    image_tokens: int
    features: int  # the most numbers that the decoder of image tokens has of an image at a time

    @property
    def weights(self) -> int:
        """Of all layers' matrices."""
        return self.layers * self.d * (2 * self.d + 2 * self.keys + 3 * self.inner)


@dataclass(frozen=True)
class _Rows:
    """`count` rows of `length` tokens each, behind one of `prompts` prompts of `prompt` tokens, each computed once."""

    count: int
    length: int
    prompts: int
    prompt: int

    @property
    def tokens(self) -> int:
        return self.count * self.length + self.prompts * self.prompt

    @property
    def columns(self) -> int:
        """Of all rows, each with its prompt."""
        return self.count * (self.length + self.prompt)


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
    for section in sampling.tasks.given().values():
        drawn = section.micro_batch_size
        trained = config.optim.micro_batch_size or drawn
        if isinstance(section, GenerateConfig):
            found["drawing images"] = _drawing(policy, network, section, drawn)
            found["decoding images"] = _decoding(policy, network, drawn)
            found["training on images"] = _training_images(policy, network, section, trained)
        elif isinstance(section, UnderstandConfig):
            found["writing answers"] = _writing(
                policy, network, [_answers(network, section, drawn)], drawn * network.words
            )
            rows = _answers(network, section, trained)
            # The starting weights' logits are computed while the logarithms of the present ones are kept.
            copies = _LOGIT_COPIES[1] + (getattr(config.objective, "kl_beta", 0) > 0)
            logits = trained * section.max_new_tokens * network.words * _FP32 * copies
            found["training on answers"] = _training(policy, network, [rows], logits)
    return found | _held_out(config, network)


def _held_out(config: Config, network: _Network) -> dict[str, float]:
    """What is drawn for held-out sets, `evaluation.batch_size` rows at a time with a prompt each."""
    policy, sampling, evaluation = config.policy, config.sampling, config.evaluation
    assert isinstance(policy, JanusConfig) and isinstance(sampling, TaskSamplingConfig), "as above"
    own, given, size, found = sampling.tasks, list(sampling.tasks.given()), evaluation.batch_size, dict[str, float]()
    scales = [(each.task or given[0], each.guidance_scale or evaluation.guidance_scale) for each in evaluation.sets]
    scales += [] if evaluation.path is None else [(given[0], evaluation.guidance_scale)]
    drawn = [scale for task, scale in scales if task == "generate"]
    if drawn:
        section = own.generate or GenerateConfig(rewards=_UNTRAINED)
        scale = max(section.guidance_scale if each is None else each for each in drawn)
        alone = section.model_copy(update={"group_size": 1, "guidance_scale": scale})
        found["drawing held-out images"] = _drawing(policy, network, alone, size)
        found["decoding held-out images"] = _decoding(policy, network, size)
    if len(drawn) < len(scales):
        written = (own.understand or UnderstandConfig(rewards=_UNTRAINED)).model_copy(update={"group_size": 1})
        rows = _answers(network, written, size)
        found["writing held-out answers"] = _writing(policy, network, [rows], size * network.words)
    return found


def _answers(network: _Network, section: UnderstandConfig, rows: int) -> _Rows:
    """Answers to questions about an image, which has as many tokens where it is read as where it is drawn."""
    prompts = -(-rows // section.group_size)
    return _Rows(rows, section.max_new_tokens, prompts, PROMPT_TOKENS + network.image_tokens)


def _drawing(policy: JanusConfig, network: _Network, section: GenerateConfig, images: int) -> float:
    """Both branches of each image as rows of one batch. An image with a plan has a prompt of its own, with the plan in it."""
    plan = 0 if section.think is None else section.think.max_new_tokens
    prompts = images if plan else -(-images // section.group_size)
    branches = 1 if section.guidance_scale == 1 else 2
    rows = _Rows(branches * images, network.image_tokens, branches * prompts, PROMPT_TOKENS + plan)
    return _writing(policy, network, [rows], images * network.codes)


def _training_images(policy: JanusConfig, network: _Network, section: GenerateConfig, images: int) -> float:
    plan = 0 if section.think is None else section.think.max_new_tokens
    prompts, num = -(-images // section.group_size), network.image_tokens
    # A plan is the conditional branch's own; in the other one padding stands for it, as many different ones as lengths of plans.
    rows = [_Rows(images, plan + num, prompts, PROMPT_TOKENS)]
    if section.guidance_scale != 1 and section.score == "guided":
        rows.append(_Rows(images, num, images if plan else prompts, PROMPT_TOKENS + plan))
    logits = min(images * num * network.codes, MOST_LOGITS) * _FP32 * _LOGIT_COPIES[len(rows)]
    logits += min(images * plan * network.words, MOST_LOGITS) * _FP32 * _LOGIT_COPIES[1]
    return _training(policy, network, rows, logits)


def _decoding(policy: JanusConfig, network: _Network, images: int) -> float:
    """The widest features of the images that are decoded together, in the type of the network's frozen weights."""
    each = _BF16 if policy.dtype == "bfloat16" and policy.lora is not None else _FP32
    return float(min(images, MOST_DECODED) * network.features * each * _DECODER_COPIES)


def _writing(policy: JanusConfig, network: _Network, given: Sequence[_Rows], choices: int) -> float:
    """Fused copies of the layers' weights, and keys and values of every row's columns, in the compute type; the same of prompts.

    Args:
        choices: numbers of all distributions that are drawn from at a time.
    """
    each = _BF16 if policy.dtype == "bfloat16" else _FP32
    cache = 2 * network.layers * sum(rows.columns for rows in given) * network.keys
    # Of prompts, keys lie in one tensor with queries, and what is turned is in float32.
    by_prompt_token = network.layers * ((network.d + network.keys) * _FP32 + network.keys * each)
    prompts = sum(rows.prompts * rows.prompt for rows in given)
    return float((network.weights + cache) * each + prompts * by_prompt_token + choices * _CHOOSING)


def _training(policy: JanusConfig, network: _Network, given: Sequence[_Rows], logits: float) -> float:
    """Activations for the backward pass of all rows, with what is scored at its beginning.

    Args:
        logits: bytes at their peak, all of them before the first layer has gone back.
    """
    each = _BF16 if policy.dtype == "bfloat16" else _FP32
    d, by_f = network.d, _BY_F[policy.dtype] * network.inner
    by_token = _BY_D[policy.dtype, policy.lora is not None] * d + by_f
    # Under an autocast the weights are cast at each product, and the casts are kept to the end of the forward pass, or of the
    # backward pass that needs them.
    casts = network.weights * _BF16 if policy.dtype == "bfloat16" and policy.lora is None else 0
    columns = sum(rows.columns for rows in given)
    if policy.gradient_checkpointing:
        # A layer's input is kept, and one layer computed again; rows have their own prompts, and what is scored is let go before.
        return float(network.layers * columns * d * _FP32 + max(columns * by_token, logits + casts))
    tokens, prompts = sum(rows.tokens for rows in given), sum(rows.prompts * rows.prompt for rows in given)
    # Each row attends to keys and values of its prompt and its own, side by side.
    copied = columns * 2 * network.keys * each
    # Behind the last layer nothing is asked of a prompt's tokens. The first layers to go back hold gradients of their inner
    # products, or of these copies.
    kept = (network.layers * tokens - prompts) * by_token + network.layers * copied + casts
    return float(kept + max(tokens * by_f / 2, copied) + logits)


def _network(policy: JanusConfig) -> _Network:
    from transformers import JanusConfig as Settings

    folder = local_folder(policy.pretrained, "policy.pretrained", fetch=False)
    found: Any
    if is_deepseek(folder):
        found = to_janus(read_fields(folder), TokenIds(0, 0, 0, 0), str(folder / "config.json"))
    else:
        found = Settings.from_pretrained(folder)
    text, vision, vq = found.text_config, found.vision_config, found.vq_config
    width = text.hidden_size // text.num_attention_heads
    side, wide = vision.image_size, vq.channel_multiplier
    # A level of half the size ends in features of the next one's size, but of its own width.
    widest = max((side >> i) ** 2 * max(wide[i : i + 2]) for i in range(len(wide)))
    return _Network(
        layers=text.num_hidden_layers,
        d=text.hidden_size,
        inner=text.intermediate_size,
        keys=text.num_key_value_heads * width,
        words=text.vocab_size,
        codes=vq.num_embeddings,
        image_tokens=(side // vision.patch_size) ** 2,
        features=widest * vq.base_channels,
    )
