"""The pickle protocol: `{"images": [bytes], "prompts": [str], "metadata": {}}` in, `{"scores": [float]}` out.

With `meta_datas` in place of prompts, `services/kit/legacy/rows.py` says more.

Spoken by flow_grpo (its reward-server), verl-omni (`http_scorer_client`) and DeepGen-RL (`RewardEvaluatorClient`).
"""

from __future__ import annotations

from typing import Any, Literal

from services.kit.errors import ApiError, ErrorResponse
from services.kit.guard.memory import Hold
from services.kit.http.intake import Parsed
from services.kit.legacy.items import (
    check_column,
    check_count,
    check_prompts,
    check_shared,
    count_of,
    scores_of,
    to_parsed,
)
from services.kit.legacy.plain_pickle import PickleError, PickleTooLarge, Plain, dump_plain, load_plain
from services.kit.legacy.rows import ROWS, prompts_of, read_rows
from services.kit.rows import Rows, ServesRows
from services.kit.settings import ServiceSettings
from wire.containers import media_type_of
from wire.schema import ScoreResponse


class PickledError(ErrorResponse):
    """An error as clients of the pickle protocol read it: `{"error": message}`, with the field in the message."""

    media_type = "application/octet-stream"

    def body_of(self, error: ApiError) -> bytes:
        named = error.message if error.field is None else f"{error.field}: {error.message}"
        return dump_plain({"error": named})


class PickledRequest:
    """One request: it is read, and then answered in the form it asked for."""

    def __init__(self, reward: str, *, needs_prompt: bool = True, serves_rows: ServesRows | None = None) -> None:
        """`reward` is that of requests with prompts; those with rows of metadata are for `serves_rows`, if there is one."""
        self._reward = reward
        self._needs_prompt = needs_prompt
        self._serves_rows = serves_rows
        self._rows: Rows | None = None

    def parse(
        self, body: bytes | bytearray, _content_type: str, settings: ServiceSettings, hold: Hold | None = None
    ) -> Parsed:
        """Read a pickled request. `hold` is charged with what becomes of it. Raises ApiError 400, 413, 422 or 429.

        `images` may be `{"source": [...], "edited": [...]}` for edits. `prompts` may be missing where the reward does
        not need them. `metadata` is one dict for all items, or a list of one per item.
        """
        tree = _load(body, hold)
        given = tree.get("images")
        if isinstance(given, dict):
            images, sources = given.get("edited"), given.get("source")
            count = count_of("edited", given, images)
        else:
            images, sources = given, None
            count = count_of("images", tree, images)
        check_count("images", count, settings)
        reward, prompts, metadata = self._asked(tree, count)
        parts: dict[str, memoryview] = {}
        columns = {
            "images": _refs("images", check_column("images", images, count), parts),
            "prompt": prompts,
            "metadata": metadata,
        }
        if sources is not None:
            columns["source_images"] = _refs("images.source", check_column("images.source", sources, count), parts)
        items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return to_parsed(reward, items, parts, settings)

    def answer(self, response: ScoreResponse, missing: Literal["error", "nan"]) -> bytes:
        """The pickle that the client reads, of the scores to what `parse` read. Raises ApiError, see `scores_of`."""
        scores = scores_of(response, missing)
        if self._rows is None or self._serves_rows is None:
            return dump_scores(scores)
        return dump_plain(self._serves_rows.answer(self._rows, response.results))

    def _asked(self, tree: dict[str, Plain], count: int) -> tuple[str, list[Any], list[Any]]:
        """The reward, and each item's prompt and metadata."""
        if ROWS not in tree:
            prompts = check_prompts("prompts", tree, tree.get("prompts"), count, self._reward, self._needs_prompt)
            return self._reward, prompts, _dealt_metadata(tree.get("metadata") or {}, count)
        if self._serves_rows is None:
            raise ApiError(
                422, f"GenEval's requests (`{ROWS}`) ask for an object detector, which is not served here", field=ROWS
            )
        self._rows = read_rows(tree, count, self._serves_rows)
        return self._serves_rows.reward, prompts_of(self._rows), [*self._rows.rows]


def dump_scores(scores: list[float]) -> bytes:
    """The answer. flow_grpo's clients of DeQA and UnifiedReward read `outputs`, all others `scores`."""
    return dump_plain({"scores": scores, "outputs": scores})


def _refs(field: str, images: list[object], parts: dict[str, memoryview]) -> list[list[dict[str, str]]]:
    """One item's images each, as references to `parts`, to which the bytes are added.

    A pickle holds once what occurs many times, and so does the request: it is decoded once.
    """
    refs = []
    names = {id(image): name for name, image in parts.items()}
    for number, image in enumerate(images):
        name = f"{field}.{number}"
        if not isinstance(image, memoryview):
            kind = type(image).__name__
            raise ApiError(422, f"an image is sent as the bytes of a JPEG, PNG or WebP file, not as {kind}", field=name)
        name = names.setdefault(id(image), name)
        parts[name] = image
        refs.append([{"part": name, "media_type": media_type_of(image) or "image/jpeg"}])
    return refs


def _load(body: bytes | bytearray, hold: Hold | None) -> dict[str, Plain]:
    try:
        tree = load_plain(body, charge=None if hold is None else hold.take)
    except PickleTooLarge as error:
        raise ApiError(413, str(error)) from error
    except PickleError as error:
        raise ApiError(400, str(error)) from error
    if not isinstance(tree, dict):
        raise ApiError(422, "a dict with `images`, `prompts` and `metadata` is needed", field="images")
    return tree


def _dealt_metadata(metadata: Plain, count: int) -> list[Any]:
    """One entry for each item."""
    if isinstance(metadata, list):
        return check_column("metadata", metadata, count)
    check_shared("metadata", metadata, count)
    return [metadata] * count
