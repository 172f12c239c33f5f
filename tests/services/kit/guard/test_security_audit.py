"""The audit log: one line for each request, without what was in it; moved and full files; trusted proxies."""

from __future__ import annotations

import hashlib
import json
import os
import stat

import httpx
import pytest
from PIL import Image

from services.kit.app import create_app
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import FailEveryNthScorer, PromptLengthScorer
from wire.images import to_ref

TOKEN = "secret-token-of-the-lab"
IMAGE = to_ref(Image.new("RGB", (4, 4), "red"), "image/png").model_dump(exclude_none=True)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def items(*prompts):
    return {"items": [{"id": str(n), "prompt": prompt, "images": [IMAGE]} for n, prompt in enumerate(prompts)]}


@pytest.mark.anyio
async def test_a_strangers_long_path_and_method_do_not_fill_the_logs(running, tmp_path, caplog):
    caplog.set_level("INFO", "services.access")
    log = tmp_path / "audit.jsonl"
    async with running(PromptLengthScorer(), audit_log=log) as client:
        answer = await client.request("A" * 30_000, "/" + "a" * 30_000)
    assert answer.status_code == 404 and len(answer.content) < 3000
    [line], [record] = lines(log), [vars(each) for each in caplog.records if each.name == "services.access"]
    for entry in (line, record):
        assert len(entry["path"]) <= 256 and len(entry["method"]) == 32


@pytest.mark.anyio
async def test_a_line_says_who_what_and_how_many(running, tmp_path):
    tokens, log = tmp_path / "tokens", tmp_path / "audit.jsonl"
    tokens.write_text(f"lab:{TOKEN}\n")
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-ID": "r1"}
    async with running(FailEveryNthScorer(2), token_file=tokens, audit_log=log) as client:
        await client.post("/v1/score", json=items("a cat", "ein Hund ü"), headers=headers)
        await client.post("/v1/score", json=items("x") | {"reward": "none"}, headers=headers)
        await client.post("/v1/score", json=items("x"))
        await client.post("/v1/score", content=b"{", headers=headers | {"Content-Type": "application/json"})
        for quiet in ("/health", "/ready", "/metrics"):
            assert (await client.get(quiet, headers=headers)).status_code == 200
        await client.get("/v1/info", headers=headers)
    scored, unknown, stranger, broken, info = lines(log)
    digest = hashlib.sha256("a cat\0ein Hund ü\0".encode()).hexdigest()
    expected = {
        "service": "test",
        "request_id": "r1",
        "caller": "lab",
        "address": "127.0.0.1",
        "method": "POST",
        "path": "/v1/score",
        "status": 200,
        "reward": "fail_every_nth",
        "items": 2,
        "failed_items": 1,
        "prompts_sha256": digest,
    }
    assert {key: scored[key] for key in expected} == expected
    assert set(scored) - set(expected) == {"time", "ms", "body_bytes"}
    assert scored["body_bytes"] > 300 and scored["time"].endswith("+00:00")
    assert (unknown["status"], unknown["error_code"], unknown["caller"]) == (404, "not_found", "lab")
    assert (stranger["status"], stranger["error_code"]) == (401, "unauthorized") and "caller" not in stranger
    assert (broken["status"], broken["path"]) == (400, "/v1/score")
    assert (info["status"], info["path"]) == (200, "/v1/info")


@pytest.mark.anyio
async def test_neither_prompts_nor_images_nor_tokens_are_in_it(running, tmp_path):
    tokens, log = tmp_path / "tokens", tmp_path / "audit.jsonl"
    tokens.write_text(f"lab:{TOKEN}\n")
    async with running(PromptLengthScorer(), token_file=tokens, audit_log=log) as client:
        for given in (TOKEN, "stolen-token-of-someone"):
            await client.post("/v1/score", json=items("a secret prompt"), headers={"Authorization": f"Bearer {given}"})
    text = log.read_text()
    assert len(text.splitlines()) == 2
    assert not [part for part in ("secret", "stolen", IMAGE["data"][:40], TOKEN) if part in text]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.anyio
async def test_a_line_is_a_line_whatever_is_asked_for(running, tmp_path):
    log = tmp_path / "audit.jsonl"
    async with running(PromptLengthScorer(), audit_log=log) as client:
        await client.get("/x%0a%7B%22status%22:200%7D%0d" + "y" * 5000)
        await client.post("/v1/score", json=items("p") | {"request_id": "a\n{}\u2028"})
    assert [line["status"] for line in lines(log)] == [404, 200]
    assert all(len(line["path"]) <= 200 for line in lines(log))


@pytest.mark.anyio
async def test_a_moved_file_is_begun_anew(running, tmp_path):
    log, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    async with running(PromptLengthScorer(), audit_log=log) as client:
        await client.get("/one")
        log.rename(old)
        await client.get("/two")
        log.unlink()
        await client.get("/three")
    assert [line["path"] for line in lines(old)] == ["/one"]
    assert [line["path"] for line in lines(log)] == ["/three"]


@pytest.mark.anyio
async def test_a_line_that_is_lost_is_counted_and_the_request_served(running, tmp_path, monkeypatch):
    log = tmp_path / "audit.jsonl"

    def full(fd, data):
        raise OSError(28, "No space left on device")

    async with running(PromptLengthScorer(), audit_log=log) as client:
        monkeypatch.setattr(os, "write", full)
        answer = await client.post("/v1/score", json=items("four"))
        monkeypatch.undo()
        metrics = await client.get("/metrics")
        await client.get("/later")
    assert answer.status_code == 200
    assert "reward_audit_failures_total 1.0" in metrics.text
    assert [line["path"] for line in lines(log)] == ["/later"]


def test_a_log_that_cannot_be_written_stops_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"audit log .*/missing/audit.jsonl cannot be written: No such file"):
        create_app(PromptLengthScorer(), "test", ServiceSettings(audit_log=tmp_path / "missing" / "audit.jsonl"))


@pytest.mark.parametrize(
    ("proxies", "address"), [((), "127.0.0.1"), (("--trusted-proxies", "127.0.0.1"), "203.0.113.9")]
)
def test_only_a_trusted_proxy_is_believed(serving, tmp_path, proxies, address):
    log = tmp_path / "audit.jsonl"
    with serving("--audit-log", str(log), *proxies) as server:
        server.wait_ready()
        httpx.post(f"{server.url}/v1/score", json=items("p"), headers={"X-Forwarded-For": "203.0.113.9"})
        httpx.get(f"{server.url}/health")  # answered after the line was written
    assert [line["address"] for line in lines(log)] == [address]
