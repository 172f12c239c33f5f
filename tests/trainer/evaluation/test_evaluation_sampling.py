"""Held-out pictures and their scores: the same noise every time, bounded in memory, failures left out and shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import Config, TinyConfig
from trainer.evaluation.files import read_samples, save_samples
from trainer.evaluation.outcomes import Outcome, score_metrics
from trainer.evaluation.sampling import Placed, draw, evaluation_seed
from trainer.evaluation.scoring import Scorer
from trainer.evaluation.sets import EvaluationSet
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.flow.tiny import TinyFlow
from trainer.policies.flow.tiny_model import TinyModel
from trainer.processes.distributed import World
from trainer.types import Prompt, Rollout, Sample, Scores

PROMPTS = tuple(Prompt(f"p{i}", f'the word "CA{c}" in red') for i, c in enumerate("TPRNA"))
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class BrightnessBatch:
    """Scores a sample by its mean pixel; that of prompt p3 fails."""

    def __init__(self, client: BrightnessClient, names: Sequence[str]) -> None:
        self.client, self.names, self.samples, self.sizes = client, list(names), list[Sample](), list[int]()
        self.done = False

    def submit(self, samples: Sequence[Sample]) -> None:
        self.samples.extend(samples)
        self.sizes.append(len(samples))
        self.client.most = max(self.client.most, sum(len(b.samples) for b in self.client.batches if not b.done))

    def collect(self) -> Scores:
        self.done = True
        values = [float(image.mean()) / 255 for s in self.samples for image in s.images]
        valid = torch.tensor([[sample.prompt.id != "p3"] for sample in self.samples])
        seen = {"targets": ["CAT"], "images": [{"score": 1.0, "lines": [{"text": "CA"}, {"text": "T"}]}]}  # as ocr does
        failed = seen | {"error": {"code": "timeout", "message": "late"}}
        details = [{self.names[0]: seen if ok else failed} for ok in valid[:, 0]]
        scores_BR = torch.tensor(values)[:, None] * valid
        return Scores(self.names, [s.id for s in self.samples], scores_BR, valid, valid | True, valid.float(), details)


class BrightnessClient:
    """Stands where the reward client stands, and knows how many pictures were under way at once."""

    def __init__(self) -> None:
        self.batches: list[BrightnessBatch] = []
        self.most = 0

    def batch(self, columns: Sequence[str] | None = None, step: int = 0) -> BrightnessBatch:
        assert columns is not None
        self.batches.append(BrightnessBatch(self, columns))
        return self.batches[-1]


class CountingPolicy:
    """The policy, with the number of micro-batches it has drawn."""

    def __init__(self, policy: FlowPolicy) -> None:
        self.policy, self.passes = policy, 0

    def sample(self, *args: Any) -> Iterator[Rollout]:
        for rollout in self.policy.sample(*args):
            self.passes += 1
            yield rollout


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    torch.manual_seed(0)
    return FlowPolicy(
        TinyFlow(TinyModel(TinyConfig(num_layers=1, num_heads=2, head_dim=16)), torch.device("cpu"), about="random"),
        keep_reference=False,
    )


def config(**evaluation: Any) -> Config:
    return Config.model_validate(
        {
            "run_name": "r",
            "max_steps": 2,
            "data": {"train": [{"path": "t.txt", "rewards": {"bright": 1.0}}]},
            "rewards": {
                "services": {"s": {"urls": ["http://127.0.0.1:1"]}},
                "columns": {"bright": {"service": "s"}},
            },
            "evaluation": {"path": "p.txt", "batch_size": 3, **evaluation},
        }
    )


def make_set(duplicates: int = 1, name: str = "") -> EvaluationSet:
    return EvaluationSet(name, PROMPTS, duplicates, num_inference_steps=2, guidance_scale=1.0, rewards=("bright",))


def pictures_of(policy: Any, duplicates: int = 1, world: World = ALONE, **evaluation: Any) -> list[Placed]:
    batches = draw(policy, make_set(duplicates), config(**evaluation), world)
    return [picture for batch in batches for picture in batch]


def pixels(picture: Placed) -> bytes:
    return picture.sample.images[0].tobytes()


def test_the_same_weights_draw_the_same_pictures_whatever_the_micro_batch_and_the_duplicates(
    policy: FlowPolicy,
) -> None:
    one, again, wide = pictures_of(policy), pictures_of(policy), pictures_of(policy, duplicates=2, batch_size=4)
    assert [pixels(p) for p in one] == [pixels(p) for p in again]
    assert [(p.index, p.duplicate) for p in wide] == [(i, d) for i in range(5) for d in range(2)]
    for a, b in zip(one, wide[::2], strict=True):
        assert abs(a.sample.images[0].astype(int) - b.sample.images[0].astype(int)).max() <= 1  # another batch size
    assert len({pixels(p) for p in wide}) == 10, "a prompt's pictures have noise of their own"
    assert len({evaluation_seed(1, i, d) for i in range(20) for d in range(20)}) == 400


@pytest.mark.parametrize("size", [2, 3, 7])
def test_any_number_of_ranks_draws_every_picture_once_in_equally_many_passes(policy: FlowPolicy, size: int) -> None:
    """Seven ranks for five prompts: two have none of their own, and still run the network as often as the others."""
    alone = {p.index: pixels(p) for p in pictures_of(policy, batch_size=1)}
    found: dict[int, bytes] = {}
    passes: set[int] = set()
    for rank in range(size):
        counting = CountingPolicy(policy)
        mine = pictures_of(counting, world=World(rank=rank, size=size, device=torch.device("cpu")), batch_size=1)
        passes.add(counting.passes)
        assert not found.keys() & {p.index for p in mine}
        found |= {p.index: pixels(p) for p in mine}
    assert found == alone and len(passes) == 1


def score(policy: FlowPolicy, client: Any, limit: int, kept: int = 0, duplicates: int = 1) -> Scorer:
    scorer = Scorer(client, make_set(duplicates), ["bright"], step=0, limit=limit, kept=kept)
    for batch in draw(policy, make_set(duplicates), config(batch_size=2), ALONE):
        scorer.submit(batch)
    return scorer


def test_a_failed_score_is_no_number_and_says_why(policy: FlowPolicy) -> None:
    outcomes = score(policy, BrightnessClient(), 100).collect()
    assert [o.index for o in outcomes] == list(range(5))
    assert outcomes[3].scores == {"bright": None} and outcomes[3].errors == {"bright": "timeout"}
    values = [o.scores["bright"] for o in outcomes if o.index != 3]
    row = score_metrics(outcomes)
    assert row["eval/bright"] == pytest.approx(sum(v for v in values if v is not None) / 4, abs=1e-7)
    assert row["eval/bright/valid_share"] == 0.8
    assert row["eval/bright/low"] < row["eval/bright"] < row["eval/bright/high"]
    assert set(outcomes[0].statistics) >= {"saturation", "edge_density", "sharpness"}


@pytest.mark.parametrize("limit", [1, 4, 8])
def test_no_more_pictures_are_under_way_than_allowed(policy: FlowPolicy, limit: int) -> None:
    """The pictures come two at a time, ten in all: a batch may be over its part by one."""
    client = BrightnessClient()
    outcomes = score(policy, client, limit, duplicates=2).collect()
    assert client.most <= limit + min(4, limit) and len(outcomes) == 10
    assert [o.place for o in outcomes] == [("", i, d) for i in range(5) for d in range(2)]
    assert all(0 < o.statistics["diversity"] < 1 for o in outcomes)


def test_pictures_come_with_what_was_read_and_null_where_it_failed(policy: FlowPolicy) -> None:
    scorer = score(policy, BrightnessClient(), 100, kept=4)
    scorer.collect()
    assert [row["prompt_id"] for row in scorer.shown] == ["p0", "p1", "p2", "p3"]
    assert scorer.shown[0]["read"] == "CA T" and scorer.shown[3]["scores"] == {"bright": None}


def test_written_pictures_are_read_back_pixel_for_pixel(policy: FlowPolicy, tmp_path: Path) -> None:
    chosen, drawn = make_set(2, "more"), pictures_of(policy, duplicates=2)
    save_samples(tmp_path, chosen, drawn)
    assert sorted(path.name for path in (tmp_path / "more").iterdir())[:3] == ["0.0.png", "0.1.png", "1.0.png"]
    batches = list(read_samples(tmp_path, chosen, ALONE, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    again = [picture for batch in batches for picture in batch]
    assert [(p.index, p.duplicate, p.sample.id, pixels(p)) for p in again] == [
        (p.index, p.duplicate, p.sample.id, pixels(p)) for p in drawn
    ]


def outcome(index: int, score: float | None, duplicate: int = 0, name: str = "") -> Outcome:
    return Outcome(name, index, duplicate, f"p{index}", {"r": score})


def test_the_gain_is_paired_by_picture_and_counts_only_what_both_have() -> None:
    start = [outcome(0, 0.1), outcome(1, 0.9), outcome(2, None), outcome(3, 0.5)]
    now = [outcome(0, 0.2), outcome(1, 1.0), outcome(2, 0.7), outcome(3, None)]
    row = score_metrics(now, start)
    assert row["eval/r"] == pytest.approx(1.9 / 3) and row["eval/r/gain"] == pytest.approx(0.1)
    assert row["eval/r/gain_low"] == pytest.approx(0.1) == row["eval/r/gain_high"], "the same change everywhere"
    assert row["eval/r/high"] - row["eval/r/low"] > 0.5, "while the prompts differ much"


def test_sets_have_names_of_their_own_and_nothing_is_made_up() -> None:
    row = score_metrics([outcome(0, 0.5), outcome(0, None, name="long"), outcome(1, None, name="long")])
    assert row == {"eval/r": 0.5, "eval/r/valid_share": 1.0, "eval/long/r/valid_share": 0.0}
