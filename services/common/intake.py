"""From a request's bytes to decoded items. Limits are checked before anything is decoded. Runs in threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import Image
from pydantic import ValidationError
from pydantic_core import from_json

from services.common.cache import cache_key
from services.common.errors import ApiError, invalid
from services.common.memory import Hold
from services.common.multipart import parse_multipart
from services.common.scorer import Failure, Item
from services.common.settings import ServiceSettings
from wire.images import BadImageError, ImageLimits, load, open_header, ref_bytes
from wire.schema import ErrorCode, ImageRef, ScoreItem, ScoreRequest, ScorerInfo

REQUEST_PART = "request"
MAX_JSON_VALUES = 1_000_000


@dataclass(frozen=True)
class Parsed:
    """A valid request and its multipart parts by name (none for JSON). `failed`: items already lost, by place."""

    request: ScoreRequest
    parts: dict[str, memoryview]
    failed: Mapping[int, Failure] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """An item ready to score, with its cache key; or why it cannot be scored. `sent` is the item as it came."""

    item: Item | Failure
    sent: ScoreItem
    key: bytes | None = None


def parse_request(body: bytes, content_type: str, settings: ServiceSettings) -> Parsed:
    """Parse and validate a body. Raises ApiError 400, 413, 415 or 422."""
    kind = content_type.partition(";")[0].strip().lower()
    parts: dict[str, memoryview] = {}
    if kind == "multipart/form-data":
        parts = parse_multipart(body, content_type, 1 + settings.max_items * settings.max_images_per_item)
        if REQUEST_PART not in parts:
            raise ApiError(400, f"the multipart body has no JSON part named {REQUEST_PART!r}", field=REQUEST_PART)
        body = bytes(parts.pop(REQUEST_PART))
    elif kind != "application/json":
        raise ApiError(
            415,
            f"content type {kind or '(none)'} is not served: send application/json or multipart/form-data",
            field="content-type",
        )
    tree = read_json(body)
    check_counts(tree, settings)
    try:
        request = ScoreRequest.model_validate(tree)
    except ValidationError as error:
        raise invalid(error) from error
    _check_parts(request, parts)
    if settings.image_url_hosts is None:
        _refuse_urls(request)
    return Parsed(request, parts)


def read_json(body: bytes | bytearray) -> object:
    """The value of a JSON body. Raises ApiError: 400 not JSON, 413 too many values.

    Values are counted before they are built: three bytes, such as `[],`, become a list of 56 bytes or more.
    """
    if len(body) > MAX_JSON_VALUES and sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_JSON_VALUES:
        raise ApiError(
            413, f"JSON with more than {MAX_JSON_VALUES} commas and brackets: send fewer items in one request"
        )
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


def decode_item(
    item: ScoreItem, parts: dict[str, memoryview], limits: ImageLimits, hold: Hold, info: ScorerInfo | None
) -> Decoded:
    """Decode one item's images and compute its cache key (`info` None: no key). A bad image is this item's failure.

    Raises ApiError 413 or 429 when the decoded images would not fit in memory beside all others.
    """
    try:
        images = _decode_all("images", item.images, parts, limits, hold)
        source_images = _decode_all("source_images", item.source_images or [], parts, limits, hold)
    except BadImageError as error:
        return Decoded(Failure(ErrorCode.BAD_INPUT, str(error)), item)
    decoded = Item(
        id=item.id,
        prompt=item.prompt,
        images=tuple(image for image, _ in images),
        group_id=item.group_id,
        completion=item.completion,
        source_images=tuple(image for image, _ in source_images),
        targets=None if item.targets is None else tuple(item.targets),
        metadata=item.metadata,
    )
    if info is None:
        return Decoded(decoded, item)
    return Decoded(decoded, item, cache_key(info, item, [data for _, data in (*images, *source_images)]))


def _decode_all(
    field: str, refs: list[ImageRef], parts: dict[str, memoryview], limits: ImageLimits, hold: Hold
) -> list[tuple[Image.Image, bytes | memoryview]]:
    """Each image decoded, and its bytes as they came."""
    images: list[tuple[Image.Image, bytes | memoryview]] = []
    for number, ref in enumerate(refs):
        try:
            data = ref_bytes(ref, parts, limits)
            image = open_header(data, ref.media_type, width=ref.width, height=ref.height, limits=limits)
            hold.take(image.width * image.height * len(image.getbands()))
            images.append((load(image), data))
        except BadImageError as error:
            raise BadImageError(f"{field}.{number}: {error}") from error
    return images


def check_counts(tree: object, settings: ServiceSettings) -> None:
    """Refuse by count before each of ten thousand items is validated."""
    items = tree.get("items") if isinstance(tree, dict) else None
    if not isinstance(items, list):
        return
    if len(items) > settings.max_items:
        raise ApiError(413, f"{len(items)} items; the limit is {settings.max_items}: split the request", field="items")
    for number, item in enumerate(items):
        for name in ("images", "source_images"):
            images = item.get(name) if isinstance(item, dict) else None
            if isinstance(images, list) and len(images) > settings.max_images_per_item:
                raise ApiError(
                    413,
                    f"{len(images)} images; the limit is {settings.max_images_per_item} per item",
                    field=f"items.{number}.{name}",
                )


def _refuse_urls(request: ScoreRequest) -> None:
    for place, item in enumerate(request.items):
        for name, refs in (("images", item.images), ("source_images", item.source_images or [])):
            for number, ref in enumerate(refs):
                if ref.url is not None:
                    raise ApiError(
                        422,
                        "image URLs are off here: send the bytes, or start the service with --image-url-hosts",
                        field=f"items.{place}.{name}.{number}.url",
                    )


def _check_parts(request: ScoreRequest, parts: dict[str, memoryview]) -> None:
    named = {ref.part for item in request.items for ref in (*item.images, *(item.source_images or []))}
    for name in parts:
        if name not in named:
            raise ApiError(422, f"the multipart part {name!r} belongs to no image of the request", field=name)
