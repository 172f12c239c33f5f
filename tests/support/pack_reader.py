"""A policy that reads packs, small enough to read at once: a bigram of characters, and latents that know their noise level, the text
before them and the images before them. It keeps no state between rows, so nothing of a neighbour can reach a row.

It is a double for tests of what holds for every policy that reads packs. Axes: T learnt text tokens, L noised latent tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import ConfigError
from trainer.data.sequences import ImageItem, Item, SequencePlan, TextItem
from trainer.policies.base import Laying, PackOutput
from trainer.types import Prompt

VOCABULARY, END = 7, 0
CHANNELS, PATCHES = 3, 4


@dataclass(frozen=True)
class LaidRow:
    """Implements `Laid`. Of each text the tokens; of each noised copy the clean latents, the noise and the level."""

    id: str
    texts: list[tuple[list[int], bool]] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)
    noised: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return sum(len(ids) for ids, _ in self.texts) + PATCHES * (len(self.clean) + len(self.noised))

    @property
    def learnt(self) -> tuple[int, ...]:
        return tuple(len(ids) for ids, learnt in self.texts if learnt)

    @property
    def drawn(self) -> int:
        return PATCHES * len(self.noised)


class PackReader:
    """Implements `ReadsPacks`. The path of an image is a number, which its latents are made of; `missing` cannot be read."""

    about = "random"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.trainable = nn.ModuleDict(
            {
                "words": nn.Embedding(VOCABULARY, 5),
                "head": nn.Linear(5, VOCABULARY),
                "velocity": nn.Linear(2 * CHANNELS + 1 + 5, CHANNELS),
            }
        )
        self.laid: list[str] = []  # ids, in the order in which rows were laid

    def check_prompts(self, prompts: Sequence[Prompt]) -> None: ...

    def lay(self, plan: SequencePlan, laying: Laying) -> LaidRow:
        self.laid.append(plan.id)
        generator = torch.Generator().manual_seed(laying.seed)
        row = LaidRow(plan.id)
        for item in plan.items:
            if isinstance(item, ImageItem) and item.path == "missing":
                raise ConfigError(f"{plan.id}: the image {item.path} is not there; give its path")
            chance = _chance(item, laying)
            if item.droppable and torch.rand((), generator=generator) < chance:
                continue
            if isinstance(item, TextItem):
                row.texts.append(([1 + ord(c) % (VOCABULARY - 1) for c in item.text] + [END], item.learnt))
            elif item.use != "drawn":
                row.clean.append(_latents(item.path))
            else:
                levels = laying.levels or _levels(laying, generator)
                row.noised.extend(
                    (_latents(item.path), torch.randn(PATCHES, CHANNELS, generator=generator), t) for t in levels
                )
        return row

    def read(self, pack: Sequence[LaidRow]) -> PackOutput:
        """Each module runs once, and on one token more than the pack has: also where it has none."""
        texts = [[token for ids, _ in row.texts for token in ids] for row in pack]
        before = [[END, *ids[:-1]] for row in pack for ids, learnt in row.texts if learnt]
        after = [ids for row in pack for ids, learnt in row.texts if learnt]
        embedded = self.trainable["words"](torch.tensor([*chain(*before, *texts), END]))
        many, sizes = sum(map(len, before)), [*map(len, texts), 1]
        logits = self.trainable["head"](torch.cat([embedded[:many], embedded[-1:]]))
        errors = functional.cross_entropy(logits, torch.tensor([*chain(*after), END]), reduction="none")[:-1]
        means = [each.mean(0) if len(each) else torch.zeros(5) for each in embedded[many:].split(sizes)]
        inputs, targets = [torch.zeros(1, 2 * CHANNELS + 1 + 5)], [torch.zeros(1, CHANNELS)]
        for row, text in zip(pack, means, strict=False):
            seen = torch.stack(row.clean).mean((0, 1)) if row.clean else torch.zeros(CHANNELS)
            for clean, noise, t in row.noised:
                context = torch.cat([text, seen, torch.tensor([t])]).expand(PATCHES, -1)
                inputs.append(torch.cat([(1 - t) * clean + t * noise, context], -1))
                targets.append(noise - clean)
        squares = (self.trainable["velocity"](torch.cat(inputs)) - torch.cat(targets)).square().mean(-1)[1:]
        nothing = 0 * (logits[-1].sum() + squares.sum())
        return PackOutput(errors + nothing, squares + nothing)


def _chance(item: Item, laying: Laying) -> float:
    if isinstance(item, TextItem):
        return laying.drop_text
    return {"clean": laying.drop_clean, "seen": laying.drop_seen, "drawn": 0.0}[item.use]


def _levels(laying: Laying, generator: torch.Generator) -> tuple[float, ...]:
    u = torch.sigmoid(torch.randn(laying.copies, generator=generator))
    return tuple((laying.shift * u / (1 + (laying.shift - 1) * u)).tolist())


def _latents(path: str) -> Tensor:
    return torch.randn(PATCHES, CHANNELS, generator=torch.Generator().manual_seed(int(path)))
