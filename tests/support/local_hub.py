"""A hub on this machine: an HTTP server that answers what huggingface_hub asks of the Hugging Face hub, from texts in memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class LocalHub:
    """The server's address, and what it was asked.

    Attributes:
        repos: contents of files by their names, by repository.
        gated: repositories that are given to nobody.
        sent: the paths of files that were sent.
        tokens: what stood in the Authorization headers.
    """

    repos: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    url: str = ""
    sent: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)


@contextmanager
def local_hub(repos: Mapping[str, Mapping[str, bytes]], gated: frozenset[str] = frozenset()) -> Iterator[LocalHub]:
    hub = LocalHub(repos, gated)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, body: bool) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            path = unquote(urlsplit(self.path).path).strip("/")
            words = path.removeprefix("api/models/").split("/")
            repo = "/".join(words[:2])
            files = hub.repos.get(repo)
            if path.startswith("plain/"):
                content = hub.repos.get("plain", {}).get(path.removeprefix("plain/"))
                return self._say(200 if content else 404, content or b"", body)
            if files is None:
                return self._say(404, b"{}", body, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "none"})
            if path.startswith("api/models/"):
                revision = words[3] if len(words) > 3 else "main"
                if revision not in ("main", "v1", COMMIT):
                    return self._say(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
                if words[2:3] == ["tree"]:
                    listed: object = [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in files.items()
                    ]
                else:
                    listed = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                return self._say(200, json.dumps(listed).encode(), body, {"Content-Type": "application/json"})
            if repo in hub.gated:
                return self._say(403, b"", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
            name = "/".join(words[4:])
            if name not in files:
                return self._say(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            if body:
                hub.sent.append(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            return self._say(200, files[name], body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

        def _say(self, status: int, content: bytes, body: bool, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
