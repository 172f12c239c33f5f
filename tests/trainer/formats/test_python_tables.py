"""Constants of Python files: what is understood, and that nothing which code makes or changes is taken for a constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.data.formats.tables import Code, Named, assigned_texts, python_tables
from trainer.data.prompts.checks import DataError


def tables(tmp_path: Path, text: str | bytes) -> dict[str, Any]:
    path = tmp_path / "tables.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return python_tables(path)


def test_constants_are_read_and_code_is_marked(tmp_path: Path) -> None:
    text = "A = 'a'\nB: dict = {'x': [A, 1, None], A: Some.Class}\nC = print('no')\nD = {**B, 'y': -3}\ndef f():\n    A = p = 'in'\n"
    assert tables(tmp_path, text) == {
        "A": "a",
        "B": {"x": ["a", 1, None], "a": Named("Class")},
        "C": Code(3),
        "D": {"x": ["a", 1, None], "a": Named("Class"), "y": -3},
        "f": Named("f"),
    }
    assert assigned_texts(tmp_path / "tables.py", "p") == ["in"]


def test_a_part_that_is_code_leaves_the_rest_readable(tmp_path: Path) -> None:
    found = tables(tmp_path, "A = {'path': get('x'), 'size': 10 * 10, 'name': 'a' + 'b', 'deep': [f()]}\n")
    assert found["A"] == {"path": Code(1), "size": Code(1), "name": "ab", "deep": [Code(1)]}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("ROOT + '/a'", "data/a"),
        ("f'{ROOT}/{N}.json'", "data/3.json"),
        ("os.path.join(ROOT, 'a')", "data/a"),
        ("f'{ROOT!r}'", Code(4)),
        ("f'{ROOT:>9}'", Code(4)),
        ("'%s/a' % ROOT", Code(4)),
        ("Path(ROOT) / 'a'", Code(4)),
        ("os.path.join(*ROOT)", Code(4)),
        ("ROOT + N", Code(4)),
    ],
)
def test_texts_are_joined_as_python_joins_them(tmp_path: Path, expression: str, value: Any) -> None:
    assert tables(tmp_path, f"import os\nROOT = 'data'\nN = 3\nX = {expression}\n")["X"] == value


def test_what_is_put_into_a_table_afterwards_is_in_it(tmp_path: Path) -> None:
    found = tables(tmp_path, "A = {'a': {'x': '1'}}\nA['b'] = {'x': '2'}\nA['a']['x'] = '3'\nB = A\nB['c'] = 4\n")
    assert found["A"] == {"a": {"x": "3"}, "b": {"x": "2"}, "c": 4}


@pytest.mark.parametrize(
    "change",
    [
        "A = load()",
        "A.update(more)",
        "A['a'].update(more)",
        "A |= more",
        "A[name()] = 1",
        "del A['a']",
        "del A",
        "fill(A)",
        "if more:\n    A = {}",
        "for each in A.values():\n    each['x'] = '/mnt'",
        "for A in []:\n    pass",
        "with open('x') as A:\n    pass",
        "try:\n    A['a'] = {}\nexcept E:\n    pass",
        "A, B = {}, {}",
    ],
)
def test_a_table_that_code_changes_is_no_constant(tmp_path: Path, change: str) -> None:
    """The constant before it would be another table than the one that the program sees."""
    assert tables(tmp_path, "A = {'a': {'x': 'y'}}\n" + change + "\n")["A"] == Code(2)


@pytest.mark.parametrize(
    "harmless",
    [
        "print(A)",
        "assert set(A) == {'a'}",
        "def f():\n    A['a'] = 1",
        "class C:\n    A = 3",
        "if __name__ == '__main__':\n    A['a'] = f(A)\n    names = f(A)",
        "sys.path.append('x')",
        "for name in A:\n    print(name)",
    ],
)
def test_code_that_leaves_it_alone_does_no_harm(tmp_path: Path, harmless: str) -> None:
    assert tables(tmp_path, "A = {'a': 1}\n" + harmless + "\n")["A"] == {"a": 1}


def test_names_are_those_that_were_imported(tmp_path: Path) -> None:
    found = tables(tmp_path, "from x import Rows as R, Other\nA = {'a': R, 'b': Other, 'c': x.Third}\n")
    assert found["A"] == {"a": Named("Rows"), "b": Named("Other"), "c": Named("Third")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A = {'a': 1, 'a': 2}", "tables.py:1: the key 'a' comes twice; keep one of them"),
        (
            "a0 = 'x' * 1\nb0 = 'xxxxxxxxxx'\n" + "".join(f"b{n + 1} = b{n} + b{n}\n" for n in range(60)),
            "a text of more than 65536 characters; shorten it",
        ),
        ("A = {", "cannot be read as Python"),
        (b"A = 1\0", "cannot be read as Python"),
        (b"# -*- coding: nothing -*-\nA = 1", "cannot be read as Python (unknown encoding"),
        ("A = " + "[" * 300 + "]" * 300, "cannot be read as Python (too many nested parentheses"),
        ("A = " + " + ".join(["'x'"] * 5000), "cannot be read as Python (maximum recursion depth"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError) as error:
        tables(tmp_path, text)
    assert message in str(error.value)


def test_lists_that_share_lists_are_neither_written_out_nor_copied(tmp_path: Path) -> None:
    text = "b0 = ['x', 'y']\n" + "".join(f"b{n + 1} = [b{n}, b{n}]\n" for n in range(60))
    assert len(tables(tmp_path, text)["b60"]) == 2


def test_escapes_in_its_texts_are_no_warning_of_ours(tmp_path: Path) -> None:
    assert tables(tmp_path, r"A = '\d'")["A"] == r"\d"
