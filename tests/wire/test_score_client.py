"""`wire.client` against real services over real sockets: rows, batches, groups, retries, one deadline, and clear errors."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.kit.scorer import Failure, Item, Result, Score
from services.kit.testing.fakes import FakeScorer, PromptLengthScorer
from tests.support.ports import free_port
from tests.support.serving_here import serving_here
from wire.client import (
    AsyncRewardClient,
    DeadlineError,
    InvalidAnswerError,
    NoServiceError,
    NotAServiceError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    RewardClient,
    RewardClientError,
    UnauthorizedError,
)
from wire.images import encode
from wire.schema import ErrorCode, ScorerInfo

TOKEN = "correct-horse-battery-staple"
RED = Image.new("RGB", (6, 4), (200, 10, 30))


class SeenScorer(FakeScorer):
    """Scores the prompt's length and says what it saw; prompts with "fail" have no score."""

    name = "seen"

    def score_item(self, item: Item) -> Result:
        if "fail" in item.prompt:
            return Failure(ErrorCode.PARSE_ERROR, "asked to fail")
        seen: dict[str, Any] = {
            "pixels": [[*image.size, *image.convert("RGB").getpixel((1, 1))] for image in item.images],
            "sources": [list(image.size) for image in item.source_images],
            "group": item.group_id,
            "targets": None if item.targets is None else list(item.targets),
            "completion": item.completion,
            "metadata": dict(item.metadata),
        }
        return Score(float(len(item.prompt)), {"images": float(len(item.images))}, seen)


class ContestScorer(SeenScorer):
    """Compares: the share of its group's prompts that are shorter; the whole group is one call."""

    name = "contest"

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {self.name: ScorerInfo(name=self.name, revision="1", range=(0.0, 1.0), grouped=True)}

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        self.batches.append(len(items))
        lengths = [len(item.prompt) for item in items]
        return [Score(sum(length > other for other in lengths) / max(1, len(items) - 1)) for length in lengths]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        return []


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_here(SeenScorer(), max_items=5) as url:
        yield url


def test_images_of_every_kind_arrive_with_their_pixels(url: str, tmp_path: Path) -> None:
    """Path, its text, bytes, Pillow image, pixels, gray pixels, and an item of two images."""
    RED.save(tmp_path / "red.png")
    pixels = np.asarray(RED)
    images = [tmp_path / "red.png", str(tmp_path / "red.png"), encode(RED, "image/webp"), RED, pixels]
    with RewardClient(url) as client:
        scores = client.score(images=[*images, [RED, pixels], RED.convert("CMYK")], prompts="abc")
        (gray,) = client.score(np.full((4, 6), 90, np.uint8), "abc")
        stacked = client.score(np.stack([pixels, pixels]), ["a", "ab"])
    whole = [row.details["pixels"] for row in scores]
    assert whole[:5] == [[[6, 4, 200, 10, 30]]] * 5 and whole[5] == [[6, 4, 200, 10, 30]] * 2
    assert scores.values == [3.0] * 7 and scores.failed == [] and [row.index for row in scores] == list(range(7))
    assert gray.details["pixels"] == [[6, 4, 90, 90, 90]] and stacked.values == [1.0, 2.0]
    assert scores.scorer is not None and scores.scorer.name == "seen"
    assert scores[5].components == {"images": 2.0} and len(scores) == 7 and scores[-1].index == 6


def test_what_is_given_once_is_every_items_and_lists_are_one_for_each(url: str) -> None:
    with RewardClient(url) as client:
        shared = client.score([RED, RED], "p", targets=["A", "B"], metadata={"k": [1]}, groups=7, source_images=RED)
        each = client.score(
            [RED, RED], ["p", "pp"], targets=[["A"], None], metadata=[{"k": 1}, {}], completions=["x", None]
        )
        (text,) = client.score(completions="words", prompts="a question")
    for row in shared:
        assert row.details["targets"] == ["A", "B"] and row.details["metadata"] == {"k": [1]}
        assert row.details["group"] == "7" and row.details["sources"] == [[6, 4]]
    assert [row.details["targets"] for row in each] == [["A"], None]
    assert [row.details["completion"] for row in each] == ["x", None]
    assert [row.details["metadata"] for row in each] == [{"k": 1}, {}]
    assert text.score == 10.0 and text.details["completion"] == "words"


def test_a_failed_score_is_none_with_its_code_and_sentence_and_the_neighbours_keep_theirs(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "torn.png").write_bytes(encode(RED, "image/png")[:-30])
    (tmp_path / "words.gif").write_bytes(b"GIF89a........")
    images = [RED, RED, tmp_path / "torn.png", tmp_path / "absent.png", tmp_path / "words.gif", RED]
    with RewardClient(url) as client:
        rows = client.score(images, ["ok", "fail", "torn", "absent", "gif", "x" * 70_000])
    assert rows.values == [2.0, None, None, None, None, None]
    assert [row.code for row in rows] == [None, "parse_error", *["bad_input"] * 4]
    assert rows[1].message == "asked to fail"
    assert "cannot be read: No such file" in str(rows[3].message) and "a GIF; PNG, JPEG and WebP" in str(
        rows[4].message
    )
    assert str(rows[5].message).startswith("not sent: prompt: String should have at most 65536")
    assert [row.index for row in rows.failed] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": [RED, RED], "prompts": ["a"]}, "prompts has 1 entries and images has 2"),
        ({"images": [RED], "groups": ["a", "b"]}, "groups has 2 entries and images has 1"),
        ({"prompts": "a"}, "nothing to score: give images, or completions"),
        ({"images": [RED], "reward": "other"}, "no reward 'other' at http"),
        ({"images": [3]}, "images[0] is a int"),
        ({"images": [RED], "targets": "OPEN"}, "give a list of texts"),
        ({"images": np.zeros((4, 6, 3))}, "an array of float64: pixels are uint8"),
        ({"images": [np.zeros((3, 64, 64), np.uint8)]}, "channels come last, such as x.transpose(1, 2, 0)"),
        ({"images": [np.zeros((2, 2, 2, 2, 2), np.uint8)]}, "images[0] is a ndarray"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(
    url: str, arguments: dict[str, Any], words: str
) -> None:
    with RewardClient(url) as client, pytest.raises((ValueError, TypeError)) as caught:
        client.score(**arguments)
    assert words in str(caught.value)


def test_a_call_is_cut_to_the_services_limits_and_comes_back_in_order() -> None:
    """By count, and by the bytes of a body: 23 items, at most 5 in a request, then at most two large images."""
    scorer = SeenScorer(max_batch=64)
    limits = {"max_items": 5, "max_body_bytes": 100_000, "max_image_bytes": 90_000}
    with serving_here(scorer, cache_entries=0, **limits) as url, RewardClient(url) as client:
        scores = client.score([RED] * 23, ["x" * number for number in range(23)])
        noise = [np.random.default_rng(seed).integers(0, 256, (110, 110, 3), dtype=np.uint8) for seed in range(5)]
        large = client.score(noise, "large")
        huge = client.score([RED, np.random.default_rng(9).integers(0, 256, (200, 200, 3), dtype=np.uint8)], "p")
        limit = client.info().limits["max_items"]
    assert limit == 5 and scores.values == [float(number) for number in range(23)]
    assert large.values == [5.0] * 5
    assert huge[0].score == 1.0 and huge[1].code == "bad_input"
    assert "the service takes 100000 in one request" in str(huge[1].message)


def test_groups_stay_whole_and_one_that_cannot_is_refused_with_both_numbers() -> None:
    scorer = ContestScorer(max_batch=64)
    groups = ["a", "b", "c"] * 3
    with serving_here(scorer, max_items=4, max_group_items=3, cache_entries=0) as url, RewardClient(url) as client:
        scores = client.score([RED] * 9, ["x" * (1 + number // 3) for number in range(9)], groups=groups)
        with pytest.raises(ValueError, match="item 0 has none: give groups"):
            client.score([RED], "p")
        with pytest.raises(ValueError, match="group 'a' has 4 items and the service takes 3"):
            client.score([RED] * 4, "p", groups="a")
    assert scores.values == [0.0] * 3 + [0.5] * 3 + [1.0] * 3 and scorer.batches == [3, 3, 3]


class FlakyScorer(SeenScorer):
    """The first time it is asked about an item it says that the server behind it failed."""

    name = "flaky"

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, int] = {}

    def score_item(self, item: Item) -> Result:
        self.asked[item.prompt] = self.asked.get(item.prompt, 0) + 1
        if item.id != "warmup" and self.asked[item.prompt] == 1 and "ok" not in item.prompt:
            return Failure(ErrorCode.UPSTREAM, "the judge hung up")
        return super().score_item(item)


def test_an_item_that_failed_for_now_is_asked_about_again_alone() -> None:
    scorer = FlakyScorer()
    with serving_here(scorer) as url, RewardClient(url) as client:
        assert client.score([RED] * 3, ["ok", "weak", "fail"]).values == [2.0, 4.0, None]
    assert scorer.asked == {"warm-up": 1, "ok": 1, "weak": 2, "fail": 2}  # fail: upstream, then for good


@contextmanager
def answering(*answers: tuple[int, Mapping[str, str], bytes] | Callable[[], None]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, the last for ever, and the requests it has seen."""
    left, seen = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("content-length", 0)))
            answer = left.pop(0) if len(left) > 1 else left[0]
            if callable(answer):
                answer()
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _json(status: int, tree: Any, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    return status, {"content-type": "application/json", **headers}, json.dumps(tree).encode()


def _refusal(status: int, code: str, message: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    return _json(status, {"error": {"code": code, "message": message}}, **headers)


SCORER = {"name": "r", "revision": "1", "range": [0, 1]}
INFO = _json(200, {"service": "s", "rewards": [SCORER], "default_reward": "r", "limits": {"max_items": 8}})


def _scored(*scores: float, scorer: Mapping[str, Any] = SCORER) -> tuple[int, Mapping[str, str], bytes]:
    results = [{"id": str(place), "score": score} for place, score in enumerate(scores)]
    return _json(200, {"results": results, "scorer": scorer, "request_id": "x"})


def test_what_may_pass_is_tried_again_and_retry_after_is_kept() -> None:
    """A full queue, a service that loads, a proxy's own 502, a connection that breaks: then the score."""
    busy = _refusal(429, "overloaded", "the queue is full", **{"Retry-After": "0"})
    loading = _refusal(503, "not_ready", "s is loading; poll /ready")
    proxy = (502, {"content-type": "text/html"}, b"<html>bad gateway</html>")
    with answering(INFO, busy, loading, proxy, lambda: None, _scored(0.5)) as (url, seen), RewardClient(url) as client:
        assert client.score([RED], "p").values == [0.5]
    assert seen == ["GET /v1/info", *["POST /v1/score"] * 5]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (_refusal(503, "not_ready", "s is loading"), NotReadyError, "answered 503 (not_ready): s is loading"),
        (_refusal(429, "overloaded", "full", **{"Retry-After": "30"}), OverloadedError, "429 (overloaded): full"),
        (_refusal(504, "timeout", "none of 1 items"), DeadlineError, "504 (timeout): none of 1"),
        (_refusal(500, "internal", "a bug"), InvalidAnswerError, "500 (internal): a bug"),
        (_refusal(422, "invalid", "no such field"), RefusedError, "422 (invalid): no such field"),
        (_scored(0.5, 0.5), InvalidAnswerError, "2 results for 1 items"),
        (_scored(float("nan")), InvalidAnswerError, "broke the contract"),
        (_json(200, {"results": []}), InvalidAnswerError, "broke the contract: scorer: Field required"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_call_without_any_answer_raises_what_happened(
    answer: tuple[int, Mapping[str, str], bytes], kind: type[RewardClientError], words: str
) -> None:
    with answering(INFO, answer) as (url, _), RewardClient(url) as client, pytest.raises(kind) as caught:
        client.score([RED], "p", deadline_s=0.8)
    assert words in str(caught.value) and url in str(caught.value)


def test_the_deadline_holds_whatever_the_service_does() -> None:
    ended = threading.Event()
    with answering(INFO, lambda: bool(ended.wait(30)) or None) as (url, _), RewardClient(url) as client:
        with pytest.raises(DeadlineError, match=r"no answer to POST /v1/score by the deadline"):
            client.score([RED], "p", deadline_s=0.3)
        ended.set()


def test_requests_without_an_answer_are_rows_where_others_have_scores() -> None:
    """Eleven items in two requests, one after the other: the second is refused."""
    first, second = _scored(*[0.5] * 8), _refusal(413, "too_large", "more than a minute's allowance")
    with answering(INFO, first, second) as (url, _), RewardClient(url, concurrency=1) as client:
        scores = client.score([RED] * 11, "p")
    assert scores.values == [0.5] * 8 + [None] * 3
    assert {row.code for row in scores.failed} == {"refused"} and "minute's allowance" in str(scores[10].message)


def test_scores_of_two_revisions_are_not_mixed() -> None:
    other = _json(
        200,
        {
            "results": [{"id": str(place), "score": 0.9} for place in range(8, 11)],
            "scorer": SCORER | {"revision": "2"},
            "request_id": "x",
        },
    )
    with answering(INFO, _scored(*[0.5] * 8), other) as (url, _), RewardClient(url, concurrency=1) as client:
        scores = client.score([RED] * 11, "p")
    assert scores.values == [0.5] * 8 + [None] * 3 and "answered with revision '1' and then with '2'" in str(
        scores[9].message
    )


def test_nothing_there_and_something_else_there_are_two_errors() -> None:
    port = free_port()
    with (
        RewardClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(NoServiceError, match="is the service started"),
    ):
        client.score([RED], "p", deadline_s=5)
    page = (200, {"content-type": "text/html"}, b"<html>hello</html>")
    moved = (301, {"location": "https://elsewhere/", "content-type": "text/html"}, b"")
    lost = (404, {"content-type": "text/plain"}, b"not found")
    for answer, words in (
        (page, "gave 200, text/html"),
        (moved, "a redirection to https://elsewhere/"),
        (lost, "gave 404"),
    ):
        raises = pytest.raises(NotAServiceError)
        with answering(answer) as (url, _), RewardClient(url) as client, raises as caught:
            client.score([RED], "p")
        assert words in str(caught.value) and "give the service's base URL" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:18082", "write it as in http://127.0.0.1:18082"),
        ("http://host:port", "is no URL of a service"),
        ("http://127.0.0.1:1/v1/score", "give the base URL, http://127.0.0.1:1"),
        ("http://user:secret@host", "give the token as `token`"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused_at_once(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as caught:
        AsyncRewardClient(url)
    assert "secret" not in str(caught.value)


def test_a_token_is_asked_for_sent_and_shown_nowhere(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"me:{TOKEN}\n")
    with serving_here(PromptLengthScorer(), token_file=tmp_path / "tokens") as url:
        with RewardClient(url) as client, pytest.raises(UnauthorizedError, match=r"wants a token: .*token=\.\.\."):
            client.score([RED], "p")
        with RewardClient(url, token="x" * 20) as client, pytest.raises(UnauthorizedError, match="does not know this"):
            client.score([RED], "p")
        with RewardClient(url, token=TOKEN) as client:
            assert client.score([RED], "four").values == [4.0]
            assert TOKEN not in repr(vars(client)) + repr(vars(client._client)) + repr(client._client._transport)
    with pytest.raises(ValueError, match="without `Bearer` and blanks"):
        RewardClient("http://127.0.0.1:1", token="Bearer x")


def test_waiting_for_a_service_that_is_still_to_start() -> None:
    ready = threading.Event()

    class LoadsLater(PromptLengthScorer):
        def load(self) -> None:
            assert ready.wait(60)

    port = free_port()
    with RewardClient(f"http://127.0.0.1:{port}") as client, pytest.raises(NoServiceError):
        client.wait_ready(0.3)
    loading = _refusal(503, "not_ready", "test is loading; poll /ready")
    with answering(loading, loading, _json(200, {"status": "ready"})) as (url, seen), RewardClient(url) as client:
        client.wait_ready(30)
    assert seen == ["GET /ready"] * 3
    raises = pytest.raises(NotReadyError, match=r"not ready within 0\.3 s: test is loading")
    with answering(loading) as (url, _), RewardClient(url) as client, raises:
        client.wait_ready(0.3)


def test_the_async_client_is_the_same_and_asks_side_by_side(url: str) -> None:
    async def main() -> list[list[float | None]]:
        async with AsyncRewardClient(url, batch_size=2) as client:
            found = await asyncio.gather(*(client.score([RED] * 3, "x" * length) for length in (1, 2)))
            return [scores.values for scores in found]

    assert asyncio.run(main()) == [[1.0] * 3, [2.0] * 3]


def test_it_works_inside_a_running_event_loop_and_from_several_threads(url: str) -> None:
    with RewardClient(url) as client:

        async def in_a_notebook() -> list[float | None]:
            return client.score([RED], "abc").values

        assert asyncio.run(in_a_notebook()) == [3.0]
        found: list[list[float | None]] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.score([RED] * 4, "ab").values)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[2.0] * 4] * 4
    client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.score([RED], "p")


def test_it_imports_neither_torch_nor_a_server() -> None:
    unwanted = ("torch", "numpy", "fastapi", "starlette", "uvicorn", "pydantic_settings", "services", "trainer")
    code = f"import sys, wire.client.command\nprint(*(name for name in {unwanted!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == []


def test_importing_it_waits_for_nothing_that_only_a_call_needs() -> None:
    """Counted in modules, as seconds differ from machine to machine: what is loaded is the standard library and this client."""
    code = "import sys; before = set(sys.modules); import wire.client\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    loaded = done.stdout.split()
    others = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert others == {"wire"}, others
    assert {name for name in loaded if name.startswith("wire.")} == {
        "wire.client",
        "wire.client.client",
        "wire.client.errors",
        "wire.client.rows",
    }
    assert len(loaded) < 150, len(loaded)  # asyncio is half of them


def test_reading_images_does_not_hold_them_all() -> None:
    """A request's images are read when it is its turn: while the first is under way no more than the next few are."""
    read: list[str] = []
    hold = threading.Event()

    class Listed(type(Path())):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            read.append(self.name)
            return encode(RED, "image/png")

    class Held(SeenScorer):
        def score_item(self, item: Item) -> Result:
            assert item.id == "warmup" or hold.wait(60)
            return super().score_item(item)

    with serving_here(Held(), max_items=2) as url, RewardClient(url, concurrency=2) as client:
        import wire.client.inputs as inputs

        before, inputs.Path = inputs.Path, Listed  # type: ignore[misc]
        try:
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(client.score([f"{n}.png" for n in range(20)], "p")))
            asking.start()
            until = time.monotonic() + 30
            while len(read) < 5:
                assert time.monotonic() < until
                time.sleep(0.005)
            assert len(read) == 5  # two requests of two, and the item that did not fit the second any more
            hold.set()
            asking.join()
        finally:
            inputs.Path = before  # type: ignore[misc]
    assert answers[0].values == [1.0] * 20 and len(read) == 20
