"""Limits per client: token buckets, the token file's syntax, and 429 with Retry-After over HTTP."""

from __future__ import annotations

import pytest

from services.kit.errors import ApiError
from services.kit.guard.auth import Tokens
from services.kit.guard.limits import Allowance, Bucket, RateLimits
from services.kit.testing.fakes import PromptLengthScorer

LAB, CI, FREE = "lab-aaaaaaaaaaaaaaaaaaaa", "ci-bbbbbbbbbbbbbbbbbbbbbb", "free-cccccccccccccccccc"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_bucket_holds_a_minute_and_refills_steadily():
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.take(45) == 0 and bucket.take(15) == 0
    assert bucket.take(1) == pytest.approx(1.0)
    clock.now += 10  # ten more
    assert bucket.take(4) == 0
    assert bucket.take(12) == pytest.approx(6.0), "six are left, six more take six seconds"
    assert bucket.take(6) == 0, "a refusal takes nothing"
    clock.now += 3600
    assert bucket.take(61) == pytest.approx(1.0), "never more than a minute's worth"
    assert bucket.take(60) == 0


def test_over_any_hour_no_more_than_the_rate_and_one_burst():
    clock = Clock()
    bucket, taken = Bucket(7, clock), 0
    for _ in range(36_000):
        clock.now += 0.1
        taken += bucket.take(1) == 0
    assert 7 * 60 <= taken <= 7 * 60 + 7


def test_clients_do_not_share_buckets():
    limits = RateLimits({"lab": Allowance(items_per_minute=10), "ci": Allowance(items_per_minute=10)}, Clock())
    limits.take_items("lab", 10)
    limits.take_items("ci", 10)
    limits.take_items("unlimited", 10_000)
    limits.take_items(None, 10_000)
    with pytest.raises(ApiError) as refused:
        limits.take_items("lab", 4)
    assert (refused.value.status, refused.value.code, refused.value.headers) == (
        429,
        "rate_limited",
        {"Retry-After": "24"},
    )
    assert "'lab' may send 10 items a minute; try again in 24 s" in refused.value.message


def test_what_is_left_is_told_in_whole_units():
    clock = Clock()
    limits = RateLimits({"lab": Allowance(items_per_minute=10, requests_per_minute=3), "free": Allowance()}, clock)
    limits.take_items("lab", 10)
    limits.take_request("lab")
    clock.now += 9  # one and a half items, .45 of a request
    assert list(limits.left()) == [("lab", "requests", 3, 2), ("lab", "items", 10, 1)]
    assert list(limits.left()) == [("lab", "requests", 3, 2), ("lab", "items", 10, 1)], "looking takes nothing"


def test_more_than_a_minute_at_once_can_never_be_sent():
    limits = RateLimits({"lab": Allowance(items_per_minute=10)}, Clock())
    with pytest.raises(ApiError) as refused:
        limits.take_items("lab", 11)
    assert (refused.value.status, refused.value.headers) == (413, {})
    assert "11 items at once; 'lab' may send 10 a minute" in refused.value.message
    limits.take_items("lab", 10)


def test_limits_stand_beside_the_token(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(
        f"lab:{LAB}  items_per_minute=600 requests_per_minute=60\n{CI}\titems_per_minute=5\nfree : {FREE}\n"
    )
    tokens = Tokens.from_file(file)
    assert tokens.allowances == {"lab": Allowance(60, 600), "line2": Allowance(None, 5), "free": Allowance()}
    assert [tokens.name_of(f"Bearer {token}".encode()) for token in (LAB, CI, FREE)] == ["lab", "line2", "free"]


@pytest.mark.parametrize(
    "limits",
    [
        "600",
        "items=6",
        "items_per_minute",
        "items_per_minute=",
        "items_per_minute=0",
        "items_per_minute=-1",
        "items_per_minute=1.5",
        "items_per_minute=1 items_per_minute=2",
        "items_per_minute=1, x",
    ],
)
def test_wrong_limits_say_which_there_are(tmp_path, limits):
    file = tmp_path / "tokens"
    file.write_text(f"lab:{LAB} {limits}\n")
    with pytest.raises(ValueError, match=r"line 1: after the token.*requests_per_minute, items_per_minute") as refused:
        Tokens.from_file(file)
    assert LAB not in str(refused.value)


def score(client, token, count=1):
    items = [{"id": str(n), "prompt": "p", "completion": "c"} for n in range(count)]
    return client.post("/v1/score", json={"items": items}, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.anyio
async def test_items_above_the_limit_get_429_and_others_are_served(running, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"lab:{LAB} items_per_minute=6\nfree:{FREE}\n")
    async with running(PromptLengthScorer(), token_file=file) as client:
        assert (await score(client, LAB, 4)).status_code == 200
        refused = await score(client, LAB, 4)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["Retry-After"]) <= 20
        assert (await score(client, LAB, 2)).status_code == 200, "a refused request costs nothing"
        assert (await score(client, LAB, 7)).status_code == 413
        assert (await score(client, FREE, 500)).status_code == 200
        assert client.app.state.service.in_flight == 0


@pytest.mark.anyio
async def test_requests_above_the_limit_get_429_before_their_body_is_read(running, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"lab:{LAB} requests_per_minute=2\n")
    async with running(PromptLengthScorer(), token_file=file) as client:
        answers = [await score(client, LAB) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "'lab' may send 2 requests a minute" in answers[2].json()["error"]["message"]
        assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200
        assert (await score(client, "wrong")).status_code == 401, "a stranger does not use up the client's limit"
