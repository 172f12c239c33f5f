"""The dependency audit: the real pip-audit against an advisory database of our own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ADVISORY = {
    "id": "PYSEC-2026-1",
    "summary": "reads what it should not",
    "details": "",
    "affected": [
        {
            "package": {"name": "leaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0.1"}]}],
        }
    ],
}


class Database(BaseHTTPRequestHandler):
    """Answers as osv.dev does."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = [ADVISORY] if (asked["package"]["name"], asked["version"]) == ("leaky", "2.0.0") else []
        body = json.dumps({"vulns": known} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def database():
    server = HTTPServer(("127.0.0.1", 0), Database)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


def audit(tmp_path, pins, url, *flags):
    file = tmp_path / "requirements.txt"
    file.write_text(pins)
    command = [sys.executable, "scripts/audit.py", "--only-osv", "--osv-url", url, "--requirements", str(file), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_a_known_vulnerability_fails(tmp_path, database):
    done = audit(tmp_path, "# pins\nSafe_Thing==1.0\nleaky==2.0.0\n", database, "--allow-unreachable")
    assert done.returncode == 1, done.stderr
    assert "VULNERABLE leaky 2.0.0: PYSEC-2026-1, fixed in 2.0.1" in done.stdout


def test_clean_is_said_only_when_all_were_looked_up(tmp_path, database):
    done = audit(tmp_path, "Safe_Thing==1.0\nleaky==2.0.1\n", database)
    assert (done.returncode, done.stdout) == (0, "[audit] 2 of 2 packages checked\n"), done.stderr


def test_a_database_that_does_not_answer_is_not_a_clean_bill(tmp_path):
    nowhere = "http://127.0.0.1:9/v1/query"
    done = audit(tmp_path, "a==1.0\nb==1.0\n", nowhere)
    assert done.returncode == 3
    assert "0 of 2 packages checked" in done.stdout
    assert "NOT CHECKED, no advisory database answered for: a, b" in done.stdout
    assert audit(tmp_path, "a==1.0\n", nowhere, "--allow-unreachable").returncode == 0


def test_make_check_runs_it():
    rules = (ROOT / "Makefile").read_text().split("\n\n")
    [check] = [rule for rule in rules if rule.startswith("check:")]
    assert "scripts/audit.py" in check
