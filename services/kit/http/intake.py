"""From a request's bytes to its items. Limits are checked before anything is built. Runs in threads."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from pydantic_core import from_json

from services.kit.errors import ApiError, invalid
from services.kit.guard.memory import Hold
from services.kit.http.multipart import parse_multipart
from services.kit.scorer import Failure
from services.kit.settings import ServiceSettings
from wire.images import BadImageError, ImageLimits, ref_bytes
from wire.schema import ErrorCode, ImageRef, ScoreItem, ScoreRequest

REQUEST_PART = "request"
MAX_JSON_VALUES = 1_000_000
# Of one value, at most, while it is read, checked and made a key of: an object of one number takes 184 bytes, and for a
# while there are two of it.
_VALUE_BYTES = 300


@dataclass(frozen=True)
class Parsed:
    """A valid request, and by name its multipart parts and what came as base64. `failed`: items already lost, by place."""

    request: ScoreRequest
    parts: dict[str, memoryview]
    failed: Mapping[int, Failure] = field(default_factory=dict)


def parse_request(
    body: bytes | bytearray, content_type: str, settings: ServiceSettings, hold: Hold | None = None
) -> Parsed:
    """Parse and validate a body. `hold` is charged with what becomes of it. Raises ApiError 400, 413, 415, 422 or 429."""
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
    tree = read_json(body, hold)
    del body  # a copy, where it was a part: nothing charges it beside what is made of the text now
    parsed = validated(tree, parts, settings)
    _check_parts(parsed.request, parts)
    if settings.image_url_hosts is None:
        _refuse_urls(parsed.request)
    return parsed


def validated(tree: object, parts: dict[str, memoryview], settings: ServiceSettings) -> Parsed:
    """A checked request. What came as base64 is read here, once, and is a part from now on. Raises ApiError 413 or 422.

    An item whose base64 is none is lost.
    """
    check_counts(tree, settings)
    try:
        request = ScoreRequest.model_validate(tree)
    except ValidationError as error:
        raise invalid(error) from error
    limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
    parts, names = dict(parts), free_names("data", parts)
    unpacked = [_unpacked(item, parts, names, limits) for item in request.items]
    failed = {place: each for place, each in enumerate(unpacked) if isinstance(each, Failure)}
    items = [was if isinstance(each, Failure) else each for was, each in zip(request.items, unpacked, strict=True)]
    return Parsed(request.model_copy(update={"items": items}), parts, failed)


def _unpacked(
    item: ScoreItem, parts: dict[str, memoryview], names: Iterator[str], limits: ImageLimits
) -> ScoreItem | Failure:
    """The item with its base64 as `parts`, which get it under the next of `names`."""
    changed: dict[int, ImageRef] = {}
    for place, ref in item.named_refs():
        if ref.data is None:
            continue
        try:
            data = ref_bytes(ref, {}, limits)
        except BadImageError as error:
            return Failure(ErrorCode.BAD_INPUT, f"{place}: {error}")
        name = next(names)
        parts[name] = memoryview(data)
        changed[id(ref)] = ref.model_copy(update={"data": None, "part": name})
    return item.with_refs(lambda ref: changed.get(id(ref), ref)) if changed else item


def free_names(prefix: str, taken: Container[str]) -> Iterator[str]:
    """Names of parts that are not `taken`: prefix-0, prefix-1, ..."""
    return (name for name in map(f"{prefix}-{{}}".format, itertools.count()) if name not in taken)


def read_json(body: bytes | bytearray, hold: Hold | None = None) -> object:
    """The value of a JSON body. Raises ApiError: 400 not JSON, 413 too many values or too much memory, 429.

    Values are counted before they are built, and `hold` is charged with them: three bytes, such as `[],`, become a list
    of 56 bytes or more.
    """
    values = sum(body.count(sign) for sign in (b",", b"[", b"{"))
    if values > MAX_JSON_VALUES:
        raise ApiError(
            413, f"JSON with more than {MAX_JSON_VALUES} commas and brackets: send fewer items in one request"
        )
    if hold is not None:
        hold.take(values * _VALUE_BYTES + len(body) * (1 + _widest(body)))
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error


def _widest(body: bytes | bytearray) -> int:
    """Bytes that Python may take for one byte of text: its strings are as wide as the widest of their characters."""
    if body.isascii():
        # One byte is found thirty times faster than two, and the base64 of images, which is most of a body, has none.
        escaped = b"\\" in body and b"\\u" in body
        return 4 if escaped and (b"\\ud" in body or b"\\uD" in body) else 2 if escaped else 1
    return 4 if any(bytes((lead,)) in body for lead in range(0xF0, 0xF5)) or b"\\u" in body else 2


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
        for name, ref in item.named_refs():
            if ref.url is not None:
                raise ApiError(
                    422,
                    "image URLs are off here: send the bytes, or start the service with --image-url-hosts",
                    field=f"items.{place}.{name}.url",
                )


def _check_parts(request: ScoreRequest, parts: Mapping[str, memoryview]) -> None:
    named = {ref.part for item in request.items for ref in item.refs}
    for name, data in parts.items():
        if name not in named and data:  # forms send an empty part for a field that was left empty
            raise ApiError(422, f"the multipart part {name!r} belongs to no image of the request", field=name)
