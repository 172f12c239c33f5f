"""A scorer in N worker processes, for CPU engines that hold the GIL, leak, or crash.

Each process builds its own scorer from a factory and owns it. A batch goes to an idle process. One that dies is
replaced and its items are tried once more, one at a time, so that only the item that kills it fails.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait

from services.kit.dispatch.described import Described
from services.kit.dispatch.isolation import NOT_AWAITED, score_isolated
from services.kit.dispatch.patience import Backoff, NobodyWaits, Patience, StartFailed, WorkerDied, always
from services.kit.dispatch.transport import receive, send, send_stop
from services.kit.scorer import Failure, Item, Result, Scorer
from wire.schema import ErrorCode, ScorerInfo

logger = logging.getLogger("services.workers")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_THREAD_LIMIT",
)
_STOP_S = 3.0
_LOADED = "loaded"
_spawning = threading.Lock()


class ProcessPool(Described):
    """Implements `Scorer` with `workers` processes. `score` may be called by as many threads at once.

    `factory` is called once here, for the scorer's names and limits (its `load` is not), and once in every process:
    it must be picklable, such as a class, a module's function, or a `functools.partial` of one.
    """

    def __init__(
        self,
        factory: Callable[[], Scorer],
        workers: int,
        *,
        recycle_after: int | None = None,
        batch_timeout_s: float = 120.0,
        load_timeout_s: float = 300.0,
        abandoned_s: float = 5.0,
    ) -> None:
        """`recycle_after`: a process is replaced after that many items, for engines that leak memory.

        `abandoned_s`: how long a process may go on with a batch that nobody waits for any more.
        """
        if workers < 1:
            raise ValueError(f"workers is {workers}; a pool needs at least 1")
        self._factory = factory
        self._front: Scorer = factory()
        super().__init__(self._front)
        self._workers = workers
        self._recycle_after = recycle_after
        self._batch_timeout_s = batch_timeout_s
        self._load_timeout_s = load_timeout_s
        self._abandoned_s = abandoned_s
        self._idle: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._slots: list[_Slot] = []
        self._started: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._retry = Backoff()
        self.restarts = 0

    @property
    def concurrency(self) -> int:
        """How many `score` calls may run at once."""
        return self._workers

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return self._front.rewards

    @property
    def max_batch(self) -> int:
        return self._front.max_batch

    def warmup(self) -> Sequence[tuple[str, Item]]:
        return self._front.warmup()

    @property
    def failure(self) -> str | None:
        """Why there is no worker to score with; None while there is one. A lost worker is replaced by `recover`."""
        if self._closed or any(slot.usable for slot in self._slots):
            return None
        return self._retry.reason

    def recover(self) -> None:
        """Try again to start a worker where there is none and the pause since the last failure is over. Blocks."""
        if self.failure is None or self._retry.left_s > 0:
            return
        with contextlib.suppress(queue.Empty):
            slot = self._idle.get_nowait()
            try:
                self._checked_out(slot)
            except StartFailed as error:
                logger.error("worker cannot be replaced", extra={"reason": str(error)})
            finally:
                self._idle.put(slot)

    def pids(self) -> list[int]:
        """Process ids of the workers alive."""
        with self._lock:
            return [worker.pid for worker in self._started if worker.alive]

    def load(self) -> None:
        """Start all processes at once; each loads and scores its own warm-up items. Raises with the first reason."""
        atexit.register(self.close)  # before multiprocessing's own exit hook, which would wait for the processes
        try:
            workers = [self._spawn() for _ in range(self._workers)]
            for worker in workers:
                worker.wait_loaded(self._load_timeout_s)
        except Exception:
            self.close()
            raise
        self._slots = [_Slot(worker) for worker in workers]
        for slot in self._slots:
            self._idle.put(slot)

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        return self.score_awaited(reward, items, [always] * len(items))

    def score_awaited(
        self, reward: str, items: Sequence[Item], awaited: Sequence[Callable[[], bool]]
    ) -> Sequence[Result]:
        """Score items as long as anyone waits for them; `awaited`, one for each, says so.

        A process that goes on for a few seconds with a batch of nobody is ended. Such items are not tried again: they
        are NOT_AWAITED.
        """
        slot = self._idle.get()
        try:
            try:
                return self._attempt(slot, reward, items, awaited)
            except NobodyWaits as error:
                logger.warning("a worker was busy for nobody and is replaced", extra={"reason": str(error)})
                return [NOT_AWAITED] * len(items)
            except WorkerDied as error:
                logger.warning("worker died; trying its items one by one", extra={"reason": str(error)})
            return [self._second_attempt(slot, reward, *each) for each in zip(items, awaited, strict=True)]
        except StartFailed as error:
            logger.error("worker cannot be replaced", extra={"reason": str(error)})
            return [Failure(ErrorCode.INTERNAL, f"no worker process: {error}")] * len(items)
        finally:
            self._idle.put(slot)

    def close(self) -> None:
        """Stop all processes: politely, then by force after a few seconds."""
        with self._lock:
            self._closed = True
            workers, self._started = list(self._started), set()
        for worker in workers:
            worker.ask_to_stop()
        until = time.monotonic() + _STOP_S
        for worker in workers:
            worker.stop(max(0.0, until - time.monotonic()))
        atexit.unregister(self.close)

    def _second_attempt(self, slot: _Slot, reward: str, item: Item, is_awaited: Callable[[], bool]) -> Result:
        if not is_awaited():
            return NOT_AWAITED
        try:
            return self._attempt(slot, reward, [item], [is_awaited])[0]
        except NobodyWaits:
            return NOT_AWAITED
        except WorkerDied as error:
            return Failure(ErrorCode.INTERNAL, f"a worker process failed twice on this item: {error}")

    def _attempt(
        self, slot: _Slot, reward: str, items: Sequence[Item], awaited: Sequence[Callable[[], bool]]
    ) -> list[Result]:
        worker = self._checked_out(slot)
        patience = Patience(awaited, self._batch_timeout_s, self._abandoned_s)
        try:
            results = worker.score(reward, items, patience)
        except WorkerDied:
            slot.worker = None
            self._retire(worker, 0.0)
            raise
        worker.served += len(items)
        if self._recycle_after is not None and worker.served >= self._recycle_after and not slot.replacing:
            slot.replacing = True
            threading.Thread(target=self._prepare_successor, args=(slot,), daemon=True).start()
        return results

    def _checked_out(self, slot: _Slot) -> _Worker:
        """The slot's live process: its successor when one is ready, a new one when it is dead."""
        successor = slot.successor
        if successor is not None:
            retired, slot.worker, slot.successor, slot.replacing = slot.worker, successor, None, False
            if retired is not None:
                self._retire(retired, _STOP_S)
        if slot.worker is None or not slot.worker.alive:
            if slot.worker is not None:
                self._retire(slot.worker, 0.0)
                slot.worker = None
            self._retry.check()
            self._count_restart()
            try:
                slot.worker = self._start()
            except StartFailed as error:
                self._retry.failed(str(error))
                raise
            self._retry.succeeded()
        return slot.worker

    def _prepare_successor(self, slot: _Slot) -> None:
        """Load the replacement beside the old process, so that recycling costs no capacity."""
        try:
            successor = self._start()
        except Exception:  # whatever it is, the next batch tries again: only this thread would know of it
            logger.exception("a worker's replacement did not start; the old one goes on")
            slot.replacing = False
            return
        self._count_restart()
        slot.successor = successor

    def _count_restart(self) -> None:
        with self._lock:
            self.restarts += 1

    def _start(self) -> _Worker:
        worker = self._spawn()
        try:
            worker.wait_loaded(self._load_timeout_s)
        except StartFailed:
            self._retire(worker, 0.0)
            raise
        return worker

    def _spawn(self) -> _Worker:
        """Start a process and keep it on the list of those to be stopped."""
        with self._lock:
            if self._closed:
                raise StartFailed("the pool is closed")
            try:
                worker = _Worker(self._factory)
            except OSError as error:  # no memory, no process ids, no file handles: it may pass
                raise StartFailed(f"a worker process cannot be started: {error}") from error
            self._started.add(worker)
        return worker

    def _retire(self, worker: _Worker, timeout_s: float) -> None:
        with self._lock:
            self._started.discard(worker)
        worker.stop(timeout_s)


class _Slot:
    """One place in the pool, held by one `score` call at a time."""

    def __init__(self, worker: _Worker) -> None:
        self.worker: _Worker | None = worker
        self.successor: _Worker | None = None
        self.replacing = False

    @property
    def usable(self) -> bool:
        """Whether there is a process that can take a batch, or will be once loaded."""
        return self.successor is not None or (self.worker is not None and self.worker.alive)


class _Worker:
    """The parent's side of one process."""

    def __init__(self, factory: Callable[[], Scorer]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, factory), name="scorer", daemon=True)
        with _spawning, _one_thread_each():
            self._process.start()
        theirs.close()  # the child's end must have one owner, so that its death is an EOF here
        self.served = 0

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def wait_loaded(self, timeout_s: float) -> None:
        try:
            message = self._receive(Patience([always], timeout_s, timeout_s))
        except WorkerDied as error:
            raise StartFailed(f"a worker process did not load: {error}") from error
        if message != _LOADED:
            raise StartFailed(f"a worker process did not load: {message}")

    def score(self, reward: str, items: Sequence[Item], patience: Patience) -> list[Result]:
        try:
            send(self._pipe, (reward, list(items)))
        except OSError as error:
            raise WorkerDied(f"worker {self.pid} is gone ({error})") from error
        results: list[Result] = self._receive(patience)  # type: ignore[assignment]
        return results

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            send_stop(self._pipe)

    def stop(self, timeout_s: float) -> None:
        self.ask_to_stop()
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _receive(self, patience: Patience) -> object:
        try:
            while not self._pipe.poll(left_s := patience.left_s()):
                if left_s == 0:
                    raise WorkerDied(f"worker {self.pid} did not answer within {patience.timeout_s:g} s")
            return receive(self._pipe)
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            raise WorkerDied(f"worker {self.pid} ended with exit code {self._process.exitcode}") from error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """The children's numerical libraries read these when they are imported, so they must be set before."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _main(pipe: Connection, factory: Callable[[], Scorer]) -> None:
    """The child: load, then answer batches until told to stop, or until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C reaches the whole group; the parent decides the end
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        scorer = factory()
        scorer.load()
        for reward, item in scorer.warmup():
            [result] = score_isolated(scorer, reward, [item])
            if isinstance(result, Failure):
                raise RuntimeError(f"the warm-up item of reward {reward!r} failed: {result.message}")
    except Exception as error:
        send(pipe, f"{type(error).__name__}: {error}")
        return
    send(pipe, _LOADED)
    with contextlib.suppress(EOFError, OSError):
        while message := receive(pipe):
            reward, items = message
            send(pipe, score_isolated(scorer, reward, items))
    scorer.close()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(0)
