"""A stand-in for a vLLM rollout server that does as a script says: it dies, breaks off, lies about its weights, gives NaN.

It speaks the routes of vLLM 0.32 that the trainer uses. What a real server computes is tested in tests/vllm.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKENS = (20, 21, 22, 23)  # what it draws from
LOGP = -1.5

Script = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | int | None]


class ScriptedVllm:
    """A server in threads of this process, on a fixed port: `start`, `kill`, `start` again with the weights of a fresh start.

    Attributes:
        expand: token ids as a request sends them -> as the processor makes them; set by the test.
        script: (request, the answer it would get): another answer, a status, or None to cut the connection.
        asked: all requests by route, in order.
        label: of its weights.
        probe: (request): the log-probability that a probe gets.
        failing: routes that answer 500.
    """

    def __init__(self) -> None:
        self.expand: Callable[[list[int]], list[int]] = lambda ids: ids
        self.script: Script = lambda request, answer: answer
        self.probe: Callable[[dict[str, Any]], float] = lambda request: LOGP
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failing: set[str] = set()
        self.adapters: list[str] = []
        self.label, self.folder, self.paused = "default", "", False
        self._http: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(json.loads(body or b"{}"))

            def _answer(self, request: dict[str, Any]) -> None:
                path = urlsplit(self.path).path
                owner.asked.append((path, request))
                found = 500 if path in owner.failing else owner.respond(path, request)
                if found is None:
                    self.close_connection = True
                    return
                status, body = (
                    (found, {"error": {"message": f"scripted {found}"}}) if isinstance(found, int) else (200, found)
                )
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.label, self.folder, self.paused, self.adapters = "default", "", False, []
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def count(self, path: str) -> int:
        return sum(each == path for each, _ in list(self.asked))

    def respond(self, path: str, request: dict[str, Any]) -> dict[str, Any] | int | None:
        if path == "/inference/v1/generate":
            return self.script(request, self._generate(request))
        if path == "/weight_info":
            return {"weight_version": self.label}
        if path == "/v1/models":
            return {"data": [{"id": name} for name in ("policy", *self.adapters)]}
        if path == "/update_weights":
            self.folder = request["update_info"]["folder"]
        if path == "/finish_weight_update":
            self.label = request["weight_version"]
        if path == "/update_weight_version":
            self.label = request["new_version"]
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        if path == "/v1/load_lora_adapter":
            self.adapters.append(request["lora_name"])
        if path == "/v1/unload_lora_adapter":
            self.adapters.remove(request["lora_name"])
        return {}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        params = request["sampling_params"]
        if "logprob_token_ids" in params:
            [token, _] = params["logprob_token_ids"]
            place = {
                "token_id": 20,
                "logprob": -9.0,
                "top_logprobs": [{"token_id": token, "logprob": self.probe(request)}],
            }
            return self._answer(request, [20], [place], "length")
        draw = random.Random(params["seed"])
        tokens = [draw.choice(TOKENS) for _ in range(draw.randint(1, params["max_tokens"] - 1))] + [
            params["stop_token_ids"][0]
        ]
        content = [{"token_id": token, "logprob": LOGP, "top_logprobs": []} for token in tokens]
        return self._answer(request, tokens, content, "stop")

    def _answer(self, request: dict[str, Any], tokens: list[int], content: list[Any], reason: str) -> dict[str, Any]:
        choice = {
            "index": 0,
            "token_ids": tokens,
            "logprobs": {"content": content},
            "finish_reason": reason,
            "weight_versions": [{"version": self.label, "start": 0, "end": len(tokens)}],
        }
        return {"model": request["model"], "prompt_token_ids": self.expand(request["token_ids"]), "choices": [choice]}
