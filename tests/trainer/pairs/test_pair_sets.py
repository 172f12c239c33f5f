"""The pairs of a run: training sets, held-out sides of one task, what both have in common, thresholds, positions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.pair_rows import QUESTION, pair, side, write_pairs
from tests.support.text_rows import write_jsonl
from trainer.config import Config
from trainer.data.datasets import load_datasets, sampled
from trainer.data.prompts import DataError
from trainer.data.sampler import PromptSampler
from trainer.doctor.prompts import check_data
from trainer.evaluation.sets import load_sets
from trainer.programs.rl import read_material

TASKS = {"understand": {"rewards": {"accuracy": 1.0}}, "generate": {"rewards": {"drawn": 0.5}}}


def config(
    folder: Path, train: Path, *sets: dict[str, Any], tasks: Any = None, sampling: Any = None, **dataset: Any
) -> Config:
    rules = {"module": "rules", "args": {"functions": "mine.py"}}
    columns = {name: {"service": "rules"} for name in ("accuracy", "drawn")}
    raw = {
        "run_name": "run",
        "output_dir": str(folder / "outputs"),
        "max_steps": 4,
        "policy": {"type": "janus", "pretrained": str(folder)},
        "sampling": {"prompts_per_step": 2, "tasks": TASKS if tasks is None else tasks, **(sampling or {})},
        "rewards": {"launch": "local", "services": {"rules": rules}, "columns": columns},
        "data": {"train": ({"path": str(train), "format": "pairs", **dataset},)},
        "evaluation": {"sets": tuple(sets)},
    }
    for task in raw["sampling"]["tasks"].values():
        task |= {"group_size": 2, "micro_batch_size": 4}
    return Config.model_validate(raw)


def four(folder: Path, **changes: Any) -> Path:
    """Pairs whose questions are all about other images, and whose prompts differ."""
    rows = [
        pair(0.9 - n / 10, generate_ann={"prompt": f"draw {n}"}, understand_ann=side(f"{'abcd'[n]}.png"))
        for n in range(4)
    ]
    return write_pairs(folder, *rows)


def heldout(path: Path, task: str | None = "generate", **fields: Any) -> dict[str, Any]:
    return {"name": f"held_{task}", "path": str(path), "task": task, **fields}


def test_each_side_has_its_tasks_rewards(tmp_path: Path) -> None:
    (found,) = load_datasets(config(tmp_path, four(tmp_path)))
    assert {each.task: dict(each.weights) for each in sampled([found])} == {
        "understand": {"accuracy": 1.0},
        "generate": {"drawn": 0.5},
    }
    (alone,) = load_datasets(config(tmp_path, four(tmp_path), tasks={"generate": {"rewards": {"drawn": 1.0}}}))
    assert [each.task for each in sampled([alone])] == ["generate"] * 4


def test_rows_may_be_chosen_and_left_out_as_in_question_files(tmp_path: Path) -> None:
    path = four(tmp_path)
    (found,) = load_datasets(config(tmp_path, path, max_samples=2))
    assert len(found.prompts) == 2
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match=r"data\.train\.0: 1 of 5 rows cannot be used; .*\n.*similarity: missing"):
        load_datasets(config(tmp_path, path))
    material = read_material(config(tmp_path, path, bad_rows="leave_out"))
    assert any("1 of 5 rows are left out" in note for note in material.notes)
    for name in ("prompt_column", "delimiter"):
        with pytest.raises(ValueError, match=f"{name} acts on files of prompts, but format is pairs; leave {name} out"):
            config(tmp_path, path, **{name: ","})


def test_the_threshold_of_the_recipe_leaves_pairs_out_of_training_alone(tmp_path: Path) -> None:
    path = four(tmp_path / "train")
    held = write_pairs(tmp_path / "held", pair(0.1, generate_ann={"prompt": "other"}))
    made = config(tmp_path, path, heldout(held, "generate", format="pairs"), sampling={"similarity_threshold": 0.75})
    material = read_material(made)
    assert sorted(p.similarity for d in material.datasets for p in d.prompts) == [0.8, 0.9]
    assert any(
        "2 of 4 pairs are left out, less similar than sampling.similarity_threshold = 0.75" in n for n in material.notes
    )
    assert [p.text for p in material.heldout] == ["other"]


def test_held_out_pairs_give_the_sides_of_the_sets_task_once(tmp_path: Path) -> None:
    train = four(tmp_path / "train")
    rows = [pair(1.0, generate_ann={"prompt": f"new {n}"}, understand_ann=side("e.png")) for n in range(3)]
    held = write_pairs(tmp_path / "held", *rows, images=5)
    sets = load_sets(
        made := config(
            tmp_path, train, heldout(held, "understand", format="pairs"), heldout(held, "generate", format="pairs")
        ),
        sampled(load_datasets(made)),
    )
    asked, drawn = sets
    assert [(p.text, p.task) for p in asked.prompts] == [(QUESTION, "understand")]
    assert [(p.text, p.task) for p in drawn.prompts] == [(f"new {n}", "generate") for n in range(3)]
    assert asked.prompts[0].dataset == "held_understand" and asked.prompts[0].targets == ("A",)


@pytest.mark.parametrize("which", ["prompt", "question", "neither"])
def test_a_pair_is_left_out_where_either_side_is_held_out(tmp_path: Path, which: str) -> None:
    train = four(tmp_path / "train")
    held_image = tmp_path / "held" / "renamed.png"
    held = write_pairs(
        tmp_path / "held",
        pair(
            0.5,
            generate_ann={"prompt": "Draw  1" if which == "prompt" else "another"},
            understand_ann=side("renamed.png" if which == "question" else "e.png"),
        ),
        images=5,
    )
    shutil.copy(tmp_path / "train" / "c.png", held_image)
    made = config(
        tmp_path, train, heldout(held, "understand", format="pairs"), heldout(held, "generate", format="pairs")
    )
    material = read_material(made)
    texts = sorted(p.text for d in material.datasets for p in d.prompts)
    gone = {"prompt": "draw 1", "question": "draw 2", "neither": None}[which]
    assert texts == [f"draw {n}" for n in range(4) if f"draw {n}" != gone]
    assert len(material.overlap.left_out) == (which != "neither"), "a letter that comes again is no overlap"
    assert material.num_train == 4


def test_a_file_of_prompts_may_be_held_out_for_pairs(tmp_path: Path) -> None:
    train = four(tmp_path / "train")
    lines = write_jsonl(tmp_path / "held.jsonl", [{"prompt": "draw 3"}, {"prompt": "draw 9"}])
    made = config(tmp_path, train, heldout(lines))
    material = read_material(made.model_copy(update={"data": made.data.model_copy(update={"overlap": "drop"})}))
    assert len(material.datasets[0].prompts) == 3 and [p.task for p in material.heldout] == ["generate"] * 2


def test_the_position_belongs_to_the_pairs_as_they_were(tmp_path: Path) -> None:
    made = config(tmp_path, four(tmp_path))
    sampler = PromptSampler(load_datasets(made), prompts_per_step=2, seed=1, rank=0, world=1)
    drawn = sampler.draw()
    assert len({each.id for each in drawn}) == 2 and all(len(each.sides) == 2 for each in drawn)
    position = sampler.state_dict()
    again = PromptSampler(load_datasets(made), prompts_per_step=2, seed=1, rank=0, world=1)
    again.load_state_dict(position)
    assert again.draw() == sampler.draw()
    rows = [pair(0.9 - n / 10, generate_ann={"prompt": f"draw {n}"}, understand_ann=side(f"{'abcd'[n]}.png", answer="B")) for n in range(4)]  # fmt: skip
    write_pairs(tmp_path, *rows)
    changed = PromptSampler(load_datasets(made), prompts_per_step=2, seed=1, rank=0, world=1)
    with pytest.raises(DataError, match="the prompts of data set 'pairs' have changed"):
        changed.load_state_dict(position)


def test_the_doctor_says_what_pairs_there_are(tmp_path: Path) -> None:
    said = [f"{finding.status} {finding.message}" for finding in check_data(config(tmp_path, four(tmp_path)))]
    assert "OK pairs: 4 pairs, 2.0 epochs, rewards understand: accuracy 1; generate: drawn 0.5" in said
    assert any(
        "4 pairs, 0 aligned, 4 retrieved with similarities from 0.6 to 0.9 (median 0.75)" in line for line in said
    )


def test_pairs_that_are_read_as_prompts_say_which_format_reads_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: similarity: unknown field; .* `format: pairs` reads"):
        load_sets(config(tmp_path, four(tmp_path), heldout(four(tmp_path / "held"), "generate")), [])


def test_held_out_rows_that_are_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = four(tmp_path / "held")
    held.write_text(held.read_text() + "{}\n")
    made = config(tmp_path, four(tmp_path), heldout(held, "generate", format="pairs", bad_rows="leave_out"))
    (found,) = load_sets(made, [])
    assert len(found.prompts) == 4
    assert f"evaluation.sets.0: 1 of 5 rows are left out: {held}:5: similarity: missing" in caplog.text
