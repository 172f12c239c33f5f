"""What the settings of a judge refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.eval.settings import EvalSettings
from services.kit.judge.settings import JudgeSettings
from services.kit.settings import load_settings
from services.textjudge.settings import TextJudgeSettings
from services.unifiedreward.settings import UnifiedRewardSettings
from services.vqa.settings import VqaSettings

ROOT = Path(__file__).resolve().parents[4]


def test_a_password_in_the_judges_address_is_refused_and_not_repeated(capsys):
    """The address is part of messages, `/ready` shows them to everybody."""
    with pytest.raises(SystemExit):
        load_settings(JudgeSettings, ["--judge-url", "https://lab:hunter2@judge:8000/v1"])
    told = capsys.readouterr().err
    assert "--judge-key-file" in told and "https://judge:8000/v1" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("service", "port"), [("unifiedreward", 18087), ("eval", 18088), ("vqa", 18089), ("textjudge", 18090)]
)
def test_a_gateway_is_not_its_own_judge(service, port):
    """It would ask itself for ever, be answered 429, and never say why."""
    command = [sys.executable, "-m", f"services.{service}", "--judge-url", f"http://127.0.0.1:{port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"--judge-url http://127.0.0.1:{port} is this gateway's own address: start vLLM on another port, such as 8001, and "
        f"name that\n"
    )


@pytest.mark.parametrize("settings_class", [UnifiedRewardSettings, EvalSettings, VqaSettings, TextJudgeSettings])
@pytest.mark.parametrize(
    "flags",
    [
        "--port 9000 --judge-url http://localhost:9000/v1",
        "--port 9000 --judge-url http://LOCALHOST:9000",
        "--port 9000 --judge-url http://[::1]:9000",
        "--port 9000 --judge-url http://0.0.0.0:9000",
        "--port 80 --judge-url http://127.0.0.1",
        "--port 443 --judge-url https://127.0.0.1",
        "--port 9000 --host 0.0.0.0 --insecure-no-token --judge-url http://127.0.0.1:9000",
        "--port 9000 --host 10.0.0.5 --insecure-no-token --judge-url http://10.0.0.5:9000",
        "--port 8001 --judge-url http://127.0.0.1:8001",
    ],
)
def test_its_own_address_is_known_however_it_is_written(settings_class, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        load_settings(settings_class, flags.split())
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "is this gateway's own address" in told
    assert ("such as 8002" in told) == ("8001" in flags), "the port that it advises is another"


@pytest.mark.parametrize(
    "flags",
    [
        "--port 9000 --judge-url http://127.0.0.1:9001",
        "--port 9000 --judge-url http://judge:9000",
        "--port 0 --judge-url http://127.0.0.1:18087",
        "--port 9000 --host 0.0.0.0 --insecure-no-token --judge-url http://10.0.0.5:9000",
        "--port 9000 --host 10.0.0.5 --insecure-no-token --judge-url http://127.0.0.1:9000",
    ],
)
def test_another_address_is_taken(flags):
    assert load_settings(UnifiedRewardSettings, flags.split()).judge_url == flags.split()[-1]


@pytest.mark.parametrize("port", ["x", "99999"])
def test_a_port_that_cannot_be_is_named(port, capsys):
    with pytest.raises(SystemExit):
        load_settings(UnifiedRewardSettings, ["--judge-url", f"http://judge:{port}"])
    told = capsys.readouterr().err
    assert (
        "--judge-url (UNIFIEDREWARD_JUDGE_URL): its port is no number up to 65535" in told and f"judge:{port}'" in told
    )
