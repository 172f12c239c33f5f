"""How a network that writes is made ready for training: parts left as they are, adapters, types."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from trainer.config import ConfigError, LoraConfig
from trainer.config.network import LanguageSettings
from trainer.policies.lora import add_adapters, autocast, compute_dtype
from trainer.policies.lora_files import Adapter, start_from
from trainer.policies.placing import place
from trainer.policies.tokens.nanovlm.adapters import layers_of, to_idefics3_layers
from trainer.policies.tokens.nanovlm.processor import NanoVlmProcessor
from trainer.policies.tokens.parts import part_of


def prepare(
    network: Any,
    processor: Any,
    config: LanguageSettings,
    device: torch.device,
    part_of: Callable[[str], str | None] = part_of,
) -> nn.Module:
    """The network on its device, in evaluation mode (no dropout).

    With adapters, these are in float32 and the network in `dtype`. Without, all of it is in float32, frozen parts too: families
    such as SmolVLM put image features into the embeddings as they are, which fails between two types.

    Args:
        part_of: the part that a parameter belongs to, by its name; None for what is never trained.

    Raises:
        ConfigError: `lora.target_modules` or `lora.path` do not fit the network, or nothing is left to train.
    """
    network.eval().requires_grad_(config.lora is None)
    place(network, device)
    if config.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared: nn.Module = network
    if config.lora is not None:
        for parameter in network.parameters():  # no buffers: rotary frequencies would lose places that they need
            parameter.data = parameter.data.to(compute_dtype(config))
        prepared = _adapted(network, processor, config, config.lora, part_of)
    for name, parameter in prepared.named_parameters():
        if part_of(name) in (None, *config.freeze):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in prepared.parameters()):
        raise ConfigError(
            f"policy.freeze = [{', '.join(config.freeze)}] leaves nothing to train: all adapters are in frozen parts"
        )
    return prepared


@contextmanager
def computing(network: nn.Module, config: LanguageSettings, device: torch.device) -> Iterator[None]:
    """The context that the network computes in: its type, and blocks computed twice where the backward pass needs them.

    transformers recomputes blocks of a network in training mode alone. Ours never is, so that nothing is dropped; so the
    blocks themselves, which drop nothing, are put into it here, and only while gradients are taken: they keep no cache then.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    with ExitStack() as stack:
        stack.enter_context(autocast(config, device))
        if config.gradient_checkpointing and torch.is_grad_enabled():
            blocks = [each for each in network.modules() if isinstance(each, GradientCheckpointingLayer)]
            for block in blocks:
                block.training = True
                stack.callback(partial(setattr, block, "training", False))
        yield


def _adapted(
    network: Any,
    processor: Any,
    config: LanguageSettings,
    lora: LoraConfig,
    part_of: Callable[[str], str | None],
) -> nn.Module:
    of_nanovlm = processor if isinstance(processor, NanoVlmProcessor) else None
    linear = _linear_layers(network)
    if lora.target_modules is None:
        targets = [name for name in linear if part_of(name) == "language"]
    elif of_nanovlm is not None:
        targets = _targets_of_nanovlm(of_nanovlm, lora.target_modules)
    else:
        targets = _targets(linear, lora.target_modules)
    kept = [name for name in targets if part_of(name) not in (None, *config.freeze)]
    if not kept:
        raise ConfigError(
            f"policy.freeze = [{', '.join(config.freeze)}] leaves nothing to train: all adapters are in frozen parts"
        )
    prepared = add_adapters(network, lora, kept)
    if lora.path is not None:
        translated = None if of_nanovlm is None else partial(_translated, of_nanovlm)
        start_from(prepared, lora, config, translated)
    return prepared


def _linear_layers(network: Any) -> list[str]:
    """Names of the linear layers but the head, whose weight is often the embedding's."""
    head = network.get_output_embeddings()
    return [name for name, each in network.named_modules() if isinstance(each, nn.Linear) and each is not head]


def _targets(linear: Sequence[str], ends: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for end in ends:
        fitting = [name for name in linear if name == end or name.endswith(f".{end}")]
        if not fitting:
            there = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ConfigError(
                f"policy.lora.target_modules: no linear layer ends in {end!r}; there are {', '.join(there)}"
            )
        found |= dict.fromkeys(fitting)
    return list(found)


def _targets_of_nanovlm(processor: NanoVlmProcessor, ends: Sequence[str]) -> list[str]:
    """nanoVLM's own names, as in the recipes for it. One that fits nothing is said and passed over: the usual list for Llama
    names `o_proj`, which is `out_proj` in nanoVLM, and published adapters were trained without it."""
    found: dict[str, None] = {}
    for end in ends:
        fitting = layers_of(processor.settings, end)
        if not fitting:
            print(
                f"policy.lora.target_modules: {end!r} fits no layer of a nanoVLM model, so it has no effect (its names are "
                "q_proj, k_proj, v_proj, out_proj, gate_proj, up_proj, down_proj of the language model, qkv_proj, out_proj, "
                "fc1, fc2 of the vision encoder, proj of the projector)",
                file=sys.stderr,
            )
        found |= dict.fromkeys(fitting)
    if not found:
        raise ConfigError(f"policy.lora.target_modules: none of {', '.join(ends)} fits a layer of a nanoVLM model")
    return list(found)


def _translated(processor: NanoVlmProcessor, adapters: Mapping[str, Adapter]) -> dict[str, Adapter]:
    return to_idefics3_layers(adapters, processor.settings)
