"""What is wrong with a configuration, in sentences: the field, what was given, what it must be, the nearest known key."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_PLAIN = {
    "missing": "missing; give a value",
    "too_few": "must have more entries",
    "model_type": "must be a mapping of fields, like {key: value}",
    "model_attributes_type": "must be a mapping of fields, like {key: value}",
    "dict_type": "must be a mapping, like {key: value}",
    "tuple_type": "must be a list, like [a, b]",
    "string_type": "must be a text; put it in quotes",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number, without quotes",
    "float_type": "must be a number, without quotes",
    "finite_number": "must be a finite number",
    "string_pattern_mismatch": "must start with a letter or digit and hold only letters, digits, dot, dash, underscore",
}
_LONGEST_VALUE = 120


_DEFAULT_TAGS = ("gdpo",)  # of unions inside a section, whose default is not put into the raw values


def explain(path: Path, model: type[BaseModel], raw: Any, error: ValidationError) -> str:
    """All problems, a line each, in the order of the fields."""
    found: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for problem in map(_of_field, error.errors(include_url=False)):
        found.setdefault(_location(problem, raw), []).append(problem)
    lines = [f"{path} cannot be used:"]
    for where, problems in found.items():
        # A list that lost its broken entries is not also "too short".
        inner_broken = any(other[: len(where)] == where for other in found if other != where)
        if not (inner_broken and problems[0]["type"] == "too_short"):
            lines.append(f"  {'.'.join(where) or 'config'}: {_message(model, where, problems, raw)}")
    return "\n".join(lines)


def _of_field(problem: ErrorDetails) -> ErrorDetails:
    """The problem as one of the field `type`, where a union's members are told apart by it and none fits."""
    place = (*problem["loc"], "type")
    if problem["type"] == "union_tag_not_found":
        return {**problem, "type": "missing", "loc": place}
    if problem["type"] == "union_tag_invalid":
        message = f"Input should be one of {problem['ctx']['expected_tags']}"
        return {**problem, "type": "literal_error", "loc": place, "msg": message, "input": problem["input"]["type"]}
    return problem


def _location(problem: ErrorDetails, raw: Any) -> tuple[str, ...]:
    """The keys that lead to the value, without pydantic's own entries for a union's members and dictionary keys."""
    where = []
    node, is_tagged = raw, False
    for part in problem["loc"]:
        if not is_tagged and isinstance(node, Mapping) and part == node.get("type", _default_tag(part, node)):
            is_tagged = True  # which member of a union told apart by `type`; the member may have a field of that name
            continue
        inside = (
            part in node
            if isinstance(node, Mapping)
            else isinstance(node, Sequence) and isinstance(part, int) and part < len(node)
        )
        if not inside and _kind(problem) != "missing":
            break
        where.append(str(part))
        node, is_tagged = node[part] if inside else None, False
    return tuple(where)


def _default_tag(part: int | str, node: Mapping[Any, Any]) -> int | str | None:
    """`part`, where it can only be the `type` that a section got because it names none."""
    return part if isinstance(part, str) and part not in node and part in _DEFAULT_TAGS else None


def _message(model: type[BaseModel], where: tuple[str, ...], problems: Sequence[ErrorDetails], raw: Any) -> str:
    """What is wrong at one place; several problems are those of a union's members."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key; {_suggestion(model, where, raw, first['input'])}"
    tags = _tags(model, where)
    if first["type"] == "missing" and tags:
        return f"missing; give one of {', '.join(map(repr, tags))}"
    texts = dict.fromkeys(_PLAIN.get(_kind(problem), problem["msg"]) for problem in problems)
    if len(texts) > 1:  # the kinds alone, without each one's remedy
        texts = dict.fromkeys(text.partition(";")[0].partition(",")[0] for text in texts)
    message = " or ".join(texts).removeprefix("Value error, ").replace(" after validation", "")
    message = message.replace("Input should", "must").replace("Tuple should have", "must have")
    if _kind(first) != "missing" and not isinstance(first["input"], Mapping | BaseModel):
        message += f" (given: {_short(first['input'])})"
    description = _description(model, where, raw)
    return f"{message}. It is: {description}" if description else message


def _kind(problem: ErrorDetails) -> str:
    """Pydantic's name for the problem; a list too short for its type has a "missing" index there."""
    return "too_few" if problem["type"] == "missing" and isinstance(problem["loc"][-1], int) else problem["type"]


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _suggestion(model: type[BaseModel], where: tuple[str, ...], raw: Any, value: Any) -> str:
    """The nearest known key: beside the unknown one, or of its name elsewhere."""
    *above, key = where
    section = _section(model, above, raw)
    known = list(section.model_fields) if section else []
    others = [tag for tag, member in _members(model, above).items() if key in member.model_fields]
    if others and section is not None:
        chosen = _tag(section)
        return (
            f"{key} = {_short(value)} acts with {above[-1]}.type = {' or '.join(others)}, but {above[-1]}.type = {chosen}; leave {key} out or "
            "choose another type"
        )
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {'.'.join([*above, near[0]])}?"
    elsewhere = list(dict.fromkeys(path for path in field_paths(model) if path.rpartition(".")[2] == key))
    elsewhere.sort(key=lambda path: path.count("."))  # what is nearest to the top is meant most often
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere[:3])}?"
    return f"the keys here are: {', '.join(known)}"


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field of a configuration as a dotted path; `*` stands for a name or an index."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for inner, step in _sections_in(field.annotation):
            yield from field_paths(inner, f"{path}.{step}")


def _sections_in(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Sections that a field's type holds, with what stands between: nothing, or `*.` for a dictionary or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    else:
        between = "*." if typing.get_origin(annotation) in (dict, tuple) else ""
        for argument in typing.get_args(annotation):
            yield from ((inner, between + step) for inner, step in _sections_in(argument))


def _section(model: type[BaseModel], where: Sequence[str], raw: Any) -> type[BaseModel] | None:
    """The section at the end of `where`; of a union's members, the one that `type` in the raw values names."""
    section: type[BaseModel] | None = model
    rest = list(where)
    while rest and section is not None:
        key = rest.pop(0)
        raw = raw.get(key) if isinstance(raw, Mapping) else None
        field = section.model_fields.get(key)
        found = list(_sections_in(field.annotation)) if field else []
        chosen = next((each for each in found if _is_of_type(each[0], raw)), found[0] if found else None)
        section = chosen[0] if chosen else None
        if chosen and chosen[1]:
            rest = rest[1:]
            raw = None
    return section


def _members(model: type[BaseModel], where: Sequence[str]) -> dict[str, type[BaseModel]]:
    """The members of the union at `where` by their `type`; nothing where no union is."""
    *above, name = where or ("",)
    holder = _section(model, above, None)
    field = holder.model_fields.get(name) if holder else None
    members = [section for section, between in _sections_in(field.annotation) if not between] if field else []
    return {_tag(each): each for each in members if "type" in each.model_fields} if len(members) > 1 else {}


def _tag(section: type[BaseModel]) -> str:
    """The `type` of a union's member."""
    return str(typing.get_args(section.model_fields["type"].annotation)[0])


def _tags(model: type[BaseModel], where: tuple[str, ...]) -> list[str]:
    """What `type` may be, where `where` is the field that tells a union's members apart."""
    return list(_members(model, where[:-1])) if where and where[-1] == "type" else []


def _is_of_type(section: type[BaseModel], raw: Any) -> bool:
    field = section.model_fields.get("type")
    return field is not None and isinstance(raw, Mapping) and raw.get("type") in typing.get_args(field.annotation)


def _description(model: type[BaseModel], where: tuple[str, ...], raw: Any) -> str | None:
    """The sentence of the field at `where`, or of the field that holds it."""
    for end in range(len(where), 0, -1):
        section = _section(model, where[: end - 1], raw)
        field = section.model_fields.get(where[end - 1]) if section else None
        if field is not None:
            return field.description
    return None
