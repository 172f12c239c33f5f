"""The run folder's lock, between real processes."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.config import ConfigError
from trainer.processes.run_lock import is_held, run_lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from trainer.processes.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_refused_until_the_first_is_gone_even_if_it_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ConfigError, match=r"another process trains in .*run now: .* another run_name"),
            run_lock(folder),
        ):
            pass
        process.send_signal(signal.SIGKILL)
    with run_lock(folder):
        pass


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with (
        pytest.raises(ConfigError, match=r"run folder .* cannot be written: Not a directory; .* set output_dir"),
        run_lock(tmp_path / "outputs" / "run"),
    ):
        pass


def test_who_asks_whether_a_run_is_held_keeps_no_trainer_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_lock(tmp_path), (tmp_path / ".lock").open("rb") as other:
        assert is_held(other)
    with (tmp_path / ".lock").open("rb") as other:
        assert not is_held(other)
        fcntl.flock(other, fcntl.LOCK_SH)  # somebody asks just now ...
        monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(other, fcntl.LOCK_UN))  # ... and is done soon
        with run_lock(tmp_path):
            assert is_held(other)
