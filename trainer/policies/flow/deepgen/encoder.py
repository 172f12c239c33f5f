"""Batches of conditioning: prompts encoded once and cached, source images as latents, both padded with masks.

Axes: B samples, L conditioning tokens, N source images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import DeepGenConfig
from trainer.policies.flow.deepgen.conditioning import encode, render
from trainer.policies.flow.deepgen.networks import DeepGenNetworks
from trainer.policies.flow.deepgen.sources import read_source
from trainer.policies.flow.embedding_cache import EmbeddingCache, fingerprint
from trainer.policies.flow.encoders import CachedEncoders, Encode
from trainer.policies.flow.frozen import Autoencoder
from trainer.policies.flow.sd3_tokens import join_sources
from trainer.policies.flow.upload import upload_once
from trainer.types import Prompt


class PromptEncoder:
    """The frozen parts that read prompts, behind a cache; with `offload_encoders` on the device only while they work.

    Args:
        files: what the embeddings depend on: the language model's, the autoencoder's and the checkpoint's.
    """

    def __init__(
        self, networks: DeepGenNetworks, vae: Autoencoder, tokenizer: Any, config: DeepGenConfig, files: Iterable[Path]
    ) -> None:
        self._networks, self._vae, self._tokenizer, self._config = networks, vae, tokenizer, config
        self._device = networks.meta_queries.device
        self._patch: int = networks.transformer.config.patch_size
        self._padded = config.conditioning == "padded"
        # What is encoded in a batch depends on the batch: it is kept for its replay, not for another run.
        folder = Path(config.embedding_cache) if config.embedding_cache and not self._padded else None
        settings = {"dtype": config.dtype, "image_size": config.image_size, "template": [render(""), render("", [1])]}
        cache = EmbeddingCache(
            fingerprint(files, settings) if folder else "", max_bytes=config.embedding_memory_mb * 2**20, folder=folder
        )
        working = (networks.lmm, networks.projector_1, networks.connector, networks.projector_2, networks.projector_3)
        self.encoders = CachedEncoders(working, cache, self._device, offload=config.offload_encoders)

    def __call__(self, prompts_B: Sequence[Prompt]) -> dict[str, Tensor]:
        """What `Sd3Transformer` takes beside latents and time: `states`, `pooled`, and where needed masks and sources."""
        batches = self._cut(prompts_B)
        found = self.encoders(self._wanted(batches))
        rows_B = [
            (key, row) for key, batch in zip(map(_key, batches), batches, strict=True) for row in range(len(batch))
        ]
        return upload_once(
            rows_B, lambda places: self._join([_row(found[key], row) for key, row in places]), self._device
        )

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        """As `trainer.policies.base.Expects`."""
        self.encoders.expect(self._wanted([part for batch in batches for part in self._cut(batch)]))

    def _cut(self, prompts_B: Sequence[Prompt]) -> list[tuple[Prompt, ...]]:
        """What is encoded together."""
        return [tuple(prompts_B)] if self._padded else [(prompt,) for prompt in prompts_B]

    def _wanted(self, batches: Sequence[Sequence[Prompt]]) -> dict[str, Encode]:
        return {_key(batch): partial(self._encode, batch) for batch in batches}

    def _join(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        sources = [[row[name] for name in sorted(row) if name.startswith("source_")] for row in rows]
        return {
            "pooled": torch.stack([row["pooled"] for row in rows]),
            **_join_states([row["states"] for row in rows]),
            **join_sources(sources, self._patch),
        }

    def _encode(self, prompts: Sequence[Prompt]) -> Mapping[str, Tensor]:
        """Of prompts encoded together: `states` (B, L, joint), `pooled` (B, pooled), latents `<row>/source_<n>`."""
        area = self._config.image_size**2
        sources = [[read_source(image, area) for image in prompt.source_images] for prompt in prompts]
        states, pooled = encode(self._networks, self._tokenizer, [prompt.text for prompt in prompts], sources)
        latents = {
            f"{row}/source_{n:02d}": self._vae.encode(source[None])[0]
            for row, images in enumerate(sources)
            for n, source in enumerate(images)
        }
        return {"states": states, "pooled": pooled, **latents}


def _row(encoded: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """One prompt's part of what was encoded together."""
    latents = {name.partition("/")[2]: tensor for name, tensor in encoded.items() if name.startswith(f"{row}/")}
    return {"states": encoded["states"][row], "pooled": encoded["pooled"][row], **latents}


def _key(prompts: Sequence[Prompt]) -> str:
    """Equal for prompts that are encoded to the same: texts, and files with their sizes and times."""
    return json.dumps(
        [
            [
                prompt.text,
                *([name, (stat := Path(name).stat()).st_size, stat.st_mtime_ns] for name in prompt.source_images),
            ]
            for prompt in prompts
        ]
    )


def _join_states(states_B: Sequence[Tensor]) -> dict[str, Tensor]:
    """Token states (L, D) of every prompt, right-padded to the longest with a mask; without one when all are as long."""
    lengths = [len(states) for states in states_B]
    longest = max(lengths)
    states = torch.stack([functional.pad(each, (0, 0, 0, longest - len(each))) for each in states_B])
    if min(lengths) == longest:
        return {"states": states}
    return {"states": states, "text_mask": torch.arange(longest) < torch.tensor(lengths)[:, None]}
