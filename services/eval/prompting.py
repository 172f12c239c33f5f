"""What the judge is asked. The text is part of the model: a judge trained with one wording scores worse with another.

By default the wording and the definitions are ours. The published template and definitions are loaded from files the
user names and recognised by their hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.eval.dimensions import DIMENSIONS, Language, find_dimension
from services.eval.prompts import Point, Prompt
from services.kit.judge.templates import Template, load_template, own_template

# sha256 of the raw templates of CodeGoat24/UniGenBench, eval/src/eval_common.py.
PUBLISHED: dict[str, str] = {
    "9554ee938feaaf928d9086ba959e19063bcb027be086821d7dcb45e55ad40f14": "unigenbench_judge_en",
    "03ccae681043f88291c14036b98ee99fbe34ac7659fe2186244afec075698926": "unigenbench_judge_zh",
}
_FIELDS = re.compile(r"\{(prompt|testpoint|explanation|test_explanation)\}")
_NEEDED = ("prompt", "testpoint", "test_explanation")

# Heads of the two blocks as the judges were trained on them, the slip in spelling included.
_HEADS: dict[Language, tuple[str, str]] = {
    "en": ("Checkpoints Defination:", "Checkpoints Description:"),
    "zh": ("考点说明：", "考点描述说明："),
}

OWN_EN = """\
You check whether a generated picture shows what its prompt asked for.

The prompt: 「{prompt}」

The picture is checked on these points, in this order: {testpoint}
What each kind of point means. {explanation}
What each point refers to in this prompt. {test_explanation}

Take the points one by one. Say in one or two sentences what the picture shows that bears on the point, and judge by \
that alone: 1 if the picture clearly does what the point asks, 0 if it does not or if it cannot be seen. Judge nothing \
that the point does not ask, and guess at nothing outside the picture.

Answer with two lists, each with one entry per point, in the order of the points, and with nothing else:

<analysis>["what was seen for the first point", "..."]</analysis>
<score>[1 or 0 for the first point, ...]</score>
"""

OWN_ZH = """\
你的任务是检查一张生成的图片是否表现了提示词的要求。

提示词：「{prompt}」

按以下顺序检查这些考点：{testpoint}
各类考点的含义。{explanation}
各考点在本提示词中所指的内容。{test_explanation}

请逐个检查。先用一两句话说明图片中与该考点有关的内容，再只依据这些内容判断：图片明确做到记 1，没有做到或看不出来记 0。\
不要评价考点以外的内容，也不要猜测画面之外的事情。

只回答两个列表，每个考点一项，顺序与考点相同，不要写其他内容：

<analysis>["第一个考点看到的内容", "……"]</analysis>
<score>[第一个考点的 1 或 0, ...]</score>
"""


@dataclass(frozen=True)
class Instructions:
    """Templates by language and definitions by test-point name; `definitions_name` is `own`, or a hash of the file."""

    templates: Mapping[Language, Template]
    definitions: Mapping[str, str]
    definitions_name: str

    def ask(self, prompt: Prompt) -> str:
        """The text for one image. Nothing in the prompt or its points is read as a placeholder."""
        head, described_head = _HEADS[prompt.language]
        fields = {
            "prompt": prompt.text,
            "testpoint": str([point.name for point in prompt.points]),
            "explanation": _block(head, [(each.name, self._define(each, prompt.language)) for each in prompt.points]),
            "test_explanation": _block(described_head, [(each.name, each.description) for each in prompt.points]),
        }
        return _FIELDS.sub(lambda found: fields[found[1]], self.templates[prompt.language].text)

    @property
    def revision(self) -> str:
        """Tells two wordings apart: names with the first letters of the hashes."""
        names = [f"{language}={each.name}-{each.sha256[:8]}" for language, each in sorted(self.templates.items())]
        return f"{' '.join(names)} definitions={self.definitions_name}"

    def _define(self, point: Point, language: Language) -> str:
        return self.definitions.get(point.dimension.named(language), point.dimension.defined(language))


def load_instructions(
    template_en: Path | None = None, template_zh: Path | None = None, definitions: Path | None = None
) -> Instructions:
    """Our own wording, or that of the named files. Raises ValueError, with the remedy, when a file cannot be used."""
    templates: dict[Language, Template] = {
        "en": _load(template_en, "en") if template_en else own_template(OWN_EN),
        "zh": _load(template_zh, "zh") if template_zh else own_template(OWN_ZH),
    }
    if definitions is None:
        return Instructions(templates, {}, f"own-{_own_definitions_hash()}")
    loaded, name = load_definitions(definitions)
    return Instructions(templates, loaded, name)


def load_definitions(path: Path) -> tuple[dict[str, str], str]:
    """Definitions by test-point name from a JSON object, and `custom-` with the file's hash.

    The file must define all 27 English names, all 27 Chinese ones, or both; other names in it are not used.
    Raises ValueError with the remedy.
    """
    try:
        data = path.read_bytes()
        tree = json.loads(data)
    except (OSError, ValueError) as error:
        raise ValueError(f"definitions {path} cannot be read as JSON: {error}") from error
    if not isinstance(tree, dict) or not all(isinstance(value, str) for value in tree.values()):
        raise ValueError(f'definitions {path} must be a JSON object of texts: {{"Style": "...", ...}}')
    definitions = {}
    for name, text in tree.items():
        found = find_dimension(name)
        if found is not None:
            definitions[found[0].named(found[1])] = text
    languages: tuple[Language, ...] = ("en", "zh")
    for language in languages:
        names = [dimension.named(language) for dimension in DIMENSIONS]
        missing = [name for name in names if name not in definitions]
        if missing and (len(missing) < len(names) or not definitions):
            raise ValueError(f"definitions {path} has {len(names) - len(missing)} of 27; add {', '.join(missing)}")
    return definitions, f"custom-{hashlib.sha256(data).hexdigest()[:8]}"


def _load(path: Path, language: Language) -> Template:
    template = load_template(path, PUBLISHED)
    missing = [field for field in _NEEDED if f"{{{field}}}" not in template.text]
    if missing:
        raise ValueError(f"template {path} lacks {', '.join(f'{{{field}}}' for field in missing)}")
    if template.name.startswith("unigenbench") and not template.name.endswith(language):
        right = template.name.removeprefix("unigenbench_judge_")
        raise ValueError(
            f"template {path} is {template.name}: give it as --template-{right}, not --template-{language}"
        )
    return template


def _block(head: str, lines: Sequence[tuple[str, str]]) -> str:
    return f"{head}「\n" + "".join(f"{name}: {text}\n" for name, text in lines) + "」"


def _own_definitions_hash() -> str:
    texts = json.dumps([(each.definition, each.definition_zh) for each in DIMENSIONS])
    return hashlib.sha256(texts.encode()).hexdigest()[:8]
