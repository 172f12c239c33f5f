"""Writes the two reference pages of docs/ from the code: every field of a recipe, every key of metrics.jsonl.

    python -m scripts.reference            write docs/reference_configuration.md and docs/reference_metrics.md
    python -m scripts.reference --check    write nothing; exit code 1 where a page is not what the code says

A field's type, default and sentence are those of its pydantic section in trainer/config; a metric's sentence is that of
trainer/records/keys.py. Neither page is edited by hand: a test compares them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rewards.shipped import shipped
from trainer.config import Config
from trainer.config.objective import OBJECTIVES, ObjectiveSection, TimestepSection
from trainer.config.objective_checks import STOCHASTIC
from trainer.config.token_objective import TokenSection
from trainer.records.keys import SENTENCES

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null", Any: "anything"}

# The objectives that read a section, by section and its `type`; the other sections act whatever the objective.
OF_IMAGES = tuple(name for name, each in OBJECTIVES.items() if issubclass(each, ObjectiveSection))
OF_TOKENS = tuple(name for name, each in OBJECTIVES.items() if issubclass(each, TokenSection))
READ_BY: Mapping[tuple[str, str], Sequence[str]] = {
    ("sampling", "flow"): OF_IMAGES,
    ("sampling", "tokens"): (*OF_TOKENS, "own"),
    ("sampling", "tasks"): OF_TOKENS,
    ("advantage", ""): (*OF_IMAGES, *OF_TOKENS),
    ("preferences", "images"): ("diffusion_dpo",),
    ("preferences", "answers"): ("dpo",),
}
# Of the fields that shape how images are drawn, those that shape stochastic steps act with these objectives alone.
ON_STOCHASTIC_STEPS = tuple(name for name in OF_IMAGES if not issubclass(OBJECTIVES[name], TimestepSection))


def is_of_stochastic_steps(field: str) -> bool:
    """Whether a field of the drawing of images acts only where steps are stochastic."""
    return field in (*STOCHASTIC, "same_noise") or field.startswith("sde_window_")


@dataclass(frozen=True)
class Row:
    """A field as its line in a table shows it."""

    name: str
    kind: str
    default: str
    text: str

    def line(self, *more: str) -> str:
        return f"| {' | '.join([f'`{self.name}`', *more, self.kind, self.default, self.text])} |"


class Page:
    """The page of the configuration while it is written: each section class has one heading, where it is met first."""

    def __init__(self) -> None:
        self.titles: dict[type[BaseModel], str] = {}
        self.lines: list[str] = []

    def write(self) -> str:
        sections = {name: field for name, field in Config.model_fields.items() if sections_in(field.annotation)}
        self._name([(name, field.annotation, "") for name, field in sections.items()])
        own = [self._row(name, field) for name, field in Config.model_fields.items() if name not in sections]
        self.lines += ["## The run itself", "", *table(own)]
        for name, field in sections.items():
            self._field(name, field, "##")
        return _CONFIGURATION.format(own=len(own), sections=len(sections)) + "\n".join(self.lines) + "\n"

    def _name(self, places: Sequence[tuple[str, Any, str]]) -> None:
        """Give the sections at these places their headings, then those inside them: the shortest path is a class's own.

        Args:
            places: path, annotation, and where it is: words that tell two classes at one path apart.
        """
        inside: list[tuple[str, Any, str]] = []
        for path, annotation, where in places:
            members = sections_in(annotation)
            for member in [each for each in members if each not in self.titles]:
                several = len(members) > 1
                title = f"`{path}` of type `{type_of(member)}`" if several else f"`{path}`"
                self.titles[member] = title if title not in self.titles.values() else f"{title}{where}"
                of = f" where `{path}.type` is `{type_of(member)}`" if several else where
                inside += [(below(path, name, each), each.annotation, of) for name, each in member.model_fields.items()]
        if inside:
            self._name(inside)

    def _field(self, path: str, field: FieldInfo, level: str) -> None:
        """The heading and the tables of a field's sections that are not on the page yet."""
        members = [each for each in sections_in(field.annotation) if self.path_of(each) == path]
        if not members or self.titles[members[0]] in self._written():
            return
        if len(members) == 1:
            self._section(members[0], level, members[0].model_fields)
            return
        self.lines += ["", f"{level} `{path}`", "", escaped(field.description or ""), ""]
        shared = self._shared(members)
        if shared:
            self.lines += ["Fields of several types:", ""]
            every = len(members)
            lines = [row.line("all" if len(of) == every else codes(of)) for row, of in shared.items()]
            self.lines += table_of(lines, "type")
        names = {row.name for row in shared}
        for member in members:
            own = {name: each for name, each in member.model_fields.items() if self._row(name, each) not in shared}
            self._section(member, f"{level}#", own, [n for n in member.model_fields if n in names and n not in own])

    def _section(
        self, section: type[BaseModel], level: str, own: Mapping[str, FieldInfo], shared: Sequence[str] = ()
    ) -> None:
        """A section's heading, docstring and table, then the sections inside it."""
        title = self.titles[section]
        self.lines += ["", f"{level} {title}", "", escaped(" ".join((section.__doc__ or "").split())), ""]
        path = re.findall(r"`([^`]+)`", title)
        readers = READ_BY.get((path[0], path[1] if len(path) > 1 else ""), READ_BY.get((path[0], ""), ()))
        if readers:
            self.lines += [f"Read with `objective.type`: {codes(readers)}.", ""]
        if shared:
            self.lines += [f"It has, from the table above: {codes(shared)}.", ""]
        shown = {name: field for name, field in own.items() if not is_tag(field)}
        if shown:
            self.lines += table([self._row(name, field) for name, field in shown.items()])
        only = [name for name in own if is_of_stochastic_steps(name)]
        if only and "num_inference_steps" in own:
            told = f"Of these, {codes(only)} act with the objectives on stochastic steps alone ({codes(ON_STOCHASTIC_STEPS)})"
            self.lines += ["", f"{told}; with another they are refused."]
        for name, field in section.model_fields.items():
            self._field(below(path[0], name, field), field, "###")

    def path_of(self, section: type[BaseModel]) -> str:
        """Where the page has it: the path of its heading."""
        return self.titles[section].split("`")[1]

    def _written(self) -> set[str]:
        return {line.lstrip("#").strip() for line in self.lines if line.startswith("#")}

    def _shared(self, members: Sequence[type[BaseModel]]) -> dict[Row, list[str]]:
        """What at least two members declare alike, with their types."""
        found: dict[Row, list[str]] = {}
        for member in members:
            for name, field in member.model_fields.items():
                if not is_tag(field):
                    found.setdefault(self._row(name, field), []).append(type_of(member))
        return {row: types for row, types in found.items() if len(types) > 1}

    def _row(self, name: str, field: FieldInfo) -> Row:
        inner = sections_in(field.annotation)
        text = field.description or (inner[0].__doc__ if inner else "") or ""
        return Row(
            name, self._kind(field.annotation, field.metadata), default_of(field), escaped(" ".join(text.split()))
        )

    def _kind(self, annotation: Any, metadata: Sequence[Any] = ()) -> str:
        """What a value must be, in words; a section is a link to its heading."""
        arguments = get_args(annotation)
        if hasattr(annotation, "__metadata__"):
            inner = annotation.__metadata__
            more = [part for each in inner for part in (each.metadata if isinstance(each, FieldInfo) else [each])]
            return self._kind(arguments[0], [*metadata, *more])
        if arguments:
            return self._compound(annotation, arguments, metadata)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return f"[{self.titles[annotation]}](#{anchor(self.titles[annotation])})"
        if any(isinstance(each, AfterValidator) and each.func is shipped for each in metadata):
            return "path"
        return f"{_PLAIN[annotation]}{bounds(metadata)}"

    def _compound(self, annotation: Any, arguments: Sequence[Any], metadata: Sequence[Any]) -> str:
        """The same of choices, mappings, lists and unions."""
        origin = get_origin(annotation)
        if origin is Literal:
            return codes([str(each) for each in arguments])
        if origin is dict:
            return f"names to {self._kind(arguments[1])}"
        if origin is tuple:
            some = arguments[-1] is Ellipsis
            inner = ", ".join(self._kind(each) for each in arguments if each is not Ellipsis)
            return f"list of {inner}{bounds(metadata)}" if some else f"[{inner}]"
        members = sections_in(annotation)
        if len(members) > 1:
            path = f"`{self.path_of(members[0])}`"
            return f"[a type of {path}](#{anchor(path)})" + (" or null" if NoneType in arguments else "")
        kinds = [self._kind(each, () if each is NoneType else metadata) for each in arguments]
        return " or ".join(dict.fromkeys(kinds))


def bounds(metadata: Sequence[Any]) -> str:
    """` ≥ 1` and the like, of pydantic's constraints."""
    given = {name: value for name in _BOUNDS for value in values(metadata, name)}  # the last one is the field's own
    if given.get("gt", -1) == given.get("ge"):
        del given["ge"]
    found = [f"{_BOUNDS[name]} {value if isinstance(value, int) else f'{value:g}'}" for name, value in given.items()]
    found += [f"at least {value}" for value in values(metadata, "min_length") if value > 1]
    return f" {', '.join(found)}" if found else ""


def values(metadata: Sequence[Any], name: str) -> Iterator[Any]:
    for each in metadata:
        value = getattr(each, name, None)
        if value is not None:
            yield value


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type holds, of a union all members."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(each for argument in get_args(annotation) for each in sections_in(argument)))


def below(path: str, name: str, field: FieldInfo) -> str:
    """The path of a field inside the section at `path`."""
    return f"{path}.{name}{'.*' if is_collection(field.annotation) else ''}"


def is_collection(annotation: Any) -> bool:
    """Whether entries with names or numbers stand between a field and its sections."""
    return get_origin(annotation) in (dict, tuple) or any(map(is_collection, get_args(annotation)))


def is_tag(field: FieldInfo) -> bool:
    """Whether it is the `type` that tells members of a union apart: in the heading already."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def type_of(section: type[BaseModel]) -> str:
    return str(get_args(section.model_fields["type"].annotation)[0])


def default_of(field: FieldInfo) -> str:
    """The default as YAML on one line; a section's is its own fields' defaults."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        several = len(sections_in(field.annotation)) > 1
        return f"`type: {type_of(type(value))}`" if several else "its own"
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=10_000, allow_unicode=True)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`"


def plain(value: Any) -> Any:
    """Lists for tuples, as YAML has them."""
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def escaped(text: str) -> str:
    """Text of a table's cell: what Markdown would take for its own stands as it is, but in code."""
    text = text.replace("|", "\\|")
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"(?<!\\)([<*])", r"\\\1", part) for i, part in enumerate(parts))


def codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def table(rows: Sequence[Row]) -> list[str]:
    return table_of([row.line() for row in rows])


def table_of(lines: Sequence[str], *more: str) -> list[str]:
    """Args: more: heads of columns between the name and the kind."""
    heads = ["field", *more, "value", "default", "what it says"]
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *lines]


def configuration() -> str:
    """docs/reference_configuration.md."""
    return Page().write()


def metrics() -> str:
    """docs/reference_metrics.md. Raises ValueError for a key that no group has."""
    groups: dict[str, list[str]] = {title: [] for title in _GROUPS}
    for key, sentence in SENTENCES.items():
        first = key.partition("/")[0]
        title = next((title for title, firsts in _GROUPS.items() if first in firsts), None)
        if title is None:
            raise ValueError(f"{key} begins with {first}, which no group of scripts/reference.py has; add it to one")
        groups[title].append(f"| `{key}` | {escaped(sentence)} |")
    parts = [
        f"\n## {title}\n\n| key | what it means |\n|---|---|\n" + "\n".join(rows) for title, rows in groups.items()
    ]
    return _METRICS + "\n".join(parts) + "\n"


_CONFIGURATION = """# Reference: every field of a recipe

Written by `python -m scripts.reference` from `trainer/config/`; not edited by hand. How a recipe is read, overridden and
translated is in [configuration](configuration.md). Defaults are YAML; *its own* means the defaults of that section's fields.
A name in a path that is free, or the number of an entry of a list, stands as `*`.

A section with a `type` has the fields of that type and no others. Fields that several of its types have are in the table
before them. Where a section acts with some objectives alone, it says with which; {own} fields and the other of the {sections}
sections act whatever `objective.type` is.

"""
_METRICS = """# Reference: every key of metrics.jsonl

Written by `python -m scripts.reference` from `trainer/records/keys.py`; not edited by hand. A row of `metrics.jsonl` is a
training step; where the file lies and what else a run leaves is in [observability](observability.md). A name in angle
brackets stands for one of the recipe's: a reward, a data set, a task. Keys of what a run does not do are not in its rows.
"""
_GROUPS: Mapping[str, Sequence[str]] = {
    "The step": ("step", "resampled", "skipped_share", "lr", "grad_norm"),
    "Held-out evaluation": ("eval", "heldout"),
    "Alarms": ("alarm",),
    "Rewards": ("reward", "dataset", "failed", "cached", "latency_ms"),
    "Advantages": ("adv",),
    "Losses and what they show": ("loss", "nft", "dpo", "kl", "clip_share", "ratio", "importance", "drift"),
    "Texts that are drawn": ("text", "plan", "image"),
    "Looks of images and texts": ("stats",),
    "Policies with tasks": ("understand", "generate"),
    "Given rows": ("sft", "packed", "preferences"),
    "Rollout servers": ("rollout",),
    "Time": ("time", "reward_wait_share", "wait"),
    "Speed and memory": ("perf", "memory", "images_per_s", "tokens_per_s", "texts_per_s", "packs_per_s"),
}
PAGES = {"reference_configuration.md": configuration, "reference_metrics.md": metrics}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page differs")
    check = parser.parse_args(argv).check
    code = 0
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not what the code says: run python -m scripts.reference", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
