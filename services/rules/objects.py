"""A reward of answers that are to be JSON: whether they are, and whether they have the keys that were asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import JsonValue
from pydantic_core import from_json

from services.kit.scorer import Failure, Item, Result, Score
from services.rules.answers import loose_answer_of, no_completion
from wire.schema import ErrorCode

REVISION: Final = "1"

# JSON's types by the names that JSON Schema gives them; true is no number there.
TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}
_FENCE: Final = "```"


def json_valid(item: Item) -> Result:
    """1 when the answer is one JSON value (RFC 8259), else 0; with `metadata.json_keys` the share of these keys it has.

    The answer is read as by `answer`, and may stand in one code fence. NaN and Infinity are no JSON, nor is an answer nested
    deeper than the reader goes (about 200 levels). `json_keys` is a list of keys or a mapping of keys to the type of their
    values, such as {"name": "string", "count": "integer"}; the answer must be an object then. Components: `valid`, and with
    keys `keys`, their share.
    """
    if item.completion is None:
        return no_completion()
    keys = _asked(item.metadata.get("json_keys"))
    if isinstance(keys, Failure):
        return keys
    try:
        value = from_json(_unfenced(loose_answer_of(item.completion)), allow_inf_nan=False)
    except ValueError as error:
        return Score(0.0, {"valid": 0.0} | ({"keys": 0.0} if keys else {}), {"reason": str(error)[:200]})
    if not keys:
        return Score(1.0, {"valid": 1.0})
    tree = value if isinstance(value, dict) else {}
    missing: list[JsonValue] = [key for key, is_type in keys.items() if key not in tree or not is_type(tree[key])]
    share = 1.0 - len(missing) / len(keys)
    return Score(share, {"valid": 1.0, "keys": share}, {"missing": missing} if missing else {})


def _unfenced(text: str) -> str:
    """What is in a code fence that is the whole text; else the text."""
    if not (text.startswith(_FENCE) and text.endswith(_FENCE)):
        return text
    language, line, inside = text.removeprefix(_FENCE).removesuffix(_FENCE).partition("\n")
    return inside if line and language.strip().lower() in ("", "json") else text


def _asked(keys: JsonValue) -> dict[str, Callable[[Any], bool]] | Failure:
    """What each asked key's value must be."""
    if keys is None:
        return {}
    if isinstance(keys, list) and all(isinstance(key, str) for key in keys):
        return {str(key): lambda _value: True for key in keys}
    if isinstance(keys, dict) and all(isinstance(kind, str) and kind in TYPES for kind in keys.values()):
        return {key: TYPES[str(kind)] for key, kind in keys.items()}
    return Failure(
        ErrorCode.BAD_INPUT,
        f"`metadata.json_keys` is {keys!r:.80}; a list of keys, or a mapping of keys to one of {', '.join(TYPES)}, is needed",
    )
