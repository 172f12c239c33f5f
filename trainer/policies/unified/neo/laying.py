"""Rows of packed training as the native model's tokens: turns in their frames, images as patches, what the assistant says learnt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.config import ConfigError
from trainer.data.sequences import ImageItem, Item, SequencePlan, TextItem
from trainer.policies.base import Laying
from trainer.policies.tokens.model import open_image
from trainer.policies.unified.neo.images import Patches
from trainer.policies.unified.neo.places import places_of
from trainer.policies.unified.neo.processor import NeoProcessor, inputs_of
from trainer.policies.unified.neo.rows import PATCH_PLACES, PATCHES, Row
from trainer.policies.unified.neo.tokenizer import FRAMES, TURN_END, turn_start


@dataclass(frozen=True, eq=False)
class LaidRow:
    """Implements `trainer.policies.base.Laid`.

    Attributes:
        row: its tokens and images.
        learnt_T: bool, which tokens are predicted; never the first, which nothing comes before.
    """

    id: str
    row: Row
    learnt_T: Tensor
    learnt: tuple[int, ...]
    drawn: int = 0

    @property
    def length(self) -> int:
        return len(self.row.ids_T)


def lay(plan: SequencePlan, laying: Laying, processor: NeoProcessor) -> LaidRow:
    """The row, its images loaded.

    A learnt text counts with the token that ends its turn and the line's end behind it.

    Raises:
        ConfigError: an image cannot be read or is to be drawn, a text has a token that stands for an image, or nothing is learnt.
    """
    rng = random.Random(laying.seed)
    kept = [item for item in plan.items if not _is_dropped(item, laying, rng)]
    patches = _patches(plan.id, kept, processor)
    writer = _Writer(processor)
    images = iter(patches)
    for item in kept:
        if isinstance(item, ImageItem):
            writer.image(next(images))
        else:
            _refuse_frames(plan.id, item)
            writer.text(item)
    ids, learnt, counts = writer.done()
    if not any(counts):
        raise ConfigError(f"{plan.id} has nothing that is learnt: no turn of an assistant; leave the row out")
    ids_T = torch.tensor(ids, dtype=torch.int64)
    places_3T, images_T = places_of(ids_T, [each.grid for each in patches], processor.image_id)
    inputs = inputs_of(patches)
    row = Row(
        ids_T,
        places_3T,
        images_T,
        inputs.get(PATCHES, torch.zeros(0, 3 * processor.geometry.patch_size**2)),
        inputs.get(PATCH_PLACES, torch.zeros(0, 2, dtype=torch.int64)),
    )
    return LaidRow(plan.id, row, torch.tensor(learnt), tuple(counts))


class _Writer:
    """Makes tokens piece by piece; what is learnt begins a piece of its own, as an answer that is drawn does."""

    def __init__(self, processor: NeoProcessor) -> None:
        self.processor = processor
        self.ids: list[int] = []
        self.learnt: list[bool] = []
        self.counts: list[int] = []
        self.waiting, self.is_open = "", False

    def text(self, item: TextItem) -> None:
        if item.role is not None:
            self.waiting += (TURN_END if self.is_open else "") + turn_start(item.role)
            self.is_open = True
        if not item.learnt:
            self.waiting += item.text
            return
        self._write()
        first = len(self.ids)
        self.ids += [*self.processor.encode(item.text), *self.processor.encode(TURN_END)]
        self.learnt += [place > 0 for place in range(first, len(self.ids))]
        self.counts.append(len(self.ids) - max(first, 1))
        self.is_open = False

    def image(self, patches: Patches) -> None:
        self._write()
        ids = self.processor.image_ids(patches)
        self.ids += ids
        self.learnt += [False] * len(ids)

    def done(self) -> tuple[list[int], list[bool], list[int]]:
        """Ids, which are learnt, and how many of each learnt text. What follows the last of them is learnt by nobody; it stays
        for its length, which the row has everywhere."""
        self._write()
        return self.ids, self.learnt, self.counts

    def _write(self) -> None:
        ids = self.processor.encode(self.waiting)
        self.ids += ids
        self.learnt += [False] * len(ids)
        self.waiting = ""


def _is_dropped(item: Item, laying: Laying, rng: random.Random) -> bool:
    """Each droppable item draws one number, so that what is dropped does not depend on the shares of the others."""
    if not item.droppable:
        return False
    share = laying.drop_text if isinstance(item, TextItem) else laying.drop_seen
    return rng.random() < share


def _patches(where: str, items: Sequence[Item], processor: NeoProcessor) -> list[Patches]:
    found = []
    for item in items:
        if not isinstance(item, ImageItem):
            continue
        if item.use != "seen":
            raise ConfigError(
                f"{where} has the image {item.path} to be {item.use}, but policy.type neo sees images and draws none; take a data set of "
                "conversations, or policy.type mot"
            )
        if item.resize is not None:
            raise ConfigError(
                f"{where}: packed.groups.<n>.seen_size does not act on policy.type neo, which scales images by policy.min_pixels and "
                "policy.max_pixels; leave it out"
            )
        found.append(open_image(where, item.path))
    try:
        return processor.cut(found)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_frames(where: str, item: TextItem) -> None:
    for name in FRAMES:
        if name in item.text:
            raise ConfigError(
                f"{where} has {name} in its text, which stands for an image in this model; write <image> where an image is to be shown, or "
                "take it out"
            )
