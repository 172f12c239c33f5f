"""Keys of metrics.jsonl: what is built is read again, and every key that the kept runs have has a sentence."""

from __future__ import annotations

import json

import pytest

from tests.support.goldens import FOLDER
from trainer.records import keys


def test_what_is_built_is_read_again() -> None:
    assert keys.reward_of(keys.reward("ocr", "mean")) == "ocr"
    assert keys.signal_of(keys.signal("ocr", "zero_group_share")) == (None, "ocr")
    assert keys.signal_of("understand/adv/ocr/zero_group_share") == ("understand", "ocr")
    assert keys.failed_of(keys.failed("ocr", "timeout")) == ("ocr", "timeout")
    assert [keys.reward_of(key) for key in ("reward/ocr/std", "reward/mean", "eval/ocr/mean", "reward//mean")] == [
        None
    ] * 4
    assert keys.failed_of("failed/ocr") is None and keys.signal_of("adv/zero_group_share") is None


def test_a_key_has_the_sentence_of_its_pattern_and_one_that_nobody_explained_has_none() -> None:
    assert keys.sentence_of("reward/ocr/mean") == keys.SENTENCES["reward/<reward>/mean"]
    assert keys.sentence_of("latency_ms/ocr/max") == keys.SENTENCES["latency_ms/<reward>/p50"]
    assert keys.sentence_of("ratio/min") == keys.SENTENCES["ratio/mean"]
    assert keys.sentence_of("ratio/median") is None and keys.sentence_of("surprise") is None


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_key_of_a_kept_run_has_a_sentence(path) -> None:
    found = {key for row in json.loads(path.read_text(encoding="utf-8"))["rows"] for key in row}
    assert len(found) > 5
    assert [key for key in sorted(found) if keys.sentence_of(key) is None] == []
