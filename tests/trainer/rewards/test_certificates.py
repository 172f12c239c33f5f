"""A company's own CA: services behind it are reached when it is named, and otherwise refused with the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import make_company, secure_server
from tests.support.reward_servers import ScriptedServer, make_samples
from trainer.rewards import RewardServiceError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_company(tmp_path_factory.mktemp("company"))


@pytest.fixture
def server(company: Path) -> Iterator[ScriptedServer]:
    """A reward server behind TLS."""
    running = secure_server(company)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def scores(client: Any) -> bool:
    batch = client.batch()
    batch.submit(make_samples(2, {"r": 1.0}))
    return bool(batch.collect().valid_BR.all())


def test_a_ca_that_is_named_is_trusted(server: ScriptedServer, company: Path, connect: Any) -> None:
    assert scores(connect(server, ca_file=str(company / "ca.pem")))


def test_ssl_cert_file_is_read(
    server: ScriptedServer, company: Path, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(company / "ca.pem"))
    assert scores(connect(server))


def test_without_it_the_start_says_at_once_what_to_name(server: ScriptedServer, connect: Any) -> None:
    client = connect(server, start=False, rewards={"ready_timeout_s": 600.0})  # waiting would not help
    with pytest.raises(
        RewardServiceError, match=r"is not trusted .*rewards\.services\.svc\.ca_file, or in SSL_CERT_FILE"
    ):
        client.start()


def test_a_wrong_variable_is_named(server: ScriptedServer, connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("SSL_CERT_FILE", "cannot be read"), ("SSL_CERT_DIR", "is no folder")):
        with monkeypatch.context() as patch:
            patch.setenv(name, "/nowhere")
            with pytest.raises(RewardServiceError, match=rf"{name} /nowhere {message}"):
                connect(server, start=False).start()


@pytest.mark.parametrize(
    ("content", "message"), [("no certificate", "cannot be read as certificates"), (None, "cannot be read")]
)
def test_a_ca_file_that_holds_no_certificate(
    scripted: Any, connect: Any, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    client = connect(scripted(), start=False, ca_file=str(path))
    with pytest.raises(RewardServiceError, match=rf"rewards\.services\.svc\.ca_file .*{message}"):
        client.start()


def test_a_variable_that_is_wrong_hurts_nobody_without_tls(
    scripted: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    assert scores(connect(scripted()))
