"""The service `eval`: the reward of an item, every way of not having one, and the process itself."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from services.eval.judge import RESAMPLE_TEMPERATURE, JudgeMethod
from services.eval.prompting import load_instructions
from services.eval.scorer import EvalScorer
from services.eval.settings import EvalSettings
from services.kit.app import create_app
from services.kit.judge.client import JudgeEndpoint
from services.kit.testing.scripted_judge import Question, Reply
from tests.support.judges import judging
from tests.support.ports import free_port
from tests.support.service_process import ready_service, running_service
from wire.images import to_ref

pytestmark = pytest.mark.anyio

POINTS = {"testpoints": ["Style", "Attribute - Color", "Attribute - Color"], "descriptions": ["ink", "red", "blue"]}
GOOD = "<analysis>['It is ink.', 'The hat is red.', 'The shoe isn't blue.']</analysis><score>[1, 1, 0]</score>"
READY = "<score>[1]</score>"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def image(color: str = "red") -> Image.Image:
    return Image.new("RGB", (8, 6), color)


def item(name: str = "a", **changes: Any) -> dict[str, Any]:
    whole = {"prompt": "a cat", "images": [to_ref(image(), "image/png").model_dump(exclude_none=True)]}
    return {"id": name, **whole, "metadata": POINTS, **changes}


def answering(*texts: str):
    """Answers the warm-up, then the texts in turn; the last for ever."""
    left = [READY, *texts]

    def behave(_question: Question) -> Reply:
        return Reply(left.pop(0) if len(left) > 1 else left[0])

    return behave


@contextlib.asynccontextmanager
async def serving(behave: Any, **method: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    with judging(behave, "QwenVL") as judge:
        scorer = EvalScorer(
            JudgeEndpoint(judge.url, "QwenVL", attempts=1),  # type: ignore[attr-defined]
            JudgeMethod(load_instructions(), **method),
            wait_s=5,
        )
        app = create_app(scorer, "eval", EvalSettings())
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                while not app.state.service.ready:
                    assert app.state.service.failure is None, app.state.service.failure
                    await asyncio.sleep(0.001)
                yield client, judge


async def score(client: httpx.AsyncClient, *items: dict[str, Any], **request: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/score", json={"items": list(items), **request})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


async def test_the_score_is_the_share_of_passed_points_and_says_which() -> None:
    async with serving(answering(GOOD)) as (client, judge):
        [result] = await score(client, item())
    assert result["score"] == pytest.approx(2 / 3)
    assert result["components"] == {"point_0": 1.0, "point_1": 1.0, "point_2": 0.0}
    points = result["details"]["points"]
    assert [point["passed"] for point in points] == [True, True, False]
    assert points[2] == {
        "testpoint": "Attribute - Color",
        "dimension": "Attribute - Color",
        "passed": False,
        "reason": "The shoe isn't blue.",
    }
    question = judge.questions[-1]
    assert [part["type"] for part in question.body["messages"][0]["content"]] == ["image_url", "text"]
    assert (question.body["temperature"], question.body["max_tokens"]) == (0, 4096) and "seed" not in question.body
    assert "「a cat」" in question.text and "Attribute - Color: blue" in question.text


@pytest.mark.parametrize(
    ("answer", "official"),
    [
        ("<analysis>['a', 'b', 'c']</analysis><score>[1, 1, 0]</score>", [1, 1, 0]),
        ("<analysis>['a', 'b', 'c']</analysis><score>['1', '1', '0']</score>", [0, 0, 0]),
        ("<analysis>['a', 'the cat's', 'c']</analysis><score>[1, 1, 0]</score>", None),
    ],
)
async def test_the_official_reading_of_the_same_answer_is_told(answer: str, official: list[int] | None) -> None:
    async with serving(answering(answer)) as (client, _):
        [result] = await score(client, item())
    assert result["score"] == pytest.approx(2 / 3) and result["details"]["official"] == official


async def test_chinese_points_are_asked_in_chinese() -> None:
    points = {"testpoints": ["风格", "属性-颜色"], "descriptions": ["水墨", "红色"], "language": "zh"}
    async with serving(answering("<score>［１，１］</score>")) as (client, judge):
        [result] = await score(client, item(metadata=points))
    assert result["score"] == 1.0 and result["details"]["points"][0]["dimension"] == "Style"
    assert "提示词：「a cat」" in judge.questions[-1].text


async def test_an_unreadable_answer_is_asked_for_again_with_other_seeds() -> None:
    async with serving(answering("no", "<score>[1]</score>", GOOD)) as (client, judge):
        [result] = await score(client, item())
    assert result["score"] == pytest.approx(2 / 3) and result["details"]["resampled"] is True
    asked = [(each.body["temperature"], each.body.get("seed")) for each in judge.questions[1:]]
    assert asked == [(0, None), (RESAMPLE_TEMPERATURE, 1), (RESAMPLE_TEMPERATURE, 2)]


async def test_an_answer_that_stays_unreadable_is_no_score() -> None:
    async with serving(answering("I cannot tell.")) as (client, judge):
        [result] = await score(client, item())
        assert judge.calls == 1 + 3
        metrics = (await client.get("/metrics")).text
    assert (result["score"], result["error"]["code"]) == (None, "parse_error")
    assert 'reward_judge_calls_total{outcome="parse_error",reward="unigenbench"} 3.0' in metrics


async def test_a_cut_answer_is_truncated() -> None:
    replies = iter([Reply(READY)] + [Reply("<analysis>['It", finish_reason="length")] * 2)
    async with serving(lambda _question: next(replies), parse_retries=1) as (client, _):
        [result] = await score(client, item())
    assert (result["score"], result["error"]["code"]) == (None, "truncated")
    assert "cut at max_tokens" in result["error"]["message"]


async def test_a_judge_that_refuses_is_upstream() -> None:
    replies = iter([Reply(READY), Reply("too long", status=400)])
    async with serving(lambda _question: next(replies)) as (client, _):
        [result] = await score(client, item())
    assert result["error"]["code"] == "upstream" and "400: too long" in result["error"]["message"]


async def test_no_answer_by_the_deadline_is_a_timeout_and_the_neighbours_are_served() -> None:
    def behave(question: Question) -> Reply:
        return Reply(
            "<score>[1, 1, 1]</score>" if "slow" not in question.text else GOOD, delay_s=9 * ("slow" in question.text)
        )

    def warm(question: Question) -> Reply:
        return Reply(READY) if "a plain red surface" in question.text else behave(question)

    async with serving(warm) as (client, _):
        results = await score(client, item("a", prompt="slow"), item("b", prompt="quick"), deadline_ms=700)
    assert results[0]["error"]["code"] == "timeout" and results[1]["score"] == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metadata": {}}, "metadata.testpoints is missing"),
        ({"metadata": {"testpoints": ["Style"]}}, "metadata.descriptions is missing"),
        ({"metadata": {"testpoints": "Style", "descriptions": ["x"]}}, "metadata.testpoints: must be a list"),
        ({"metadata": {"testpoints": [], "descriptions": []}}, "metadata.testpoints: must be a list of texts"),
        (
            {"metadata": {"testpoints": [1], "descriptions": ["x"]}},
            "metadata.testpoints: entry 0 must be a text; got 1",
        ),
        ({"metadata": {"testpoints": ["Colour"], "descriptions": ["x"]}}, "not among the 27 test points"),
        (
            {"metadata": {"testpoints": ["Style"], "descriptions": ["x", "y"]}},
            "metadata.descriptions: 2 descriptions for 1",
        ),
        ({"metadata": {"testpoints": ["Style"] * 65, "descriptions": ["x"] * 65}}, "65 entries; the limit is 64"),
        ({"metadata": {**POINTS, "language": "zh"}}, "metadata.language is 'zh', the test points are in 'en'"),
        ({"metadata": {**POINTS, "language": ["en"]}}, "metadata.language is ['en']"),
        ({"images": [to_ref(image(), "image/png").model_dump(exclude_none=True)] * 2}, "`images` has 2"),
        ({"images": [], "completion": "text"}, "`images` has 0"),
    ],
)
async def test_a_wrong_item_is_named_and_the_judge_is_not_asked(changes: dict[str, Any], words: str) -> None:
    async with serving(answering(GOOD)) as (client, judge):
        wrong, right = await score(client, item("a", **changes), item("b"))
        assert judge.calls == 2
    assert wrong["error"]["code"] == "bad_input" and words in wrong["error"]["message"]
    assert right["score"] is not None


async def test_the_same_question_is_asked_once_and_other_points_are_another_question() -> None:
    async with serving(answering(GOOD)) as (client, judge):
        first, again = [(await score(client, item()))[0] for _ in range(2)]
        await score(client, item(metadata={**POINTS, "descriptions": ["ink", "red", "green"]}))
        assert judge.calls == 1 + 2
    assert not first["cached"] and again["cached"] and first["score"] == again["score"]


async def test_info_says_which_model_wording_and_retries() -> None:
    async with serving(answering(GOOD), parse_retries=3) as (client, _):
        info = (await client.get("/v1/info")).json()
    [reward] = info["rewards"]
    assert reward["name"] == "unigenbench" and reward["range"] == [0.0, 1.0]
    for part in ("model=QwenVL", "en=own-", "zh=own-", "definitions=own-", "parse_retries=3@temperature=0.7"):
        assert part in reward["revision"]


async def test_a_model_that_cannot_answer_in_the_format_never_gets_ready() -> None:
    with judging("Hello! How can I help you?", "QwenVL") as judge:
        endpoint = JudgeEndpoint(judge.url, "QwenVL")  # type: ignore[attr-defined]
        app = create_app(EvalScorer(endpoint, JudgeMethod(load_instructions())), "eval", EvalSettings())
        async with app.router.lifespan_context(app):
            until = time.monotonic() + 10
            while app.state.service.failure is None and time.monotonic() < until:
                await asyncio.sleep(0.01)
            assert "the warm-up item of reward 'unigenbench' failed: parse_error" in app.state.service.failure


def test_the_process_serves_and_stops() -> None:
    with judging(READY, "QwenVL") as judge, ready_service("eval", "--judge-url", judge.url) as url:  # type: ignore[attr-defined]
        points = {"testpoints": ["Style"], "descriptions": ["ink"]}
        answer = httpx.post(f"{url}/v1/score", json={"items": [item(metadata=points)]}, trust_env=False)
        assert answer.json()["results"][0]["score"] == 1.0


def test_a_missing_judge_ends_the_start_with_the_remedy() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with running_service("--judge-url", url, "--judge-wait-s", "0", module="services.eval") as server:
        assert server.process.wait(20) == 1
    assert f"no judge answers at {url}/v1/models" in "".join(server.errors)


def test_a_template_that_is_missing_ends_the_start_with_the_remedy() -> None:
    command = [sys.executable, "-m", "services.eval", "--port", "0", "--template-en", "missing.txt"]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "eval did not start: template missing.txt cannot be read" in done.stderr


def test_settings_come_from_variables_and_have_the_stated_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvalSettings()
    assert (settings.port, settings.judge_url, settings.model) == (18088, "http://127.0.0.1:8000", "QwenVL")
    monkeypatch.setenv("EVAL_MODEL", "UniGenBench")
    monkeypatch.setenv("EVAL_PARSE_RETRIES", "0")
    monkeypatch.setenv("EVAL_EXTRA_BODY", '{"top_k": 1}')
    settings = EvalSettings()
    assert settings.model == "UniGenBench" and settings.method().parse_retries == 0
    assert 'extra_body={"top_k": 1}' in settings.method().revision
