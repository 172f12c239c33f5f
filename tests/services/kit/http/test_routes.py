"""The other routes, the error map, readiness and tokens."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import logging
import re
import threading
import time
from pathlib import Path

import pytest

from rewards import __version__
from services.kit.catalogue import DEPLOYED
from services.kit.guard.auth import ASSETS
from services.kit.http import docs_page
from services.kit.logs import JsonFormatter
from services.kit.openapi import FOLDER, render
from services.kit.scorer import Failure
from services.kit.testing.fakes import ConstantScorer, PromptLengthScorer
from tests.support.gated import Gated, until
from wire.schema import ErrorBody, ErrorCode, ServiceInfo

pytestmark = pytest.mark.anyio
DOCS = Path(docs_page.__file__).parent

ITEM = {"id": "a", "prompt": "p", "completion": "c"}
TOKEN = "0123456789abcdef-secret"


class LoadsSlowly(ConstantScorer):
    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def load(self):
        assert self.gate.wait(30)


async def test_ready_only_after_load_and_warm_up(running):
    scorer = LoadsSlowly()
    async with running(scorer, wait_ready=False) as client:
        assert (await client.get("/health")).status_code == 200
        early = await client.get("/ready")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "not_ready")
        assert (await client.post("/v1/score", json={"items": [ITEM]})).status_code == 503
        scorer.gate.set()
        await until(lambda: client.app.state.service.ready)
        assert (await client.get("/ready")).json() == {"status": "ready"}


@pytest.mark.parametrize("stage", ["load", "warmup"])
async def test_failed_start_says_why_and_never_gets_ready(running, stage):
    class Broken(ConstantScorer):
        def load(self):
            if stage == "load":
                raise RuntimeError("weights are missing: put them in /models")

        def score_item(self, item):
            return Failure(ErrorCode.UPSTREAM, "weights are missing behind me")

    async with running(Broken(), wait_ready=False) as client:
        await until(lambda: client.app.state.service.failure is not None)
        answer = await client.get("/ready")
    assert answer.status_code == 503
    assert "weights are missing" in answer.json()["error"]["message"]


async def test_draining_refuses_new_work_and_finishes_old(running):
    scorer = Gated()
    async with running(scorer) as client:
        old = asyncio.create_task(client.post("/v1/score", json={"items": [ITEM]}))
        await until(lambda: client.app.state.service.in_flight == 1)
        client.app.state.service.drain()
        assert (await client.get("/ready")).status_code == 503
        new = await client.post("/v1/score", json={"items": [ITEM]})
        assert (new.status_code, "shutting down" in new.json()["error"]["message"]) == (503, True)
        scorer.gate.set()
        assert (await old).json()["results"][0]["score"] == 1


async def test_abandoned_items_are_answered(running):
    scorer = Gated(max_batch=1)
    async with running(scorer) as client:
        items = [ITEM, ITEM | {"id": "b", "prompt": "pp"}]
        waiting = asyncio.create_task(client.post("/v1/score", json={"items": items}))
        await until(lambda: len(client.app.state.service._dispatcher._entries) == 2)
        client.app.state.service.abandon()
        scorer.gate.set()
        codes = [result["error"]["code"] for result in (await waiting).json()["results"]]
    assert codes == ["overloaded", "overloaded"]


async def test_info_names_rewards_and_limits(running):
    async with running(PromptLengthScorer(), max_items=7) as client:
        info = ServiceInfo.model_validate_json((await client.get("/v1/info")).content)
    assert (info.default_reward, info.limits["max_items"]) == ("prompt_length", 7)


@pytest.mark.parametrize(
    ("method", "path", "content_type", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/v1/score", None, 405, "method_not_allowed"),
        ("DELETE", "/health", None, 405, "method_not_allowed"),
        ("POST", "/v1/score", "text/plain", 415, "unsupported_media_type"),
        ("POST", "/v1/score", None, 415, "unsupported_media_type"),
    ],
)
async def test_every_refusal_has_the_one_error_body(running, method, path, content_type, status, code):
    headers = {"content-type": content_type} if content_type else {}
    async with running(ConstantScorer()) as client:
        answer = await client.request(method, path, headers=headers, content=b"hello" if method == "POST" else None)
    assert answer.status_code == status
    assert ErrorBody.model_validate_json(answer.content).error.code == code
    if status == 405:
        assert answer.headers["allow"]


async def test_compressed_body_is_415(running):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    async with running(ConstantScorer()) as client:
        answer = await client.post("/v1/score", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["error"]["field"]) == (415, "content-encoding")


async def test_bug_is_500_with_the_request_id_and_the_next_request_works(running, monkeypatch):
    async with running(ConstantScorer()) as client:
        service = client.app.state.service
        with monkeypatch.context() as patch:
            patch.setattr(service, "info", lambda: 1 / 0)
            answer = await client.get("/v1/info", headers={"X-Request-ID": "trace-me"})
        assert answer.status_code == 500
        assert "trace-me" in ErrorBody.model_validate_json(answer.content).error.message
        assert (await client.get("/v1/info")).status_code == 200


async def test_tokens_close_all_but_health_and_ready(running, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# who\n\nother:{'y' * 20}\ntrainer:{TOKEN}\n")
    async with running(ConstantScorer(), token_file=file) as client:
        for path in ("/health", "/ready", "/", "/docs", *ASSETS):
            assert (await client.get(path)).status_code == 200
        assert "ScoreRequest" not in (await client.get("/docs")).text, "the document needs a token"
        for path in ("/v1/info", "/v1/sample", "/metrics", "/openapi.json", "/nowhere"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        for wrong in ("Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xff"):
            headers = {"Authorization": wrong.encode("latin-1")}
            assert (await client.get("/v1/info", headers=headers)).status_code == 401, wrong
        good = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/v1/info", headers=good)).status_code == 200
        answer = await client.post("/v1/score", json={"items": [ITEM]}, headers=good)
        assert answer.status_code == 200


async def test_logs_are_json_lines_without_tokens_or_bodies(running, tmp_path, caplog):
    file = tmp_path / "tokens"
    file.write_text(f"trainer:{TOKEN}\n")
    caplog.set_level(logging.DEBUG)
    image = {"media_type": "image/png", "data": "SECRETPIXELS"}
    async with running(ConstantScorer(), token_file=file) as client:
        headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-ID": "r-1"}
        await client.post("/v1/score", json={"items": [ITEM | {"images": [image]}]}, headers=headers)
    formatter = JsonFormatter("test")
    lines = [formatter.format(record) for record in caplog.records]
    access = [json.loads(line) for line in lines if '"path": "/v1/score"' in line]
    assert [(a["request_id"], a["status"], a["items"], a["failed_items"], a["caller"]) for a in access] == [
        ("r-1", 200, 1, 1, "trainer")
    ]
    assert not any(TOKEN in line or "SECRETPIXELS" in line for line in lines)


async def test_two_apps_in_one_process_keep_their_own_metrics(running):
    async with running(ConstantScorer()) as one, running(ConstantScorer()) as two:
        await one.post("/v1/score", json={"items": [ITEM]})
        assert 'reward_items_total{code="ok",reward="constant"} 1.0' in (await one.get("/metrics")).text
        assert "reward_items_total{" not in (await two.get("/metrics")).text


async def test_metrics_name_what_runs_since_when_and_what_clients_have_left(running, tmp_path):
    (tmp_path / "tokens").write_text(f"lab:{TOKEN} items_per_minute=60 requests_per_minute=30\n")
    before = time.time()
    async with running(ConstantScorer(), token_file=tmp_path / "tokens") as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.post("/v1/score", json={"items": [ITEM]}, headers=headers)).status_code == 200
        lines = (await client.get("/metrics", headers=headers)).text.splitlines()
    assert f'reward_build{{role="all",service="test",version="{__version__}"}} 1.0' in lines
    (started,) = [float(line.split()[1]) for line in lines if line.startswith("reward_start_time_seconds ")]
    assert before <= started <= time.time()
    assert 'reward_allowance{client="lab",unit="items"} 60.0' in lines
    left = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("reward_allowance_left{")}
    # One item, and two requests with this one; of a fast refill at most a unit may be back.
    assert 59 <= left['reward_allowance_left{client="lab",unit="items"}'] <= 60
    assert 28 <= left['reward_allowance_left{client="lab",unit="requests"}'] <= 29


async def test_openapi_describes_the_bodies_that_are_sent(running):
    async with running(ConstantScorer()) as client:
        tree = (await client.get("/openapi.json")).json()
        page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert all(f"{path}</h2>" in page.text for path in tree["paths"]) and "ScoreRequest" in page.text
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [text] = re.findall(rf"<{tag}(?: type=\"module\")?>(.*?)</{tag}>", page.text, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[directive] == f"'self' 'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert set(re.findall(r'(?:src|href)="(?!data:|#)([^"]+)"', page.text)) == {
        "docs/swagger-ui.css",
        "openapi.json",
        ".",
    }
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg|127\.0\.0\.1)", page.text), "nothing of elsewhere"
    score = tree["paths"]["/v1/score"]["post"]
    assert set(score["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    for status in ("400", "401", "404", "413", "415", "422", "429", "500", "503", "504"):
        schema = score["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}, status
    assert "HTTPValidationError" not in tree["components"]["schemas"]
    assert {"ScoreRequest", "ScoreItem", "ImageRef", "ScoreResponse"} <= set(tree["components"]["schemas"])


@pytest.mark.parametrize("service", [entry.name for entry in DEPLOYED])
async def test_committed_openapi_equals_the_served(service):
    committed = (FOLDER / f"{service}.json").read_text("utf-8")
    assert committed == render(service), "run `make openapi` and commit docs/openapi"


async def test_a_bug_while_starting_is_said_and_not_called_loading(running):
    class ForgetfulScorer(ConstantScorer):
        def warmup(self):
            raise KeyError("warmup")

    async with running(ForgetfulScorer(), wait_ready=False) as client:
        await until(lambda: client.app.state.service.failure is not None)
        answer = await client.get("/ready")
        assert answer.status_code == 503
        assert "did not start: starting raised KeyError: 'warmup'" in answer.json()["error"]["message"]


async def test_swagger_ui_is_served_as_it_was_published(running):
    """Version, origin, licence and digests are in a file beside it; who takes gzip gets it packed, as it lies there."""
    noted = (DOCS / "swagger-ui.txt").read_text("utf-8")
    assert re.match(r"Swagger UI 5\.\d+\.\d+ \(Apache-2\.0, swagger-ui\.LICENSE\)", noted)
    assert "Apache License" in (DOCS / "swagger-ui.LICENSE").read_text("utf-8")
    digests = {packed: digest for packed, digest in re.findall(r"^(\S+\.gz) +\S+ +([0-9a-f]{64})$", noted, re.M)}
    assert set(digests) == {path.name for path in DOCS.glob("*.gz")} == {f"{Path(path).name}.gz" for path in ASSETS}
    async with running(ConstantScorer()) as client:
        for path in ASSETS:
            packed = (DOCS / f"{Path(path).name}.gz").read_bytes()
            whole = gzip.decompress(packed)
            assert hashlib.sha256(whole).hexdigest() == digests[f"{Path(path).name}.gz"]
            plain = await client.get(path, headers={"accept-encoding": "identity"})
            assert plain.content == whole and "content-encoding" not in plain.headers
            answer = await client.get(path, headers={"accept-encoding": "gzip"})
            assert answer.headers["content-encoding"] == "gzip" and answer.headers["content-length"] == str(len(packed))
            assert answer.content == whole and answer.headers["vary"] == "Accept-Encoding"
    script = gzip.decompress((DOCS / "swagger-ui.js.gz").read_bytes()).decode()
    assert f'PACKAGE_VERSION:"{noted.split()[2]}"' in script
