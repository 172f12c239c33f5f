"""Servers that are no service of ours, or not as they should be: fixed answers, one that never answers, one that breaks off."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str, str]  # status, content type, body
READY: Answer = (200, "application/json", '{"status": "ready"}')
INFO: Answer = (
    200,
    "application/json",
    '{"service": "ocr", "schema_version": "1", "default_reward": "multi", "rewards": [{"name": "multi", "revision": "r1"}],'
    ' "limits": {"queue_size": 10}, "a_field_of_a_later_version": 1}',
)


class FixedAnswers:
    """Answers each path with what `answers` has for it, else with a page that says 404. `asked`: paths, in their order."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = dict(answers)
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                status, kind, body = outer.answers.get(self.path, (404, "text/html", "<h1>Not found</h1>"))
                self.send_response(status)
                self.send_header("content-type", kind)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def fixed_answers(answers: Mapping[str, Answer]) -> Iterator[FixedAnswers]:
    server = FixedAnswers(answers)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def hanging() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
