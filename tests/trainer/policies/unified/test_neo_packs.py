"""NEO's rows from their files into packs: the same whenever they are fetched, cut at a row's end, weighed by their row, and two images of
a row apart from each other."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config.packed import PackedConfig
from trainer.data.formats.groups import read_groups
from trainer.data.packing.lanes import Lanes
from trainer.data.sequences import ImageItem, SequencePlan, TextItem
from trainer.objectives.packed import PackBatch, SupervisedPacks
from trainer.policies.base import Laying
from trainer.policies.unified.attention import sees
from trainer.policies.unified.neo.laying import LaidRow
from trainer.policies.unified.neo.policy import NeoPolicy
from trainer.policies.unified.neo.rows import packed
from trainer.programs.packs import lay_training


def conversation(asked: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}], **fields}


def written(folder: Path, name: str, rows: list[Any]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def section(paths: list[str], images: Path, **fields: Any) -> PackedConfig:
    """One group of files of conversations."""
    sets = [{"path": path, "format": "conversations", "image_folder": str(images)} for path in paths]
    return PackedConfig.model_validate({"groups": [{"name": "all", "sets": sets}], "workers": 0, **fields})


def lanes_of(neo: NeoPolicy, config: PackedConfig) -> Lanes[LaidRow]:
    return Lanes(config, read_groups(config, 1), 1, partial(lay_training, neo, config))  # type: ignore[arg-type]


def test_two_images_of_a_row_see_what_comes_before_and_themselves_and_not_the_other(
    neo: NeoPolicy, neo_pictures: list[str]
) -> None:
    """The mask of NEO: same document and (causal or same image)."""
    first, second = (ImageItem(path, "seen") for path in neo_pictures[:2])
    items = (TextItem("the", role="user"), first, TextItem("left"), second, TextItem("what"))
    row = neo.lay(SequencePlan("row", (*items, TextItem("red", learnt=True, role="assistant"))), Laying(0)).row
    _, layout = packed([row], torch.device("cpu"))
    count = len(row.ids_T)
    own = [(row.images_T == number).nonzero()[:, 0] for number in (1, 2)]
    assert [len(each) for each in own] == [4, 4]
    expected = torch.ones(count, count).tril().bool()
    for each in own:
        expected[each[:, None], each] = True
    seen = sees(layout, torch.arange(count)[:, None], torch.arange(count)[None])
    assert torch.equal(seen, expected)
    assert not seen[own[0][:, None], own[1]].any() and seen[own[1][:, None], own[0]].all()
    steps = row.places_3T[0].diff()
    inside = torch.cat([each[1:] for each in own])  # an image takes one step of time, with its first token
    assert steps[inside - 1].tolist() == [0] * 6 and steps.sum() == count - 1 - 6 and steps.max() == 1


def test_a_row_fetched_twice_is_the_same(neo: NeoPolicy, neo_pictures: list[str], tmp_path: Path) -> None:
    """Of one image, of several, of text alone, and of a list of rows. (Rows that are changed where they are kept grow at every reading.)"""
    names = [Path(path).name for path in neo_pictures]
    rows = [
        conversation("<image>\nwhat color", "red disc", image=names[0]),
        conversation("what <image> or <image>", "two", image=names[:2]),
        conversation("how many", "two"),
        [conversation("what", "red", image=names[2]), conversation("which <image>", "one", images=[names[3]])],
    ]
    lanes = lanes_of(neo, section([written(tmp_path, "rows.jsonl", rows)], Path(neo_pictures[0]).parent))
    fetched = [[lanes.read((0, position)) for position in range(5)] for _ in range(3)]
    assert len({each.id for each in fetched[0]}) == 5
    assert sum(int(each.row.images_T.max()) for each in fetched[0]) == 5, "images"
    for again in fetched[1:]:
        for one, other in zip(fetched[0], again, strict=True):
            assert (one.id, one.learnt, one.length) == (other.id, other.learnt, other.length)
            for name in ("ids_T", "places_3T", "images_T", "patches_MC", "patch_places_M2"):
                assert torch.equal(getattr(one.row, name), getattr(other.row, name)), name


def test_packs_are_cut_at_a_rows_end_and_a_row_too_long_is_named(
    neo: NeoPolicy, neo_pictures: list[str], tmp_path: Path
) -> None:
    """Packs of eight rows have room for three: three go in, and the fourth begins the next pack. (NEO drops what does not fit.)"""
    images = Path(neo_pictures[0]).parent
    row = conversation("what color", "red disc", image=Path(neo_pictures[0]).name)
    long = conversation("what " * 80, "red")
    path = written(tmp_path, "rows.jsonl", [*[row] * 3, long, *[row] * 4])
    length = neo.lay(lanes_of(neo, section([path], images)).groups[0].sets[0].plans.plan(0), Laying(0)).length
    most = 3 * length + 2
    fields = {"fill": "rows", "rows_per_pack": 8, "expected_tokens": most, "max_tokens": most}
    lanes = lanes_of(neo, section([path], images, **fields))
    packs = [pack for _ in range(5) for pack in lanes.packs()]
    assert [[each.length for each in pack.rows] for pack in packs] == [[length] * 3] * 5
    whole = neo.lay(lanes.groups[0].sets[0].plans.plan(3), Laying(0)).length
    said = f"{path}:4 has {whole} tokens, packed.max_tokens is {most}; raise it or shorten the row"
    left_out = [sentence for pack in packs for sentence in pack.left_out]
    assert set(left_out) == {said} and 1 <= len(left_out) <= 3
    taken = [position for pack in packs for _, position in pack.keys]
    assert taken == sorted(taken) and len(taken) == 15, "none is lost, none comes twice"
    assert set(range(taken[-1] + 1)) - set(taken) == {p for p in range(taken[-1] + 1) if is_long(lanes, p)}


def is_long(lanes: Lanes[LaidRow], position: int) -> bool:
    return lanes.groups[0].row(position, 1)[1] == 3


def test_a_token_weighs_one_by_the_root_of_what_its_row_learns(
    neo: NeoPolicy, neo_pictures: list[str], tmp_path: Path
) -> None:
    """sum(e / sqrt(n)) / sum(1 / sqrt(n)), n all learnt tokens of the row, ends of turns with them."""
    turns = conversation("what", "red")["conversations"] + conversation("which", "two disc")["conversations"]
    rows = [{"conversations": turns}, conversation("what color", "red", image=Path(neo_pictures[0]).name)]
    path = written(tmp_path, "rows.jsonl", rows)
    config = section([path], Path(neo_pictures[0]).parent, loss={"reduction": "square", "per": "row"})
    lanes = lanes_of(neo, config)
    objective = SupervisedPacks(neo, config, lanes, ["all"])
    laid = [neo.lay(lanes.groups[0].sets[0].plans.plan(number), Laying(0)) for number in (0, 1)]
    assert [each.learnt for each in laid] == [(3, 4), (3,)]
    batch = PackBatch(laid, [0, 0])
    with torch.no_grad():
        terms, _ = objective.terms(batch, 0)
        errors = [neo.read([each]).cross_entropy_T.sum().item() for each in laid]
    assert objective.counts(batch)["text_tokens"] == pytest.approx(7 * 7**-0.5 + 3 * 3**-0.5)
    assert terms[0].sum.item() == pytest.approx(errors[0] * 7**-0.5 + errors[1] * 3**-0.5, rel=1e-5)
