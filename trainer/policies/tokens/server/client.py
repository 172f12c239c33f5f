"""One vLLM server, route by route. What it answers is judged elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

_CONNECT_S = 10.0
_LOOK_S = 10.0  # for routes that compute nothing
_SHOWN = 300  # characters of a server's message


class ServerError(Exception):
    """The server cannot be used now; another one may do what was asked, and this one later."""


class RefusedError(Exception):
    """The server works and refuses this request: no other server would take it."""


class Server:
    """A server at `url`. Safe to use from several threads.

    Args:
        max_in_flight: how many requests are under way at once.
        timeout_s: longest wait for one answer.
        push_timeout_s: longest wait for a route that moves weights.
        token: the API key, which guards drawing and adapters, but not the routes for weights.
    """

    def __init__(
        self, url: str, *, max_in_flight: int, timeout_s: float, push_timeout_s: float, token: str | None = None
    ) -> None:
        self.url, self._push_s = url, push_timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        limits = httpx.Limits(
            max_connections=max_in_flight, max_keepalive_connections=max_in_flight, keepalive_expiry=4
        )
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
        self._http = httpx.Client(headers=self._headers, limits=limits, timeout=timeout, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One answer: `/inference/v1/generate`, token ids in and out."""
        return self._read("/inference/v1/generate", self._send(self._http, "POST", "/inference/v1/generate", json=body))

    def version(self) -> str:
        """The label of the weights that it holds."""
        return str(self._look("/weight_info").get("weight_version"))

    def models(self) -> list[str]:
        """Names that it serves: the model's, and those of its adapters."""
        return [str(each.get("id")) for each in self._look("/v1/models").get("data", [])]

    def pause(self) -> None:
        """Wait until nothing is being drawn, let nothing begin, and forget everything cached of prompts and images: keys and
        values of prefixes, processed images, image embeddings."""
        self._move("/pause", params={"mode": "wait", "clear_cache": "true"})

    def take_weights(self, folder: str, label: str) -> None:
        """Read new weights from a folder, between `pause` and `resume`."""
        self._move("/start_weight_update")
        self._move("/update_weights", json={"update_info": {"folder": folder}})
        self._move("/finish_weight_update", json={"weight_version": label})

    def resume(self) -> None:
        self._move("/resume")

    def name_version(self, label: str) -> None:
        """Change the label of the weights."""
        self._move("/update_weight_version", json={"new_version": label})

    def load_adapter(self, name: str, folder: str) -> None:
        self._move("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": folder})

    def unload_adapter(self, name: str) -> None:
        self._move("/v1/unload_lora_adapter", json={"lora_name": name})

    def _look(self, path: str) -> dict[str, Any]:
        with httpx.Client(headers=self._headers, timeout=_LOOK_S, trust_env=False) as http:
            return self._read(path, self._send(http, "GET", path))

    def _move(self, path: str, **what: Any) -> None:
        # On a connection of its own: after an error in a worker the server closes the one it came on.
        timeout = httpx.Timeout(self._push_s, connect=_CONNECT_S)
        with httpx.Client(headers=self._headers, timeout=timeout, trust_env=False) as http:
            self._send(http, "POST", path, **what)

    def _send(self, http: httpx.Client, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            response = http.request(method, self.url + path, **what)
        except httpx.TimeoutException as error:
            raise ServerError(f"{self.url}{path} gave no answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url} does not answer ({type(error).__name__}: {error})") from error
        if response.status_code == 200:
            return response
        said = f"{self.url}{path}: {response.status_code}: {_message(response)}"
        if response.status_code in (400, 413, 422):
            raise RefusedError(said)
        raise ServerError(said + _hint(path, response.status_code))

    def _read(self, path: str, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError as error:
            raise ServerError(f"{self.url}{path} answered what is no JSON: {response.text[:_SHOWN]!r}") from error
        if not isinstance(body, dict):
            raise ServerError(f"{self.url}{path} answered no JSON object: {response.text[:_SHOWN]!r}")
        return body


def _hint(path: str, status: int) -> str:
    if status in (401, 403):
        return " (sampling.vllm.token_file has the key that VLLM_API_KEY names)"
    if status != 404:
        return ""
    if path == "/inference/v1/generate":
        return " (a model of that name is not there, or the server runs without --enable-scale-out)"
    if "lora" in path:
        return " (the server needs --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
    return " (the server needs VLLM_SERVER_DEV_MODE=1)"


def _message(response: httpx.Response) -> str:
    """What a server says of an error, without the frame."""
    try:
        found = response.json()
        error = found.get("error", found)
        said = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        said = response.text
    return (said if isinstance(said, str) else json.dumps(said))[:_SHOWN]
