"""Failures become masks, once; numbers stay where they belong."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from tests.support.reward_servers import make_samples
from trainer.config import RewardConfig
from trainer.rewards.answers import Answer
from trainer.rewards.mixture import mix
from trainer.types import Sample, Scores

FAILED = Answer(None, "timeout", "late")
NOT_APPLICABLE = Answer(None, "not_applicable", "no target")
NAMES = ["ocr", "hps"]


def columns(**policies: str) -> dict[str, RewardConfig]:
    return {
        name: RewardConfig.model_validate({"service": "s", "on_failure": policies.get(name, "mask")}) for name in NAMES
    }


def cells(samples: list[Sample], **special: dict[str, Answer]) -> dict[str, dict[str, Answer]]:
    """ocr scores 1, 2, 3, ...; hps 10, 20, 30, ...; but for `special`."""
    out = {}
    for name, unit in (("ocr", 1.0), ("hps", 10.0)):
        out[name] = {s.id: Answer(unit * (i + 1)) for i, s in enumerate(samples)} | special.get(name, {})
    return out


def run(policies: dict[str, str] | None = None, *, shuffle: bool = False, **special: dict[str, Answer]) -> Scores:
    samples = make_samples(4, {"ocr": 1.0, "hps": 0.5}, group_size=2)
    return mix(samples, cells(samples, **special), columns(**(policies or {})), NAMES, shuffle=shuffle)


def test_rows_are_samples_and_columns_are_names() -> None:
    scores = run()
    assert scores.names == NAMES
    assert scores.ids == ["s0", "s1", "s2", "s3"]
    assert torch.equal(scores.scores_BR, torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]))
    assert scores.scores_BR.dtype == scores.weights_BR.dtype == torch.float32
    assert scores.valid_BR.dtype == scores.asked_BR.dtype == torch.bool
    assert scores.valid_BR.all()
    assert torch.equal(scores.weights_BR, torch.tensor([[1.0, 0.5]] * 4))
    assert scores.stop_reason is None


def test_mask_takes_out_one_cell_and_counts_it() -> None:
    scores = run(ocr={"s1": FAILED})
    assert scores.valid_BR.tolist() == [[True, True], [False, True], [True, True], [True, True]]
    assert scores.scores_BR[1, 0] == 0
    assert scores.asked_BR.all()
    assert scores.failures == {"ocr": Counter(timeout=1), "hps": Counter()}
    assert scores.details[1]["ocr"]["error"] == {"code": "timeout", "message": "late"}


def test_drop_group_takes_out_all_rewards_of_the_group() -> None:
    scores = run({"ocr": "drop_group"}, ocr={"s1": FAILED})
    assert scores.valid_BR.tolist() == [[False, False], [False, False], [True, True], [True, True]]
    assert (scores.scores_BR[:2] == 0).all()
    assert scores.failures["ocr"] == Counter(timeout=1)


def test_drop_group_of_one_reward_ignores_failures_of_another() -> None:
    scores = run({"ocr": "drop_group"}, hps={"s1": FAILED})
    assert scores.valid_BR.tolist() == [[True, True], [True, False], [True, True], [True, True]]


def test_stop_gives_the_reason() -> None:
    scores = run({"hps": "stop"}, hps={"s2": FAILED, "s3": FAILED})
    assert scores.stop_reason is not None
    assert "reward hps failed for 2 of 4 samples" in scores.stop_reason
    assert "timeout: late" in scores.stop_reason
    assert run({"hps": "stop"}, ocr={"s2": FAILED}).stop_reason is None


def test_not_applicable_is_masked_and_counted_apart_under_every_policy() -> None:
    for policy in ("mask", "drop_group", "stop"):
        scores = run({"ocr": policy}, ocr={"s0": NOT_APPLICABLE})
        assert scores.valid_BR.tolist() == [[False, True], [True, True], [True, True], [True, True]]
        assert scores.failures["ocr"] == Counter()
        assert scores.not_applicable == {"ocr": 1, "hps": 0}
        assert scores.stop_reason is None


def test_what_was_not_asked_is_neither_valid_nor_failed() -> None:
    samples = make_samples(2, {"ocr": 1.0})
    scores = mix(samples, {"ocr": {s.id: Answer(1.0) for s in samples}}, columns(hps="stop"), NAMES, shuffle=False)
    assert scores.asked_BR.tolist() == [[True, False], [True, False]]
    assert scores.valid_BR.tolist() == [[True, False], [True, False]]
    assert scores.weights_BR.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert scores.failures["hps"] == Counter()


def test_details_and_cached() -> None:
    scores = run(ocr={"s0": Answer(0.5, components={"exact": 1.0}, details={"texts": ["HI"]}, cached=True)})
    assert scores.details[0]["ocr"] == {"texts": ["HI"], "components": {"exact": 1.0}}
    assert scores.cached == {"ocr": 1, "hps": 0}


def test_an_empty_batch() -> None:
    scores = mix([], {}, columns(), NAMES, shuffle=True)
    assert scores.scores_BR.shape == scores.valid_BR.shape == (0, 2)


def shuffled(first: int) -> tuple[Scores, Scores]:
    samples = make_samples(40, {"ocr": 1.0, "hps": 1.0}, first=first)
    some = {s.id: FAILED for s in samples[:5]}
    table = cells(samples, ocr=some)
    del table["hps"][samples[0].id]
    plain, control = (mix(samples, table, columns(), NAMES, shuffle=flag) for flag in (False, True))
    return plain, control


def test_shuffle_control_deals_the_same_scores_to_other_samples() -> None:
    plain, control = shuffled(0)
    assert not torch.equal(plain.scores_BR, control.scores_BR)
    assert torch.equal(plain.asked_BR, control.asked_BR)
    for r in range(2):
        before = sorted(zip(plain.scores_BR[:, r].tolist(), plain.valid_BR[:, r].tolist(), strict=True))
        after = sorted(zip(control.scores_BR[:, r].tolist(), control.valid_BR[:, r].tolist(), strict=True))
        assert before == after
    assert not control.valid_BR[0, 1]  # nobody asked hps about it
    assert control.failures["ocr"] == Counter(timeout=5)


def test_shuffle_control_is_the_same_for_the_same_ids_and_different_for_others_and_per_reward() -> None:
    first, again, other = shuffled(0)[1], shuffled(0)[1], shuffled(100)[1]
    assert torch.equal(first.scores_BR, again.scores_BR)
    assert not torch.equal(first.scores_BR, other.scores_BR)
    orders = [np.argsort(first.scores_BR[5:, r].numpy()).tolist() for r in range(2)]
    assert orders[0] != orders[1]
