"""The names that other projects give to the parts of a row: its text, what it must not show, the images of an edit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.data.prompts.checks import IMAGE_SUFFIXES, DataError, shown

# The text of a row. Of the first line `prompt` comes before the others; the second line is looked at only without them.
TEXTS = (
    ("prompt", "caption", "prompt_en", "prompt_zh"),
    ("text", "instruction", "edit_prompt", "edit_instruction", "prompts"),
)
_NEGATIVE = ("negative_prompt", "neg_prompt")
_PICTURE = r"(?:image|img|picture)s?(?:_?(?:path|file|list|url)s?)?(?:_?\d+)?"
_SOURCE = "source|src|input|ctrl|control|ref|reference|cond|condition|conditioning|original|orig|init|edit|before|kontext|context"
# What an edit starts from: `image`, which some data sets call what it should come to, or a name that leaves no doubt.
_PLAIN_INPUT = re.compile(r"(?:image|img|picture)s?(?:_?(?:path|file|list)s?)?(?:_?\d+)?")
_NAMED_INPUT = re.compile(rf"(?:{_SOURCE})_?{_PICTURE}|control_path(?:_\d+)?")
# Such as fill50k's `source`: an input where it names an image, else just a word. A bare `edit` may be the result.
_BARE_INPUT = re.compile(_SOURCE.replace("|edit|", "|"))
_OTHER_MEDIA = re.compile(rf"(?:(?:{_SOURCE})_?)?(?:video|audio)s?(?:_?(?:path|file|list|url)s?)?")


def text_column(names: Iterable[str]) -> str | None:
    """The name under which a row or a table has its prompts, in any case; None where none is one.

    Raises:
        DataError: several are, and none of them is `prompt` or `caption`.
    """
    by_lower: dict[str, list[str]] = {}
    for name in names:
        by_lower.setdefault(_plain(name), []).append(name)
    for rank in TEXTS:
        found = [each for name in rank for each in by_lower.get(name, ())]
        if len(found) > 1:
            raise DataError(f"{' and '.join(found)} could both be the prompts; name one by `prompt_column`")
        if found:
            return found[0]
    return None


def is_input(name: str) -> bool:
    """Whether a field of this name holds the images, or another medium, that something is made from."""
    plain = _plain(name)
    return any(kind.fullmatch(plain) for kind in (_PLAIN_INPUT, _NAMED_INPUT, _OTHER_MEDIA))


def holds_input(name: str, value: Any) -> bool:
    """`is_input`; and whether a field called but `source`, `input`, `control` or the like has paths of images."""
    return is_input(name) or (_BARE_INPUT.fullmatch(_plain(name)) is not None and _names_pictures(value))


def _names_pictures(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(_names_pictures(each) for each in value)
    return isinstance(value, str) and value.strip().lower().endswith(IMAGE_SUFFIXES)


def split_row(row: Mapping[str, Any], prompt_column: str | None = None) -> dict[str, Any]:
    """Another project's row under our names: text, negative prompt, targets, the images of an edit; the rest is metadata.

    Raises:
        DataError: `prompt_column` is not there, two fields could be the text or the images, or it starts from a video.
    """
    given = {name: value for name, value in row.items() if value is not None}
    text = prompt_column
    if text is None:
        text = next((name for name in ("prompt", "caption") if name in given), None) or text_column(given)
    elif text not in row:
        raise DataError(f"prompt_column = {text}: the row has no such field, but {', '.join(row) or 'none'}")
    taken = {text, *(("prompt", "caption") if prompt_column is None else ())}
    negative = [name for name in given if _plain(name) in _NEGATIVE]
    inputs = [name for name in given if holds_input(name, given[name]) and name not in taken]
    targets = row.get("targets")
    with_targets = isinstance(targets, list) and bool(targets) and all(isinstance(each, str) for each in targets)
    taken |= {*negative, *inputs, *(("targets",) if with_targets else ())}
    return {
        "prompt": None if text is None else _said(row[text]),
        "negative_prompt": _said(given[negative[0]]) if negative else None,
        "targets": targets if with_targets else None,
        "source_images": _pictures(given, inputs),
        "metadata": {name: value for name, value in row.items() if name not in taken and not is_input(name)},
    }


def _said(value: Any) -> Any:
    """What the user says in a list of chat messages, as verl's tables hold prompts; any other value as it is."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        by_user = [each.get("content") for each in value if each.get("role") == "user"]
        if len(by_user) == len(value) == 1:
            return _parts(by_user[0])
    return value


def _parts(content: Any) -> Any:
    """The text of a message that is a list of parts, if all of them are texts; else the content as it is."""
    if isinstance(content, list) and content:
        texts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(map(str, texts))
    return content


def _pictures(row: Mapping[str, Any], inputs: Sequence[str]) -> list[str] | None:
    """The paths under these fields, in the row's order."""
    found = {name: paths for name in inputs if (paths := _paths(name, row[name]))}
    for name in found:
        if _OTHER_MEDIA.fullmatch(_plain(name)):
            raise DataError(f"{name}: starts from a video or a sound, which no policy takes; leave the row out")
    plain = [name for name in found if _PLAIN_INPUT.fullmatch(_plain(name))]
    kinds = {re.sub(r"_?\d+$", "", _plain(name)) for name in plain}
    if len(kinds) > 1 or (plain and len(plain) < len(found)):
        raise DataError(
            f"{' and '.join(found)} all name pictures, and one may be what the edit should come to; keep those that it starts "
            "from, in order, as `source_images`"
        )
    return [path for paths in found.values() for path in paths] or None


def _paths(name: str, value: Any) -> list[str]:
    """A path, a list of paths, or either as a data set of images or a table has it."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            return [text] if text else []
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: {shown(text)} is neither a path nor a JSON list of paths") from error
    if isinstance(value, Mapping):
        if value.get("bytes"):
            raise DataError(
                f"{name}: holds the picture itself; save the pictures as files and name them, because rewards and resumed "
                "runs read them from there"
            )
        value = value.get("path")
        return [] if value is None else _paths(name, value)
    if isinstance(value, list | tuple):
        return [path for each in value for path in _paths(name, each)]
    raise DataError(f'{name}: {shown(value)} is not a path like "cat.png" or a list of paths')


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
