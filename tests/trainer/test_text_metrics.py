"""What a step's texts say of themselves: worked out by hand, cut over ranks, and through the bigram double."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.support.bigram import END, Bigram, Tokens
from trainer.config import RewardsConfig
from trainer.policies.base import SamplingPlan
from trainer.processes.distributed import World
from trainer.records.text_metrics import image_entropy, text_metrics
from trainer.types import Prompt, Rollout, Sample, Scores

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
COLUMNS = {"services": {"rules": {"urls": ["http://127.0.0.1:1"]}}}


def rewards(*names: str, **roles: str) -> RewardsConfig:
    columns = {name: {"service": "rules"} for name in names}
    return RewardsConfig.model_validate(COLUMNS | {"columns": columns, "roles": roles})


def rollout(lengths: Sequence[int], logp: float, *, cut: Sequence[int] = (), text: str | None = "a") -> Rollout:
    """Answers of those lengths whose tokens have all the same log-probability; NaN behind their ends."""
    width = max(lengths)
    mask_BS = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    samples = [
        Sample(f"s{n}", "g", Prompt("p", "p"), text=text, tokens=tuple(range(length)), finished=n not in cut)
        for n, length in enumerate(lengths)
    ]
    logp_BS = torch.where(mask_BS, logp, math.nan)
    nothing = torch.zeros(len(lengths), width, dtype=torch.int64)
    return Rollout(samples, torch.zeros(len(lengths)), logp_BS, mask_BS, Tokens(nothing, nothing))


def scored(columns: dict[str, Sequence[float | None]]) -> Scores:
    values = torch.tensor([[math.nan if each is None else each for each in column] for column in columns.values()]).T
    valid = ~values.isnan()
    return Scores(
        names=list(columns),
        ids=[f"s{n}" for n in range(len(values))],
        scores_BR=values.nan_to_num(0),
        valid_BR=valid,
        asked_BR=torch.ones_like(valid),
        weights_BR=torch.ones_like(values),
    )


SCORES = {"accuracy": (1.0, 1.0, 0.0, 1.0, None), "format": (1.0, 0.0, 1.0, 0.5, 1.0)}


def test_numbers_worked_out_by_hand() -> None:
    """Three answers of 2, 4 and 6 tokens at p = 1/2 and two of 1 and 3 at p = 1/8: 12 ln 2 and 4 ln 8 over 16 tokens. The form
    holds in the first, the third and the fourth, and of the fifth the accuracy is not known: 2 of 3 are right."""
    found = text_metrics(
        [rollout([2, 4, 6], -math.log(2), cut=[2]), rollout([1, 3], -math.log(8))],
        scored(SCORES),
        rewards("accuracy", "format"),
        ALONE,
        step_s=4.0,
    )
    assert found == {
        "text/length": 3.2,
        "text/length_max": 6.0,
        "text/truncated_share": 0.2,
        "tokens_per_s": 4.0,
        "text/entropy": pytest.approx(math.log(2) * (12 + 4 * 3) / 16),
        "text/accuracy_given_format": pytest.approx(2 / 3),
    }


@dataclass(frozen=True)
class Half(World):
    """One of two ranks that are told what the other one found."""

    other: Sequence[Any] = ()

    def gather(self, value: Any) -> list[Any]:
        assert len(value) == len(self.other)
        return [value, list(self.other)]


def test_ranks_are_added_up_before_anything_is_divided() -> None:
    """What the second rollout above adds is what the second rank says: 2 answers, 4 tokens, none cut, 4 ln 8; 1 with the form
    and a known accuracy, which is right."""
    half = Half(0, 2, torch.device("cpu"), other=[2, 4, 0, 4 * math.log(8), 1, 1, 3])
    mine = scored({name: column[:3] for name, column in SCORES.items()})
    found = text_metrics([rollout([2, 4, 6], -math.log(2), cut=[2])], mine, rewards("accuracy", "format"), half, 4.0)
    assert (found["text/length"], found["text/length_max"], found["text/truncated_share"]) == (3.2, 6.0, 0.2)
    assert found["text/entropy"] == pytest.approx(math.log(2) * 24 / 16) and found["tokens_per_s"] == 4.0
    assert found["text/accuracy_given_format"] == pytest.approx(2 / 3)


def test_a_step_of_images_has_none() -> None:
    images = rollout([2, 2], -1.0, text=None)
    assert text_metrics([images], scored(SCORES), rewards("accuracy", "format"), ALONE, 1.0) == {}


def test_roles_are_named_or_are_columns_of_that_name() -> None:
    columns = {"letter": SCORES["accuracy"], "tags": SCORES["format"]}
    answers = [rollout([2] * 5, -1.0)]
    assert "text/accuracy_given_format" not in text_metrics(
        answers, scored(columns), rewards("letter", "tags"), ALONE, 1
    )
    named = rewards("letter", "tags", accuracy="letter", format="tags")
    found = text_metrics(answers, scored(columns), named, ALONE, 1.0)
    assert found["text/accuracy_given_format"] == pytest.approx(2 / 3)
    nobody = scored({"accuracy": [1.0] * 5, "format": [0.0] * 5})
    assert "text/accuracy_given_format" not in text_metrics(answers, nobody, rewards("accuracy", "format"), ALONE, 1)


def test_a_role_of_no_column_is_refused_by_name() -> None:
    with pytest.raises(
        ValidationError, match=r"roles\.accuracy = 'leter' is not under .*there: letter.*did you mean letter"
    ):
        rewards("letter", accuracy="leter")


def test_the_entropy_is_that_of_the_distribution_drawn_from() -> None:
    """Of a bigram that is the same after every token, the mean surprise of 4,000 answers is the entropy within its error."""
    policy = Bigram()
    with torch.no_grad():
        policy.trainable[2].weight.zero_()
        policy.trainable[2].bias.copy_(torch.linspace(-1, 1, 7))
    p = policy.trainable[2].bias.double().softmax(0)
    entropy = -(p * p.log()).sum().item()
    plan = SamplingPlan(num_inference_steps=30, micro_batch_size=4000)
    rollouts = list(policy.sample([Prompt("p", "p")], 4000, list(range(4000)), plan))
    found = text_metrics(rollouts, scored({"r": [1.0] * 4000}), rewards("r"), ALONE, 1.0)
    assert found["text/entropy"] == pytest.approx(entropy, abs=0.02)
    cut = sum(sample.tokens[-1] != END for sample in rollouts[0].samples) / 4000
    assert found["text/truncated_share"] == pytest.approx(cut) and cut > 0


def test_images_drawn_by_tokens_have_an_entropy_of_their_own() -> None:
    """Two images of 4 tokens at p = 1/2, of which the second was planned in 2 words at p = 1/8: 8 ln 2 over 8 tokens, and
    2 ln 8 over 2."""
    logp_BS = torch.full((2, 6), -math.log(2))
    logp_BS[1, :2] = -math.log(8)
    logp_BS[0, 4:] = math.nan
    mask_BS = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    pixels = np.zeros((2, 2, 3), np.uint8)
    samples = [
        Sample("a", "g", Prompt("p", "p"), images=(pixels,)),
        Sample("b", "g", Prompt("p", "p"), images=(pixels,), text="a disc", tokens=(1, 2), finished=False),
    ]
    nothing = torch.zeros(2, 6, dtype=torch.int64)
    drawn = [Rollout(samples, torch.zeros(2), logp_BS, mask_BS, Tokens(nothing, nothing))]
    assert image_entropy(drawn, ALONE) == {"image/entropy": pytest.approx(math.log(2))}
    plans = text_metrics(drawn, scored({"a": (1.0, 0.0)}), rewards("a"), ALONE, 2.0)
    assert (plans["text/length"], plans["text/truncated_share"], plans["tokens_per_s"]) == (2.0, 1.0, 1.0)
    assert plans["text/entropy"] == pytest.approx(math.log(8))
