"""Items as requests that a service takes: none larger than its limits, no group in two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from wire.client.inputs import ImageLike, Part, Wanted, read_part
from wire.client.rows import Row
from wire.images import BadImageError
from wire.schema import ErrorCode, ImageRef, ScoreItem, ScorerInfo, ServiceInfo

PART_BYTES = 512  # of a multipart body beside each part's bytes: its boundary and headers, at most


@dataclass(frozen=True)
class Limits:
    """What one request may hold at most."""

    items: int
    body_bytes: int
    images_per_item: int
    group_items: int

    @classmethod
    def of(cls, info: ServiceInfo, batch_size: int) -> Limits:
        """A service's own, and at most `batch_size` items."""
        given = info.limits
        return cls(
            items=min(batch_size, int(given.get("max_items", batch_size))),
            body_bytes=int(given.get("max_body_bytes", 1 << 40)),
            images_per_item=int(given.get("max_images_per_item", 1 << 20)),
            group_items=int(given.get("max_group_items", 1 << 20)),
        )


@dataclass
class Request:
    """The items of one request, the images they name, and the rows of items that cannot be sent."""

    items: dict[int, ScoreItem] = field(default_factory=dict)  # by place in the call
    parts: dict[str, Part] = field(default_factory=dict)  # by name
    refused: list[Row] = field(default_factory=list)
    bytes: int = 0

    def only(self, places: set[int]) -> Request:
        """The same request of some of its items."""
        items = {place: item for place, item in self.items.items() if place in places}
        named = {ref.part for item in items.values() for ref in item.refs}
        return Request(items, {name: part for name, part in self.parts.items() if name in named})


def check_groups(wanted: Sequence[Wanted], reward: ScorerInfo, limits: Limits, max_items: int) -> None:
    """Raises ValueError before anything is sent: an item without a group where groups are compared, or one too large."""
    if not reward.grouped:
        return
    alone = next((item.index for item in wanted if item.group_id is None), None)
    if alone is not None:
        raise ValueError(
            f"{reward.name} compares the images of a group and item {alone} has none: give groups, such as groups='a' for one of all"
        )
    most = min(limits.group_items, max_items)
    for name, count in Counter(item.group_id for item in wanted).items():
        if count > most:
            raise ValueError(f"group {name!r} has {count} items and the service takes {most}: give smaller groups")


def make_requests(wanted: Sequence[Wanted], reward: ScorerInfo, limits: Limits) -> Iterator[Request]:
    """Requests in the order of the items, images read as they are needed. A group that is compared is never divided."""
    units: dict[object, list[Wanted]] = {}
    for item in wanted:
        units.setdefault(item.group_id if reward.grouped else item.index, []).append(item)
    request = Request()
    for unit in units.values():
        adding = _Unit(limits)
        for item in unit:
            adding.add(item)
        made = adding.whole()
        size = request.bytes + made.bytes + PART_BYTES
        full = len(request.items) + len(made.items) > limits.items or size > limits.body_bytes
        if full and request.items:
            yield request
            request = Request()
        _join(request, made)
    if request.items or request.refused:
        yield request


class _Unit:
    """What one group, or one item alone, adds to a request."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sources: dict[int, str] = {}  # by the image's identity: one source of many edits is sent once
        self.request = Request()

    def add(self, wanted: Wanted) -> None:
        """Read the item's images. One that cannot be sent is refused; the others of its group are sent."""
        parts: dict[str, Part] = {}
        try:
            item = self._item(wanted, parts)
        except BadImageError as error:
            self._refuse(wanted.index, str(error))
            return
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            self._refuse(wanted.index, f"{where}: {problem['msg']}" if where else problem["msg"])
            return
        self.request.items[wanted.index] = item
        self.request.parts |= parts
        self.request.bytes += len(item.model_dump_json().encode())
        self.request.bytes += sum(len(part.data) + PART_BYTES for part in parts.values())

    def whole(self) -> Request:
        """The request, unless it alone is larger than a body may be: then all its items are refused."""
        size, most = self.request.bytes + PART_BYTES, self._limits.body_bytes
        if size > most:
            what = "an item" if len(self.request.items) == 1 else f"a group of {len(self.request.items)} items"
            for place in self.request.items:
                self._refuse(place, f"{what} of {size} bytes; the service takes {most} in one request")
            self.request = Request(refused=self.request.refused)
        return self.request

    def _item(self, wanted: Wanted, parts: dict[str, Part]) -> ScoreItem:
        count, most = max(len(wanted.images), len(wanted.sources)), self._limits.images_per_item
        if count > most:
            raise BadImageError(f"{count} images of one item; the service takes {most}")
        images = [
            self._ref(image, f"image{wanted.index}_{number}", parts) for number, image in enumerate(wanted.images)
        ]
        sources = []
        for number, image in enumerate(wanted.sources):
            name = self._sources.setdefault(id(image), f"source{wanted.index}_{number}")
            sources.append(self._ref(image, name, parts))
        return ScoreItem(
            id=str(wanted.index),
            group_id=wanted.group_id,
            prompt=wanted.prompt,
            images=images,
            completion=wanted.completion,
            source_images=sources or None,
            targets=None if wanted.targets is None else list(wanted.targets),
            metadata=dict(wanted.metadata),
        )

    def _ref(self, image: ImageLike, name: str, parts: dict[str, Part]) -> ImageRef:
        part = self.request.parts.get(name)
        if part is None:
            part = parts[name] = read_part(image)
        return ImageRef(media_type=part.media_type, part=name)

    def _refuse(self, index: int, reason: str) -> None:
        self.request.refused.append(Row(index, None, ErrorCode.BAD_INPUT.value, f"not sent: {reason}"))


def _join(request: Request, made: Request) -> None:
    request.items |= made.items
    request.parts |= made.parts
    request.refused += made.refused
    request.bytes += made.bytes
