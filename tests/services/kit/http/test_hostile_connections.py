"""Connections that shut others out: unread answers, requests ahead of answers, thousands of headers, crumbs of bodies."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import h11
import httpx
import pytest

from services.kit.http import protocol
from services.kit.http.protocol import LEAST_SENT, MAX_AHEAD, MAX_HEADERS, PatientProtocol, protocol_with, sweep
from tests.support.waiting import wait_until

HOST = b"Host: localhost\r\n"
GET = b"GET %s HTTP/1.1\r\n" + HOST
POST = b"POST /v1/score HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ITEMS = b'{"items":[{"id":"a","prompt":"four","completion":"c"}]}'
BEARER = {"Authorization": "Bearer abcdefghijklmnopqrstuvwxyz"}
IMPATIENT = "tests.services.kit.impatient_service"


@pytest.fixture(scope="module")
def server(serving_factory):
    with serving_factory() as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def crowded(serving_factory, tmp_path_factory):
    """Room for eight connections, and for four of one address that nothing was admitted on."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("me:abcdefghijklmnopqrstuvwxyz\n")
    arguments = ("--max-connections", 8, "--max-connections-per-address", 4, "--token-file", tokens)
    with serving_factory(*arguments, module=IMPATIENT) as server:
        server.wait_ready()
        yield server


@contextmanager
def connected(port, *, small=False, source="127.0.0.1"):
    """A socket to the port. `small`: its buffers, and so the server's for it, hold little."""
    with socket.socket() as sock:
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        sock.settimeout(20)
        sock.bind((source, 0))
        sock.connect(("127.0.0.1", port))
        yield sock


def rest_of(sock):
    """What comes until the server closes."""
    received = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65_536):
            received += data
    return received


def send(port, *pieces):
    with connected(port) as sock:
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                sock.sendall(piece)
        return rest_of(sock)


def status_of(url, **more):
    try:
        return httpx.get(url, trust_env=False, timeout=20, **more).status_code
    except httpx.TransportError as error:  # the service closed before it had read the request
        return repr(error)


def test_clients_that_never_read_do_not_shut_others_out(crowded):
    """More connections than there is room for ask for page after page and read nothing."""
    with ExitStack() as stack:
        for _ in range(12):
            sock = stack.enter_context(connected(crowded.port, small=True))
            with suppress(ConnectionError):
                sock.sendall((GET % b"/" + b"\r\n") * 400)
        wait_until(lambda: status_of(crowded.url + "/ready") == 200, "shut out while the others are still there")


def test_an_answer_that_is_not_read_ends_the_connection_and_is_logged(crowded):
    """No more requests than may be sent ahead; the answers fill what the sockets hold."""
    with connected(crowded.port, small=True) as sock:
        sock.sendall((GET % b"/" + b"\r\n") * MAX_AHEAD)
        wait_until(lambda: any("answers were not read" in line for line in crowded.errors), "still waited for")
        received = rest_of(sock)
    assert received.startswith(b"HTTP/1.1 200 ") and received.count(b"HTTP/1.1 200 ") <= MAX_AHEAD


def test_a_body_that_goes_on_after_the_answer_ends_the_connection(crowded):
    with connected(crowded.port) as sock:
        sock.sendall(GET % b"/health" + b"Content-Length: 1000000\r\n\r\nx")
        received = rest_of(sock)
    assert received.startswith(b"HTTP/1.1 200 ")


def test_connections_that_ask_nothing_give_way(crowded):
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connected(crowded.port))
        assert status_of(crowded.url + "/health") == 200


SLOW = {
    "a body": POST + b"%sExpect: 100-continue\r\nContent-Length: 9999\r\n\r\n{",
    "headers of a second request": GET % b"/v1/info" + b"%s\r\n" + GET % b"/v1/info",
}


@pytest.mark.parametrize("what", SLOW)
def test_requests_that_come_drop_by_drop_give_way(crowded, what):
    """They show a token, so the limit for one address does not hold for them."""
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(connected(crowded.port))
            sock.sendall(SLOW[what] % b"Authorization: Bearer abcdefghijklmnopqrstuvwxyz\r\n")
            assert sock.recv(12) in (b"HTTP/1.1 100", b"HTTP/1.1 200"), "it was admitted"
        wait_until(lambda: status_of(crowded.url + "/health") == 200, "shut out", timeout_s=8)
        wait_until(lambda: status_of(crowded.url + "/v1/info", headers=BEARER) == 200, "shut out", timeout_s=8)


def test_connections_with_a_token_do_not_count_among_strangers(crowded):
    """More than one address may have otherwise; none of them gives way to the next."""
    asking = GET % b"/v1/info" + b"Authorization: Bearer abcdefghijklmnopqrstuvwxyz\r\n\r\n"

    def ask(sock):
        sock.sendall(asking)
        received = b""
        while b'"limits"' not in received:
            received += (piece := sock.recv(65_536))
            assert piece, "the connection was closed"

    with ExitStack() as stack:
        sockets = []
        for _ in range(6):
            sockets.append(stack.enter_context(connected(crowded.port)))
            ask(sockets[-1])
        for sock in sockets:
            ask(sock)


def test_the_longest_idle_connection_gives_way_to_a_new_one(crowded):
    clients = [httpx.Client(base_url=crowded.url, headers=BEARER) for _ in range(8)]
    try:
        for client in clients:
            assert client.get("/v1/info").status_code == 200
        assert status_of(crowded.url + "/health") == 200
        for client in reversed(clients):
            assert client.get("/v1/info").status_code == 200, "who was dropped connects anew"
    finally:
        for client in clients:
            client.close()


def test_requests_far_ahead_of_their_answers_are_refused(server):
    few = send(server.port, (GET % b"/health" + b"\r\n") * MAX_AHEAD + GET % b"/health" + b"Connection: close\r\n\r\n")
    assert few.count(b"HTTP/1.1 200 ") == MAX_AHEAD + 1
    many = send(server.port, (GET % b"/health" + b"\r\n") * 400)
    assert many.count(b"HTTP/1.1 200 ") == MAX_AHEAD + 1 and many.count(b"HTTP/1.1 429 ") == 1
    assert b'"overloaded"' in many and b"ahead of their answers" in many


CLOSE = b"Connection: close\r\n"
REFUSED = {
    "one header too many": (
        GET % b"/health" + b"a:\r\n" * MAX_HEADERS + b"\r\n",
        431,
        b"101 headers; the limit is 100",
    ),
    "12,000 headers": (GET % b"/health" + b"a:\r\n" * 12_000 + b"\r\n", 431, b"headers; the limit is 100"),
    "12,000 headers that do not end": (GET % b"/health" + b"a:\r\n" * 12_000, 431, b"headers; the limit is 100"),
    "a long header": (GET % b"/health" + b"a: " + b"x" * 70_000 + b"\r\n\r\n", 431, b"the limit is 65536"),
    "a long path": (GET % (b"/" + b"x" * 70_000) + b"\r\n", 431, b"the limit is 65536"),
    "headers of a second request": (
        GET % b"/health" + b"\r\n" + GET % b"/health" + b"a:\r\n" * 12_000 + b"\r\n",
        431,
        b"the limit is 100",
    ),
    "a body in crumbs": (
        CHUNKED + b"1\r\n \r\n" * 100_000,
        400,
        b" chunks: send at least 256 in each, or a Content-Length",
    ),
    "trailers": (CHUNKED + b"1\r\n \r\n0\r\n" + b"a:\r\n" * 60_000 + b"\r\n", 400, b"the limit is 8192"),
    "a chunk's extension": (CHUNKED + b"1;" + b"a" * 1_000_000 + b"\r\n \r\n0\r\n\r\n", 400, b"the limit is 8192"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_costs_more_than_it_has_bytes_is_refused(server, name):
    """The service closes while more is coming, so that the answer may be lost on its way: then it is only closed."""
    payload, status, message = REFUSED[name]
    with httpx.Client(base_url=server.url, trust_env=False) as neighbour:
        answer = send(server.port, payload)
        assert neighbour.get("/health").status_code == 200
    last = answer[answer.rfind(b"HTTP/1.1 ") :]
    assert not answer or (last.startswith(b"HTTP/1.1 %d " % status) and message in last), answer[:300]
    assert b"HTTP/1.1 5" not in answer


SERVED = {
    "as many headers as may be": GET % b"/health" + b"a:\r\n" * (MAX_HEADERS - 2) + CLOSE + b"\r\n",
    "a small body in crumbs": POST
    + CLOSE
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in ITEMS)
    + b"0\r\n\r\n",
    "a large body in chunks": POST
    + CLOSE
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"100\r\n%s\r\n" % (b" " * 256) for _ in range(5000))
    + b"%x\r\n%s\r\n0\r\nsome: trailer\r\n\r\n" % (len(ITEMS), ITEMS),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_merely_unusual_is_served(server, name):
    answer = send(server.port, SERVED[name])
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
    assert b'"score":4.0' in answer or b"alive" in answer


def test_a_body_in_crumbs_stops_the_request_that_reads_it(server):
    """The application must not answer on a connection that has been refused."""
    send(server.port, CHUNKED + b"1\r\n \r\n" * 2000)
    assert status_of(server.url + "/health") == 200
    assert not any("Traceback" in line or "Exception" in line for line in server.errors)


class Pipe:
    """A transport of which the test says who is at its other end and how much is unsent."""

    def __init__(self, address="127.0.0.1"):
        self.address = address
        self.unsent = 0
        self.written = b""
        self.aborted = False

    def get_extra_info(self, name):
        return (self.address, 1234) if name == "peername" else None

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        self.written += data

    def close(self):
        pass

    def abort(self):
        self.aborted = True


def protocol_over(pipe, kind=PatientProtocol, connections=None):
    config = SimpleNamespace(
        loaded=True,
        loaded_app=None,
        h11_max_incomplete_event_size=None,
        ws_protocol_class=None,
        root_path="",
        asgi_version="3.0",
        limit_concurrency=None,
        timeout_keep_alive=75,
    )
    state = SimpleNamespace(connections=set() if connections is None else connections, tasks=set())
    loop = SimpleNamespace(time=lambda: 0.0, call_later=lambda _seconds, _call: SimpleNamespace(cancel=lambda: None))
    made = kind(config, state, {}, loop)
    made.transport = pipe
    return made


def connect(kind, connections, address):
    """A connection from there that has begun a request; None if it was refused."""
    pipe = Pipe(address)
    made = protocol_over(pipe, kind, connections)
    made.connection_made(pipe)
    if pipe.written:
        assert pipe.written.startswith(b"HTTP/1.1 503 ") and f"connections of {made._address}".encode() in pipe.written
        made.connection_lost(ConnectionError())
        return None
    made.cycle = SimpleNamespace(response_complete=False, message_event=SimpleNamespace(set=lambda: None))
    made._forget_timer()
    return made


def test_a_body_that_keeps_coming_is_in_use():
    made = connect(protocol_with(8), set(), "10.0.0.1")
    made.flow, made._sends_body = SimpleNamespace(read_paused=False), lambda: True

    def receive(second, count):
        made.loop.time = lambda: second
        made._watch_body(count)
        return made._useless_since()

    assert [receive(float(second), LEAST_SENT) for second in range(60, 64)] == [(1, 60 + n) for n in range(4)]
    assert [receive(64.0 + n, 1) for n in range(4)] == [(1, 64)] * 4, "drop by drop"
    made.flow.read_paused = True
    assert made._useless_since() is None, "it is the service that does not read"


def test_one_address_may_not_take_all_places_before_it_shows_a_token():
    kind, connections = protocol_with(8), set()
    first, *_ = [connect(kind, connections, "10.0.0.1") for _ in range(4)]
    assert connect(kind, connections, "10.0.0.1") is None
    assert connect(kind, connections, "10.0.0.2") is not None, "another address is served"
    first.app_state["on_admitted"]()
    assert connect(kind, connections, "10.0.0.1") is not None, "what is admitted does not count"
    assert connect(kind, connections, "10.0.0.1") is None
    first.app_state["on_admitted"]()
    first.connection_lost(ConnectionError())
    assert kind.strangers == {"10.0.0.1": 4, "10.0.0.2": 1}, "each is taken off once"


def test_programs_of_this_machine_are_not_counted_unless_it_is_said():
    assert None not in [connect(protocol_with(8), set(), "127.0.0.1") for _ in range(2)]
    kind, connections = protocol_with(8), set()
    assert None not in [connect(kind, connections, "127.0.0.1") for _ in range(8)]
    kind, connections = protocol_with(8, 4), set()
    assert [connect(kind, connections, "127.0.0.1") is None for _ in range(5)] == [False] * 4 + [True]


KIB = 1024
READERS = {
    "reads nothing": ([100 * KIB] * 11, 10),
    "reads a little": ([(1000 - n) * KIB for n in range(11)], 10),
    "reads enough": ([(1000 - 70 * n // 9) * KIB for n in range(40)], None),
    "reads all now and then": ([50 * KIB, 40 * KIB, 30 * KIB, 0] * 10, None),
    "is given more now and then": ([10 * KIB] * 8 + [40 * KIB] * 8 + [60 * KIB] * 8, None),
    "stops": ([0] * 20 + [30 * KIB] * 11, 30),
}


@pytest.mark.parametrize("name", READERS)
def test_who_reads_too_slowly_is_dropped(name):
    unsent, dropped_at = READERS[name]
    pipe = Pipe()
    connection = protocol_over(pipe)
    seen = None
    for second, size in enumerate(unsent):
        pipe.unsent = size
        sweep([connection, object()], float(second))
        if pipe.aborted and seen is None:
            seen = second
    assert seen == dropped_at


def test_addresses_that_one_client_may_choose_from_count_as_one():
    network = protocol._network
    assert network("2001:db8:1:2:3::4") == network("2001:db8:1:2::ffff") != network("2001:db8:1:3::1")
    assert network("::ffff:10.0.0.1") == network("10.0.0.1") == "10.0.0.1"
    assert network("fe80::1%eth0") == network("fe80::2") and network("testclient") == "testclient"


def test_limits_belong_to_one_server():
    one, two = protocol_with(8), protocol_with(9, 3)
    assert (one.max_connections, one.per_address, two.per_address) == (8, 4, 3)
    assert (one.counts_loopback, two.counts_loopback) == (False, True)
    assert one.strangers is not two.strangers and isinstance(one.strangers, Counter)
    assert issubclass(one, PatientProtocol) and protocol_with(1).per_address == 1
    assert isinstance(protocol_over(Pipe()).conn, h11.Connection)
