"""What the judge is asked: the published format to the byte, our own, and files that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.eval.dimensions import DIMENSIONS
from services.eval.prompting import Instructions, load_instructions
from services.eval.prompts import Prompt, read_points

TEMPLATES = Path(__file__).resolve().parents[4] / "shared" / "reference" / "reward_templates"


def published(name: str) -> Path:
    path = TEMPLATES / f"unigenbench_judge_{name}.txt"
    if not path.exists():
        pytest.skip("the published templates are not beside the project")
    return path


def definitions_file(folder: Path, **changed: str) -> Path:
    path = folder / "definitions.json"
    path.write_text(json.dumps({each.name: f"meaning of {each.name}" for each in DIMENSIONS} | changed), "utf-8")
    return path


def prompt(text: str, *points: tuple[str, str]) -> Prompt:
    return Prompt(0, text, *read_points([name for name, _ in points], [description for _, description in points]))


def test_the_published_english_template_is_rendered_as_published(tmp_path: Path) -> None:
    definitions = definitions_file(
        tmp_path,
        **{
            "Style": "Art, painting, photography, design styles, and corresponding artist names",
            "Attribute - Color": "Assessment of different colors",
        },
    )
    instructions = load_instructions(published("en_raw_format_template"), definitions=definitions)
    rendered = instructions.ask(prompt("<<PROMPT>>", ("Style", "<<DESC1>>"), ("Attribute - Color", "<<DESC2>>")))
    assert rendered == published("en_rendered_example").read_text("utf-8")
    assert instructions.templates["en"].name == "unigenbench_judge_en"
    assert (
        "en=unigenbench_judge_en-9554ee93" in instructions.revision and "definitions=custom-" in instructions.revision
    )


def test_the_published_chinese_template_has_its_own_heads() -> None:
    instructions = load_instructions(template_zh=published("zh_raw_format_template"))
    text = instructions.ask(prompt("一只猫", ("风格", "水墨"), ("属性-颜色", "红色")))
    assert "的提示词为「一只猫」" in text and "['风格', '属性-颜色']" in text
    assert "考点描述说明：「\n风格: 水墨\n属性-颜色: 红色\n」" in text
    assert f"考点说明：「\n风格: {DIMENSIONS[0].definition_zh}\n" in text
    assert "{" not in text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_our_own_wording_has_all_that_is_asked_and_the_form_of_the_answer(language: str) -> None:
    dimension = DIMENSIONS[2]
    name = dimension.name if language == "en" else dimension.zh
    text = load_instructions().ask(prompt("PROMPT-TEXT", (name, "DESCRIPTION")))
    definition = dimension.definition if language == "en" else dimension.definition_zh
    for part in (
        "「PROMPT-TEXT」",
        f"['{name}']",
        f"{name}: {definition}",
        f"{name}: DESCRIPTION",
        "<score>",
        "<analysis>",
    ):
        assert part in text


def test_nothing_in_a_prompt_or_a_description_is_a_placeholder() -> None:
    asked = prompt("a {testpoint} in {braces} \\1 {test_explanation}", ("Style", "{prompt} {0} {explanation}"))
    text = load_instructions().ask(asked)
    assert "「a {testpoint} in {braces} \\1 {test_explanation}」" in text
    assert "Style: {prompt} {0} {explanation}\n" in text


def test_names_are_written_as_a_python_list() -> None:
    text = load_instructions().ask(prompt("x", ("Action - Hand (Character/Anthropomorphic)", ""), ("Style", "")))
    assert "['Action - Hand (Character/Anthropomorphic)', 'Style']" in text


def test_another_wording_is_another_revision(tmp_path: Path) -> None:
    template = tmp_path / "t.txt"
    template.write_text("{prompt} {testpoint} {test_explanation}")
    revisions = {
        load_instructions().revision,
        load_instructions(template_en=template).revision,
        load_instructions(template_zh=template).revision,
        load_instructions(definitions=definitions_file(tmp_path)).revision,
    }
    assert len(revisions) == 4 and "custom" not in load_instructions().revision
    assert "en=custom-" in load_instructions(template_en=template).revision


def test_definitions_of_one_language_leave_the_other_to_ours(tmp_path: Path) -> None:
    instructions: Instructions = load_instructions(definitions=definitions_file(tmp_path, Extra="not used"))
    assert "Style: meaning of Style" in instructions.ask(prompt("x", ("Style", "ink")))
    assert DIMENSIONS[0].definition_zh in instructions.ask(prompt("x", ("风格", "墨")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must be a JSON object of texts"),
        ('{"Style": 1}', "must be a JSON object of texts"),
        ('{"Style": "ink"}', "has 1 of 27; add World Knowledge, Attribute - Color"),
        ("{}", "has 0 of 27; add Style"),
    ],
)
def test_definitions_that_cannot_be_used_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_instructions(definitions=tmp_path / "d.json")


def test_templates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Judge {prompt} on {testpoint}")
    with pytest.raises(ValueError, match=r"lacks \{test_explanation\}"):
        load_instructions(template_en=tmp_path / "t.txt")
    with pytest.raises(ValueError, match=r"cannot be read"):
        load_instructions(template_en=tmp_path / "missing.txt")
    with pytest.raises(ValueError, match=r"is unigenbench_judge_zh: give it as --template-zh, not --template-en"):
        load_instructions(template_en=published("zh_raw_format_template"))
