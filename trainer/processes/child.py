"""Runs one command and outlives neither its parent nor the command.

    python child.py PARENT_PID GRACE_S NICE -- COMMAND ...

A trainer killed with SIGKILL cannot clean up, so each local service runs under this small process. It watches for its
parent's death and for SIGTERM; then the command gets SIGTERM, has GRACE_S seconds to finish, and its whole process group
is killed. Should this process itself be killed, Linux kills the command (PR_SET_PDEATHSIG). Exits with the command's
status. A script of the standard library only: it starts in an instant and takes little memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

POLL_S = 0.2
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    parent_pid, grace_s, niceness, separator, *command = argv
    assert separator == "--" and command
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it stops us when it is done
    os.nice(int(niceness))
    # This process has one thread, so the function that runs between fork and exec cannot meet a lock.
    child = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_parent)  # noqa: PLW1509
    while child.poll() is None and os.getppid() == int(parent_pid) and not asked.is_set():
        time.sleep(POLL_S)
    _end(child, float(grace_s))
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # what the command started and left behind
    child.wait()


def _die_with_parent() -> None:
    """In the new process, before it becomes the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
