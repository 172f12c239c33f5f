"""Fronts and workers around a real Redis: who answers what, exactly once, whoever falls silent."""

# ruff: noqa: SIM117  # which of them lives while which other does is what these tests are about

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time

import pytest
from PIL import Image

from services.kit.dispatch.base import Outcome
from services.kit.scale import scripts
from services.kit.scale.messages import Answer, decode_job, encode_answer
from services.kit.scorer import Failure, Score
from services.kit.testing.fakes import FakeScorer, PromptLengthScorer, SlowScorer
from tests.support.redis_services import KEYS, ask, counts, silent_worker, text_items, until
from wire.schema import ErrorCode, ScorerInfo

pytestmark = pytest.mark.anyio
FAST = {"visibility_timeout_s": 0.5}


class OddScorer(FakeScorer):
    """Numbers that are hard to write down, nested details, and a failure for prompts that say "fail"."""

    name = "odd"

    def score_item(self, item):
        if "fail" in item.prompt:
            return Failure(ErrorCode.PARSE_ERROR, "asked to fail: \N{SNOWMAN}")
        pixels = sum(sum(image.convert("RGB").tobytes()) for image in (*item.images, *item.source_images))
        components = {"third": 1 / 3, "tiny": 5e-324, "minus": -0.0, "large": 1.7976931348623157e308}
        details = {
            "n": [1, 1.0, None, {"\u00e9": True}],
            "targets": list(item.targets or ()),
            "meta": dict(item.metadata),
        }
        return Score(pixels + 0.1 + 0.2, components, details)


class GroupScorer(FakeScorer):
    """A reward that compares: the share of the group's prompts that are shorter."""

    name = "rank"

    def __init__(self):
        super().__init__()
        self.groups = []

    @property
    def rewards(self):
        return {"rank": ScorerInfo(name="rank", revision="1", range=(0, 1), grouped=True)}

    def score(self, reward, items):
        self.groups.append([item.id for item in items])
        return [Score(sum(len(o.prompt) < len(i.prompt) for o in items) / len(items)) for i in items]

    def score_item(self, item):
        raise AssertionError("a group is never taken apart")


class GatedScorer(PromptLengthScorer):
    """Waits for its gate before it scores anything but the warm-up."""

    def __init__(self, max_batch=8):
        super().__init__(max_batch)
        self.gate = threading.Event()

    def score(self, reward, items):
        if any(item.id != "warmup" for item in items):
            assert self.gate.wait(20)
        return super().score(reward, items)


def picture(media_type, size=(5, 3)):
    image = Image.frombytes("RGB", size, bytes(range(size[0] * size[1] * 3)))
    buffer = io.BytesIO()
    if media_type == "image/x-rgb8":
        data = image.tobytes()
    else:
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    return {"media_type": media_type, "data": base64.b64encode(data).decode(), "width": size[0], "height": size[1]}


async def test_the_answers_are_those_of_one_process_to_the_bit(running, redis_server):
    items = text_items("one", "please fail", "three", metadata={"k": [1.5, None]}, targets=["T"])
    items[0] |= {"images": [picture("image/png"), picture("image/x-rgb8")], "source_images": [picture("image/png")]}
    items.append({"id": "broken", "prompt": "x", "images": [picture("image/x-rgb8") | {"width": 7}]})
    async with running(OddScorer()) as alone:
        expected = await ask(alone, items)
    async with running(OddScorer(), redis=redis_server.url, role="worker") as worker:
        async with running(OddScorer(), redis=redis_server.url, role="front") as front:
            found = await ask(front, items)
        assert counts(worker)["reward_stream_claimed_total"] == 3, "the broken item does not travel"
    for key in ("id", "score", "components", "details", "error", "cached"):
        assert repr([each[key] for each in found]) == repr([each[key] for each in expected])


async def test_groups_stay_whole_and_two_workers_share_them(running, redis_server):
    items = [
        {"id": f"{group}-{n}", "prompt": group + "x" * n, "completion": "", "group_id": group}
        for n in range(4)
        for group in ("a", "b", "c", "d", "e", "f")
    ]
    shared = {"redis": redis_server.url, "worker_jobs": 1}
    one, two = GroupScorer(), GroupScorer()
    async with (
        running(one, role="worker", **shared),
        running(two, role="worker", **shared),
        running(GroupScorer(), role="front", **shared) as front,
    ):
        one.groups.clear()
        two.groups.clear()
        results = await ask(front, items)
    assert [each["score"] for each in results] == [n / 4 for n in range(4) for _ in range(6)]
    seen = [group for scorer in (one, two) for group in scorer.groups]
    assert sorted(seen) == [[f"{group}-{n}" for n in range(4)] for group in "abcdef"]
    assert one.groups and two.groups


async def test_one_process_can_be_front_and_worker(running, redis_server):
    async with running(PromptLengthScorer(), redis=redis_server.url) as both:
        assert [each["score"] for each in await ask(both, text_items("a", "bb"))] == [1, 2]
        assert counts(both)["reward_stream_claimed_total"] == 2


async def test_jobs_of_a_silent_worker_are_claimed_after_the_visibility_timeout(running, redis_server):
    scorer = PromptLengthScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as silent:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            asking = asyncio.create_task(ask(front, text_items("a", "bb")))
            await silent.take(2)
            taken = time.monotonic()
            async with running(scorer, redis=redis_server.url, role="worker", **FAST) as worker:
                assert [each["score"] for each in await asking] == [1, 2]
                assert time.monotonic() - taken >= 0.45
                assert counts(worker)["reward_stream_redelivered_total"] == 2


async def test_a_job_that_takes_longer_than_the_visibility_timeout_is_done_once(running, redis_server):
    one, two = SlowScorer(1.3), SlowScorer(1.3)
    shared = {"redis": redis_server.url, **FAST}
    async with (
        running(one, role="worker", **shared) as first,
        running(two, role="worker", **shared) as second,
        running(SlowScorer(0), role="front", **shared) as front,
    ):
        [result] = await ask(front, text_items("slow"))
        redelivered = [counts(each)["reward_stream_redelivered_total"] for each in (first, second)]
    assert result["score"] == 4 and redelivered == [0, 0]
    assert sum(one.batches + two.batches) == 1 + 2, "the job and two warm-ups"


async def answer_as(silent, delivery, value):
    """What a worker would say of the job now; returns 1, or 0 when nobody waits any more."""
    message = decode_job(delivery.fields)
    [info] = silent.rewards.values()
    keys = (KEYS.jobs(info), KEYS.open_jobs(message.front), KEYS.replies(message.front), KEYS.answered(info))
    answer = encode_answer(Answer(Outcome((Score(value),))))
    return await silent.connection.call(
        *scripts.finish(keys, delivery.entry_id, message.job_id, answer, replies_ttl_ms=1000)
    )


async def test_a_worker_that_answers_late_is_not_heard(running, redis_server):
    scorer = PromptLengthScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as late:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            asking = asyncio.create_task(ask(front, text_items("a")))
            [delivery] = await late.take(1)
            async with running(scorer, redis=redis_server.url, role="worker", **FAST):
                assert (await asking)[0]["score"] == 1
                assert await answer_as(late, delivery, 99.0) == 0
            assert counts(front)["reward_stream_duplicates_total"] == 0, "it was not even sent"


async def test_a_late_answer_that_is_first_counts_and_the_second_is_dropped(running, redis_server):
    scorer = GatedScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as late:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            asking = asyncio.create_task(ask(front, text_items("a")))
            [delivery] = await late.take(1)
            async with running(scorer, redis=redis_server.url, role="worker", **FAST) as worker:
                await until(lambda: counts(worker)["reward_stream_redelivered_total"] == 1)
                assert await answer_as(late, delivery, 99.0) == 1
                assert (await asking)[0]["score"] == 99.0
                scorer.gate.set()
                await until(lambda: counts(worker)["reward_stream_held"] == 0)
        with redis_server.client() as client:
            assert client.xlen(KEYS.jobs(scorer.rewards["prompt_length"])) == 0


async def test_a_second_answer_in_the_reply_stream_is_dropped_and_counted(running, redis_server):
    scorer = GatedScorer()
    async with running(scorer, redis=redis_server.url) as both:
        asking = asyncio.create_task(ask(both, text_items("a")))
        await until(lambda: counts(both)["reward_stream_held"] == 1)
        with redis_server.client() as client:
            [(_, fields)] = client.xrange(KEYS.jobs(scorer.rewards["prompt_length"]))
            for value in (5.0, 6.0):
                answer = encode_answer(Answer(Outcome((Score(value),))))
                client.xadd(KEYS.replies(fields[b"front"].decode()), {"job": fields[b"job"], "answer": answer})
        assert (await asking)[0]["score"] == 5
        await until(lambda: counts(both)["reward_stream_duplicates_total"] >= 1)
        scorer.gate.set()


async def test_a_job_that_no_worker_survives_is_given_up(running, redis_server):
    scorer = PromptLengthScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as silent:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            asking = asyncio.create_task(ask(front, text_items("poison")))
            await silent.take(1)
            await silent.take_over(1)
            limits = {"max_deliveries": 2, **FAST}
            async with running(scorer, redis=redis_server.url, role="worker", **limits) as worker:
                [result] = await asking
                assert counts(worker)["reward_stream_poison_total"] == 1
    assert result["error"]["code"] == "internal"
    assert "2 workers took the job and none of them answered" in result["error"]["message"]
    assert sum(scorer.batches) == 1, "the warm-up; the job was not tried again"


async def test_a_suspect_is_scored_alone(running, redis_server):
    """The neighbours of a job that ends workers must not share its fate: after two deaths each is tried by itself."""
    scorer = PromptLengthScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as silent:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            asking = asyncio.create_task(ask(front, text_items("a", "bb", "ccc")))
            await silent.take(3)
            await silent.take_over(3)
            slow_batches = {"max_wait_ms": 100, **FAST}
            async with running(scorer, redis=redis_server.url, role="worker", **slow_batches):
                assert [each["score"] for each in await asking] == [1, 2, 3]
    assert scorer.batches[1:] == [1, 1, 1]


async def test_a_stopping_worker_hands_its_jobs_back_at_once(running, redis_server):
    stuck, scorer = GatedScorer(max_batch=1), PromptLengthScorer()
    shared = {"redis": redis_server.url, "visibility_timeout_s": 60.0, "drain_s": 0.0}
    async with running(scorer, role="front", wait_ready=False, **shared) as front:
        async with running(stuck, role="worker", **shared) as first:
            await until(lambda: front.app.state.service.ready)
            asking = asyncio.create_task(ask(front, text_items("a", "bb")))
            await until(lambda: counts(first)["reward_stream_held"] == 2)
            first.app.state.service.drain()
            first.app.state.service.abandon()
            stuck.gate.set()
        began = time.monotonic()
        async with running(scorer, role="worker", **shared):
            assert [each["score"] for each in await asking] == [1, 2]
        assert time.monotonic() - began < 20, "not after the visibility timeout"


async def test_whoever_waits_longer_gets_a_score_though_the_first_deadline_passed(running, redis_server):
    scorer = PromptLengthScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as silent:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            short = asyncio.create_task(front.post("/v1/score", json={"items": text_items("same"), "deadline_ms": 200}))
            await silent.take(1)
            patient = asyncio.create_task(ask(front, text_items("same")))
            assert (await short).status_code == 504
            async with running(scorer, redis=redis_server.url, role="worker", **FAST) as worker:
                assert (await patient)[0]["score"] == 4
                assert counts(worker)["reward_stream_claimed_total"] == 2, "once too late, once in time"
    assert sum(scorer.batches) == 2, "the warm-up and one score"


async def test_what_nobody_waits_for_any_more_is_taken_out(running, redis_server):
    scorer = PromptLengthScorer()
    stream = KEYS.jobs(scorer.rewards["prompt_length"])
    async with silent_worker(redis_server.url, scorer.rewards) as silent:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            late = await front.post("/v1/score", json={"items": text_items("a", "bb"), "deadline_ms": 300})
            assert late.status_code == 504
            with redis_server.client() as client:
                await until(lambda: client.xlen(stream) == 0)
                assert not client.keys("*:open:*")
        assert await silent.claims.read(5) == []


async def test_a_worker_leaves_a_job_that_nobody_waits_for_any_more(running, redis_server):
    class WaitingJudge:
        """Answers the warm-up only."""

        def __init__(self):
            self.rewards = {"judge": ScorerInfo(name="judge", revision="1", range=(0, 1))}
            self.cancelled = False

        async def load(self): ...

        async def close(self): ...

        def warmup(self):
            return []

        async def score(self, reward, items, deadline):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled = True
                raise

    judge = WaitingJudge()
    async with running(judge, redis=redis_server.url, **FAST) as both:
        late = await both.post("/v1/score", json={"items": text_items("a"), "deadline_ms": 400})
        assert late.status_code == 504
        await until(lambda: judge.cancelled and counts(both)["reward_stream_held"] == 0)


async def test_jobs_of_a_dead_front_are_dropped_unscored(running, redis_server):
    scorer = PromptLengthScorer()
    async with silent_worker(redis_server.url, scorer.rewards) as silent:
        async with running(scorer, redis=redis_server.url, role="front", **FAST) as front:
            asking = asyncio.create_task(front.post("/v1/score", json={"items": text_items("a"), "deadline_ms": 2000}))
            await silent.take(1)
            with redis_server.client() as client:
                [key] = client.keys("*:open:*")
                assert 0 < client.pttl(key) <= 60_000, "it expires by itself"
                client.delete(key)
                async with running(scorer, redis=redis_server.url, role="worker", **FAST) as worker:
                    await until(lambda: counts(worker)["reward_stream_redelivered_total"] == 1)
                    await until(lambda: counts(worker)["reward_stream_held"] == 0)
                    assert sum(scorer.batches) in (1, 2), "unscored, unless the front has sent it again already"
            asking.cancel()


async def test_fronts_share_the_limit_of_the_streams(running, redis_server):
    scorer = PromptLengthScorer()
    limits = {"redis": redis_server.url, "role": "front", "max_items": 3, "max_stream_jobs": 4}
    async with silent_worker(redis_server.url, scorer.rewards, 30) as silent:
        async with running(scorer, **limits) as one, running(scorer, **limits) as two:
            asking = asyncio.create_task(ask(one, text_items("a", "b", "c")))
            await silent.take(1)
            await until(lambda: counts(two)["reward_stream_depth"] == 3)
            refused = await two.post("/v1/score", json={"items": text_items("d", "e")})
            assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
            message = refused.json()["error"]["message"]
            assert "3 jobs of all fronts" in message and "2 more would exceed the limit of 4" in message
            assert counts(two)["reward_stream_pending"] == 1
            async with running(scorer, redis=redis_server.url, role="worker") as worker:
                await until(lambda: counts(worker)["reward_stream_claimed_total"] == 2)
            asking.cancel()


async def test_a_damaged_message_ends_nobody(running, redis_server):
    scorer = PromptLengthScorer()
    async with running(scorer, redis=redis_server.url) as both:
        with redis_server.client() as client:
            stream = KEYS.jobs(scorer.rewards["prompt_length"])
            client.xadd(stream, {"hello": "world"})
            await until(lambda: counts(both)["reward_stream_damaged_total"] == 1)
            await until(lambda: client.xlen(stream) == 0)  # counted before it is taken away
        assert (await ask(both, text_items("a")))[0]["score"] == 1


async def test_another_revision_has_another_stream(running, redis_server):
    class Newer(PromptLengthScorer):
        @property
        def rewards(self):
            return {self.name: ScorerInfo(name=self.name, revision="2", range=(None, None))}

    async with running(Newer(), redis=redis_server.url, role="worker"):
        async with running(PromptLengthScorer(), redis=redis_server.url, role="front", wait_ready=False) as front:
            await until(lambda: front.app.state.service._ready)
            ready = await front.get("/ready")
    assert ready.status_code == 503
    assert "no live worker serves reward 'prompt_length' at revision '1'" in ready.json()["error"]["message"]
