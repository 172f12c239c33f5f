"""Local services: they start, they are found, they come back, and none outlives the trainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.reward_servers import ROOT
from tests.support.waiting import wait_until
from trainer.config import RewardsConfig
from trainer.rewards import LocalServices, RewardServiceError, resolve_urls
from trainer.rewards.launch import _LocalService, to_flags

FAKE = {"module": "kit.testing.fakes"}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def config(service: dict[str, Any] | None = None, **rewards: Any) -> RewardsConfig:
    services = {"fake": {**FAKE, **(service or {})}}
    return RewardsConfig.model_validate({"launch": "local", "services": services, "ready_timeout_s": 30.0, **rewards})


def processes(marker: Path) -> list[int]:
    """Every process whose environment holds this test's marker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"REWARD_TEST={marker}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it ended, or is not ours
            continue
    return sorted(found)


def service_pids(marker: Path) -> list[int]:
    """Of these, the services themselves, not what watches over them."""
    return [
        pid
        for pid in processes(marker)
        if b"child.py" not in (line := Path(f"/proc/{pid}/cmdline").read_bytes())
        and b"services.kit.testing.fakes" in line
    ]


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWARD_TEST", str(tmp_path))
    return tmp_path


@linux_only
def test_starts_stops_and_comes_back_on_the_same_port(marker: Path) -> None:
    lines: list[str] = []
    with LocalServices(config({"nice": 3}), marker / "logs", notify=lines.append) as services:
        (url,) = services.urls["fake"]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/ready", trust_env=False).status_code == 200
        (pid,) = service_pids(marker)
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: service_pids(marker) not in ([], [pid]))
        wait_until(lambda: is_ready(url))
        assert services.urls == {"fake": (url,)}
    assert processes(marker) == []
    assert any("fake is ready at" in line for line in lines)
    assert any(f"fake died; starting it again on {url}" in line for line in lines)
    assert "fake ready" in (marker / "logs" / "fake.log").read_text()


@linux_only
def test_a_service_that_dies_too_often_stays_down(marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.rewards.launch.MAX_RESTARTS", 0)
    lines: list[str] = []
    looks: list[str] = []
    look_after = LocalServices._look_after

    def counted(services: LocalServices, name: str, service: _LocalService) -> None:
        look_after(services, name, service)
        looks.append(name)

    monkeypatch.setattr(LocalServices, "_look_after", counted)
    with LocalServices(config(), marker / "logs", notify=lines.append):
        os.kill(service_pids(marker)[0], signal.SIGKILL)
        wait_until(lambda: any("fake died 1 times and stays down" in line for line in lines))
        seen = len(looks)
        wait_until(lambda: len(looks) >= seen + 3)
        assert processes(marker) == []


@linux_only
def test_a_start_that_cannot_be_made_is_said_and_tried_again(marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, no process ids: the thread that looks after the services must not end of it."""
    lines: list[str] = []
    failing = threading.Event()
    right = _LocalService.start

    def spawn(service: _LocalService, port: int | None) -> None:
        if failing.is_set():
            failing.clear()
            raise OSError("No space left on device")
        right(service, port)

    monkeypatch.setattr(_LocalService, "start", spawn)
    with LocalServices(config(), marker / "logs", notify=lines.append):
        (pid,) = service_pids(marker)
        failing.set()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: any("fake cannot be started again (OSError: No space left" in line for line in lines))
        wait_until(lambda: service_pids(marker) not in ([], [pid]))


@linux_only
def test_restart_can_be_switched_off(marker: Path) -> None:
    with LocalServices(config(restart=False), marker / "logs"):
        os.kill(service_pids(marker)[0], signal.SIGKILL)
        wait_until(lambda: processes(marker) == [])
        assert not any(thread.name == "service-watcher" for thread in threading.enumerate()), "nobody looks after it"


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


_TRAINER = """
import sys, time
from pathlib import Path
from trainer.config import RewardsConfig
from trainer.rewards.launch import LocalServices
config = RewardsConfig.model_validate({"launch": "local", "services": {"fake": {"module": "kit.testing.fakes"}}})
services = LocalServices(config, Path(sys.argv[1]))
services.start()
print("up", flush=True)
exec(sys.argv[2])
"""


def trainer(marker: Path, then: str) -> subprocess.Popen[str]:
    """A process that starts the fake service, says so, and then does something."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAINER, str(marker / "logs"), then],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.stdout.close()
    return process


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphan_when_the_trainer_is_killed(marker: Path, number: signal.Signals) -> None:
    process = trainer(marker, "time.sleep(600)")
    assert len(service_pids(marker)) == 1
    process.send_signal(number)
    process.wait()
    wait_until(lambda: processes(marker) == [])


@linux_only
def test_no_orphan_when_the_trainer_ends_without_stopping_them(marker: Path) -> None:
    process = trainer(marker, "raise ValueError")
    process.wait()
    assert processes(marker) == []


@linux_only
def test_no_orphan_when_the_watching_process_is_killed(marker: Path) -> None:
    process = trainer(marker, "time.sleep(600)")
    (service,) = service_pids(marker)
    watcher = int(Path(f"/proc/{service}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"child.py" in Path(f"/proc/{watcher}/cmdline").read_bytes()
    os.kill(watcher, signal.SIGKILL)
    wait_until(lambda: service not in service_pids(marker))
    process.kill()
    process.wait()
    wait_until(lambda: processes(marker) == [])


@linux_only
def test_an_exception_in_the_run_stops_them(marker: Path) -> None:
    with pytest.raises(ZeroDivisionError), LocalServices(config(), marker / "logs"):
        assert len(service_pids(marker)) == 1
        raise ZeroDivisionError
    assert processes(marker) == []


@linux_only
def test_a_service_that_cannot_start_shows_its_log(marker: Path) -> None:
    with pytest.raises(RewardServiceError) as caught:
        LocalServices(config({"args": {"max_batch": "many"}}), marker / "logs").start()
    assert "service fake ended while it started" in str(caught.value)
    assert "--max-batch" in str(caught.value)
    assert processes(marker) == []


@pytest.mark.parametrize("mine", [{"module": "mine.py"}, {"module": "rules", "args": {"functions": "mine.py"}}])
def test_a_users_file_that_cannot_be_run_is_said_before_anything_else_is_started(
    mine: dict[str, Any], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(service: _LocalService, port: int | None) -> None:
        started.append(service.log_path.stem)
        service.spawn([sys.executable, "-S", "-c", "raise SystemExit('mine.py, line 3: no such name')"], {})

    monkeypatch.setattr(_LocalService, "start", start)
    services = {"fake": {"module": "kit.testing.fakes"}, "mine": mine}
    launch = LocalServices(RewardsConfig.model_validate({"launch": "local", "services": services}), marker / "logs")
    with pytest.raises(RewardServiceError, match=r"service mine ended while it started(.|\n)*line 3: no such name"):
        launch.begin()
    assert started == ["mine"]


def test_a_module_that_does_not_exist_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"services\.fake\.module = 'common\.fake' is no service of ours"):
        config({"module": "common.fake"})


@linux_only
def test_not_ready_in_time(marker: Path) -> None:
    with pytest.raises(RewardServiceError, match=r"fake was not ready within rewards.ready_timeout_s = 0.05 s"):
        LocalServices(config(ready_timeout_s=0.05), marker / "logs").start()
    assert processes(marker) == []


def test_a_service_with_urls_is_not_started(tmp_path: Path) -> None:
    with LocalServices(config({"urls": ["http://127.0.0.1:1"]}), tmp_path) as services:
        assert services.urls == {}


def test_flags() -> None:
    assert to_flags({"max_items": 4, "mode": "line", "legacy": True, "cache": False, "x": -0.5}) == [
        "--max-items=4",
        "--mode=line",
        "--legacy",
        "--no-cache",
        "--x=-0.5",
    ]


def two_services(urls: list[str]) -> RewardsConfig:
    tree = {"launch": "local", "services": {"ocr": {"module": "ocr", "urls": urls}, "mine": {"module": "rules"}}}
    return RewardsConfig.model_validate(tree)


def test_urls_come_from_the_config_then_the_started_then_the_environment() -> None:
    environment = {"OCR_URL": "http://env:1/, http://env:2"}
    mine = {"mine": ("http://127.0.0.1:5",)}
    assert resolve_urls(two_services(["http://a:1/", "https://b/x/"]), mine, environment) == {
        "ocr": ("http://a:1", "https://b/x"),
        "mine": ("http://127.0.0.1:5",),
    }
    assert resolve_urls(two_services([]), mine | {"ocr": ["http://l:1"]}, environment)["ocr"] == ("http://l:1",)
    assert resolve_urls(two_services([]), mine, environment)["ocr"] == ("http://env:1", "http://env:2")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "service ocr has no address: set rewards.services.ocr.urls, or the variable OCR_URL"),
        ("127.0.0.1:18082", "no address; write it like http://127.0.0.1:18082"),
        ("ftp://host/x", "no address"),
        ("http://host/?q=1", "no address"),
        ("http://a:b:c", "not a URL"),
        ("http://me:hunter2@host:1", "rewards.services.ocr.token_file"),
    ],
)
def test_wrong_addresses(value: str, message: str) -> None:
    with pytest.raises(RewardServiceError) as caught:
        resolve_urls(two_services([]), {"mine": ["http://m:1"]}, {"OCR_URL": value})
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)
