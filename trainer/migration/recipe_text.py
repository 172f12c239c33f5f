"""A recipe as YAML, with a comment beside the lines that need one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Line:
    """A value of the recipe and what is said beside it."""

    value: Any
    comment: str = ""


@dataclass
class _Node:
    """A section of the YAML under way."""

    inner: dict[str, _Node | Line]


def render(lines: Mapping[str, Line], unused: Sequence[str], *, head: str, of: str) -> str:
    """Lines by dotted field as nested YAML, in the order given, each with its comment.

    Args:
        unused: sentences about what is not in it, for the head.
        head: what the recipe was made of, in a sentence.
        of: what `unused` speaks of.
    """
    root = _Node({})
    for field, line in lines.items():
        *above, last = field.split(".")
        node = root
        for part in above:
            child = node.inner.setdefault(part, _Node({}))
            assert isinstance(child, _Node), f"{field} lies in {part}, which has a value"
            node = child
        node.inner[last] = line
    text = f"# {head}\n"
    if unused:
        text += "".join([f"# Of the {of}:\n", *(f"#   {' '.join(sentence.split())}\n" for sentence in unused)])
    return text + "\n".join(_rendered(root, "")) + "\n"


def nested(lines: Mapping[str, Line]) -> dict[str, Any]:
    """The values of lines by dotted field as nested mappings: the recipe's fields, unchecked."""
    root: dict[str, Any] = {}
    for field, line in lines.items():
        *above, last = field.split(".")
        node = root
        for part in above:
            node = node.setdefault(part, {})
        node[last] = line.value
    return root


def _rendered(node: _Node, indent: str) -> list[str]:
    text: list[str] = []
    for key, inner in node.inner.items():
        if isinstance(inner, _Node):
            text += [f"{indent}{key}:", *_rendered(inner, indent + "  ")]
        else:
            value = yaml.safe_dump(inner.value, default_flow_style=True, width=1000, allow_unicode=True)
            comment = f"  # {inner.comment}" if inner.comment else ""
            text.append(f"{indent}{key}: {value.removesuffix('...' + chr(10)).strip()}{comment}")
    return text
