"""A company with an authority of its own, and reward servers behind a certificate that it signed."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

from tests.support.reward_servers import ScriptedServer


def make_company(folder: Path) -> Path:
    """Writes into `folder` an authority (`ca.pem`) and a server's key and certificate for 127.0.0.1."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=company")
    openssl("req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=rewards")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", *signing, "-out", "server.pem")
    return folder


def secure_server(company: Path) -> ScriptedServer:
    """A reward server behind the company's certificate; close it."""
    running = ScriptedServer()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(company / "server.pem", company / "server.key")
    running._server.socket = context.wrap_socket(running._server.socket, server_side=True)
    running.url = running.url.replace("http:", "https:")
    return running
