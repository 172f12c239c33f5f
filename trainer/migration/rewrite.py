"""`python -m trainer migrate-config FILE`: a recipe's text with today's names, its comments and order kept.

What the new fields are is `trainer.config.old_keys`' to say; here the lines are moved to where they belong. The result is
read again and compared with that, so a text that is written in a way unknown to this module is refused, never damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from trainer.config.base import ConfigError
from trainer.config.file import parse_yaml, read_recipe
from trainer.config.old_keys import OLD_SECTION, moves, refuse_old_pretraining, with_new_keys

_INDENT = "  "
_UPDATES = "updates_per_rollout"  # goes to a section that a recipe may have already
_TYPES = {
    "objective": ("objective", "flow_grpo"),
    "advantage": ("type", "gdpo"),
}  # the old field of `type`, its default


@dataclass(frozen=True)
class _Entry:
    """A field of the old section: its lines without the section's indentation, those of comments before it first."""

    name: str
    lines: tuple[str, ...]

    def called(self, name: str) -> list[str]:
        """The lines under another name."""
        start = re.compile(rf"([\"']?){re.escape(self.name)}\1\s*:")
        number = next(i for i, line in enumerate(self.lines) if start.match(line))
        line = self.lines[number]
        return [*self.lines[:number], f"{name}:{line[line.index(':') + 1 :]}", *self.lines[number + 1 :]]


@dataclass(frozen=True)
class _Edit:
    """Lines [first, last) of the text become `lines`."""

    first: int
    last: int
    lines: list[str]


def migrated_text(path: Path) -> str | None:
    """The recipe at `path` with today's names; None where it has no old ones.

    Raises:
        ConfigError: no such file, not YAML, of an earlier pre-training, whose names a line each says, or written so that it cannot be rewritten line by line.
    """
    raw = read_recipe(path)
    refuse_old_pretraining(path, raw)
    old = raw.get(OLD_SECTION)
    if not isinstance(old, Mapping):
        return None
    try:
        new = _rewritten(path.read_text(encoding="utf-8-sig"), old)
        same = parse_yaml(new) == with_new_keys(raw)
    except (yaml.YAMLError, ValueError, StopIteration, LookupError):  # of a text whose lines are not as expected
        same = False
    if not same:
        by_hand = "; ".join(f"{name} to {' and '.join(where) or 'nowhere'}" for name, where in moves(old).items())
        raise ConfigError(
            f"{path} is written in a way that cannot be rewritten line by line; move the fields of `{OLD_SECTION}` by "
            f"hand: {by_hand}"
        )
    return new


def rewrite(path: Path, text: str) -> None:
    """Put `text` in the place of a file, whole or not at all. Raises ConfigError: it cannot be written."""
    unfinished = path.with_name(f".{path.name}.writing")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.chmod(path.stat().st_mode)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _rewritten(text: str, old: Mapping[str, Any]) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    nodes = {key.value: (key, value) for key, value in root.value}
    lines, where = text.splitlines(), moves(old)
    key, value = nodes[OLD_SECTION]
    first, last = key.start_mark.line, _end(lines, [each for each, _ in root.value], key, indent=1)
    entries = list(_flow_entries(text, value) if value.flow_style else _block_entries(lines, value, last))

    new: dict[str, list[str]] = {}
    for section, (field, default) in _TYPES.items():
        fields = [(e, place) for e in entries for place in where[e.name] if place.startswith(f"{section}.")]
        fields.sort(key=lambda pair: not pair[1].endswith(".type"))  # the type comes first
        if fields:
            inner = [line for entry, place in fields for line in entry.called(place.partition(".")[2])]
            new[section] = inner if field in old else [f"type: {default}", *inner]
    block = [line for section, inner in new.items() for line in ["", f"{section}:", *_indented(inner)]]
    block += [line for entry in entries if entry.name == "sft" for line in ["", *_sft(entry, entries, where)]]
    edits = []
    for entry in (entry for entry in entries if entry.name == _UPDATES):
        if "optim" in nodes:
            edits.append(_into(lines, *nodes["optim"], entry))
        else:
            block += ["", "optim:", *_indented(list(entry.lines))]
    heading = _comments(text, key, value) if value.flow_style else _comment_of(lines[first])
    edits.append(_Edit(first, last, [*heading, *block[1:]]))
    for edit in sorted(edits, key=lambda edit: (edit.first, edit.last), reverse=True):  # from below: places stay
        lines[edit.first : edit.last] = edit.lines
    return "\n".join(lines) + "\n"


def _end(lines: list[str], siblings: list[yaml.Node], key: yaml.Node, indent: int, last: int | None = None) -> int:
    """The line after the field `key`: blank lines and comments of less than `indent` belong to what follows it."""
    after = [each.start_mark.line for each in siblings if each.start_mark.line > key.start_mark.line]
    end = min(after, default=len(lines) if last is None else last)
    while end > key.start_mark.line + 1 and _is_aside(lines[end - 1], indent):
        end -= 1
    return end


def _is_aside(line: str, indent: int) -> bool:
    text = line.lstrip()
    return not text or (text.startswith("#") and len(line) - len(text) < indent)


def _block_entries(lines: list[str], section: yaml.Node, last: int) -> Iterator[_Entry]:
    assert isinstance(section, yaml.MappingNode)
    keys = [key for key, _ in section.value]
    column = keys[0].start_mark.column
    above = list(takewhile(lambda line: _is_aside(line, len(line) + 1), reversed(lines[: keys[0].start_mark.line])))
    start = keys[0].start_mark.line - len(above)
    for key in keys:
        end = _end(lines, keys, key, column + 1, last)
        own = [line[column:] if not line[:column].strip() else line.lstrip() for line in lines[start:end]]
        yield _Entry(str(key.value), tuple(line for line in own if line.strip()))
        start = end


def _flow_entries(text: str, section: yaml.Node) -> Iterator[_Entry]:
    assert isinstance(section, yaml.MappingNode)
    for key, value in section.value:
        source = " ".join(text[value.start_mark.index : value.end_mark.index].split())
        yield _Entry(str(key.value), (f"{key.value}: {source}",))


def _sft(entry: _Entry, entries: list[_Entry], where: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The section `sft` with the fields that acted in it from beside it."""
    more = [other for other in entries if any(place.startswith("sft.") for place in where[other.name])]
    lines = list(entry.lines)
    added = [line for other in more for line in other.lines]
    if not added:
        return lines
    if (closing := lines[-1].rfind("}")) >= 0:
        return [*lines[:-1], f"{lines[-1][:closing]}, {', '.join(added)}{lines[-1][closing:]}"]
    inner = lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]
    return [*lines, *(inner + line for line in added)]


def _into(lines: list[str], key: yaml.Node, section: yaml.Node, entry: _Entry) -> _Edit:
    """`entry` at the end of a section that is there."""
    line = section.end_mark.line
    if isinstance(section, yaml.MappingNode) and section.flow_style:
        brace = section.end_mark.column - 1
        comma = ", " if section.value else ""
        return _Edit(line, line + 1, [f"{lines[line][:brace]}{comma}{entry.lines[-1]}{lines[line][brace:]}"])
    if not isinstance(section, yaml.MappingNode):  # it is empty
        first = key.start_mark.line
        return _Edit(first, first + 1, ["optim:", *_indented(list(entry.lines))])
    keys = [each for each, _ in section.value]
    end = _end(lines, keys, keys[-1], keys[-1].start_mark.column, line if section.end_mark.column == 0 else len(lines))
    return _Edit(end, end, [" " * keys[-1].start_mark.column + each for each in entry.lines])


def _indented(lines: list[str]) -> list[str]:
    return [_INDENT + line for line in lines]


def _comment_of(line: str) -> list[str]:
    """The comment at the end of the old section's own line, which becomes a line above."""
    found = re.search(r":\s+(#.*)$", line)
    return [found.group(1)] if found else []


def _comments(text: str, key: yaml.Node, section: yaml.Node) -> list[str]:
    """The comments within and behind a section in braces, which become lines above."""
    end = text.find("\n", section.end_mark.index)
    start, scalars = key.start_mark.index, [node for node in _scalars(section)]
    inside = text[start : len(text) if end < 0 else end]
    found, at = [], 0
    while match := re.compile(r"\s(#[^\n]*)").search(inside, at):
        place = start + match.start(1)
        is_text = any(node.start_mark.index <= place < node.end_mark.index for node in scalars)
        found += [] if is_text else [match.group(1)]
        at = match.start(1) if is_text else match.end()
    return found


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            yield from _scalars(inner)
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for inner in pair:
                yield from _scalars(inner)
