"""The data-set file of DeepGen-RL's supervised loss: read as text where it is plain, and said where it is lost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from trainer.__main__ import build_parser
from trainer.config import ConfigError, SftLossConfig
from trainer.data.captions import CaptionData
from trainer.migration.deepgen.command import from_deepgen
from trainer.migration.deepgen.flags import FLAGS
from trainer.migration.deepgen.mmengine_file import PictureSet, read_picture_sets

FILE = """\
import os
from mmengine.config import read_base
from somewhere import BLIP3oDataset, collate
with read_base():
    from .processors import image_size
DATA_ROOT = os.environ.get('DATA_ROOT', '/path/to/your/data')
general = dict(
    type=BLIP3oDataset, image_size=image_size, data_path=f'{DATA_ROOT}/sft/general.json', ceph_folder=None, sample_weight=1.0
)
text = dict(
    type=BLIP3oDataset,
    data_path=os.path.join(DATA_ROOT, 'sft', 'text.json'),
    image_folder=DATA_ROOT + '/raw',
    sample_weight=3.0,
)
train_dataloader = dict(
    batch_size=2, dataset=dict(type='ConcatDataset', datasets=[general, text]), collate_fn=dict(type=collate)
)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WORLD_SIZE", "NGPUS", "DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_sft.py").write_text(FILE)
    (tmp_path / "prompts.txt").write_text("a dog\n")
    return tmp_path


def translated(flags: str) -> str:
    base = "--reward_funcs ocr --prompts_file prompts.txt --max_steps 9 --gpus 8"
    return from_deepgen(build_parser().parse_args(["from-deepgen", *shlex.split(f"{base} {flags}")]))


def test_sets_folders_and_weights_are_read_from_the_text(folder: Path) -> None:
    assert read_picture_sets(folder / "my_sft.py", {"DATA_ROOT": "/data"}) == [
        PictureSet("/data/sft/general.json", None, 1.0),
        PictureSet("/data/sft/text.json", "/data/raw", 3.0),
    ]
    (default, _) = read_picture_sets(folder / "my_sft.py", {})
    assert default.path == "/path/to/your/data/sft/general.json"


def test_one_set_and_weights_of_the_sampler(folder: Path) -> None:
    path = folder / "one.py"
    path.write_text("train_dataloader = dict(dataset={'data_path': 'a.json'}, sampler=dict(sample_weights=[2]))\n")
    assert read_picture_sets(path) == [PictureSet("a.json", None, 2.0)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = (", "is no Python file"),
        ("x = 1", "train_dataloader has no plain `dataset`"),
        ("train_dataloader = make()", "train_dataloader has no plain `dataset`"),
        ("train_dataloader = dict(dataset=dict(datasets=sets()))", "datasets is not a plain list"),
        ("train_dataloader = dict(dataset=dict(data_path=find()))", "picture set 0: data_path is not a plain text"),
        ("p = 'a'\nfor p in f(): pass\ntrain_dataloader = dict(dataset=dict(data_path=p))", "data_path is not a plain"),
        ("p = ['a']\np.append(g())\ntrain_dataloader = dict(dataset=dict(datasets=p))", "datasets is not a plain list"),
        ("train_dataloader = dict(dataset=dict(data_path='a', image_folder=f()))", "image_folder is not a plain text"),
        (
            "train_dataloader = dict(dataset=dict(data_path='a', sample_weight=0))",
            "sample_weight is not a plain number",
        ),
        (
            "train_dataloader = dict(dataset=dict(data_path='a', image_latents_folder='b'))",
            "image_latents_folder is given",
        ),
    ],
)
def test_what_is_not_plain_is_named_and_nothing_is_run(folder: Path, code: str, words: str) -> None:
    path = folder / "odd.py"
    path.write_text(f"{code}\nopen('ran', 'w').close()\n")
    with pytest.raises(ConfigError, match=words):
        read_picture_sets(path)
    assert not (folder / "ran").exists()


def test_the_recipe_has_the_sets_by_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_ROOT", "data")
    recipe = yaml.safe_load(translated("--sftaux_dataset_config my_sft.py --sftaux_micro_batch_size 4"))
    assert recipe["sft"]["sets"] == [
        {"path": f"{folder}/data/sft/general.json", "image_folder": str(folder), "weight": 1.0},
        {"path": f"{folder}/data/sft/text.json", "image_folder": f"{folder}/data/raw", "weight": 3.0},
    ]
    assert recipe["sft"]["batch_size"] == 32 and recipe["sft"]["size"] == [512, 512]
    assert "2 of 2 files are not here" in capsys.readouterr().err
    for name in ("general", "text"):
        path = folder / f"data/sft/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]")
    translated("--sftaux_dataset_config my_sft.py")
    assert "not here" not in capsys.readouterr().err


def test_a_lost_loss_is_said_in_the_recipe_and_on_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "odd.py").write_text("train_dataloader = make()\n")
    for flags, words in (
        ("--sftaux_dataset_config odd.py", "train_dataloader has no plain `dataset`"),
        ("--sftaux_dataset_config no.py", "no.py cannot be read"),
        ("", "the default there: this recipe has no supervised loss"),
    ):
        text = translated(flags)
        head = text.partition("run_name")[0]
        assert words in head and "this recipe has no supervised loss" in head and "objective:\n" in text
        assert "sft:" not in text
        assert words in capsys.readouterr().err
    translated("--sftaux_coef 0")
    assert "supervised loss" not in capsys.readouterr().err, "it is off"


def test_the_default_file_is_read_inside_their_checkout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / str(FLAGS["sftaux_dataset_config"].default)
    path.parent.mkdir(parents=True)
    path.write_text(FILE)
    text = translated("")
    assert "2 of its 2 files are not here" in text and "the variable DATA_ROOT" in text and "sft:" not in text


def test_entries_are_drawn_by_their_weights(folder: Path) -> None:
    for name, count in (("general", 40), ("text", 10)):
        rows = [{"image_path": f"{name}{i}.png", "txt": f"{name} {i}"} for i in range(count)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    sets = ({"path": "general.json"}, {"path": "text.json", "image_folder": "raw", "weight": 4.0})
    data = CaptionData(SftLossConfig.model_validate({"sets": sets}), seed=1)
    drawn = [data._row(i * 2**63 // 1000) for i in range(1000)]
    assert sum(row.text.startswith("text") for row in drawn) == 500, "10 entries of weight 4 beside 40 of weight 1"
    assert {row.picture.parent.name for row in drawn if row.text.startswith("text")} == {"raw"}
    data.leave_out({f"general {i}" for i in range(40)})
    assert {data._row(i * 2**63 // 50).text for i in range(50)} == {f"text {i}" for i in range(10)}
    with pytest.raises(ValueError, match="one of the two"):
        SftLossConfig.model_validate({"path": "a.json", "sets": sets})
    with pytest.raises(ValueError, match="one of the two"):
        SftLossConfig.model_validate({})
