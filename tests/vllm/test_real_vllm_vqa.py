"""The VQA scorer before a real vLLM server: its probabilities are those of transformers running the same weights.

The tokenizer has one token per byte, so the words that are asked for are letters, and the rest is as always.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from PIL import Image

from services.kit.scorer import Failure, Item, Score
from services.vqa import scorer as module
from services.vqa.questions import YES_NO, Reading
from services.vqa.scorer import VqaScorer
from services.vqa.settings import VqaSettings
from tests.support.tiny_qwen3vl import Reference
from wire.schema import ErrorCode

pytestmark = [pytest.mark.anyio, pytest.mark.vllm, pytest.mark.slow]

IMAGES = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (64, 96, 3), np.uint8)) for n in range(3)]
PROMPT = "a red square"


def masses(likeliest):
    """Of each letter, of any case and with any space around it, in tokens of one letter; the most likely first."""
    found = {}
    for text, logp in likeliest:
        word = text.strip().lower()
        if word.isalpha() and word.isascii():
            found[word] = found.get(word, 0.0) + math.exp(logp)
    return dict(sorted(found.items(), key=lambda each: -each[1]))


async def scored(scorer, reward, image):
    [result] = await scorer.score(reward, [Item("0", PROMPT, (image,))], time.monotonic() + 60)
    return result


async def test_probabilities_are_those_of_transformers(vllm, checkpoint, monkeypatch):
    reference = Reference(checkpoint)
    scorer = VqaScorer(VqaSettings(judge_url=vllm.url, image_format="png", check_model=False))
    await scorer.load()
    seen = set()
    for image in IMAGES:
        found = masses(reference.likeliest([image], YES_NO.replace("{prompt}", PROMPT), 20))
        first, second = list(found)[:2]
        reading = Reading((first, second), lambda p, word=first: p[word], (0.0, 1.0))
        monkeypatch.setattr(module, "READINGS", {"letter": reading} | module.READINGS)
        monkeypatch.setitem(scorer._templates, "letter", scorer._templates["vqa_yes"])
        result = await scored(scorer, "letter", image)
        assert isinstance(result, Score), result
        assert result.value == pytest.approx(found[first], abs=1e-3)
        assert result.components == pytest.approx({first: found[first], second: found[second]}, abs=1e-3)
        seen.add(round(result.value, 6))
        monkeypatch.undo()
    assert len(seen) > 1
    await scorer.close()


async def test_a_model_that_says_neither_word_has_no_score(vllm):
    """This one has no token "yes" at all."""
    scorer = VqaScorer(VqaSettings(judge_url=vllm.url, check_model=False))
    for reward in scorer.rewards:
        result = await scored(scorer, reward, IMAGES[0])
        assert isinstance(result, Failure) and result.code is ErrorCode.PARSE_ERROR
        assert "an answer needs 0.01; the judge would begin with" in result.message
    await scorer.close()
