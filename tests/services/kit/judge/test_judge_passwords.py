"""The judge's own routes, at each service that asks a judge: for clients with a key, and for those with a URL alone."""

from __future__ import annotations

import base64

import httpx
import pytest
import requests

from services.eval.settings import EvalSettings, make_scorer
from services.kit.app import create_app
from services.kit.judge.passthrough import PassThrough
from services.kit.testing.scripted_judge import Reply
from services.textjudge.scorer import TextJudgeScorer
from services.textjudge.settings import TextJudgeSettings
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from services.vqa.scorer import VqaScorer
from services.vqa.settings import VqaSettings
from tests.support.judges import judging
from tests.support.service_process import ready_service

pytestmark = pytest.mark.anyio

TOKEN = "a" * 20
CHAT, MODELS = "/v1/chat/completions", "/v1/models"


def app_of(service, **settings):
    if service == "eval":
        given = EvalSettings(**settings)
        scorer = make_scorer(given)
    elif service == "vqa":
        given = VqaSettings(**settings)
        scorer = VqaScorer(given)
    elif service == "textjudge":
        given = TextJudgeSettings(**settings)
        scorer = TextJudgeScorer(given)
    else:
        given = UnifiedRewardSettings(**settings)
        scorer = UnifiedRewardScorer(given)
    scorer.client._http._transport = httpx.MockTransport(lambda _request: httpx.Response(200, json={"data": []}))
    return create_app(scorer, service, given, add_routes=PassThrough(scorer.client, 2).add_routes)


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize("service", ["unifiedreward", "eval", "vqa", "textjudge"])
@pytest.mark.parametrize("legacy", [False, True])
async def test_bearer_or_a_password_in_the_url(tmp_path, service, legacy):
    file = tmp_path / "tokens"
    file.write_text(f"lab:{TOKEN}\n")
    settings = {"legacy": legacy, "legacy_reward": "pointwise", "family": "v2"} if service == "unifiedreward" else {}
    app = app_of(service, token_file=file, **settings)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        for given, status in [
            (f"Bearer {TOKEN}", 200),
            (basic(f"anyone:{TOKEN}"), 200),
            (basic(f":{TOKEN}"), 200),
            (basic(f"{TOKEN}:"), 401),
            (basic("lab:wrong"), 401),
            ("Bearer wrong", 401),
            ("", 401),
        ]:
            headers = {"Authorization": given} if given else {}
            assert (await client.get(MODELS, headers=headers)).status_code == status, given
            assert (await client.post(CHAT, json={}, headers=headers)).status_code == status, given
        for path in ("/v1/info", "/metrics", "/v1/score"):
            refused = await client.get(path, headers={"Authorization": basic(f":{TOKEN}")})
            assert refused.status_code == 401, "passwords are for these routes only"


@pytest.mark.parametrize("service", ["unifiedreward", "eval", "vqa"])
def test_a_client_that_has_only_a_url_asks_the_judge(tmp_path, service):
    """As DeepGen-RL's `UniGenBenchScorer` asks its judge: the address and /v1/chat/completions."""
    file = tmp_path / "tokens"
    file.write_text(f"lab:{TOKEN}\n")
    answer = "<score>[1]</score><answer>Image 1 is better</answer>"
    reply = Reply(answer, first_token=(("Yes", -0.5), ("Good", -1.5)))
    with (
        judging(lambda _question: reply) as judge,
        ready_service(service, "--judge-url", f"{judge.url}/v1/", "--model", "judge", "--token-file", str(file)) as url,
    ):
        known = url.replace("http://", f"http://lab:{TOKEN}@")
        body = {"model": "judge", "messages": [{"role": "user", "content": "hello"}], "do_sample": False}
        through = requests.post(f"{known}{CHAT}", json=body, timeout=30)
        assert through.json()["choices"][0]["message"]["content"] == answer
        assert requests.get(f"{known}{MODELS}", timeout=30).json()["data"][0]["id"] == "judge"
        assert requests.post(f"{url}{CHAT}", json=body, timeout=30).status_code == 401
