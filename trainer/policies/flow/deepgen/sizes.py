"""How large DeepGen is, from the headers of its files."""

from __future__ import annotations

from pathlib import Path

from trainer.config import ConfigError, DeepGenConfig
from trainer.policies.flow.deepgen.checkpoint import open_checkpoint
from trainer.policies.registry import Sizes
from trainer.policies.sizes import count, part_sizes, shapes_of

_ELSEWHERE = ("lmm.", "transformer.", "vae.", "ema.")  # counted in the folders of Qwen2.5-VL and SD3.5, or not loaded


def deepgen_sizes(config: DeepGenConfig) -> Sizes:
    """The sizes of transformer, autoencoder and all that reads the prompt. Raises what `part_sizes` raises, and ConfigError
    where a folder is not named."""
    if config.sd3_path is None or config.qwen_path is None or config.checkpoint is None:
        raise ConfigError("policy: a folder is missing")
    stored = open_checkpoint(Path(config.checkpoint))
    own = {name: tuple(t.shape) for name, t in stored.items() if not name.startswith(_ELSEWHERE)}
    encoders = count(shapes_of(Path(config.qwen_path))) + count(own)
    return part_sizes(config, config.lora, Path(config.sd3_path), encoders)
