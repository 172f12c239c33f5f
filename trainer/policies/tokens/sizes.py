"""How large a policy that writes is, from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from trainer.config import LoraConfig, VlmConfig
from trainer.config.network import LanguageSettings
from trainer.policies.registry import Sizes
from trainer.policies.sizes import Shapes, count, shapes_of
from trainer.policies.tokens.hub import local_folder
from trainer.policies.tokens.nanovlm.files import is_nanovlm
from trainer.policies.tokens.nanovlm.fresh import chosen_settings
from trainer.policies.tokens.nanovlm.layout import FREQUENCIES, key_table
from trainer.policies.tokens.parts import part_of

_FP32 = 4
_HEADS = ("lm_head", "embed_tokens", "head", "token_embedding")


def sizes(config: VlmConfig) -> Sizes:
    """The sizes of the model that the section names. Nothing is fetched from the hub.

    Raises:
        OSError, ValueError, SafetensorError: a file is not there or cannot be read.
    """
    return sizes_of(config, _shapes(config), part_of)


def sizes_of(config: LanguageSettings, shapes: Shapes, part_of: Callable[[str], str | None]) -> Sizes:
    """The sizes of a network with parameters of these shapes.

    Args:
        part_of: the part that a parameter belongs to, by its name; None for what is never trained.
    """
    frozen = {name: shape for name, shape in shapes.items() if part_of(name) in (None, *config.freeze)}
    if config.lora is None:
        return Sizes(count(shapes) - count(frozen), _FP32 * count(frozen), others=0)
    lora = config.lora
    adapted = sum(
        sum(shape) for name, shape in shapes.items() if name not in frozen and _is_adapted(lora, name, shape, part_of)
    )
    bytes_each = 2 if config.dtype == "bfloat16" else _FP32
    return Sizes(lora.rank * adapted, bytes_each * count(shapes), others=0)


def _shapes(config: VlmConfig) -> Shapes:
    if config.initialize is not None:
        table = dict(key_table(chosen_settings(config.initialize, fetch=False)))
        return {name: shape for name, shape in table.items() if name != FREQUENCIES}
    assert config.pretrained is not None, "the configuration has checked it"
    folder: Path = local_folder(config.pretrained, "policy.pretrained", fetch=False)
    shapes = shapes_of(folder)
    if is_nanovlm(folder):
        shapes.pop(FREQUENCIES, None)
    return shapes


def _is_adapted(lora: LoraConfig, name: str, shape: tuple[int, ...], part_of: Callable[[str], str | None]) -> bool:
    """Whether a weight is that of a layer with an adapter: by default those of the language model's blocks."""
    layer = name.removesuffix(".weight")
    if len(shape) != 2 or layer == name or layer.split(".")[-1] in _HEADS or math.prod(shape) == 0:
        return False
    targets = lora.target_modules
    if targets is None:
        return part_of(name) == "language"
    return any(layer == target or layer.endswith(f".{target}") for target in targets)
