"""Settings for every test: threads that do not fight over the cores, and no proxy or token of the person's shell."""

from __future__ import annotations

import os
import signal

import pytest

# Before torch is imported: small models run fastest on one thread, and waiting threads must not spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Started in the background, a shell lets this process ignore Ctrl-C, and every process the tests start would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Under `nohup` the same is true of a terminal that closes, and a run would rightly not hear of it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

pytest_plugins = ["tests.support.trainer_runs", "tests.support.redis_server", "tests.support.chromium"]

_PERSONAL = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "OCR_URL",
    "RULES_URL",
    "HPS_URL",
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _PERSONAL:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
