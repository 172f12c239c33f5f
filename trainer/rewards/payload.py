"""Samples as a wire-v1 request: items that refer to multipart parts, and the parts as they are sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ValidationError

from trainer.rewards.answers import Answer
from trainer.types import Sample
from wire.containers import media_type_of, other_type_of
from wire.images import BadImageError, encode
from wire.schema import ErrorCode, ImageRef, MediaType, ScoreItem

MEDIA_TYPES: dict[str, MediaType] = {
    "rgb8": "image/x-rgb8",
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
}


_JOINED_BYTES = 1 << 18  # less than that is sent together: each piece costs a turn of the event loop


@dataclass(frozen=True)
class Call:
    """One request for one reward: everything but the time that is left.

    `items_json` are the items as JSON, in the order of `ids`; `parts` the encoded images by part name. An image that
    several samples of an edit start from is one part.
    """

    reward: str | None
    ids: Sequence[str]
    items_json: str
    parts: Mapping[str, bytes]

    def body(self, deadline_ms: int, request_id: str) -> str:
        """The JSON of the request."""
        head = {"reward": self.reward, "deadline_ms": max(1, deadline_ms), "request_id": request_id}
        return f'{{"items":{self.items_json},{json.dumps(head)[1:]}'


def multipart(request: bytes, parts: Mapping[str, bytes], boundary: str) -> list[bytes]:
    """A multipart/form-data body of the JSON part `request` and the images, in pieces. Large images are not copied."""
    pieces: list[bytes] = []
    joined = bytearray()
    for name, data in [("request", request), *parts.items()]:
        kind = "application/json" if name == "request" else "application/octet-stream"
        file = "request.json" if name == "request" else name
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\nContent-Type: {kind}'
        )
        joined += head.encode() + b"\r\n\r\n"
        if len(data) >= _JOINED_BYTES:
            pieces += [bytes(joined), data]
            joined.clear()
        else:
            joined += data
        joined += b"\r\n"
        if len(joined) >= _JOINED_BYTES:
            pieces.append(bytes(joined))
            joined.clear()
    joined += f"--{boundary}--\r\n".encode()
    return [*pieces, bytes(joined)]


def encode_pixels(image_HWC: np.ndarray, encoding: str) -> bytes:
    """Encode uint8 pixels (H, W, 3) as they travel. Raw RGB8 is a copy; the others cost CPU and leave the GIL."""
    if encoding == "rgb8":
        return image_HWC.tobytes()
    return encode(Image.fromarray(image_HWC), MEDIA_TYPES[encoding])


def encode_samples(samples: Sequence[Sample], encoding: str) -> list[list[bytes]]:
    """The encoded images of each sample; none for a sample of text alone."""
    return [[encode_pixels(image_HWC, encoding) for image_HWC in sample.images] for sample in samples]


def make_call(
    samples: Sequence[Sample], images: Sequence[Sequence[bytes]], encoding: str, reward: str | None
) -> tuple[Call | None, dict[str, Answer]]:
    """The request for `samples`, and the samples that cannot be sent (id to failure). No call when none can be."""
    ids: list[str] = []
    items: list[str] = []
    parts: dict[str, bytes] = {}
    sources: dict[str, ImageRef] = {}  # by path
    refused: dict[str, Answer] = {}
    named = 0  # images that have a part's name
    for sample, encoded in zip(samples, images, strict=True):
        names = [f"image{named + n}" for n in range(len(encoded))]
        named += len(encoded)
        try:
            for path in sample.prompt.source_images:
                if path not in sources:
                    part_name = f"source{len(sources)}"
                    sources[path], parts[part_name] = _source(path, part_name)
            item = _item(sample, names, encoding, sources)
        except (OSError, BadImageError) as error:
            refused[sample.id] = Answer(None, ErrorCode.BAD_INPUT, f"cannot be sent: source_images: {error}")
            continue
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(piece) for piece in problem["loc"])
            refused[sample.id] = Answer(None, ErrorCode.BAD_INPUT, f"cannot be sent: {where}: {problem['msg']}")
            continue
        ids.append(sample.id)
        items.append(item.model_dump_json(exclude_none=True))
        parts |= dict(zip(names, encoded, strict=True))
    call = Call(reward, ids, "[" + ",".join(items) + "]", parts) if ids else None
    return call, refused


def _item(sample: Sample, names: Sequence[str], encoding: str, sources: Mapping[str, ImageRef]) -> ScoreItem:
    prompt, media_type = sample.prompt, MEDIA_TYPES[encoding]
    return ScoreItem(
        id=sample.id,
        group_id=sample.group_id,
        prompt=prompt.text,
        images=[
            ImageRef(media_type=media_type, part=name, width=image_HWC.shape[1], height=image_HWC.shape[0])
            for name, image_HWC in zip(names, sample.images, strict=True)
        ],
        completion=sample.text,
        source_images=[sources[path] for path in prompt.source_images] or None,
        targets=None if prompt.targets is None else list(prompt.targets),
        metadata=dict(prompt.metadata) | ({"completion_ids": list(sample.tokens)} if sample.tokens else {}),
    )


def _source(path: str, part: str) -> tuple[ImageRef, bytes]:
    """A source image's reference and bytes; these say what it is, not its name. Raises OSError and BadImageError."""
    data = Path(path).read_bytes()
    media_type = media_type_of(data)
    if media_type is None:
        raise BadImageError(f"{path} is {other_type_of(data) or 'no picture'}; PNG, JPEG and WebP can be sent")
    return ImageRef(media_type=media_type, part=part), data
