"""Inputs that a reward scores well: what its page fills in, what the API's examples are, and what a client may try first.

A scorer brings them in an attribute `samples`; docs/openapi is written from the same, without weights.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont
from pydantic import JsonValue

from wire.schema import ImageRef, ScoreItem, ScoreRequest

RED, BLUE, GREEN, INK = (214, 30, 30), (30, 70, 200), (20, 140, 60), (30, 30, 40)
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One request's content. Each of `images` is an item, all with the same of the rest; the first scores best.

    `good` is the least that its first item scores; None where the weights decide what is much.
    """

    prompt: str
    images: tuple[Image.Image, ...] = ()
    good: float | None = None
    completion: str | None = None
    source_images: tuple[Image.Image, ...] = ()
    targets: tuple[str, ...] | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def request(self, reward: str) -> ScoreRequest:
        """As JSON, images in it. Several images are a group, for rewards that compare."""
        return self._request(
            reward, [to_ref(image) for image in self.images], [to_ref(each) for each in self.source_images]
        )

    def request_of_parts(self, reward: str) -> ScoreRequest:
        """The JSON part of a multipart body whose images are the parts `image0`, `image1`, ... and `source0`."""
        return self._request(reward, _named("image", len(self.images)), _named("source", len(self.source_images)))

    def _request(self, reward: str, refs: Sequence[ImageRef], sources: list[ImageRef]) -> ScoreRequest:
        items = [
            ScoreItem(
                id=str(number),
                group_id="sample" if len(refs) > 1 else None,
                prompt=self.prompt,
                images=images,
                completion=self.completion,
                source_images=sources or None,
                targets=None if self.targets is None else list(self.targets),
                metadata=dict(self.metadata),
            )
            for number, images in enumerate([[ref] for ref in refs] or [[]])
        ]
        return ScoreRequest(items=items, reward=reward)


def _named(kind: str, count: int) -> list[ImageRef]:
    return [ImageRef(media_type="image/png", part=f"{kind}{number}") for number in range(count)]


def to_ref(image: Image.Image) -> ImageRef:
    """A drawn image in JSON: few colours and a PNG as small as it gets, so that an example can be read past."""
    buffer = io.BytesIO()
    image.quantize(16).save(buffer, "PNG", optimize=True)
    return ImageRef(media_type="image/png", data=base64.b64encode(buffer.getvalue()).decode("ascii"))


def disc(color: Color = RED, ground: str = "white", side: int = 192) -> Image.Image:
    """A disc in the middle of an even ground."""
    image = Image.new("RGB", (side, side), ground)
    ImageDraw.Draw(image).ellipse((side // 5, side // 5, side - side // 5, side - side // 5), fill=color)
    return image


def sign(text: str, color: Color = RED, size: tuple[int, int] = (384, 128)) -> Image.Image:
    """A word or two on a white board."""
    image = Image.new("RGB", size, "white")
    font = ImageFont.load_default(size[1] * 0.36)
    ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), text, color, font, anchor="mm")
    return image


CIRCLE_PROMPT = "a red circle on white ground"


def circle(good: float | None = None, **more: object) -> Sample:
    """A red circle, for rewards that compare an image with its prompt."""
    return Sample(CIRCLE_PROMPT, (disc(),), good, **more)  # type: ignore[arg-type]
