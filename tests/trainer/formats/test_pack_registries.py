"""Tables of data sets that others have: read and never run, each group and set as a section of ours, what is wrong by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.packed_rows import ROWS, write_images, write_rows
from trainer.config.packed import PackedConfig
from trainer.data.formats.groups import group_notes, read_groups
from trainer.data.formats.neo.registry import Used, read_neo_registry, used_sets
from trainer.data.formats.unireason import instructions
from trainer.data.formats.unireason.grouping import read_grouping
from trainer.data.formats.unireason.instructions import PUBLISHED, REFINE, THINK, read_instructions
from trainer.data.overlap import Settled
from trainer.data.prompts.checks import DataError
from trainer.programs.packs import PackMaterial

INFO = """
import os
from .interleave_datasets.t2i import T2ISFTIterableDataset
from .interleave_datasets.edit import TI2ISFTIterableDataset as Edits
import nothing_that_is_installed

ROOT = "{root}"
open("{root}/was_run", "w").write("it was")
DATASET_REGISTRY = {{
    "pictures": T2ISFTIterableDataset,
    'edits': data.TI2ISFTIterableDataset,
    "videos": VideoIterableDataset,
}}
DATASET_INFO = {{
    "pictures": {{
        "first": {{"jsonl_path": f"{{ROOT}}/first.json", "data_dir": "", "image_prefix_dir": ROOT}},
        "second": {{"jsonl_path": ROOT + "/second.jsonl", "image_prefix_dir": os.path.join(ROOT, "")}},
        "unchanged": {{"jsonl_path": "your_data_path/x.json", "image_prefix_dir": "your_data_path"}},
        "nowhere": {{"parquet_info_path": "x"}},
    }},
    "edits": {{"edits": {{"jsonl_path": "{root}/edits.json", "image_prefix_dir": "{root}"}}}},
}}
"""
GROUPING = """
pictures:
  dataset_names:
  - first
  - second
  num_used_data: [1, None]
  image_transform_args:
    image_stride: 16
    max_image_size: 1024
    min_image_size: 512
  weight: 2
  is_mandatory: true
  shuffle_lines: true
edits:
  dataset_names: [edits]
  num_used_data: None
  vit_image_transform_args: {image_stride: 14, max_image_size: 532, min_image_size: 224}
  weight: 0.5
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A registry, a table of groups, and their data."""
    write_images(tmp_path)
    write_rows(tmp_path / "first.json", [ROWS["t2i"]] * 3)
    write_rows(tmp_path / "second.jsonl", [ROWS["t2i"]] * 2, array=False)
    write_rows(tmp_path / "edits.json", [ROWS["edit"]])
    (tmp_path / "dataset_info.py").write_text(INFO.format(root=tmp_path))
    (tmp_path / "groups.yaml").write_text(GROUPING)
    return tmp_path


def packed(folder: Path, **fields: Any) -> PackedConfig:
    return PackedConfig.model_validate(
        {"grouping": str(folder / "groups.yaml"), "registry": str(folder / "dataset_info.py"), **fields}
    )


def test_a_table_of_groups_is_read_as_it_is(files: Path) -> None:
    groups, notes = read_grouping(files / "groups.yaml", files / "dataset_info.py")
    pictures, edits = groups
    assert [(each.name, each.weight, each.mandatory) for each in groups] == [
        ("pictures", 2, True),
        ("edits", 0.5, False),
    ]
    assert [(each.name, each.format, each.max_rows) for each in pictures.sets] == [
        ("first", "t2i", 1),
        ("second", "t2i", None),
    ]
    assert (pictures.sets[0].path, pictures.sets[0].image_folder) == (f"{files}/first.json", str(files))
    assert pictures.image_size is not None and edits.seen_size is not None
    assert (pictures.image_size.stride, pictures.image_size.longest, pictures.image_size.shortest) == (16, 1024, 512)
    assert (edits.seen_size.stride, edits.seen_size.longest, edits.seen_size.shortest) == (14, 532, 224)
    assert edits.image_size is None and edits.sets[0].format == "edit"
    assert len(notes) == 1 and "shuffle_lines of pictures does nothing" in notes[0]
    assert not (files / "was_run").exists()


def test_its_groups_are_drawn_from(files: Path) -> None:
    pictures, edits = read_groups(packed(files), seed=0)
    assert (len(pictures), len(edits), pictures.mandatory) == (3, 1, True)  # one of three, and both of the other file
    plans, number = edits.row(0, 0)
    assert plans.plan(number).id == f"{files}/edits.json:1"
    said = PackMaterial((), (), Settled(), 0, [pictures, edits], group_notes(packed(files))).notes
    assert "shuffle_lines of pictures does nothing" in said[0] and said[1] == "packed: pictures: 3 rows, 0 held out"
    assert group_notes(packed(files)) == read_grouping(files / "groups.yaml", files / "dataset_info.py")[1]


def test_a_registry_may_be_yaml(files: Path) -> None:
    tables = {
        "DATASET_REGISTRY": {"pictures": "t2i", "edits": "TI2ISFTIterableDataset"},
        "DATASET_INFO": {
            "pictures": {
                name: {"jsonl_path": str(files / name), "image_prefix_dir": None} for name in ("first", "second")
            },
            "edits": {"edits": {"jsonl_path": "edits.json"}},
        },
    }
    (files / "registry.yaml").write_text(yaml.safe_dump(tables))
    (pictures, edits), _ = read_grouping(files / "groups.yaml", files / "registry.yaml")
    assert [each.sets[0].format for each in (pictures, edits)] == ["t2i", "edit"]
    assert pictures.sets[0].image_folder == "."  # without a prefix paths are taken as they are


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": 3}, "groups.yaml: pictures: 3 is no table of fields"),
        ({"picture": {"dataset_names": ["first"], "weight": 1}}, "DATASET_REGISTRY: no group picture; did you mean pictures?"),
        ({"videos": {"dataset_names": ["x"], "weight": 1}}, "'VideoIterableDataset' is not read here"),
        ({"edits": {"dataset_names": ["edit"], "weight": 1}}, "DATASET_INFO: edits: no data set edit; did you mean edits?"),
        ({"edits": {"dataset_names": [], "weight": 1}}, "edits: dataset_names: [] is no list of data sets"),
        ({"edits": {"weight": 1}}, "edits: dataset_names: None is no list of data sets"),
        ({"edits": {"dataset_names": ["edits"]}}, "edits: weight: missing, which is 0 there"),
        ({"edits": {"dataset_names": ["edits"], "weight": 0}}, "edits: weight: 0: no row of it would be drawn"),
        ({"edits": {"dataset_names": ["edits"], "weight": "much"}}, "edits: weight: must be a valid number (given: 'much')"),
        ({"edits": {"dataset_names": ["edits"], "weight": -1}}, "edits: weight: must be greater than 0 (given: -1)"),
        ({"edits": {"dataset_names": ["edits"], "weight": True}}, "edits: weight: must be a valid number (given: True)"),
        ({"edits": {"dataset_names": ["edits"], "weight": float("nan")}}, "edits: weight: must be a finite number (given: nan)"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "is_mandatory": "yes, please"}}, "edits: is_mandatory: must be a valid boolean"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "num_used_data": 2.5}}, "num_used_data: 2.5 is neither a whole number"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "num_used_data": True}}, "num_used_data: True is neither a whole number"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "num_used_data": float("inf")}}, "num_used_data: inf is neither a whole"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "vit_image_transform_args": {"image_stride": 0, "max_image_size": 1, "min_image_size": 1}}}, "vit_image_transform_args.image_stride: must be greater than or equal to 1 (given: 0)"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "is_mandatry": True}}, "is_mandatry: not known; did you mean is_mandatory?"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "num_used_data": "few"}}, "num_used_data: 'few' is neither a whole number of rows nor None"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "num_used_data": [1, 2]}}, "num_used_data: 2 numbers for 1 data sets"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "image_transform_args": {"image_stride": 16}}}, "max_image_size: missing"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "image_transform_args": {"stride": 16}}}, "stride: not known"),
        ({"edits": {"dataset_names": ["edits"], "weight": 1, "image_transform_args": 16}}, "image_transform_args: 16 is no table"),
        ({"pictures": {"dataset_names": ["unchanged"], "weight": 1}}, "jsonl_path: your_data_path/x.json still has your_data_path"),
        ({"pictures": {"dataset_names": ["nowhere"], "weight": 1}}, "nowhere: no jsonl_path, the file with its rows"),
        ({}, "groups.yaml: has no group"),
        ([1], "groups.yaml: [1] is no table of names"),
    ],
)  # fmt: skip
def test_a_wrong_table_of_groups_is_refused_by_name(files: Path, change: Any, message: str) -> None:
    (files / "groups.yaml").write_text(yaml.safe_dump(change))
    with pytest.raises(DataError) as error:
        read_groups(packed(files), seed=0)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edits: {weight: 1}\nedits: {weight: 2}\n", "the key 'edits' comes twice; keep one of them"),
        ("edits: {weight: 1, weight: 2}\n", "the key 'weight' comes twice"),
        ("edits: {shuffle_seed: 2024-13-45}\n", "cannot be read as YAML (month must be in 1..12)"),
        ("edits: !!python/object/apply:os.system [id]\n", "cannot be read as YAML (could not determine a constructor"),
        ("edits:\n\tweight: 1\n", "cannot be read as YAML (while scanning"),
        ("a: 1\n---\nb: 1\n", "cannot be read as YAML (expected a single document"),
        ("edits: " + "[" * 3000 + "]" * 3000, "cannot be read as YAML (maximum recursion depth exceeded"),
        ("edits: \xff", "not UTF-8 text (byte 7); save the file as UTF-8"),
        ("edits: \0", "cannot be read as YAML (unacceptable character"),
        ("", "None is no table of names"),
        ("g: &a [x, x, x, x, x, x, x, x]\n" + "".join(f"g{n}: &a{n} [{', '.join(['*a' + str(n - 1 or '')] * 8)}]\n" for n in range(1, 9)), "is no table of fields"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_read_is_refused(files: Path, text: str, message: str) -> None:
    (files / "groups.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as error:
        read_groups(packed(files), seed=0)
    assert message in str(error.value) and "groups.yaml" in str(error.value)


def test_anchors_and_merged_tables_are_read(files: Path) -> None:
    text = "pictures: &all\n  dataset_names: [first]\n  weight: 1\nedits:\n  <<: *all\n  dataset_names: [edits]\n"
    (files / "groups.yaml").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [(each.name, each.weight, len(each)) for each in read_groups(packed(files), seed=0)] == [
        ("pictures", 1.0, 3),
        ("edits", 1.0, 1),
    ]


def test_a_field_that_is_nearly_one_is_not_passed_over(files: Path) -> None:
    """Images would be looked for in the working directory."""
    (files / "dataset_info.py").write_text(
        INFO.format(root=files).replace('"image_prefix_dir": ROOT', '"image_prefix": ROOT')
    )
    with pytest.raises(DataError, match=r"pictures: first: image_prefix: not known; did you mean image_prefix_dir\?$"):
        read_groups(packed(files), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DATASET_REGISTRY = {}", "no table DATASET_INFO, a dictionary of constants"),
        (
            "DATASET_REGISTRY = make()\nDATASET_INFO = {}",
            "dataset_info.py:1: DATASET_REGISTRY is made or changed by code there",
        ),
        (
            "DATASET_REGISTRY = {'pictures': t2i()}\nDATASET_INFO = {}",
            "dataset_info.py:1: DATASET_REGISTRY: pictures is made or changed",
        ),
        (
            "DATASET_REGISTRY = {'pictures': 't2i'}\nDATASET_INFO = {'pictures': load()}",
            "py:2: DATASET_INFO: pictures is made or changed",
        ),
        (
            "DATASET_REGISTRY = {'pictures': 't2i', 'edits': 'edit'}\nDATASET_INFO = {'pictures': {'first': {'jsonl_path': get('x')}}}",
            "dataset_info.py:2: DATASET_INFO: pictures: first: jsonl_path is made or changed by code there, and nothing of the file is run; "
            "write it as constants, or the same tables as YAML",
        ),
        ("DATASET_REGISTRY = {", "cannot be read as Python"),
        ("DATASET_REGISTRY = {}\nDATASET_INFO = {}", "DATASET_REGISTRY: no group pictures; known are: none"),
    ],
)
def test_a_wrong_registry_is_refused_by_name(files: Path, text: str, message: str) -> None:
    (files / "dataset_info.py").write_text(text)
    with pytest.raises(DataError) as error:
        read_groups(packed(files), seed=0)
    assert message in str(error.value)


def sections(**fields: Any) -> PackedConfig:
    return PackedConfig.model_validate({"groups": [{"name": "a", "sets": [{"path": "a", "format": "t2i"}]}], **fields})


def test_instructions_are_ours_unless_files_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = read_instructions(sections())
    assert (ours.think, ours.refine, ours.notes) == (THINK, REFINE, ())
    (tmp_path / "think.txt").write_text("Think first.\n")
    (tmp_path / "think_refine_t2i.py").write_text('class Rows:\n    def row(self):\n        prompt = "Draw twice.\'"\n')
    monkeypatch.setitem(PUBLISHED, "think", hashlib.sha256(b"Think first.").hexdigest())
    found = read_instructions(
        sections(
            think_instruction=str(tmp_path / "think.txt"), refine_instruction=str(tmp_path / "think_refine_t2i.py")
        )
    )
    assert (found.think, found.refine) == ("Think first.", "Draw twice.'")
    assert "(12 characters, sha256" in found.notes[0] and found.notes[0].endswith("is UniReason's, as published")
    assert found.notes[1].endswith("is not UniReason's published one, which its checkpoints expect")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.txt", None, "packed.refine_instruction = {}: no file at"),
        ("empty.txt", b"\n", "packed.refine_instruction = {}: the text is empty"),
        ("latin.txt", b"\xe9", "not UTF-8 text (byte 0)"),
        ("two.py", b"prompt = 'a'\nprompt = 'b'\n", "2 texts are assigned to `prompt` there"),
        ("think.txt", b"Think first.", "is UniReason's think instruction; name it as packed.think_instruction"),
    ],
)
def test_a_wrong_instruction_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: bytes | None, message: str
) -> None:
    monkeypatch.setitem(instructions.PUBLISHED, "think", hashlib.sha256(b"Think first.").hexdigest())
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError) as error:
        read_instructions(sections(refine_instruction=str(tmp_path / name)))
    assert message.format(tmp_path / name) in str(error.value)


NEO = """
SHAPES = {"annotation_path": "shapes.jsonl", "data_path": "pictures"}
data_dict = {"shapes": SHAPES, "texts": {"annotation_path": "texts.json", "data_path": ""}, "empty": {"annotation_path": ""}}
data_dict["gone"] = load("gone")
data_dict["made"] = {"annotation_path": path("made"), "data_path": None}
data_dict["near"] = {"annotation_path": "a.json", "data_paths": ""}
data_dict["numbers"] = {"annotation_path": 3}
"""


def test_the_sets_of_a_run_are_found_with_their_shares(tmp_path: Path) -> None:
    path = tmp_path / "data.py"
    path.write_text(NEO)
    assert {"shapes", "texts", "empty"} <= read_neo_registry(path).keys()
    assert used_sets(path, "texts%12.5, shapes") == [
        Used("texts", "texts.json", "", 0.125, 12.5),
        Used("shapes", "shapes.jsonl", "pictures", 1.0, 100.0),
    ]
    assert [each.share for each in used_sets(path, "texts%150,shapes%0")] == [1.0, 0.0]
    listed = tmp_path / "data.yaml"
    listed.write_text("shapes: {annotation_path: shapes.jsonl, data_path: pictures}")
    assert used_sets(listed, "shapes") == [Used("shapes", "shapes.jsonl", "pictures", 1.0, 100.0)]


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("shape%50", "no data set 'shape' in {}; did you mean shapes?"),
        ("nothing", "no data set 'nothing' in {}; known are: SHAPES, shapes, texts, empty, made, near, numbers"),
        ("shapes%x", "'x' is no number; write shapes%25"),
        ("shapes%1_0", "'1_0' is no number"),
        ("shapes%", "'' is no number"),
        ("shapes%nan", "nan is no percentage"),
        ("shapes,", "no data set '' in {}"),
        ("Shapes", "no data set 'Shapes' in {}; did you mean shapes?"),
        ("made", "made: annotation_path is made or changed by code there"),
        ("near", "near: data_paths: not known; did you mean data_path?"),
        ("numbers", "numbers: annotation_path: 3 is no path"),
        (
            "more",
            "no data set 'more' in {}; known are: SHAPES, shapes, texts, empty, made, near, numbers; data_dict['gone'] (line 4) is made or changed by code, which is not run",
        ),
        ("shapes%-1", "-1 is no percentage; give one from 0 to 100"),
        ("shapes,shapes%5", "shapes stands there twice"),
        ("empty", "empty: annotation_path is empty"),
    ],
)
def test_a_wrong_list_of_sets_is_refused_by_name(tmp_path: Path, use: str, message: str) -> None:
    path = tmp_path / "data.py"
    path.write_text(NEO)
    with pytest.raises(DataError) as error:
        used_sets(path, use)
    assert message.format(path) in str(error.value)
