"""What other trainers' clients are told: no prompts, no token, no judge; each in their own protocol and in time."""

from __future__ import annotations

import json
import math
import pickle
import time
from contextlib import ExitStack, asynccontextmanager

import httpx
import pytest
import requests
import simplejson
from PIL import Image

from services.kit.app import create_app
from services.kit.testing.fakes import ConstantScorer, PromptLengthScorer
from services.kit.testing.scripted_judge import Reply
from services.rules.scorer import RulesScorer
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.judges import judging
from tests.support.legacy_clients import flow_factory, jpeg, png64
from tests.support.redis_services import until

pytestmark = pytest.mark.anyio

DOT = Image.new("RGB", (8, 8), "red")
TOKEN = "a" * 20
FORMS = ["pickle", "json"]


async def ask(client, form, images=2, prompts=None, **more):
    """The status, what the client reads, and the answer."""
    if form == "pickle":
        tree = {"images": [jpeg(DOT)] * images, **more}
        if prompts is not None:
            tree["prompts"] = prompts
        answer = await client.post("/", content=pickle.dumps(tree))
        return answer.status_code, pickle.loads(answer.content), answer
    tree = {"image": [png64(DOT)] * images, **more}
    if prompts is not None:
        tree["prompt"] = prompts
    answer = await client.post("/compute", json=tree)
    return answer.status_code, answer.json(), answer


def message_of(tree):
    return tree["error"]["message"] if isinstance(tree["error"], dict) else tree["error"]


# --- requests without prompts ---


@pytest.mark.parametrize("form", FORMS)
async def test_misspelt_prompts_are_named(running, form):
    field, given = ("prompts", "promts") if form == "pickle" else ("prompt", "promt")
    async with running(PromptLengthScorer(), legacy=True) as client:
        status, tree, _ = await ask(client, form, **{given: ["a", "b"]})
    assert status == 422 and f"did you mean `{field}` by `{given}`?" in message_of(tree)


@pytest.mark.parametrize("form", FORMS)
async def test_without_prompts_a_reward_that_reads_them_refuses_with_the_reason(running, form):
    scorer = PromptLengthScorer()
    async with running(scorer, legacy=True) as client:
        before = sum(scorer.batches)
        status, tree, _ = await ask(client, form)
        assert sum(scorer.batches) == before
    assert status == 422
    assert "there are no prompts" in message_of(tree) and "'prompt_length' judges an image by its prompt" in message_of(
        tree
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prompts", [["", ""], ["a cat", "  "]])
async def test_an_empty_caption_is_no_prompt(running, form, prompts):
    async with running(PromptLengthScorer(), legacy=True) as client:
        status, tree, _ = await ask(client, form, prompts=prompts)
        assert (await ask(client, form, prompts=["a", "b"]))[0] == 200
    assert status == 422
    assert f"{sum(not each.strip() for each in prompts)} of 2 prompts are empty" in message_of(tree)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prompts", [None, ["", ""], ["a", "b"]])
async def test_a_reward_that_looks_at_the_images_alone_serves_it(running, form, prompts):
    async with running(RulesScorer(), legacy=True, legacy_reward="jpeg_incompressibility") as client:
        status, tree, _ = await ask(client, form, prompts=prompts)
        _, with_prompts, _ = await ask(client, form, prompts=["a", "b"])
    assert status == 200 and tree == with_prompts
    assert (tree.get("outputs") or tree["rewards"])[0] > 0


async def test_a_users_function_may_say_that_it_looks_at_the_images_alone(running, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from services.rules import reward\n"
        "@reward(image_only=True)\ndef width(item): return item.images[0].width\n"
        "@reward\ndef words(item): return len(item.prompt.split())\n"
    )
    scorer = RulesScorer([str(file)])
    async with running(scorer, legacy=True, legacy_reward="width") as client:
        assert (await ask(client, "pickle"))[1]["outputs"] == [8.0, 8.0]
    async with running(RulesScorer([str(file)]), legacy=True, legacy_reward="words") as client:
        assert (await ask(client, "pickle"))[0] == 422


async def test_genevals_request_is_told_that_it_is_not_served(running):
    async with running(ConstantScorer(), legacy=True) as client:
        status, tree, _ = await ask(client, "pickle", meta_datas=[{}] * 2, only_strict=True)
    assert status == 422 and "GenEval's requests (`meta_datas`) ask for an object detector" in tree["error"]


# --- strangers ---


async def test_a_401_is_answered_in_the_clients_own_protocol(running, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"lab:{TOKEN} requests_per_minute=1\n")
    async with running(PromptLengthScorer(), legacy=True, token_file=file) as client:
        status, tree, answer = await ask(client, "pickle", prompts=["a", "b"])
        assert (status, list(tree)) == (401, ["error"]) and "token" in tree["error"]
        assert answer.headers["www-authenticate"] == "Bearer"
        status, tree, _ = await ask(client, "json", prompts=["a", "b"])
        assert (status, tree["error"]["code"]) == (401, "unauthorized")
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert (await ask(client, "pickle", prompts=["a", "b"]))[0] == 200
        status, tree, answer = await ask(client, "pickle", prompts=["a", "b"])
        assert status == 429 and "may send 1 requests a minute" in tree["error"] and answer.headers["retry-after"]
    async with running(PromptLengthScorer(), token_file=file) as client:
        answer = await client.post("/", content=b"x")
        assert answer.status_code == 401 and "error" in answer.json(), "without --legacy there is no such protocol"


# --- a missing score, read by simplejson ---


async def test_a_nan_is_read_by_simplejson_too(serving):
    with serving("--behaviour", "nan", "--legacy", "--legacy-missing", "nan") as server:
        server.wait_ready()
        rewards = flow_factory(server.url, [DOT] * 2, ["nan", "four"])
        answer = requests.post(f"{server.url}/compute", json={"prompt": ["nan"], "image": [png64(DOT)]}, timeout=30)
        assert rewards == [None, 4.0]
        assert simplejson.loads(answer.text) == json.loads(answer.text) == {"rewards": [None]}
        [score] = pickle.loads(
            requests.post(
                server.url, data=pickle.dumps({"images": [jpeg(DOT)], "prompts": ["nan"]}), timeout=30
            ).content
        )["scores"]
        assert math.isnan(score)


# --- a judge that dies, hangs or is slow ---

POINTS = "Alignment Score: 4\nCoherence Score: 4\nStyle Score: 4"


@asynccontextmanager
async def gateway(judge_url, **more):
    given = {"family": "v2", "model": "judge", "check_model": False, "legacy": True, "cache_entries": 0, **more}
    settings = UnifiedRewardSettings(judge_url=judge_url, **given)
    app = create_app(UnifiedRewardScorer(settings), "x", settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await until(lambda: app.state.service.ready)
            yield client


@pytest.mark.parametrize("form", FORMS)
async def test_a_judge_that_died_is_told_at_once(form):
    """The first request after its death, too, of which the gateway does not know yet."""
    with ExitStack() as life:
        judge = life.enter_context(judging(POINTS))
        async with gateway(judge.url) as client:
            assert (await ask(client, form, prompts=["a", "b"]))[0] == 200
            life.close()
            assert (await client.get("/ready")).status_code == 200
            began = time.monotonic()
            status, tree, answer = await ask(client, form, prompts=["a", "b"])
            assert time.monotonic() - began < 20, "not a request's 300 s, nor the 50 s of these routes"
    assert status == 503 and answer.headers["retry-after"]
    assert "does not answer (ConnectError" in message_of(tree)


@pytest.mark.parametrize("form", FORMS)
async def test_these_routes_have_a_shorter_limit_of_their_own(form):
    with judging(lambda _question: Reply(POINTS, delay_s=30)) as judge:
        async with gateway(judge.url, legacy_timeout_s=0.5) as client:
            began = time.monotonic()
            status, tree, answer = await ask(client, form, prompts=["a", "b"])
            assert time.monotonic() - began < 20
    assert status == 503 and answer.headers["retry-after"], (
        "flow_grpo comes back after these two, after 504 it does not"
    )
    assert "2 of 2 items have no score" in message_of(tree) or "none of 2 items had a result" in message_of(tree)


def test_the_limit_is_below_the_time_after_which_clients_leave():
    assert UnifiedRewardSettings().legacy_timeout_s == 50 < 60
