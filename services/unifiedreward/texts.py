"""Which text each question is asked with: ours, or a file the user names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from services.kit.judge.templates import PLACEHOLDER, Template, load_template, own_template
from services.unifiedreward.kinds import PAIR_QUESTIONS, POINT_QUESTIONS, Numbers, Question, questions_of
from services.unifiedreward.parsing.common import Judgement
from services.unifiedreward.published import NAMES, PUBLISHED

Structured = Literal["auto", "on", "off"]
T = TypeVar("T")


@dataclass(frozen=True)
class Text(Generic[T]):
    """A question with the template it is asked with. `schema` is set when the answer is held to it."""

    question: Question[T]
    template: Template
    schema: Mapping[str, Any] | None


class Texts:
    """The texts of all kinds that are served. Raises ValueError, with the remedy, when a file cannot be used."""

    def __init__(self, kinds: Sequence[str], files: Sequence[str] = (), structured: Structured = "auto") -> None:
        self._structured = structured
        chosen = dict(_split(spec) for spec in files)
        names = [name for kind in kinds for name in questions_of(kind)]
        for name, path in chosen.items():
            if name not in names:
                raise ValueError(f"template {name}={path}: no such question here; there are: {', '.join(names)}")
        self._files = chosen

    def pair(self, kind: str) -> Text[Judgement]:
        """The text of a kind that compares."""
        return self._text(kind, PAIR_QUESTIONS[kind])

    def points(self, kind: str) -> tuple[Text[Numbers], ...]:
        """The texts of a kind that judges one image at a time."""
        return tuple(self._text(name, question) for name, question in POINT_QUESTIONS[kind].items())

    def _text(self, name: str, question: Question[T]) -> Text[T]:
        path = self._files.get(name)
        if path is None:
            return Text(question, own_template(question.text), None if self._structured == "off" else question.schema)
        template = load_template(path, NAMES)
        published = PUBLISHED.get(template.sha256)
        if published is None:
            if question.takes_prompt and PLACEHOLDER not in template.text:
                raise ValueError(f"template {path} has no {PLACEHOLDER}: put it where the prompt goes")
        elif published.question != name:
            use = f"asks for {published.question}" if published.question else "is about videos"
            raise ValueError(f"template {path} is the published {published.name}, which {use}, not for {name}")
        elif published.read is not None:
            question = replace(question, read=cast(Any, published.read))
        return Text(question, template, question.schema if self._structured == "on" else None)


def template_sha256(templates: Sequence[Template]) -> str:
    """The hash of a reward's text; of several texts, that of their hashes joined."""
    if len(templates) == 1:
        return templates[0].sha256
    return hashlib.sha256("".join(template.sha256 for template in templates).encode()).hexdigest()


def _split(spec: str) -> tuple[str, Path]:
    name, equals, path = spec.partition("=")
    if not (name and equals and path):
        raise ValueError(f"template {spec!r} must be KIND=FILE, such as think_pairwise=think.txt")
    return name, Path(path)
