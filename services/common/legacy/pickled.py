"""The pickle protocol: `{"images": [bytes], "prompts": [str], "metadata": {}}` in, `{"scores": [float]}` out.

Spoken by flow_grpo (its reward-server), verl-omni (`http_scorer_client`) and DeepGen-RL (`RewardEvaluatorClient`).
"""

from __future__ import annotations

from services.common.errors import ApiError, ErrorResponse
from services.common.intake import Parsed
from services.common.legacy.items import check_column, check_count, check_prompts, check_shared, to_parsed
from services.common.legacy.plain_pickle import PickleError, PickleTooLarge, dump_plain, load_plain
from services.common.memory import Hold
from services.common.settings import ServiceSettings
from wire.containers import media_type_of


class PickledError(ErrorResponse):
    """An error as clients of the pickle protocol read it: `{"error": message}`."""

    media_type = "application/octet-stream"

    def body_of(self, error: ApiError) -> bytes:
        return dump_plain({"error": error.message})


def parse_pickled(
    reward: str,
    body: bytes | bytearray,
    _content_type: str,
    settings: ServiceSettings,
    hold: Hold | None = None,
    *,
    needs_prompt: bool = True,
) -> Parsed:
    """Read a pickled request. `hold` is charged with what becomes of it. Raises ApiError 400, 413, 422 or 429.

    `images` may be `{"source": [...], "edited": [...]}` for edits. `prompts` may be missing where the reward does not
    need them. `metadata` is one dict for all items, or a list of one per item.
    """
    try:
        tree = load_plain(body, charge=None if hold is None else hold.take)
    except PickleTooLarge as error:
        raise ApiError(413, str(error)) from error
    except PickleError as error:
        raise ApiError(400, str(error)) from error
    if not isinstance(tree, dict) or "images" not in tree:
        raise ApiError(422, "a dict with `images`, `prompts` and `metadata` is needed", field="images")
    if "meta_datas" in tree:
        raise ApiError(
            422,
            "GenEval's requests (`meta_datas`) ask for an object detector, which is not served here",
            field="meta_datas",
        )
    given = tree["images"]
    images, sources = (given.get("edited"), given.get("source")) if isinstance(given, dict) else (given, None)
    count = len(images) if isinstance(images, list) else 0
    check_count("images", count, settings)
    metadata = tree.get("metadata") or {}
    if not isinstance(metadata, list):
        check_shared("metadata", metadata, count)
        metadata = [metadata] * count
    parts: dict[str, memoryview] = {}
    columns = {
        "images": _refs("images", check_column("images", images, count), parts),
        "prompt": check_prompts("prompts", tree.get("prompts"), count, reward, needs_prompt),
        "metadata": check_column("metadata", metadata, count),
    }
    if sources is not None:
        columns["source_images"] = _refs("images.source", check_column("images.source", sources, count), parts)
    items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return to_parsed(reward, items, parts, settings)


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
