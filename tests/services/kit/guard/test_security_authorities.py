"""A company's own authority: named by a flag or by SSL_CERT_FILE, for the judge, the hosts of images, and Redis."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvicorn

from services.eval.settings import EvalSettings
from services.kit.guard.image_hosts import ImageHosts
from services.kit.http.fetch import ImageFetcher
from services.kit.judge.client import JudgeClient, WrongJudgeError
from services.kit.judge.metrics import JudgeMetrics
from services.kit.scale.connection import Connection
from services.kit.scorer import Failure
from services.kit.settings import load_settings
from services.kit.testing.scripted_judge import Reply, ScriptedJudge
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.certificates import make_company
from tests.support.ports import free_port
from tests.support.redis_services import until
from wire.tls import tls_context

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def company(tmp_path_factory):
    return make_company(tmp_path_factory.mktemp("company"))


@pytest.fixture
async def secure_judge(company):
    """The address of a judge behind the company's certificate; any GET of /image.png is answered, too."""
    judge = ScriptedJudge(lambda _question: Reply("fine"))
    app = judge.app()

    @app.get("/image.png")
    async def image() -> str:
        return "image"

    files = {"ssl_certfile": str(company / "server.pem"), "ssl_keyfile": str(company / "server.key")}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="critical", **files))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    yield f"https://127.0.0.1:{server.config.port}"
    server.should_exit = server.force_exit = True
    await serving


async def answer_of(settings):
    client = JudgeClient(settings.endpoint(), JudgeMetrics())
    try:
        await client.wait(30)
        return (await client.ask([], max_tokens=1, deadline=time.monotonic() + 10)).text
    finally:
        await client.aclose()


@pytest.mark.parametrize("settings_class", [UnifiedRewardSettings, EvalSettings])
@pytest.mark.parametrize("how", ["flag", "variable"])
async def test_a_judge_behind_a_companys_certificate(secure_judge, company, settings_class, how, monkeypatch):
    flags = ["--judge-url", f"{secure_judge}/v1", "--model", "judge"]
    began = time.monotonic()
    with pytest.raises(WrongJudgeError, match=r"CERTIFICATE_VERIFY_FAILED.*--ca-file"):
        await answer_of(load_settings(settings_class, flags))
    assert time.monotonic() - began < 20, "waiting would not help"
    if how == "flag":
        flags += ["--ca-file", str(company / "ca.pem")]
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(company / "ca.pem"))
    assert await answer_of(load_settings(settings_class, flags)) == "fine"


@pytest.mark.parametrize("how", ["flag", "variable", "neither"])
async def test_images_from_a_host_behind_a_companys_certificate(secure_judge, company, how, monkeypatch):
    if how == "variable":
        monkeypatch.setenv("SSL_CERT_FILE", str(company / "ca.pem"))
    ca_file = company / "ca.pem" if how == "flag" else None
    host = secure_judge.removeprefix("https://")
    fetcher = ImageFetcher(ImageHosts(f"{host}=127.0.0.1"), max_bytes=1000, timeout_s=10, ca_file=ca_file)
    hold = type("Hold", (), {"take": lambda _self, _count: None})()
    got = await fetcher._fetch(f"{secure_judge}/image.png", time.monotonic() + 10, hold)
    if how == "neither":
        assert isinstance(got, Failure) and "--ca-file" in got.message
    else:
        assert bytes(got) == b'"image"'


def test_redis_is_given_it_too(company):
    def named(url):
        return Connection(url, company / "ca.pem")._client.connection_pool.connection_kwargs.get("ssl_ca_certs")

    assert named("rediss://redis.internal:6379/0") == str(company / "ca.pem")
    assert named("redis://redis.internal:6379/0") is None


def test_a_companys_authority_stands_beside_the_public_ones(company, monkeypatch):
    public = tls_context().cert_store_stats()["x509_ca"]
    assert public > 50
    assert tls_context(company / "ca.pem").cert_store_stats()["x509_ca"] == public + 1
    monkeypatch.setenv("SSL_CERT_FILE", str(company / "ca.pem"))
    assert tls_context().cert_store_stats()["x509_ca"] < public, "the variable names all that is believed"
    assert tls_context().verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("name", ["--ca-file", "SSL_CERT_FILE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("kind", ["missing", "no certificate"])
def test_what_is_named_and_cannot_be_used_is_told(tmp_path, name, kind, monkeypatch):
    file = tmp_path / "ca.pem"
    if kind != "missing":
        file.write_text("hello")
    if name != "--ca-file":
        monkeypatch.setenv(name, str(file))
    with pytest.raises(ValueError, match=f"{name} {file} (cannot be read as certificates|is no folder)"):
        tls_context(file if name == "--ca-file" else None)


@pytest.mark.parametrize(
    "service", ["unifiedreward", *(pytest.param(name, marks=pytest.mark.slow) for name in ("eval", "vqa"))]
)
def test_a_file_that_is_not_there_ends_the_start_with_a_sentence(service):
    command = [sys.executable, "-m", f"services.{service}", "--port", "0", "--ca-file", "missing.pem"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "--ca-file missing.pem cannot be read as certificates" in done.stderr
    assert "Traceback" not in done.stderr
