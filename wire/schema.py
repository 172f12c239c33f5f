"""Wire contract v1: what `POST /v1/score` accepts and answers.

A request is a list of items; a response holds exactly one result per item id. A result has a finite score or an
error, never both, never a default: a reward that failed is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

SCHEMA_VERSION = "1"
MAX_ID_LENGTH = 256
MAX_PROMPT_LENGTH = 65_536
MAX_TEXT_LENGTH = 1 << 20  # of a completion, and of a text in the metadata
MAX_TARGETS = 256
MAX_TARGET_LENGTH = 4096
MAX_MESSAGE_LENGTH = 2000

MediaType = Literal["image/png", "image/webp", "image/jpeg", "image/x-rgb8"]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_LENGTH)]
Target = Annotated[str, Field(max_length=MAX_TARGET_LENGTH)]


def _cut(text: str) -> str:
    """A message is cut, never a reason to lose the answer it is in."""
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[: MAX_MESSAGE_LENGTH - 1]}…"


Message = Annotated[str, AfterValidator(_cut)]


class ErrorCode(StrEnum):
    """Why an item has no score.

    - `bad_input`: the item itself is wrong: a truncated image, a missing field.
    - `not_applicable`: the reward does not apply to this item (OCR without a target).
    - `parse_error`: a judge answered something that is not an answer.
    - `truncated`: a judge's answer was cut off.
    - `non_finite`: the scorer returned NaN or infinity.
    - `timeout`: the deadline passed.
    - `overloaded`: the queue was full.
    - `upstream`: a server behind the service failed.
    - `internal`: a bug in the scorer.
    """

    BAD_INPUT = "bad_input"
    NOT_APPLICABLE = "not_applicable"
    PARSE_ERROR = "parse_error"
    TRUNCATED = "truncated"
    NON_FINITE = "non_finite"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    UPSTREAM = "upstream"
    INTERNAL = "internal"


def _is_number(value: object) -> object:
    """Refuse what would only be read as a number: `true` would be 1, and `"5"` 5."""
    if isinstance(value, bool | str):
        kind = "text" if isinstance(value, str) else "true or false"
        raise ValueError(f"should be a valid integer, a JSON number; this is {kind}")
    return value


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageRef(_Wire):
    """One image: base64 `data` in a JSON body, the name of a multipart `part`, or a `url`. Raw RGB8 needs its size."""

    media_type: MediaType = Field(description="Encoding of the bytes; image/x-rgb8 is rows of R, G, B bytes.")
    data: str | None = Field(default=None, description="The encoded bytes as standard base64 (JSON bodies).")
    part: str | None = Field(default=None, max_length=MAX_ID_LENGTH, description="Name of the multipart part.")
    url: str | None = Field(
        default=None, max_length=2048, description="Where to fetch it; refused unless the service lists the host."
    )
    width: int | None = Field(default=None, ge=1, le=1 << 16, description="Pixels; needed for image/x-rgb8.")
    height: int | None = Field(default=None, ge=1, le=1 << 16, description="Pixels; needed for image/x-rgb8.")

    _sizes = field_validator("width", "height", mode="before")(_is_number)

    @model_validator(mode="after")
    def _one_source(self) -> ImageRef:
        if sum(source is not None for source in (self.data, self.part, self.url)) != 1:
            raise ValueError(
                "an image needs exactly one of `data` (base64), `part` (a multipart part's name) and `url`"
            )
        if self.media_type == "image/x-rgb8" and (self.width is None or self.height is None):
            raise ValueError("image/x-rgb8 carries no header: give `width` and `height`")
        return self


class ScoreItem(_Wire):
    """One thing to score: a prompt with at least one image, or a prompt with a text completion."""

    id: Id = Field(description="Unique in the request; the result carries it back.")
    group_id: Id | None = Field(
        default=None, description="Rollouts of one prompt share it; pairwise scorers compare within."
    )
    prompt: str = Field(max_length=MAX_PROMPT_LENGTH, description="What was asked for.")
    images: list[ImageRef] = Field(default_factory=list, description="The images to score.")
    completion: str | None = Field(
        default=None, max_length=MAX_TEXT_LENGTH, description="The text to score (text policies)."
    )
    source_images: list[ImageRef] | None = Field(default=None, description="What an edit started from.")
    targets: list[Target] | None = Field(
        default=None,
        max_length=MAX_TARGETS,
        description="Texts OCR looks for; they win over quotes in the prompt.",
    )
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="Anything a reward's documentation names.")

    @field_validator("metadata")
    @classmethod
    def _finite_and_bounded(cls, metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
        todo: list[JsonValue] = [metadata] if metadata else []
        while todo:
            value = todo.pop()
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"numbers must be finite; got {value}")
            if isinstance(value, str) and len(value) > MAX_TEXT_LENGTH:
                raise ValueError(f"a text of {len(value)} characters; the limit is {MAX_TEXT_LENGTH}")
            if isinstance(value, dict):
                todo.extend(value.values())
                todo.extend(value)
            elif isinstance(value, list):  # an answer's ids are many, and integers need no look
                todo.extend(each for each in value if not isinstance(each, int))
        return metadata

    @property
    def refs(self) -> tuple[ImageRef, ...]:
        """Its images, then its source images."""
        return (*self.images, *(self.source_images or ()))

    def named_refs(self) -> Iterator[tuple[str, ImageRef]]:
        """The same, each with the name of its place: `images.0`."""
        for name, refs in (("images", self.images), ("source_images", self.source_images or ())):
            for number, ref in enumerate(refs):
                yield f"{name}.{number}", ref

    def with_refs(self, change: Callable[[ImageRef], ImageRef]) -> ScoreItem:
        """The same item with what `change` makes of each of its images, in the order of `refs`."""
        images = [change(ref) for ref in self.images]
        sources = None if self.source_images is None else [change(ref) for ref in self.source_images]
        return self.model_copy(update={"images": images, "source_images": sources})

    @model_validator(mode="after")
    def _something_to_score(self) -> ScoreItem:
        if not self.images and self.completion is None:
            raise ValueError("an item needs at least one image in `images`, or a `completion`")
        return self


class ScoreRequest(_Wire):
    """`POST /v1/score`."""

    items: list[ScoreItem] = Field(min_length=1, description="What to score.")
    reward: str | None = Field(
        default=None, max_length=MAX_ID_LENGTH, description="Which of the service's rewards; its default otherwise."
    )
    deadline_ms: int | None = Field(default=None, ge=1, le=3_600_000, description="Milliseconds the caller will wait.")
    request_id: Id | None = Field(default=None, description="Appears in the service's logs; made up when missing.")

    _deadline = field_validator("deadline_ms", mode="before")(_is_number)

    @model_validator(mode="after")
    def _unique_ids(self) -> ScoreRequest:
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"item id {item.id!r} appears twice; ids must be unique in a request")
            seen.add(item.id)
        return self


class ItemError(_Wire):
    """Why this item has no score; its neighbours keep theirs."""

    code: ErrorCode
    message: Message = Field(description=f"Why; cut after {MAX_MESSAGE_LENGTH} characters.")


class ItemResult(_Wire):
    """A finite score, or null with an error."""

    id: str = Field(description="The item's.")
    score: float | None = Field(description="A finite number; null where there is none, and never a default.")
    components: dict[str, float] = Field(default_factory=dict, description="Named finite parts of the score.")
    details: dict[str, JsonValue] = Field(
        default_factory=dict, description="What was seen: recognised texts, boxes, a judge's words."
    )
    error: ItemError | None = None
    cached: bool = Field(default=False, description="Whether the score was known from before.")
    queue_ms: float = Field(default=0.0, description="Milliseconds that the item waited.")
    compute_ms: float = Field(default=0.0, description="Milliseconds of the batch that it was scored in.")

    @model_validator(mode="after")
    def _score_or_error(self) -> ItemResult:
        if (self.score is None) == (self.error is None):
            raise ValueError(f"result {self.id!r} needs exactly one of `score` and `error`")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"result {self.id!r}: score {self.score} is not finite")
        for name, part in self.components.items():
            if not math.isfinite(part):
                raise ValueError(f"result {self.id!r}: component {name!r} = {part} is not finite")
        return self


class ScorerInfo(_Wire):
    """What produced the scores: enough to tell two runs apart."""

    name: str = Field(description="The reward's name, as a request gives it.")
    revision: str = Field(description="Changes whenever the same input may score differently.")
    template_sha256: str | None = Field(default=None, description="Of the text that a judge is asked with.")
    range: tuple[float | None, float | None] = Field(description="Lowest and highest score; null where unbounded.")
    higher_is_better: bool = True
    grouped: bool = Field(
        default=False, description="The reward compares: send all items of a `group_id` in one request."
    )


class ScoreResponse(_Wire):
    """What `POST /v1/score` answers."""

    results: list[ItemResult] = Field(description="Exactly one for each item id.")
    scorer: ScorerInfo
    request_id: str = Field(description="The request's own, or one that was made up; in the service's logs, too.")
    schema_version: str = SCHEMA_VERSION


class ServiceInfo(_Wire):
    """`GET /v1/info`."""

    service: str
    schema_version: str = SCHEMA_VERSION
    rewards: list[ScorerInfo]
    default_reward: str = Field(description="The reward of a request that names none.")
    limits: dict[str, float] = Field(description="What one request may hold at most.")
    about: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="What else the service says of itself, such as the scripts an OCR model writes.",
    )


class Status(_Wire):
    """`GET /health` and `GET /ready`."""

    status: Literal["alive", "ready"]


class RequestError(_Wire):
    """Why a request as a whole was refused."""

    code: str = Field(description="The kind of refusal, such as `unauthorized`; each status has its own.")
    message: Message = Field(description="A sentence: what is wrong, with its numbers, and what to do.")
    field: Message | None = Field(default=None, description="The field at fault, such as items.3.images.0.data.")


class ErrorBody(_Wire):
    """Every answer that is not 2xx has this body."""

    error: RequestError
