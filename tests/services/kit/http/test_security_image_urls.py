"""Images by URL: off by default; from listed hosts only, at allowed addresses only, within limits, no redirects."""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from services.kit.app import create_app
from services.kit.guard.image_hosts import ImageHosts, UrlRefused
from services.kit.scorer import Score
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import PromptLengthScorer
from wire.images import encode

anyio = pytest.mark.anyio
PNG = encode(Image.new("RGB", (4, 4), (10, 200, 30)), "image/png")


class Green(PromptLengthScorer):
    """The green of an item's images, added up."""

    def score_item(self, item):
        images = (*item.images, *item.source_images)
        return Score(float(sum(image.convert("RGB").getpixel((0, 0))[1] for image in images)))


class Host(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        answer = getattr(self, "send_" + self.path.strip("/").partition("?")[0], self.send_missing)
        answer()

    def send_image(self, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(PNG)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(PNG)

    def send_unhurried(self):
        time.sleep(0.3)
        self.send_image()

    def send_missing(self):
        self.send_error(404)

    def send_broken(self):
        self.send_error(503)

    def send_elsewhere(self):
        self.send_image(302, Location=f"http://127.0.0.1:{self.server.server_port}/image")

    def send_endless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65_536)

    def send_slow(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(1200):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def log_message(self, *_args):
        pass


class HostServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A download that was given up breaks the connection."""


@pytest.fixture
def host():
    server = HostServer(("127.0.0.1", 0), Host)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch):
    """A name server of our own: names to addresses; counts the questions."""
    known, asked, real = {}, [], socket.getaddrinfo

    def resolve(name, port, *args, **kwargs):
        if name not in known:
            return real(name, port, *args, **kwargs)
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[name]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    known["asked"] = asked
    return known


def image(url):
    return {"media_type": "image/png", "url": url}


async def score(client, *images, **more):
    item = {"id": "a", "prompt": "p", "images": list(images)}
    other = {"id": "b", "prompt": "p", "images": [{"media_type": "image/png", "data": base64.b64encode(PNG).decode()}]}
    answer = await client.post("/v1/score", json={"items": [item | more, other]})
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["results"]
    assert second["score"] == 200, "a neighbour in the request keeps its score"
    return first


@anyio
async def test_off_by_default(running, host):
    item = {
        "id": "a",
        "prompt": "p",
        "images": [],
        "source_images": [image(f"http://127.0.0.1:{host.server_port}/image")],
    }
    async with running(Green()) as client:
        answer = await client.post("/v1/score", json={"items": [item | {"completion": "c"}]})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "items.0.source_images.0.url"
    assert "--image-url-hosts" in answer.json()["error"]["message"]
    assert host.asked == []


@anyio
async def test_a_listed_host_is_asked_once_for_each_image(running, host):
    base = f"http://127.0.0.1:{host.server_port}"
    async with running(Green(), image_url_hosts=base) as client:
        same = await score(
            client, image(f"{base}/image"), image(f"{base}/image"), source_images=[image(f"{base}/image?a=1")]
        )
    assert same["score"] == 600
    assert sorted(path for path, _ in host.asked) == ["/image", "/image?a=1"]
    assert set(host.asked[0][1]) == {"Host", "Accept", "Accept-Encoding", "Connection"}, "no token, no cookie"


@anyio
async def test_a_part_of_the_same_request_is_not_mistaken_for_it(running, host):
    base = f"http://127.0.0.1:{host.server_port}"
    black = encode(Image.new("RGB", (4, 4), "black"), "image/png")
    items = [
        {"id": "a", "prompt": "p", "images": [image(f"{base}/image")]},
        {"id": "b", "prompt": "p", "images": [{"media_type": "image/png", "part": "url-0"}]},
    ]
    async with running(Green(), image_url_hosts=base) as client:
        files = {"request": (None, json.dumps({"items": items}), "application/json"), "url-0": ("x", black)}
        answer = await client.post("/v1/score", files=files)
    assert [result["score"] for result in answer.json()["results"]] == [200, 0]


FAILURES = {
    "missing": ("bad_input", "answered 404"),
    "broken": ("upstream", "answered 503"),
    "elsewhere": ("bad_input", "answered 302 (redirects are not followed)"),
    "endless": ("bad_input", "more than 100000 bytes"),
    "slow": ("upstream", "did not arrive within 0.5 s"),
}


@anyio
@pytest.mark.parametrize("path", FAILURES)
async def test_an_image_that_cannot_be_had_fails_its_item_alone(running, host, path):
    base = f"http://127.0.0.1:{host.server_port}"
    limits = {"max_image_bytes": 100_000, "image_url_timeout_s": 0.5}
    async with running(Green(), image_url_hosts=base, **limits) as client:
        result = await score(client, image(f"{base}/{path}"))
        assert client.app.state.service._memory.used == 0
    code, message = FAILURES[path]
    assert result["score"] is None and result["error"]["code"] == code
    assert message in result["error"]["message"]
    assert len(host.asked) == 1


@anyio
async def test_the_callers_deadline_ends_a_download(running, host):
    base = f"http://127.0.0.1:{host.server_port}"
    async with running(Green(), image_url_hosts=base) as client:
        started = time.monotonic()
        items = [{"id": "a", "prompt": "p", "images": [image(f"{base}/slow")]}]
        answer = await client.post("/v1/score", json={"items": items, "deadline_ms": 300})
    assert answer.status_code == 504
    assert time.monotonic() - started < 20, "the whole takes a minute"


@anyio
async def test_waiting_for_others_downloads_does_not_count(running, host):
    """A hundred and sixty images of 0.3 s, sixteen at a time, are 3 s; the limit is 2 s for each."""
    base = f"http://127.0.0.1:{host.server_port}"
    items = [{"id": str(n), "prompt": "p", "images": [image(f"{base}/unhurried?{n}")]} for n in range(160)]
    async with running(Green(), image_url_hosts=base, image_url_timeout_s=2) as client:
        answer = await client.post("/v1/score", json={"items": items})
    assert [result["score"] for result in answer.json()["results"]] == [200] * 160


@anyio
async def test_nobody_listens(running):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with running(Green(), image_url_hosts=f"http://127.0.0.1:{port}") as client:
        result = await score(client, image(f"http://127.0.0.1:{port}/image"))
    assert result["error"]["code"] == "upstream"


REFUSED = [
    "http://127.0.0.1:{other}/image",
    "https://127.0.0.1:{port}/image",
    "http://127.0.0.2:{port}/image",
    "http://2130706433:{port}/image",
    "http://user:pass@127.0.0.1:{port}/image",
    "http://127.0.0.1:{port}@evil.test/image",
    "http://evil.test\\@127.0.0.1:{port}/image",
    "http://127.0.0.1:{port}/im age",
    "http://127.0.0.1:{port}/image\r\nX: y",
    "http://127.0.0.1:{port}\t/image",
    "http://127.0.0.1:99999/image",
    "http://[::1/image",
    "http:///image",
    "//127.0.0.1:{port}/image",
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/image",
    "gopher://127.0.0.1:{port}/_x",
    "data:image/png;base64,AAAA",
    "/etc/passwd",
    "",
]


@anyio
@pytest.mark.parametrize("url", REFUSED)
async def test_what_is_not_listed_is_not_asked(running, host, url):
    url = url.format(port=host.server_port, other=host.server_port + 1)
    async with running(Green(), image_url_hosts=f"http://127.0.0.1:{host.server_port}") as client:
        result = await score(client, image(url))
    assert result["error"]["code"] == "bad_input"
    assert result["error"]["message"].startswith("image URL refused: ")
    assert host.asked == []


@anyio
async def test_a_name_must_stand_for_public_addresses(running, host, names):
    names["images.test"] = ["93.184.216.34", "127.0.0.1"]
    base = f"http://images.test:{host.server_port}"
    async with running(Green(), image_url_hosts=base) as client:
        result = await score(client, image(f"{base}/image"))
    assert result["error"]["code"] == "bad_input"
    assert (
        "images.test stands for 127.0.0.1, which is not public; list it as images.test=NETWORK"
        in result["error"]["message"]
    )
    assert host.asked == []


@anyio
async def test_a_private_name_is_listed_with_its_network(running, host, names):
    names["images.test"] = ["127.0.0.1"]
    base = f"http://images.test:{host.server_port}"
    async with running(Green(), image_url_hosts=f"example.com,{base}=127.0.0.0/8") as client:
        assert (await score(client, image(f"{base}/image")))["score"] == 200
        assert names["asked"] == ["images.test"], "looked up once: the address that was checked is the one connected to"
        assert host.asked[0][1]["Host"] == f"images.test:{host.server_port}"
        names["images.test"] = ["10.0.0.1"]
        assert (await score(client, image(f"{base}/image")))["error"]["code"] == "bad_input"


@pytest.fixture
def secure_host(host, tmp_path, monkeypatch):
    """The host with a certificate for images.test, which this process trusts."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=images.test"
    names = ["-addext", "subjectAltName=DNS:images.test", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    host.socket = context.wrap_socket(host.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    return host


@anyio
async def test_certificates_are_checked_against_the_name(running, secure_host, names):
    names |= {"images.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    port = secure_host.server_port
    hosts = f"images.test:{port}=127.0.0.1,other.test:{port}=127.0.0.1"
    async with running(Green(), image_url_hosts=hosts) as client:
        good = await score(client, image(f"https://images.test:{port}/image"))
        bad = await score(client, image(f"https://other.test:{port}/image"))
    assert good["score"] == 200
    assert bad["error"]["code"] == "upstream" and "certificate" in bad["error"]["message"].lower()
    assert len(secure_host.asked) == 1


PRIVATE = "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 192.0.2.1 240.0.0.1"
PRIVATE6 = (
    "::1 :: fe80::1 fd00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:0:7f00:1::"
)


@pytest.mark.parametrize("address", [*PRIVATE.split(), *PRIVATE6.split()])
def test_addresses_that_are_not_public(address):
    with pytest.raises(UrlRefused, match="not public"):
        ImageHosts("images.test").check_address("images.test", 443, ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address):
    """Taken without a word for the host on the list and its port, and for no other."""
    hosts = ImageHosts("images.test")
    assert hosts.check_address("images.test", 443, ipaddress.ip_address(address)) is None
    with pytest.raises(UrlRefused):
        hosts.check_address("images.test", 80, ipaddress.ip_address(address))


def test_an_address_stands_for_itself():
    hosts = ImageHosts("http://10.0.0.5:9000, https://[fd00::5]")
    hosts.check_address("10.0.0.5", 9000, ipaddress.ip_address("10.0.0.5"))
    hosts.check_address("fd00::5", 443, ipaddress.ip_address("fd00::5"))
    with pytest.raises(UrlRefused):
        hosts.check_address("10.0.0.5", 9000, ipaddress.ip_address("10.0.0.6"))


def test_a_target_is_taken_apart_once():
    hosts = ImageHosts("images.test,http://minio:9000=10.0.0.0/8")
    target = hosts.target("https://IMAGES.test./a/b.png?x=1&y=%2F#part")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "images.test", 443, "/a/b.png?x=1&y=%2F")
    assert hosts.target("http://minio:9000").path == "/"


@pytest.mark.parametrize(
    "entry",
    ["", " , ", "ftp://a", "a/path", "http://", "a=x", "a=10.0.0.1/8", "user@a", "a:99999", "a:b", "http://a?x"],
)
def test_wrong_entries_stop_the_start(entry):
    with pytest.raises(ValueError, match="--image-url-hosts"):
        create_app(PromptLengthScorer(), "test", ServiceSettings(image_url_hosts=entry))
