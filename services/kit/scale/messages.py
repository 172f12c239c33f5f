"""Jobs and answers as they lie in Redis: JSON beside raw image bytes. All that is read is validated, nothing unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, TypeAdapter, ValidationError

from services.kit.dispatch.base import Job, Outcome
from services.kit.scorer import Failure, Result, Score
from wire.schema import ErrorCode, ImageRef, ScoreItem

_ITEMS = TypeAdapter(list[ScoreItem])
_PART = "part."


class DamagedMessage(ValueError):
    """What was read is not what this code writes."""


@dataclass(frozen=True)
class JobMessage:
    """A job as a worker finds it. `wait_ms` counts from the moment Redis took the job."""

    job_id: bytes
    front: str
    key: bytes | None
    wait_ms: int
    items: tuple[ScoreItem, ...]
    parts: dict[str, memoryview]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Score(_Message):
    value: FiniteFloat
    components: dict[str, FiniteFloat] = {}
    details: dict[str, JsonValue] = {}
    cacheable: bool = True


class _Failure(_Message):
    code: ErrorCode
    message: str


class _Answer(_Message):
    results: list[_Score | _Failure]
    cached: bool
    queue_s: Annotated[FiniteFloat, Field(ge=0)]
    compute_s: Annotated[FiniteFloat, Field(ge=0)]
    expired: bool


class _Saved(_Message):
    key: str
    scores: list[_Score]


M = TypeVar("M", bound=_Message)


@dataclass(frozen=True)
class Answer:
    """What a worker says of a job. `expired`: the deadline passed first; someone who waits longer may ask again."""

    outcome: Outcome
    expired: bool = False


def encode_job(job_id: bytes, front: str, job: Job, wait_ms: int) -> list[str | bytes | memoryview | int]:
    """Field names and values for XADD. Images travel as the bytes they came in; one that several items name travels once."""
    fields: list[str | bytes | memoryview | int] = ["job", job_id, "front", front, "wait_ms", wait_ms]
    fields += ["key", job.key or b""]
    numbers: dict[str, str] = {}

    def renamed(ref: ImageRef) -> ImageRef:
        assert ref.part is not None, "what came as base64 or was fetched is a part by now"
        return ref.model_copy(update={"part": numbers.setdefault(ref.part, str(len(numbers)))})

    fields += ["items", _ITEMS.dump_json([item.with_refs(renamed) for item in job.sent])]
    for part, number in numbers.items():
        fields += [_PART + number, job.parts[part]]
    return fields


def decode_job(fields: Mapping[bytes, bytes]) -> JobMessage:
    """Raises DamagedMessage."""
    try:
        items = _ITEMS.validate_json(fields[b"items"])
        if not items:
            raise DamagedMessage("the job has no items")
        return JobMessage(
            job_id=fields[b"job"],
            front=fields[b"front"].decode("ascii"),
            key=fields[b"key"] or None,
            wait_ms=int(fields[b"wait_ms"]),
            items=tuple(items),
            parts={
                name[len(_PART) :].decode("ascii"): memoryview(value)
                for name, value in fields.items()
                if name.startswith(_PART.encode())
            },
        )
    except (KeyError, ValueError) as error:
        raise DamagedMessage(f"not a job: {type(error).__name__}: {error}") from error


def encode_answer(answer: Answer) -> bytes:
    outcome = answer.outcome
    message = _Answer(
        results=[_to_message(result) for result in outcome.results],
        cached=outcome.cached,
        queue_s=outcome.queue_s,
        compute_s=outcome.compute_s,
        expired=answer.expired,
    )
    return message.model_dump_json().encode()


def decode_answer(data: bytes, items: int) -> Answer:
    """An answer for a job of `items` items. Raises DamagedMessage."""
    message = _read(_Answer, data)
    if len(message.results) != items:
        raise DamagedMessage(f"{len(message.results)} results for {items} items")
    results = tuple(_from_message(each) for each in message.results)
    return Answer(Outcome(results, message.cached, message.queue_s, message.compute_s), message.expired)


def encode_scores(key: bytes, scores: Sequence[Score]) -> bytes:
    """A job's scores for the shared cache. The key is in the value, so that a value in the wrong place is seen."""
    return _Saved(key=key.hex(), scores=[_score_message(score) for score in scores]).model_dump_json().encode()


def decode_scores(key: bytes, data: bytes, items: int) -> tuple[Score, ...]:
    """The scores of the job with this key and that many items. Raises DamagedMessage."""
    message = _read(_Saved, data)
    if message.key != key.hex() or len(message.scores) != items:
        raise DamagedMessage(f"{len(message.scores)} scores of {message.key} for {items} items of {key.hex()}")
    return tuple(_score(each) for each in message.scores)


def _read(kind: type[M], data: bytes) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise DamagedMessage(f"not a {kind.__name__}: {first['loc']}: {first['msg']}") from error


def _to_message(result: Result) -> _Score | _Failure:
    if isinstance(result, Failure):
        return _Failure(code=result.code, message=result.message)
    return _score_message(result)


def _from_message(message: _Score | _Failure) -> Result:
    return Failure(message.code, message.message) if isinstance(message, _Failure) else _score(message)


def _score_message(score: Score) -> _Score:
    return _Score(
        value=score.value,
        components=dict(score.components),
        details=dict(score.details),
        cacheable=score.cacheable,
    )


def _score(message: _Score) -> Score:
    return Score(message.value, message.components, message.details, message.cacheable)
