"""Frozen encoders of prompts: a cache before them, and where they are while they do not work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from machine.transfers import sent
from trainer.config import DiffusersConfig
from trainer.policies.flow.embedding_cache import EmbeddingCache, fingerprint, num_bytes
from trainer.types import Prompt

Encode = Callable[[], Mapping[str, Tensor]]


class Visitors:
    """Frozen modules that are on the device only while they work. The host keeps their weights, in pinned memory where the device is
    CUDA: a visit copies them there, and its end drops the copy, since nothing of it has changed.

    Attributes:
        visits: how often they came.
        here: they are on the device.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._device, self._kept = device, dict[Tensor, Tensor]()
        tensors = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
        for tensor in dict.fromkeys(tensors):
            kept = tensor.data.cpu()
            tensor.data = kept.pin_memory() if device.type == "cuda" else kept
            self._kept[tensor] = tensor.data
        self.visits, self.here = 0, False

    def come(self) -> None:
        if self.here:
            return
        for tensor, kept in self._kept.items():
            tensor.data = sent(kept, self._device)
        self.visits, self.here = self.visits + 1, True

    def leave(self) -> None:
        for tensor, kept in self._kept.items():
            tensor.data = kept
        self.here = False


class CachedEncoders:
    """Frozen encoders behind a cache: what has the same key is encoded once.

    With `offload` they visit the device, and a visit reads all that was said to come, as far as the cache's memory holds it: one visit
    a step where its prompts fit, none where all are known.

    Attributes:
        visitors: the modules as visitors; None where they stay on the device.
    """

    def __init__(
        self, modules: Sequence[nn.Module], cache: EmbeddingCache, device: torch.device, *, offload: bool
    ) -> None:
        self.modules, self._cache, self._coming = modules, cache, dict[str, Encode]()
        for module in modules:
            module.eval().requires_grad_(False)
            if not offload:
                module.to(device)
        self.visitors = Visitors(modules, device) if offload else None

    def expect(self, coming: Mapping[str, Encode]) -> None:
        """What the coming calls will ask for, in order, by key. It replaces what was said before."""
        self._coming = dict(coming)

    @torch.no_grad()
    def __call__(self, wanted: Mapping[str, Encode]) -> dict[str, Mapping[str, Tensor]]:
        """The tensors of each key, on the CPU: of the cache, or as `wanted` encodes them."""
        found = {key: self._get(key, encode) for key, encode in wanted.items()}
        if self.visitors is not None and self.visitors.here:
            self._read_ahead(found)
            self.visitors.leave()
        return found

    def _get(self, key: str, encode: Encode) -> Mapping[str, Tensor]:
        return self._cache.get(key, lambda _: self._encode(encode))

    def _encode(self, encode: Encode) -> Mapping[str, Tensor]:
        """What the cache lacks, or cannot read, is encoded where the encoders work; they are fetched there first."""
        if self.visitors is not None:
            self.visitors.come()
        return encode()

    def _read_ahead(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Let the cache have what comes after `found`, until its memory has no room for another of the largest."""
        keys = list(self._coming)
        first = max((place for place, key in enumerate(keys) if key in found), default=len(keys)) + 1
        sizes = [num_bytes(tensors) for tensors in found.values()]
        for key in keys[first:]:
            if sum(sizes) + max(sizes) > self._cache.max_bytes:
                return
            sizes.append(num_bytes(self._get(key, self._coming[key])))


class TextEncoders:
    """The text encoders of a diffusers folder: each distinct prompt is encoded once, alone.

    Args:
        modules: the encoders, by the names of their subfolders.
        embed: a prompt's tensors, without a batch axis.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        embed: Callable[[str], Mapping[str, Tensor]],
        config: DiffusersConfig,
        device: torch.device,
        settings: Mapping[str, object],
    ) -> None:
        folders = [Path(config.pretrained) / name for name in modules]
        folders += [folder.with_name(folder.name.replace("text_encoder", "tokenizer")) for folder in folders]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        cache = EmbeddingCache(
            fingerprint(files, {"dtype": config.dtype, **settings}),
            max_bytes=config.embedding_memory_mb * 2**20,
            folder=Path(config.embedding_cache) if config.embedding_cache else None,
        )
        self._embed = embed
        self.encoders = CachedEncoders(list(modules.values()), cache, device, offload=config.offload_encoders)

    def __call__(self, texts: Sequence[str]) -> list[Mapping[str, Tensor]]:
        """The tensors of each text, on the CPU."""
        found = self.encoders(self._wanted(texts))
        return [found[text] for text in texts]

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        """As `trainer.policies.base.Expects`."""
        self.encoders.expect(self._wanted([prompt.text for batch in batches for prompt in batch]))

    def _wanted(self, texts: Sequence[str]) -> dict[str, Encode]:
        return {text: lambda text=text: self._embed(text) for text in texts}  # type: ignore[misc]
