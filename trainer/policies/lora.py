"""How a network is made ready for training: in full or by adapters, checkpointed, compiled."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.config import ConfigError, LoraConfig
from trainer.config.network import NetworkConfig
from trainer.policies.lora_files import start_from
from trainer.policies.placing import place, twin

# Attention projections of image and text tokens, by diffusers' names: where Flow-GRPO puts its adapters.
ATTENTION_PROJECTIONS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)


_GRAPHS = 64
_START = "start"


def weight_dtype(config: NetworkConfig, lora: LoraConfig | None) -> torch.dtype:
    """Type that the network's weights are loaded in: float32 where they are trained, the compute type where frozen."""
    return torch.float32 if lora is None else compute_dtype(config)


def adapters_of(lora: LoraConfig | None) -> str:
    """Where the adapters come from that the weights start with, for a sentence on them; empty for new ones."""
    return "" if lora is None or lora.path is None else f" with the adapters of {lora.path}"


def in_bfloat16(model: object) -> bool:
    """Whether a model's network always computes under autocast to bfloat16, as one does whose section says so (`config`)."""
    return getattr(getattr(model, "config", None), "dtype", "float32") == "bfloat16"


class Computes(Protocol):
    """A section that says the type of computations."""

    @property
    def dtype(self) -> str: ...


def compute_dtype(config: Computes) -> torch.dtype:
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def autocast(config: Computes, device: torch.device) -> torch.autocast:
    """The context that a network computes in. Its weight cache is off: a call uses each weight once, and the cache would
    hold a second network in bfloat16 until the end of the call, of offloaded and gathered weights, too."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16", cache_enabled=False)


def prepare_network(network: Any, config: NetworkConfig, lora: LoraConfig | None, device: torch.device) -> nn.Module:
    """A diffusers transformer, trained in full or by adapters, new ones or those of `lora.path`. Names stay as they are.

    Raises:
        ConfigError: a name of `lora.target_modules` fits no linear layer, or `lora.path` cannot be gone on from.
    """
    network.eval().requires_grad_(lora is None)
    place(network, device)
    if config.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    prepared = network if lora is None else add_adapters(network, lora)
    if lora is not None and lora.path is not None:
        start_from(prepared, lora, config)
    if config.compile:
        compile_blocks(network)
    return prepared


def add_adapters(network: nn.Module, lora: LoraConfig, layers: Sequence[str] | None = None) -> nn.Module:
    """The frozen network with trainable low-rank adapters in float32 that start as nothing: B = 0 (arXiv 2106.09685, 4.1).

    Args:
        layers: names of the layers that get one; None takes `lora.target_modules`, else all attention projections.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    targets = layers or lora.target_modules or ATTENTION_PROJECTIONS
    if layers is None and lora.target_modules is not None:
        _check_targets(network, targets)
    alpha: Any = lora.alpha  # peft takes any number
    config = PeftConfig(r=lora.rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))
    return get_peft_model(network, config).eval()


def _check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            ends = sorted({".".join(name.split(".")[2:]) for name in linear if name.count(".") >= 2})
            raise ConfigError(
                f"policy.lora.target_modules: no linear layer ends in {target!r}; there are {', '.join(ends)}"
            )


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks in place: one compilation serves all of a kind, and parameters keep their names.

    All blocks share one code object, and torch gives up after 8 graphs of one: kinds of blocks times gradients, adapters
    and batch sizes are more.
    """
    for blocks in network.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                _compile(block)


def is_compiled(network: nn.Module) -> bool:
    """Whether blocks of it are: graphs with a gradient then round differently from those without."""
    return any(module._compiled_call_impl is not None for module in network.modules())


def _compile(block: nn.Module) -> None:
    """With room for `_GRAPHS` graphs: torch 2.13 takes it for one block, older ones for the process."""
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        block.compile(recompile_limit=_GRAPHS)
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    block.compile()


def allow_second_backward() -> None:
    """Let graphs that are compiled from here on go backward twice: otherwise the first pass may overwrite what was saved for it."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def frozen_copy(network: nn.Module, *, bfloat16: bool = False) -> nn.Module:
    """A copy that is never trained (`placing.twin`), compiled where the network is: copying drops compilations."""
    frozen = twin(network, bfloat16=bfloat16)
    for module, copied in zip(network.modules(), frozen.modules(), strict=True):
        if module._compiled_call_impl is not None:
            _compile(copied)
    return frozen


def keep_start(network: Any) -> None:
    """Keep frozen adapters as the network's are now, for `start_weights`; none where they add nothing yet."""
    if not any(bool(p.any()) for name, p in network.named_parameters() if ".lora_B." in name):
        return
    network.add_adapter(_START, network.peft_config["default"])
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            if f".{_START}." in name:
                parameter.copy_(weights[name.replace(f".{_START}.", ".default.")])
                parameter.requires_grad_(False)
            elif ".lora_" in name:
                parameter.requires_grad_(True)  # adding the others froze it


@contextmanager
def start_weights(network: Any) -> Iterator[None]:
    """Inside the block the network draws as it did at the start: with the adapters that were kept, or with none."""
    if _START not in network.peft_config:
        with network.disable_adapter():
            yield
        return
    layers = [module for module in network.modules() if hasattr(module, "lora_A")]
    _activate(layers, _START)
    try:
        yield
    finally:
        _activate(layers, "default")


def _activate(layers: Sequence[Any], name: str) -> None:
    """As PEFT's `set_adapter`, which would also change what is trained."""
    for layer in layers:
        layer._active_adapter = [name]


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network by its own names; adapters are added, in float32, to the weights they stand beside."""
    state = network.state_dict()
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = f"{name}.base_layer.weight"
            delta: Tensor = module.get_delta_weight("default")
            state[weight] = state[weight].float() + delta.float()
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if ".lora_" not in name
    }
