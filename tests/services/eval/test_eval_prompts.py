"""Reading the benchmark's prompt files: the real ones beside the project, and small ones with every defect."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from services.eval.dimensions import DIMENSIONS, PRIMARIES, find_dimension
from services.eval.prompts import PromptFileError, read_prompts

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference" / "unigenbench"
KEYS = {"en": ("Testpoints", "Testpoint Description"), "zh": ("考点", "考点对应描述")}


def dims(names: list[str], descriptions: list[str] | None = None, language: str = "en") -> str:
    first, second = KEYS[language]
    given = descriptions if descriptions is not None else [f"about {name}" for name in names]
    return json.dumps({"Subjects": "Animal", first: names, second: given}, ensure_ascii=False)


def write(path: Path, rows: list[tuple], columns: tuple[str, ...] = ("index", "prompt_en", "sub_dims_en")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return path


def real(language: str) -> Path:
    path = REFERENCE / f"test_prompts_{language}.csv"
    if not path.exists():
        pytest.skip("the published prompt files are not beside the project")
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_published_short_files_load_whole(language: str) -> None:
    """Totals per sub dimension as counted for the benchmark's description; 4 images make 7252 judgements."""
    file = read_prompts(real(language))
    assert (len(file.prompts), file.num_points, file.problems) == (600, 1813, ())
    assert {prompt.language for prompt in file.prompts} == {language}
    assert [prompt.index for prompt in file.prompts] == list(range(600))
    lengths = Counter(len(prompt.points) for prompt in file.prompts)
    assert [lengths[n] for n in range(1, 6)] == [65, 154, 159, 147, 75]
    primaries = Counter(point.dimension.primary for prompt in file.prompts for point in prompt.points)
    expected = {"Style": 250, "World Knowledge": 158, "Attribute": 234, "Action": 263, "Relationship": 197}
    expected |= {"Logical Reasoning": 109, "Grammar": 187, "Compound": 194, "Entity Layout": 134, "Text Generation": 87}
    assert primaries == expected


def test_both_published_files_ask_the_same_points_in_the_two_languages() -> None:
    english, chinese = read_prompts(real("en")), read_prompts(real("zh"))
    for one, other in zip(english.prompts, chinese.prompts, strict=True):
        assert Counter(p.dimension for p in one.points) == Counter(p.dimension for p in other.points)
    subs = Counter(point.dimension.name for prompt in english.prompts for point in prompt.points)
    assert len(subs) == 27 and subs["Attribute - Color"] == 30 and subs["Grammar - Pronoun Reference"] == 68


def test_there_are_27_sub_dimensions_in_10_primary_ones() -> None:
    assert len(DIMENSIONS) == 27 and len({each.zh for each in DIMENSIONS}) == 27
    assert {each.primary for each in DIMENSIONS} == set(PRIMARIES) and len(PRIMARIES) == 10
    for each in DIMENSIONS:
        assert find_dimension(each.name) == (each, "en") and find_dimension(each.zh) == (each, "zh")


@pytest.mark.parametrize("name", ["Attribute-Color", " Attribute -  Color ", "Attribute - Color\n"])
def test_white_space_in_a_name_does_not_matter(name: str) -> None:
    found = find_dimension(name)
    assert found is not None and found[0].name == "Attribute - Color"


@pytest.mark.parametrize("name", ["Full-body", "Attribute - Colour", "", "-", "Action - Full - body"])
def test_other_names_are_unknown(name: str) -> None:
    assert find_dimension(name) is None


@pytest.mark.parametrize("columns", [("index", "prompt_en", "sub_dims_en"), ("index", "prompt", "sub_dims")])
def test_the_columns_of_the_benchmark_and_of_its_copies_are_read(tmp_path: Path, columns: tuple[str, ...]) -> None:
    path = write(tmp_path / "p.csv", [(7, 'a "sign", red\nand blue', dims(["Style", "Text Generation"]))], columns)
    [prompt] = read_prompts(path).prompts
    assert (prompt.index, prompt.text, prompt.language) == (7, 'a "sign", red\nand blue', "en")
    assert [(p.name, p.description) for p in prompt.points] == [
        ("Style", "about Style"),
        ("Text Generation", "about Text Generation"),
    ]


def test_chinese_keys_are_read_from_a_copy_with_plain_columns(tmp_path: Path) -> None:
    row = (0, "一只猫", dims(["动作-动物动作", "属性-颜色"], ["跑", "红"], "zh"))
    path = write(tmp_path / "p.csv", [row], ("index", "prompt", "sub_dims"))
    [prompt] = read_prompts(path).prompts
    assert prompt.language == "zh"
    assert [point.dimension.name for point in prompt.points] == ["Action - Animal", "Attribute - Color"]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", [(0, "x", dims(["Style"]))])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_prompts(path).prompts) == 1


def test_a_test_point_that_occurs_twice_is_kept_twice(tmp_path: Path) -> None:
    row = (0, "x", dims(["Attribute - Color", "Style", "Attribute - Color"], ["red hat", "ink", "blue shoe"]))
    [prompt] = read_prompts(write(tmp_path / "p.csv", [row])).prompts
    assert [point.description for point in prompt.points] == ["red hat", "ink", "blue shoe"]


GOOD = (0, "fine", dims(["Style"]))
BAD = [
    (
        (1, "x", dims(["Style", "Colour"])),
        "sub_dims.Testpoints",
        "not among the 27 test points of UniGenBench: 'Colour'",
    ),
    ((1, "x", dims(["Style", "World Knowledge"], ["ink"])), "sub_dims.Testpoint Description", "1 descriptions for 2"),
    ((1, "x", '{"Testpoints": ["Style"], "Testpoint Description": ["the "big" one"]}'), "sub_dims", "is not JSON"),
    ((1, "x", dims(["Style"])[:-9]), "sub_dims", "is not JSON"),
    ((1, "x", "[" * 100_000), "sub_dims", "is not JSON"),
    ((1, "x", '["Style"]'), "sub_dims", "must be a JSON object"),
    ((1, "x", '{"Subjects": "Animal"}'), "sub_dims", "has no test points"),
    ((1, "x", '{"Testpoints": "Style", "Testpoint Description": "ink"}'), "sub_dims.Testpoints", "must be a list"),
    ((1, "x", '{"Testpoints": ["Style"]}'), "sub_dims.Testpoint Description", "must be a list of texts"),
    ((1, "x", '{"Testpoints": [], "Testpoint Description": []}'), "sub_dims.Testpoints", "with at least one"),
    (
        (1, "x", '{"Testpoints": ["Style"], "Testpoint Description": [null]}'),
        "sub_dims.Testpoint Description",
        "entry 0",
    ),
    ((1, "x", dims(["Style", "风格"])), "sub_dims.Testpoints", "mixed"),
    ((1, "", dims(["Style"])), "prompt", "is empty"),
    (("", "x", dims(["Style"])), "index", "is empty"),
    (("-1", "x", dims(["Style"])), "index", "'-1'"),
    (("1.0", "x", dims(["Style"])), "index", "'1.0'"),
    ((0, "again", dims(["Style"])), "index", "0 has occurred before"),
    ((1, "x"), "sub_dims", "is empty"),
    ((1, "x, and y", dims(["Style"]), "more"), "row", "more fields than the header"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path: Path, row: tuple, field: str, reason: str) -> None:
    path = write(tmp_path / "p.csv", [GOOD, row, (5, "fine too", dims(["Style"]))])
    file = read_prompts(path)
    assert [prompt.index for prompt in file.prompts] == [0, 5]
    [problem] = file.problems
    assert (problem.row, problem.field) == (2, field) and reason in problem.reason
    assert file.report() == [f"{path}: row 2: {field}: {problem.reason}"]


def test_an_empty_description_is_no_defect(tmp_path: Path) -> None:
    """The published English file has one."""
    [prompt] = read_prompts(write(tmp_path / "p.csv", [(0, "x", dims(["Style"], [""]))])).prompts
    assert prompt.points[0].description == ""


def test_a_long_file_with_several_defects_is_read_around_them(tmp_path: Path) -> None:
    names = [each.name for each in DIMENSIONS[:10]]
    rows: list[tuple] = [(n, "A long description. " * 12, dims(names[: 4 + n % 7])) for n in range(60)]
    rows[10] = (10, rows[10][1], rows[10][2].replace('about Style"', 'about "Style""'))
    rows[20] = (20, rows[20][1], dims([names[0], names[1], names[0], names[1]]))
    rows[30] = (30, rows[30][1], dims(names[:5], ["one", "two"]))
    file = read_prompts(write(tmp_path / "test_prompts_en_long.csv", rows))
    assert len(file.prompts) == 58 and [problem.row for problem in file.problems] == [11, 31]
    assert len(next(prompt for prompt in file.prompts if prompt.index == 20).points) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index,prompt_en\n0,x\n", "columns index, prompt_en; expected sub_dims_en or sub_dims_zh or sub_dims"),
        ("", r"columns \(none\); expected index"),
        ("index,prompt,sub_dims\n0,x,{}\n", "no good row; 1 are bad; the first: sub_dims: has no test points"),
        ("index,prompt,sub_dims\n", "no good row; 0 are bad"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PromptFileError, match=words):
        read_prompts(tmp_path / "p.csv")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="cannot be read as CSV in UTF-8"):
        read_prompts(tmp_path / "missing.csv")
    (tmp_path / "p.csv").write_bytes(b"index,prompt,sub_dims\n0,\xff\xfe,{}\n")
    with pytest.raises(PromptFileError, match="cannot be read as CSV in UTF-8"):
        read_prompts(tmp_path / "p.csv")
