"""The doctor on the vLLM servers that draw a run's answers: nothing that a start would trip over is passed over."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from trainer.config import Config
from trainer.doctor.findings import Finding
from trainer.doctor.rollout_servers import check_rollout_servers

ROOT = Path(__file__).resolve().parents[2]


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers every GET with 200 and nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def findings(model: Path | str, **vllm: Any) -> list[Finding]:
    tree = {
        "run_name": "r",
        "max_steps": 1,
        "policy": {"type": "vlm", "pretrained": str(model)},
        "sampling": {"engine": "vllm", "vllm": vllm} if vllm else {},
        "rewards": {
            "services": {"rules": {"urls": ["http://127.0.0.1:1"]}},
            "columns": {"short": {"service": "rules", "reward": "length"}},
        },
        "data": {"train": [{"path": "rows.jsonl", "rewards": {"short": 1.0}}]},
        "evaluation": {"hold_out": 0.2},
    }
    return list(check_rollout_servers(Config.model_validate(tree, strict=False)))


def test_servers_that_run_are_asked(url: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    there, missing = findings("model", urls=[url, nobody])
    assert there == Finding("rollouts", "OK", f"{url} answers")
    assert (missing.status, missing.message) == ("FAIL", f"no vLLM server answers at {nobody}")


def test_what_a_start_would_trip_over_is_said(tmp_path: Path) -> None:
    [missing] = findings("model", launch={"executable": "no-such-vllm"})
    assert missing.status == "FAIL" and "executable = no-such-vllm is no command" in missing.message
    (tmp_path / "config.json").write_text('{"model_type": "smolvlm"}')
    asked, command = tmp_path / "python", tmp_path / "vllm"
    asked.write_text("#!/bin/sh\necho False\n")
    command.write_text(f"#!{asked}\n")
    for path in (asked, command):
        path.chmod(0o755)
    [lacking] = findings(tmp_path, launch={"executable": str(command)})
    assert lacking.status == "FAIL" and "lacks the package num2words" in lacking.message


def test_a_command_that_is_there_is_not_yet_a_server(tmp_path: Path) -> None:
    [found] = findings("model", launch={"executable": "true"})
    assert found.status == "NOT CHECKED" and found.message.startswith("true is a command; whether it serves the model")
    assert findings("model") == [], "this process draws"
