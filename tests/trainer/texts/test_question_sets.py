"""The training and held-out questions of a run: what recipes mean by them, and which of them are the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from machine.hub import is_hub_id
from tests.support.text_rows import png, write_jsonl, write_parquet
from trainer.__main__ import build_parser
from trainer.commands.recipes import recipe_of
from trainer.config import Config
from trainer.data.overlap import find_overlaps
from trainer.data.prompts import DataError
from trainer.data.sampler import PromptSampler
from trainer.doctor.prompts import check_data
from trainer.evaluation.sets import load_sets
from trainer.programs.rl import RlMaterial, read_material
from trainer.types import Prompt

ASKED = "what colour is it?"


def config(folder: Path, train: dict[str, Any], evaluation: dict[str, Any], **changes: Any) -> Config:
    rules = {"module": "rules", "args": {"functions": "mine.py"}}
    cache = {"image_cache": str(folder / "cache")}
    raw = {
        "run_name": "run",
        "output_dir": str(folder / "outputs"),
        "max_steps": 10,
        "policy": {"type": "vlm", "pretrained": str(folder)},
        "sampling": {"prompts_per_step": 2, "group_size": 2, "micro_batch_size": 4},
        "rewards": {"launch": "local", "services": {"rules": rules}, "columns": {"accuracy": {"service": "rules"}}},
        "data": {"train": ({"rewards": {"accuracy": 1.0}, **cache, **train},)},
        "evaluation": evaluation,
        **changes,
    }
    return Config.model_validate(raw, strict=True)


def image(color: int) -> dict[str, Any]:
    return {"bytes": png((color, 0, 0)), "path": None}


def questions(path: Path, colors: range) -> str:
    return str(write_parquet(path, [{"prompt": ASKED, "image": image(c), "answer": "red"} for c in colors]))


def texts(material: RlMaterial) -> tuple[int, int]:
    return len(material.prompts), len(material.heldout)


def test_a_policy_that_writes_is_asked_questions_without_a_word_in_the_recipe(tmp_path: Path) -> None:
    path = questions(tmp_path / "a.parquet", range(4))
    made = config(tmp_path, {"path": path}, {"sets": ({"name": "h", "path": path, "split": "train[:1]"},)})
    assert made.data.train[0].format == "questions" == made.evaluation.sets[0].format
    again = Config.model_validate(made.model_dump(mode="python"))
    assert again.data == made.data, "a resolved recipe means the same"
    lines = write_jsonl(tmp_path / "own.jsonl", [{"prompt": "x", "targets": ["SALE"]}])
    image_policy = config(
        tmp_path, {"path": str(lines), "format": "jsonl", "image_cache": None}, {}, policy={"type": "tiny"}
    )
    assert image_policy.data.train[0].format == "jsonl"
    with pytest.raises(ValueError, match="split acts with format: questions and pairs, but format is jsonl"):
        config(
            tmp_path,
            {"path": str(lines), "format": "jsonl", "image_cache": None, "split": "train"},
            {},
            policy={"type": "tiny"},
        )


def test_the_same_question_and_answer_about_other_images_are_new(tmp_path: Path) -> None:
    """Neither the question's text nor its answer make a held-out prompt known: the image does."""
    train, held = questions(tmp_path / "a.parquet", range(4)), questions(tmp_path / "b.parquet", range(3, 6))
    material = read_material(config(tmp_path, {"path": train}, {"path": held, "sets": ()}))
    assert texts(material) == (3, 3)
    (left,) = material.overlap.left_out
    assert left.what == "same prompt" and left.value.startswith(f"{ASKED} | ")


def test_images_are_compared_by_content_and_not_by_name(tmp_path: Path) -> None:
    for name, color in (("train/1.png", 1), ("train/2.png", 2), ("test/1.png", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png((color, 0, 0)))
    one, two, held = (
        Prompt(name, text, source_images=(str(tmp_path / path),))
        for name, text, path in (
            ("one", ASKED, "train/1.png"),
            ("two", f"<image> {ASKED.upper()}", "train/2.png"),
            ("held", ASKED, "test/1.png"),
        )
    )
    (found,) = find_overlaps([one, two], [held])
    assert found.train == two and found.value == f"{ASKED} | 2.png"
    assert not find_overlaps([Prompt("text", ASKED)], [held]), "a question without an image is another one"


def test_files_are_read_only_where_text_and_sizes_are_equal(tmp_path: Path) -> None:
    """A large data set is not read once more to be compared."""
    kept = tmp_path / "held.png"
    kept.write_bytes(png((1, 0, 0)))
    gone = tmp_path / "gone.png"
    shutil.copy(kept, gone)
    other = Prompt("other", "another question", source_images=(str(gone),))
    gone.unlink()
    assert not find_overlaps([other], [Prompt("held", ASKED, source_images=(str(kept),))])


def test_held_out_rows_make_the_evaluation_set(tmp_path: Path) -> None:
    path = questions(tmp_path / "a.parquet", range(10))
    made = config(tmp_path, {"path": path}, {"hold_out": 0.2, "temperature": 0.0})
    material = read_material(made)
    assert texts(material) == (8, 2) and not material.overlap.left_out
    (kept,) = material.sets
    assert (kept.name, kept.rewards, kept.temperature) == ("", ("accuracy",), 0.0) and made.evaluation.active
    sampler = PromptSampler(material.datasets, prompts_per_step=8, seed=1, rank=0, world=1)
    assert {prompt.id for prompt in sampler.draw()}.isdisjoint(prompt.id for prompt in kept.prompts)


def test_what_comes_twice_is_not_in_both_parts(tmp_path: Path) -> None:
    rows = [{"prompt": ASKED, "image": image(n % 3), "answer": "red", "n": n} for n in range(12)]
    path = str(write_parquet(tmp_path / "a.parquet", rows))
    material = read_material(config(tmp_path, {"path": path}, {"hold_out": 0.1}))
    held = {prompt.source_images for prompt in material.heldout}
    assert held and held.isdisjoint(prompt.source_images for prompt in material.prompts)


def test_several_training_sets_are_evaluated_under_their_names(tmp_path: Path) -> None:
    train = tuple(
        {
            "path": questions(tmp_path / f"{name}.parquet", colors),
            "rewards": {"accuracy": 1.0},
            "image_cache": str(tmp_path),
        }
        for name, colors in (("a", range(5)), ("b", range(5, 10)))
    )
    made = config(tmp_path, {}, {"hold_out": 0.2}, data={"train": train})
    material = read_material(made)
    assert [(each.name, len(each.prompts)) for each in material.sets] == [("a", 1), ("b", 1)]
    assert load_sets(made, material.prompts) == [], "nothing else is held out"
    with pytest.raises(ValueError, match=r"data\.train\.1\.name = 'accuracy' is also a reward"):
        config(tmp_path, {}, {"hold_out": 0.2}, data={"train": (train[0], {**train[1], "name": "accuracy"})})


@pytest.mark.parametrize(
    ("train", "evaluation", "words"),
    [
        ({}, {"hold_out": 0.2, "path": "b.parquet"}, "hold_out = 0.2 makes the evaluation set where none is named, but evaluation.path names one"),
        ({"format": "rows", "image_cache": None}, {"hold_out": 0.2}, "evaluation.hold_out = 0.2 takes rows of training sets with format: questions, but data.train.0.format is rows"),
        ({}, {"path": "a.parquet"}, "evaluation.path and data.train.0.path are both a.parquet"),
        ({"split": "train[:5]"}, {"sets": ({"name": "h", "path": "a.parquet", "split": "train[:5]"},)}, "evaluation.sets.0.path and data.train.0.path are both a.parquet"),
    ],
)  # fmt: skip
def test_a_recipe_that_contradicts_itself_is_refused(
    tmp_path: Path, train: dict[str, Any], evaluation: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError) as raised:
        config(tmp_path, {"path": "a.parquet", **train}, evaluation)
    assert words in str(raised.value)


def test_parts_of_one_file_may_be_trained_on_and_held_out(tmp_path: Path) -> None:
    path = questions(tmp_path / "a.parquet", range(10))
    held = {"name": "held", "path": path, "split": "train[80%:]", "image_cache": str(tmp_path)}
    assert texts(read_material(config(tmp_path, {"path": path, "split": "train[:80%]"}, {"sets": (held,)}))) == (8, 2)


def test_files_of_prompts_alone_are_read_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("2 + 2?\n3 + 3?\n")
    assert texts(read_material(config(tmp_path, {"path": str(tmp_path / "a.txt"), "image_cache": None}, {}))) == (2, 0)
    with pytest.raises(
        DataError, match=r"data\.train\.0: max_samples acts on rows with columns, of \.json, .* has a prompt a line"
    ):
        read_material(config(tmp_path, {"path": str(tmp_path / "a.txt"), "image_cache": None, "max_samples": 1}, {}))


def test_the_doctor_shows_what_the_file_makes_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "pre.py").write_text("def ask(row):\n    return {'prompt': row['prompt'] + ' Think.'}\n")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a?"}, {"prompt": 3}, {"prompt": "b?"}])
    train = {"path": str(path), "preprocessing": str(tmp_path / "pre.py"), "bad_rows": "leave_out"}
    made = config(tmp_path, {**train, "split": "train[:1]"}, {})
    found = [finding for finding in check_data(made) if "preprocessing" in finding.message]
    assert [(finding.status, "prompt = 'a? Think.'" in finding.message) for finding in found] == [("WARN", True)]


def test_a_hub_id_and_a_path_that_is_not_there_are_told_apart_before_torch_is_loaded(tmp_path: Path) -> None:
    assert is_hub_id(Path("lmms-lab/multimodal-open-r1-8k-verified"))
    for path in ("data/rows", "sets/rows.jsonl", "/data/rows", "rows", "a/b/c", str(tmp_path)):
        assert not is_hub_id(Path(path))
    named = ["data.train.0.path=some/data-set", "policy.type=vlm", f"policy.pretrained={tmp_path}"]
    recipe = tmp_path / "recipe.yaml"
    raw = config(tmp_path, {"path": "a.jsonl"}, {}).model_dump(mode="json")
    recipe.write_text(
        yaml.safe_dump({name: raw[name] for name in ("run_name", "max_steps", "policy", "rewards", "data")})
    )
    asked = build_parser().parse_args(["train", str(recipe), *named])
    assert recipe_of(asked).data.train[0].path == "some/data-set"
    asked.overrides = [*named[1:], f"data.train.0.path={tmp_path / 'a.jsonl'}"]
    with pytest.raises(DataError, match=r"no data at .*a\.jsonl.*a hub id is owner/name"):
        recipe_of(asked)


def test_what_is_to_be_said_of_the_rows_is_the_materials(tmp_path: Path) -> None:
    (tmp_path / "pre.py").write_text("def ask(row):\n    return {'prompt': row['prompt'] + ' Think.'}\n")
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a?"}, {"prompt": "b?"}, {"prompt": 3}])
    made = config(tmp_path, {"path": str(path), "preprocessing": str(tmp_path / "pre.py"), "split": "train[:2]"}, {})
    (note,) = read_material(made).notes
    assert "data.train.0.preprocessing" in note and "prompt = 'a? Think.'" in note
