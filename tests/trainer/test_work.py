"""What ranks agree on before a step: counts for each update, equally many parts, and whether to go on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from trainer.losses import Stats
from trainer.objectives import Term, total
from trainer.processes.distributed import World
from trainer.types import StopTrainingError
from trainer.update.work import plan_work


@dataclass(frozen=True)
class Block:
    """A micro-batch of `parts` parts that counts `weight`."""

    kind: str
    parts: int
    weight: float
    update: int | None = None

    def to(self, device: torch.device) -> Block:
        return self

    def weightless(self) -> Block:
        return replace(self, weight=0.0)


class Blocks:
    """An objective whose micro-batches are what it is fed."""

    requires, leads = object, ("weight",)

    def batches(self, fed: Any, step: int) -> list[Block]:
        if isinstance(fed, str):
            raise StopTrainingError(fed)
        return list(fed)

    def counts(self, batch: Block) -> dict[str, float]:
        return {"weight": batch.weight}

    def num_parts(self, batch: Block) -> int:
        return batch.parts

    def terms(self, batch: Block, part: int) -> tuple[list[Term], Stats]:
        raise AssertionError("nothing is computed while ranks agree")


class Meeting(World):
    """One of several ranks, in one process: it hears what the others were made to say."""

    def gather(self, value: Any) -> list[Any]:
        others: list[Any] = list(OTHERS)
        others.insert(self.rank, value)
        return others


OTHERS: list[Any] = []


def work_of(fed: Any, others: list[Any], monkeypatch: pytest.MonkeyPatch, *, updates: int = 1) -> Any:
    monkeypatch.setattr(f"{__name__}.OTHERS", others)
    return plan_work(Blocks(), fed, 0, updates, Meeting(0, 1 + len(others), torch.device("cpu")))


def says(parts: dict[str, int], weight: float = 0.0, problem: str | None = None) -> dict[str, Any]:
    return {"problem": problem, "counts": [{"weight": weight}], "parts": parts}


def test_a_rank_with_fewer_parts_repeats_its_last_one_without_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = [Block("images", 1, 1.0), Block("texts", 2, 3.0)]
    work = work_of(fed, [says({"images": 2, "texts": 5}, 10.0)], monkeypatch)
    assert [(item.batch.kind, item.part, item.batch.weight) for item in work.items] == [
        ("images", 0, 1.0),
        ("images", 0, 0.0),
        ("texts", 0, 3.0),
        ("texts", 1, 3.0),
        *[("texts", 1, 0.0)] * 3,
    ]
    assert work.counts_U == [{"weight": 14.0}]


def test_what_is_for_one_update_counts_in_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fed = [Block("texts", 1, 3.0), Block("images", 1, 1.0, update=0), Block("images", 1, 5.0, update=1)]
    work = work_of(fed, [], monkeypatch, updates=2)
    assert work.counts_U == [{"weight": 4.0}, {"weight": 8.0}]
    assert [item.batch.weight for item in work.of_update(1)] == [3.0, 5.0]


def test_a_rank_without_a_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rank 0 has no micro-batch of texts, of which rank 1 has parts"):
        work_of([Block("images", 1, 1.0)], [says({"images": 1, "texts": 1})], monkeypatch)


@pytest.mark.parametrize("fed", ["my images are broken", [Block("images", 1, 1.0)]])
def test_all_ranks_stop_with_the_reason_of_one(fed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [says({}, problem=None if isinstance(fed, str) else "my images are broken")]
    with pytest.raises(StopTrainingError, match="my images are broken"):
        work_of(fed, others, monkeypatch)


def test_terms_over_one_count_are_added_before_they_are_divided() -> None:
    one, three = torch.tensor(1.0), torch.tensor(3.0)
    terms = [
        Term("a", one, "x"),
        Term("b", three, "x", coef=0.1),
        Term("c", three, "y", share=0.5),
        Term("d", one / 0, "x", 0),
    ]
    expected = (1.0 * (one + 0.1 * three) / 7) + 0.5 * three / 2
    assert torch.equal(total(terms, {"x": 7.0, "y": 2.0}), expected)
    assert total(terms[:1], {"x": 0.0}) == 1, "a count of 0 has only terms of weight 0, and is not divided by"
