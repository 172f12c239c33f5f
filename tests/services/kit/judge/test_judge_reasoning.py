"""Reasoning that a server sends apart, reasoning that never ends, and a judge's address as it is often given."""

from __future__ import annotations

import time

import httpx
import pytest
from PIL import Image

from services.eval.judge import Judgement, Missing, read_answer
from services.kit.judge.answers import Answer
from services.kit.judge.client import JudgeClient, JudgeEndpoint, server_url
from services.kit.judge.metrics import JudgeMetrics
from services.kit.scorer import Failure, Item, Score
from services.kit.testing.scripted_judge import Reply
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.judges import judging
from wire.schema import ErrorCode

pytestmark = pytest.mark.anyio

FIRST = "<answer>Image 1 is better</answer>"
TOTALS = "Image 1: 3+4=7\nImage 2: 4+5=9\n"


async def compared(reply, **settings):
    """The results of two images and the judge's answer to the comparison."""
    with judging(lambda _question: reply) as judge:
        fields = {"judge_url": judge.url, "model": "judge", "order": "lower-first", **settings}
        scorer = UnifiedRewardScorer(UnifiedRewardSettings(**fields))
        items = [Item(id=str(n), prompt="a", images=(Image.new("RGB", (4, 4), (n, 0, 0)),)) for n in range(2)]
        kind = next(iter(scorer.rewards))
        results = await scorer.score(kind, items, time.monotonic() + 10)
        await scorer.close()
    return results


@pytest.mark.parametrize("reasoning", ["Image 2 is nicer.", f"So {FIRST.replace('1', '2')}?", "a</think>b"])
async def test_the_answer_counts_and_not_the_reasoning_beside_it(reasoning):
    first, second = await compared(Reply(FIRST, reasoning=reasoning))
    assert isinstance(first, Score) and (first.value, second.value) == (1.0, 0.0)


async def test_totals_in_the_reasoning_are_compared_with_the_answer_as_where_they_come_within():
    apart, _ = await compared(Reply(FIRST, reasoning=TOTALS))
    within, _ = await compared(Reply(f"<think>\n{TOTALS}</think>{FIRST}"))
    flags = [each.details["comparisons"][0]["flags"] for each in (apart, within)]
    assert flags == [["totals_disagree"]] * 2


@pytest.mark.parametrize("content", [None, "", "  \n"])
@pytest.mark.parametrize("family", ["think", "v1"])
async def test_reasoning_alone_is_no_answer_and_the_remedy_is_named(content, family):
    kinds = {"kinds": ("pair_rank",)} if family == "v1" else {}
    for result in await compared(Reply(content, reasoning=f"Image 1 is better. {FIRST}"), family=family, **kinds):
        assert isinstance(result, Failure) and result.code is ErrorCode.PARSE_ERROR
        assert "its reasoning does not end" in result.message and "--reasoning-parser" in result.message


async def test_reasoning_that_never_ends_within_the_text_is_told_the_same():
    result, _ = await compared(Reply(f"<think>hm {FIRST}"))
    assert isinstance(result, Failure) and "its reasoning does not end" in result.message


def test_the_eval_judge_reads_them_alike():
    assert isinstance(read_answer(Answer("<think>0?</think><score>[1]</score>", False), 1), Judgement)
    assert isinstance(read_answer(Answer("＜score＞［１］＜／score＞", False), 1), Judgement)
    missing = read_answer(Answer("<think><score>[1]</score>", False), 1)
    assert isinstance(missing, Missing) and missing.code is ErrorCode.PARSE_ERROR
    assert "its reasoning does not end" in missing.message


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "//v1//", "/v1/chat/completions", "/v1/chat/completions/"])
async def test_an_address_may_end_as_those_of_openai_compatible_servers_do(end):
    with judging("fine") as judge:
        client = JudgeClient(JudgeEndpoint(judge.url + end, "judge"), JudgeMetrics())
        await client.check()
        assert (await client.ask([], max_tokens=1, deadline=time.monotonic() + 10)).text == "fine"
        async with client.forward("GET", "/v1/models", None, 5) as passed:
            assert passed.status_code == httpx.codes.OK
        await client.aclose()


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("http://proxy/judges/a/v1", "http://proxy/judges/a"),
        ("http://proxy/v1/judges", "http://proxy/v1/judges"),
        ("http://v1", "http://v1"),
        ("https://judge:8000/v1", "https://judge:8000"),
    ],
)
def test_only_the_end_is_left_out(url, known):
    assert server_url(url) == known
