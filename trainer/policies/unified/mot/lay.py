"""A row as BAGEL lays it out: framed texts, images that are seen, clean latents, and noised latents that are learnt.

A text is `<|im_start|> words <|im_end|>`, one position a token. An image is `<|vision_start|> patches <|vision_end|>`, all at one
position, and each of its tokens sees all others of it. What comes after a noised image stands at the same position as that image
and sees nothing of it. A condition that is left out still takes an image's position, none where it is a text (as BAGEL's own packs).

All tokens of the understanding expert come first, then all latent tokens: `order_U` and the pictures' `order` say where each stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from trainer.config import ConfigError
from trainer.data.sequences import ImageItem, Resize, SequencePlan, TextItem
from trainer.policies.base import Laying
from trainer.policies.unified.mot.pictures import read_rgb, scaled
from trainer.policies.unified.mot.words import Words
from trainer.samplers.schedules import shifted

Reader = Callable[[str], Image.Image]  # of the image of a path, in RGB


@dataclass(frozen=True)
class Ways:
    """How a model takes images.

    Attributes:
        seen, latent: scaling of images that are seen, and of those that are drawn or read by their latents, where a plan says none.
        seen_patch, token_side: pixels a side of a token.
        seen_side, latent_side: tokens a side that positions are made for.
        token_channels: numbers of a latent token.
    """

    seen: Resize
    latent: Resize
    seen_patch: int
    token_side: int
    seen_side: int
    latent_side: int
    token_channels: int


@dataclass(frozen=True)
class LatentImage:
    """An image as latent tokens, once: clean, or one noised copy.

    Attributes:
        source: which of the row's `drawn_from`.
        level: of noise, in [0, 1]; 0 is clean.
        noise: (tokens, C); None where it is clean.
        position: rotary position of its tokens.
        order: its place in the row.
        block: its number among the row's images, from 1.
    """

    source: int
    level: float
    noise: Tensor | None
    position: int
    order: int
    block: int


@dataclass
class LaidRow:
    """Implements `trainer.policies.base.Laid`.

    Attributes:
        words: ids of words and tags.
        und: for each token of the understanding expert: (its place in `words`, or -1 for a patch; position; order; block; noised).
        seen: images that are seen, (H, W, 3), uint8, in order.
        drawn_from: images that latents are made of, likewise; None for a canvas, which has none yet.
        latents: what is made of them.
        sizes: latent tokens of each of `drawn_from`, rows and columns.
        asked: for each predicted token: (where among `und` it is predicted, its id).
        learnt: as in the protocol.
        position: the rotary position that comes next.
    """

    id: str
    words: list[int] = field(default_factory=list)
    und: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    drawn_from: list[Tensor | None] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    latents: list[LatentImage] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    learnt: tuple[int, ...] = ()
    position: int = 0

    @property
    def length(self) -> int:
        return len(self.und) + self.num_latents

    @property
    def num_latents(self) -> int:
        return sum(self.tokens_of(each) for each in self.latents)

    @property
    def drawn(self) -> int:
        return sum(self.tokens_of(each) for each in self.latents if each.noise is not None)

    def tokens_of(self, latent: LatentImage) -> int:
        height, width = self.sizes[latent.source]
        return height * width


class _Builder:
    """Lays one row out, item by item."""

    def __init__(self, plan: SequencePlan, laying: Laying, words: Words, ways: Ways, reader: Reader) -> None:
        self.row = LaidRow(plan.id)
        self.laying, self.words, self.ways, self.reader = laying, words, ways, reader
        self.opened: dict[str, Image.Image] = {}
        self.random = torch.Generator().manual_seed(laying.seed)
        # One number for each item, whether it may be dropped or not: then no item's fate depends on its neighbours' kinds.
        self.fates = torch.rand(len(plan.items), generator=self.random).tolist()
        self.position = self.order = self.blocks = 0

    def text(self, item: TextItem, fate: float) -> None:
        if item.droppable and fate < self.laying.drop_text:
            return
        try:
            ids = self.words.encode(item.text)
        except ValueError as error:
            raise self._unreadable(str(error), "write it otherwise, add the word to the tokenizer") from error
        first = len(self.row.und)
        for token in (self.words.start, *ids, self.words.end):
            self._word(token, self.position, 0, noised=False)
            self.position += 1
            self.order += 1
        if item.learnt:
            self._ask([(first + place, token) for place, token in enumerate((*ids, self.words.end))])
        if item.then_image:
            # Counted by itself, as BAGEL does: it weighs 1, however long the text before it is.
            self._ask([(len(self.row.und) - 1, self.words.image_start)])

    def image(self, item: ImageItem, fate: float) -> None:
        seen = item.use == "seen"
        if item.droppable and fate < (self.laying.drop_seen if seen else self.laying.drop_clean):
            self.position += 1
            return
        resize = item.resize or (self.ways.seen if seen else self.ways.latent)
        pixels = self._pixels(item, resize, self.ways.seen_patch if seen else self.ways.token_side)
        if seen:
            self._check_side(item, pixels, self.ways.seen_patch, self.ways.seen_side)
            height, width = (side // self.ways.seen_patch for side in pixels.shape[:2])
            self.row.seen.append(pixels)
            self._framed(partial(self._patches, height * width), noised=False)
            self.position += 1
            return
        self._check_side(item, pixels, self.ways.token_side, self.ways.latent_side)
        height, width = (side // self.ways.token_side for side in pixels.shape[:2])
        self.row.drawn_from.append(pixels)
        self.row.sizes.append((height, width))
        if item.use == "clean":
            self._framed(partial(self._latent, 0.0, None), noised=False)
            self.position += 1
            return
        for copy in range(self.laying.copies):
            level = self._level(copy)
            noise = torch.randn(height * width, self.ways.token_channels, generator=self.random)
            self._framed(partial(self._latent, level, noise), noised=True)

    def canvas(self, height: int, width: int) -> None:
        """Where an image of so many latent tokens is to be drawn, `copies` times: pure noise."""
        self.row.drawn_from.append(None)
        self.row.sizes.append((height, width))
        noise = torch.zeros(height * width, self.ways.token_channels)
        for _ in range(self.laying.copies):
            self._framed(partial(self._latent, 1.0, noise), noised=True)

    def _level(self, copy: int) -> float:
        """u = sigmoid(N(0, 1)), shifted, unless levels are given."""
        if self.laying.levels is not None:
            return self.laying.levels[copy]
        u = torch.sigmoid(torch.randn((), generator=self.random, dtype=torch.float64)).item()
        return shifted(u, self.laying.shift)

    def _ask(self, asked: list[tuple[int, int]]) -> None:
        self.row.asked += asked
        self.row.learnt = (*self.row.learnt, len(asked))

    def _framed(self, inside: Callable[[int], None], *, noised: bool) -> None:
        self.blocks += 1
        self._word(self.words.image_start, self.position, self.blocks, noised=noised)
        inside(self.blocks)
        self._word(self.words.image_end, self.position, self.blocks, noised=noised)
        self.order += 1

    def _word(self, token: int, position: int, block: int, *, noised: bool) -> None:
        self.row.und.append((len(self.row.words), position, self.order, block, noised))
        self.row.words.append(token)

    def _patches(self, count: int, block: int) -> None:
        self.row.und += [(-1, self.position, self.order, block, False)] * count

    def _latent(self, level: float, noise: Tensor | None, block: int) -> None:
        source = len(self.row.drawn_from) - 1
        self.row.latents.append(LatentImage(source, level, noise, self.position, self.order, block))

    def _pixels(self, item: ImageItem, resize: Resize, side: int) -> Tensor:
        if resize.stride % side:
            raise self._unreadable(
                f"images are scaled to multiples of {resize.stride} pixels, and a token of this model is {side}",
                f"set the stride to a multiple of {side}",
            )
        try:
            # An edit's source is read by its latents and seen: two scalings of one file, which is decoded once.
            if item.path not in self.opened:
                self.opened[item.path] = self.reader(item.path)
            return scaled(self.opened[item.path], resize, item.among)
        except (OSError, ValueError) as error:
            raise self._unreadable(f"the image {item.path} cannot be read: {error}", "replace the file") from error

    def _check_side(self, item: ImageItem, pixels: Tensor, side: int, most: int) -> None:
        if max(pixels.shape[:2]) > side * most:
            raise self._unreadable(
                f"the image {item.path} is scaled to {pixels.shape[1]} x {pixels.shape[0]} pixels, and this model places at most "
                f"{side * most} on a side",
                f"set the longest side to {side * most} or less",
            )

    def _unreadable(self, what: str, remedy: str) -> ConfigError:
        return ConfigError(f"{self.row.id}: {what}; {remedy}, or leave the row out")


def lay_row(
    plan: SequencePlan,
    laying: Laying,
    words: Words,
    ways: Ways,
    *,
    reader: Reader = read_rgb,
    canvas: tuple[int, int] | None = None,
) -> LaidRow:
    """The row as tokens. Raises ConfigError naming the row where it cannot be read.

    Args:
        reader: gives the image of a path; asked once for each.
        canvas: rows and columns of latent tokens of an image that is to be drawn at the row's end.
    """
    if laying.levels is not None and len(laying.levels) != laying.copies:
        raise ValueError(f"{len(laying.levels)} levels for {laying.copies} copies; give one for each")
    builder = _Builder(plan, laying, words, ways, reader)
    for item, fate in zip(plan.items, builder.fates, strict=True):
        if isinstance(item, TextItem):
            builder.text(item, fate)
        else:
            builder.image(item, fate)
    if canvas is not None:
        builder.canvas(*canvas)
    builder.row.position = builder.position
    return builder.row
