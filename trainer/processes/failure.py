"""One rank's failure ends all ranks: within seconds, with one message and one exit code.

Collectives cannot do that: a rank that waits in one learns nothing until its timeout. So every rank has a thread that
speaks with the others through the key-value store of the process group. The first rank to fail leaves a note there; the
threads of the others read it and end their processes, wherever their main threads wait. A rank that was killed leaves no
note, but its heartbeat stops, which the next rank sees.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

PERIOD_S = 0.5  # between two looks at the store; with many ranks longer, as one process serves it
RANKS_PER_S = 500
CONNECT_S = 5.0
LOST_AFTER_S = 30.0  # without a heartbeat; loading large files can stop all threads of a process for seconds
LAST_ACT_S = 10.0  # for what this process does before another's failure ends it
USER_ERROR, FAILED, LOST = 2, 1, 75  # exit codes; 75 (EX_TEMPFAIL): the same start may work again

_last_acts: list[Callable[[Exception], None]] = []


class OtherRankError(RuntimeError):
    """Another rank failed or was lost; this one is in order."""


@contextlib.contextmanager
def before_ending(act: Callable[[Exception], None]) -> Iterator[None]:
    """Inside the block, `act` is called before another rank's failure ends this process: beside its main thread, which may
    wait for ever, and for at most LAST_ACT_S."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


class Watch:
    """This process among the ranks that torchrun started; alone, it only prints. Use as a context manager."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.rank, self.size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
        self._period_s = max(PERIOD_S, self.size / RANKS_PER_S)
        self._address = environment.get("MASTER_ADDR", ""), int(environment.get("MASTER_PORT", "0"))
        self._key = (
            f"failure/{environment.get('TORCHELASTIC_RUN_ID', '')}/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        )
        self._quiet_when_lost = environment.get("TRAINER_LAUNCHER") == "1"  # which tells who was killed, and how
        self._done = threading.Event()
        self._lock = threading.Lock()  # the store's client serves one thread at a time
        self._store: TCPStore | None = None
        self._thread = threading.Thread(target=self._run, name="failure-watch", daemon=True)

    def __enter__(self) -> Self:
        if self.size > 1:
            import torch.distributed  # noqa: F401 (two threads cannot import it at once)

            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def fail(self, text: str, code: int) -> int:
        """This rank has failed: say so, unless another rank did before, and let the others end. Returns the exit code."""
        where = f"rank {self.rank} of {self.size} on {socket.gethostname()}"
        note = self._leave_note({"rank": self.rank, "where": where, "code": code, "what": _last_line(text)})
        if note["rank"] == self.rank and not (code == LOST and self._quiet_when_lost):
            print(text if self.size == 1 else f"{text}\n({where}; all ranks stop)", file=sys.stderr, flush=True)
        if self.size > 1:
            time.sleep(2 * self._period_s)  # the others end by the note, before a launcher signals them
        return int(note["code"])

    def _leave_note(self, note: dict[str, str | int]) -> dict[str, str | int]:
        """The note of the first rank that failed: this one, or another's."""
        if self.size == 1:
            return note
        try:
            with self._lock:
                self._connect()
                assert self._store is not None
                first = self._store.compare_set(f"{self._key}/note", "", json.dumps(note))
        except (OSError, RuntimeError):
            return note  # no store: the rank that served it is gone, or nothing was set up yet
        found: dict[str, str | int] = json.loads(first)
        return found

    def _run(self) -> None:
        beat, seen, seen_at = 0, b"", time.monotonic()
        neighbour = (self.rank + 1) % self.size
        while not self._done.wait(self._period_s):
            try:
                with self._lock:
                    self._connect()
                    assert self._store is not None
                    beat += 1
                    self._store.set(f"{self._key}/beat/{self.rank}", str(beat))
                    if self._store.check([f"{self._key}/note"]):
                        self._end(json.loads(self._store.get(f"{self._key}/note")))
                    now = self._look_at(neighbour)
            except Exception:  # the store is served by a process that may be gone, or its answer is cut off: watch on
                now = seen
            if now != seen or not now:
                seen, seen_at = now, time.monotonic()
            elif now != b"done" and time.monotonic() - seen_at > LOST_AFTER_S:
                text = f"error: rank {neighbour} was not heard of for {LOST_AFTER_S:.0f} s: it was killed or its node is gone"
                code = self.fail(text, LOST)
                _act_last(text)
                os._exit(code)
        with contextlib.suppress(OSError, RuntimeError), self._lock:
            if self._store is not None:
                self._store.set(f"{self._key}/beat/{self.rank}", "done")

    def _look_at(self, rank: int) -> bytes:
        assert self._store is not None
        key = f"{self._key}/beat/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""

    def _end(self, note: Mapping[str, str | int]) -> None:
        """Another rank failed: end this process. Its main thread may wait in a collective that never returns."""
        if note["rank"] != self.rank:
            _act_last(f"{note['where']} failed: {note['what']}")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(note["code"]))

    def _connect(self) -> None:
        if self._store is None:
            from torch._C._distributed_c10d import TCPStore

            host, port = self._address
            self._store = TCPStore(
                host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S)
            )


def _act_last(reason: str) -> None:
    for act in list(_last_acts):
        thread = threading.Thread(target=act, args=(OtherRankError(reason),), daemon=True)
        thread.start()
        thread.join(LAST_ACT_S)


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another rank is gone, rather than what is wrong here."""
    import torch.distributed as dist

    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def describe(error: BaseException) -> tuple[str, int]:
    """What to print about an error that is nobody's to expect, and the exit code."""
    if isinstance(error, ModuleNotFoundError) and find_spec("torch") is None:  # installed without what training needs
        needs = f"error: this needs the package {error.name}, which is not installed: pip install 'rewards-as-services[train]'"
        return f"{needs}, in a checkout: bash train.sh", USER_ERROR
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and is_lost_connection(error):
        return f"error: the connection to another rank broke, which was killed or failed ({error})", LOST
    return "".join(traceback.format_exception(error)).rstrip(), FAILED
