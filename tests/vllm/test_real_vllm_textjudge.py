"""The text judge before a real vLLM server: marks that the server is held to, and words without a mark.

The model says nonsense, so what it is held to by the server's grammar is what can be read.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from PIL import Image

from services.kit.scorer import Failure, Item, Score
from services.textjudge.scorer import TextJudgeScorer
from services.textjudge.settings import TextJudgeSettings
from wire.schema import ErrorCode

pytestmark = [pytest.mark.anyio, pytest.mark.vllm, pytest.mark.slow]

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
HELD = json.dumps({"structured_outputs": {"regex": "Score: [0-9]"}})


async def marks(vllm, items, **more):
    settings = TextJudgeSettings(judge_url=vllm.url, check_model=False, max_tokens=16, **more)
    scorer = TextJudgeScorer(settings)
    await scorer.load()
    try:
        return [(await scorer.score(reward, items, time.monotonic() + 120)) for reward in scorer.rewards]
    finally:
        await scorer.close()


async def test_a_server_that_is_held_to_the_form_gives_marks_for_texts_and_pictures(vllm):
    items = [
        Item("a", "Which color is it?", completion="Red.", targets=("red",)),
        Item("b", "Which color is it?", completion="Red.", targets=("red",), source_images=(NOISE,)),
    ]
    for results in await marks(vllm, items, extra_body=HELD):
        for result in results:
            assert isinstance(result, Score), result
            assert result.value in range(10) and result.details["judge"] == f"Score: {result.value:.0f}"


async def test_a_model_that_gives_no_mark_has_no_score(vllm):
    for [result] in await marks(vllm, [Item("a", "Which color?", completion="Red.", targets=("red",))]):
        assert isinstance(result, Failure) and result.code in (ErrorCode.TRUNCATED, ErrorCode.PARSE_ERROR)
