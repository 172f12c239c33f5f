"""The real OCR service, started by the trainer, is killed in the middle of a run and comes back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from trainer.config import RewardsConfig
from trainer.rewards import LocalServices, RewardClient, RewardEvent, resolve_urls
from trainer.types import Prompt, Sample, Scores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds the service's process in /proc")
WORDS = ("HELLO", "GREEN", "WORLD", "PAPER")


def picture(word: str) -> np.ndarray:
    image = Image.new("RGB", (192, 64), "white")
    ImageDraw.Draw(image).text((12, 8), word, fill=(20, 20, 20), font=ImageFont.load_default(42))
    return np.asarray(image)


def samples(step: int, micro_batch: int) -> list[Sample]:
    """Four words, each on two pictures: one that shows it (score 1) and one that shows another (score below 1)."""
    out = []
    for i, word in enumerate(WORDS):
        for shown in (word, WORDS[(i + 1) % len(WORDS)]):
            name = f"{step}-{micro_batch}-{word}-{shown}"
            # No two steps send equal pixels: every score is computed, none comes from the cache.
            pixels = picture(shown).copy()
            pixels[0, 0] = (step, micro_batch, i)
            prompt = Prompt(word, f'the word "{word}"', weights={"ocr": 1.0}, targets=(word,))
            out.append(Sample(id=name, group_id=f"{step}-{word}-{micro_batch}", prompt=prompt, images=(pixels,)))
    return out


def step(client: RewardClient, number: int, kill: Any = None) -> Scores:
    batch = client.batch()
    for micro_batch in range(3):
        batch.submit(samples(number, micro_batch))
        if micro_batch == 1 and kill is not None:
            kill()
    return batch.collect()


def check(scores: Scores, expected: dict[str, float]) -> int:
    """Every number is the one an undisturbed service gave; all else is masked and counted. Returns the masked."""
    masked = 0
    for b, name in enumerate(scores.ids):
        if scores.valid_BR[b, 0]:
            assert float(scores.scores_BR[b, 0]) == expected[name.split("-", 2)[2]]
        else:
            assert float(scores.scores_BR[b, 0]) == 0
            masked += 1
    assert masked == scores.failures["ocr"].total()
    return masked


def service_pid(log: Path) -> int:
    """The process that runs `services.ocr` with its output in this test's log."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
            if b"services.ocr" in line and b"child.py" not in line and os.path.samefile(entry / "fd" / "1", log):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError("the OCR service is not running")


@pytest.mark.slow
def test_ocr_killed_mid_run_comes_back_and_nothing_is_scored_wrong(tmp_path: Path) -> None:
    config = RewardsConfig.model_validate(
        {
            "launch": "local",
            "services": {
                "ocr": {"module": "ocr", "args": {"mode": "line", "workers": 1}, "timeout_s": 20.0, "max_attempts": 2}
            },
            "columns": {"ocr": {"service": "ocr", "reward": "flow_grpo", "max_failure_rate": 0.4, "patience_s": 60.0}},
        }
    )
    events: list[RewardEvent] = []
    with (
        LocalServices(config, tmp_path) as services,
        RewardClient(config, urls=resolve_urls(config, services.urls), on_event=events.append) as client,
    ):
        first = step(client, 0)
        assert first.valid_BR.all()
        expected = {
            name.split("-", 2)[2]: float(score) for name, score in zip(first.ids, first.scores_BR[:, 0], strict=True)
        }
        assert {expected[f"{word}-{word}"] for word in WORDS} == {1.0}
        pid = service_pid(tmp_path / "ocr.log")
        killer = threading.Timer(0.02, os.kill, (pid, signal.SIGKILL))
        disturbed = step(client, 1, kill=killer.start)
        killer.join()
        assert disturbed.stop_reason is None
        check(disturbed, expected)
        later = step(client, 2)
        assert later.stop_reason is None
        check(later, expected)
        calm = step(client, 3)
        assert check(calm, expected) == 0
        assert calm.failures == {"ocr": Counter()}
        assert service_pid(tmp_path / "ocr.log") != pid
    assert any(event.kind == "failure" for event in events)
