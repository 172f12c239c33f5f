"""What is said in a row, in the shapes that data sets have: pairs of user and assistant, ShareGPT's, and messages."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trainer.data.prompts.checks import DataError, check_text, shown
from trainer.data.rows.pictures import MARK
from trainer.types import Turn

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_IMAGE_PARTS = ("image", "image_url")  # types of a message's parts
_LIKE = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def read_turns(where: str, value: Any) -> tuple[Turn, ...]:
    """Turns of a list of {user, assistant}, {from, value} or {role, content}, of one {user, assistant}, or of either as JSON text.

    Content may be a list of parts, texts and images: an image becomes a mark, unless all images of the turns come first in what the
    user says first, where they stand without a mark, too. `image_parts` gives the images.

    Raises:
        DataError: another shape, a role that no policy takes part in, or an empty text.
    """
    value = parsed(where, value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(f"{where}: {shown(value)} is no list of turns like {_LIKE}")
    turns: list[Turn] = []
    for i, each in enumerate(value):
        turns += _turns_of(f"{where}[{i}]", each)
    return _without_leading(turns, len(_leading(value)))


def image_parts(where: str, value: Any) -> list[Any]:
    """Of each part of a message that is an image, in order, the image that it holds or names; None where it does neither, and the
    image is in a column of the row. Empty for texts.

    Raises:
        DataError: a text that begins like JSON and is none.
    """
    return [_own_image(part) for content in _contents(where, value) for part in content if _is_image(part)]


def check_order(where: str, turns: Sequence[Turn], *, last: Role) -> None:
    """Raises DataError unless they are a system turn, if any, and user and assistant in turns, from the user to `last`."""
    spoken = list(turns[1:] if turns and turns[0].role == "system" else turns)
    for i, turn in enumerate(spoken):
        wanted: Role = "assistant" if i % 2 else "user"
        if turn.role != wanted:
            place = i + len(turns) - len(spoken) + 1
            raise DataError(
                f"{where}: turn {place} of {len(turns)} is the {turn.role}'s, where the {wanted}'s belongs; user and assistant take "
                "turns, from the user on, after one system turn at most"
            )
    if not spoken or spoken[-1].role != last:
        ends = f"ends with the {spoken[-1].role}'s turn" if spoken else "has no turn of the user's"
        raise DataError(f"{where}: {ends}, where the {last}'s belongs; leave the row out, or complete it")


def parsed(where: str, value: Any) -> Any:
    """A value, read from JSON where it is a text of a list or object, as tables often hold them."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {shown(value)} is neither turns nor JSON of them ({error})") from error


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages rather than a text."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _contents(where: str, value: Any) -> list[Sequence[Any]]:
    """The lists of parts in messages, in order."""
    value = parsed(where, value)
    messages = [value] if isinstance(value, Mapping) else value if is_messages(value) else ()
    contents = [each.get(name) for each in messages for name in ("user", "assistant", "value", "content")]
    return [content for content in contents if isinstance(content, list | tuple)]


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS


def _own_image(part: Mapping[str, Any]) -> Any:
    """Under the names that messages of OpenAI, transformers and Qwen have for it."""
    for name in ("image", "image_url", "url", "path", "base64"):
        found = part.get(name)
        if isinstance(found, Mapping) and "url" in found:
            found = found["url"]
        if found is not None and not (isinstance(found, str) and not found):
            return found
    return None


def _leading(value: Sequence[Any]) -> Sequence[Any]:
    """The images that the first parts of the user's first message are; none where that has no parts, or nothing but images."""
    for message in value:
        said_by = message.get("from") or message.get("role") or "user"
        if _ROLES.get(str(said_by).strip().lower()) == "user":
            content = next((message[name] for name in ("user", "value", "content") if name in message), None)
            if not isinstance(content, list | tuple):
                return ()
            images = list(itertools.takewhile(_is_image, content))
            return images if len(images) < len(content) else ()
    return ()


def _without_leading(turns: Sequence[Turn], leading: int) -> tuple[Turn, ...]:
    """The turns without the marks that so many leading images of the user's first turn made, where there are no others."""
    if not leading or leading != sum(turn.text.count(MARK) for turn in turns):
        return tuple(turns)
    return tuple(Turn(turn.role, turn.text.removeprefix(MARK * leading)) for turn in turns)


def _turns_of(where: str, value: Any) -> list[Turn]:
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not a turn like {_LIKE}")
    if "user" in value or "assistant" in value:
        missing = [name for name in ("user", "assistant") if value.get(name) is None]
        if missing:
            raise DataError(f"{where}: {missing[0]}: missing; a pair is {{'user': ..., 'assistant': ...}}")
        return [_turn(where, name, value[name], field=name) for name in ("user", "assistant")]
    for said_by, said in (("from", "value"), ("role", "content")):
        if said_by in value and said in value:
            return [_turn(where, value[said_by], value[said], field=said)]
    keys = ", ".join(map(str, value)) or "none"
    raise DataError(f"{where}: has the keys {keys}; a turn has from and value, role and content, or user and assistant")


def _turn(where: str, role: Any, content: Any, *, field: str) -> Turn:
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise DataError(
            f"{where}: role {shown(role)} is not among {', '.join(_ROLES)}; leave the row out, or rename it"
        )
    text = check_text(f"{where}: {field}", _joined(f"{where}: {field}", content))
    if known != "user" and MARK in text:
        raise DataError(f"{where}: {field}: {MARK} marks an image in the {known}'s turn; images are shown by the user")
    return Turn(known, text)


def _joined(where: str, content: Any) -> Any:
    """The text of a message that is a list of parts; any other content as it is."""
    if not isinstance(content, list | tuple):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text" if isinstance(part, str) else None
        if kind == "text":
            text = part if isinstance(part, str) else part.get("text")
            if not isinstance(text, str):
                raise DataError(f"{where}[{i}]: {shown(text)} is a {type(text).__name__}, not a text")
            texts.append(text)
        elif kind in _IMAGE_PARTS:
            texts.append(MARK)
        else:
            raise DataError(f"{where}[{i}]: {shown(part)} is neither a text nor an image")
    return "".join(texts)
