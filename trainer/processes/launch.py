"""Starts one process per GPU on this node, and starts them again when a process was killed or a node was lost.

    python -m trainer.processes.launch --nproc 8 [--nnodes 4 --node-rank 0 --master-addr HOST --master-port 29500] train CONFIG ...

torchrun does the work; its restarts, its report of every process and its handling of signals are replaced. An error that
the next start would meet again (exit codes 1 and 2) is not tried again. `train.sh` calls this on every node.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from machine.gpus import GpuError, check_processes, check_torch_uses, shown
from rewards.shipped import recipe
from trainer.config import Config, ConfigError
from trainer.config.deepspeed import offloads_optimizer, read_deepspeed
from trainer.config.paths import check_policy_files
from trainer.migration import load_recipe
from trainer.processes.children import SAFE_PATH
from trainer.processes.failure import LOST, USER_ERROR
from trainer.processes.stopping import STOP_SIGNALS, install

SHUTDOWN_S = 600  # for the last save after a signal; torchrun would kill after 30 s
JOIN_S = 300.0  # for nodes to meet at a start
UNHEARD_S = 3.0  # after which a signal that no handler took up is acted upon without it
PAUSE_S = 5.0  # before a new start: the other nodes notice, too


@dataclass(frozen=True)
class End:
    """How a start ended: the exit code, and for a killed process its rank and signal."""

    code: int
    rank: int | None = None
    signal: int | None = None

    @property
    def may_work_again(self) -> bool:
        return self.signal is not None or self.code == LOST

    def __str__(self) -> str:
        if self.signal is None:
            return "Another node lost a process."
        name = signal.Signals(self.signal).name
        hint = " Was the node out of memory?" if self.signal == signal.SIGKILL else ""
        return f"Rank {self.rank} was ended by {name}.{hint}"


class NothingToStopError(BaseException):
    """A signal came while no process was running here: there is nothing to wait for."""


class Relay:
    """Passes signals on to the processes on this node, which save; torchrun then sees them end.

    torchrun's own way is an exception that a second signal interrupts, so that processes which are saving would be left
    behind; batch systems and terminals send several. Whoever has not ended SHUTDOWN_S later is killed.
    """

    def __init__(self) -> None:
        self.sent: set[int] = set()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        first, running = not self.sent, _children()
        self.sent.add(number)
        if not running:
            raise NothingToStopError
        _send(number)
        if first:
            overdue = threading.Timer(SHUTDOWN_S, _send, [signal.SIGKILL])
            overdue.daemon = True
            overdue.start()

    def ended(self, end: End) -> End:
        """How a start ended after a signal: that a process died of it before it could hear it is no failure."""
        return End(0) if end.signal in self.sent else end


def _end_where_nobody_hears(relay: Relay) -> None:
    """End this process where a signal is not heard in time because its main thread waits inside torch for other nodes.

    Python runs handlers between two steps of the main thread, and waiting for a node is one step of minutes. The number of a
    signal is written to a pipe at once, so another thread learns of it. There is nothing to save before nodes have met.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            number = os.read(reader, 1)[0]
            time.sleep(UNHEARD_S)
            if number in STOP_SIGNALS and number not in relay.sent and not _children():
                _say(f"{signal.Signals(number).name}: stopped while waiting for other nodes")
                os._exit(0)

    threading.Thread(target=watch, name="unheard-signals", daemon=True).start()


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _send(number: int) -> None:
    for pid in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main(argv: Sequence[str] | None = None, prog: str = "python -m trainer.processes.launch") -> int:
    args = build_parser(prog).parse_args(argv)
    try:
        _check_recipe(args.command, args.nproc)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    os.environ.update(SAFE_PATH)
    relay = Relay()
    install(dict.fromkeys(STOP_SIGNALS, relay))
    _end_where_nobody_hears(relay)
    try:
        return _run(args, relay)
    except NothingToStopError:
        return 0


def _run(args: argparse.Namespace, relay: Relay) -> int:
    """Start, and start again while that may help and nobody asked to stop. Returns the exit code."""
    nproc = args.nproc
    for number in range(args.max_restarts + 1):
        left = args.max_restarts - number
        end = _start(args, nproc, number)
        if relay.sent:
            end = relay.ended(end)
            return 128 + end.signal if end.signal else end.code
        if not end.may_work_again:
            return end.code
        _say(f"{end} All processes on this node have ended; the run goes on from its newest checkpoint.")
        if left == 0:
            _say(f"Not started again: MAX_RESTARTS={args.max_restarts} starts are used up.")
            break
        try:
            nproc = processes_left(nproc, args, _devices())
        except ConfigError as error:
            _say(f"error: {error}")
            return USER_ERROR
        _say(
            f"Starting again with {nproc} processes on this node in {PAUSE_S:g} s ({left - 1} more starts after this)."
        )
    return 128 + end.signal if end.signal else end.code


def build_parser(prog: str = "python -m trainer.processes.launch") -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Start one process per GPU.")
    parser.add_argument("--nproc", type=int, required=True, help="Processes on this node.")
    parser.add_argument("--nnodes", type=int, default=1, help="Nodes.")
    parser.add_argument("--node-rank", type=int, default=0, help="This node's number.")
    parser.add_argument("--master-addr", default="127.0.0.1", help="Address of node 0.")
    parser.add_argument("--master-port", type=int, help="Free port on node 0; any free one for a single node.")
    parser.add_argument("--max-restarts", type=int, default=3, help="New starts after a process was killed.")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="What python -m trainer is given.")
    return parser


def _check_recipe(command: Sequence[str], nproc: int) -> None:
    """Raises ConfigError for a mistake in the recipe, once and at once: not by every process, and before torch is imported;
    likewise for GPUs that are too few, or that torch cannot use.

    What a recipe has to say about its choices is left to rank 0."""
    if command[:1] != ["train"] or len(command) < 2:
        return
    with contextlib.redirect_stderr(io.StringIO()):
        config = load_recipe(recipe(command[1]), Config, command[2:])
    check_policy_files(config.policy, config.program)
    if config.distributed.device == "cpu":
        return
    try:
        gpus = shown()
        check_processes(gpus, nproc)
        check_torch_uses(gpus, instead="distributed.device=cpu")
    except GpuError as error:
        raise ConfigError(str(error)) from error


def processes_left(nproc: int, args: argparse.Namespace, devices: int | None) -> int:
    """How many processes a new start has: as many as before, or, where a single node lost devices, the most that fit.

    Raises:
        ConfigError: a node of several lost devices, or none is left.
    """
    if devices is None or devices >= nproc:
        return nproc
    if args.nnodes > 1 or devices == 0:
        raise ConfigError(
            f"{devices} of {nproc} devices are left on node {args.node_rank}; repair it or start again without it "
            "(NNODES, NGPUS): a checkpoint may be taken up by another number of ranks"
        )
    config = load_recipe(args.command[1], Config, args.command[2:])
    return max(n for n in range(1, devices + 1) if config.sampling.prompts_per_step % n == 0)


def _devices() -> int | None:
    """GPUs that work now; None where training does not use any."""
    listing = Path("/proc/driver/nvidia/gpus")
    return len(list(listing.iterdir())) if listing.is_dir() else None


def _start(args: argparse.Namespace, nproc: int, number: int) -> End:
    """One start on this node, until all its processes have ended. Nodes meet under its number: node 0 may still serve
    what the start before left."""
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # before torch is imported: stack traces of each lost connection
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    place = ["--standalone"]
    if args.nnodes > 1 or args.master_port is not None:
        place = ["--nnodes", str(args.nnodes), "--node-rank", str(args.node_rank)]
        place += ["--master-addr", args.master_addr, "--master-port", str(args.master_port or 29500)]
        place += ["--rdzv-id", f"start_{number}"]
    os.environ["TRAINER_LAUNCHER"] = "1"
    set_threads(args, nproc)
    options = [*place, "--nproc-per-node", str(nproc), "--shutdown-timeout", str(SHUTDOWN_S)]
    options += ["--signals-to-handle", "SIGQUIT", "-m", "trainer"]
    logging.disable(logging.ERROR)  # torchrun's report; the failed rank and `main` say it in one message
    try:
        time.sleep(PAUSE_S if number else 0)
        _retry_joining(lambda: torchrun.run(torchrun.parse_args([*options, *args.command])))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = int(failure.exitcode)
        return End(128 - code, rank, -code) if code < 0 else End(code)
    except SignalException as stopped:
        return End(128 + int(stopped.sigval))
    finally:
        logging.disable(logging.NOTSET)
    return End(0)


def set_threads(args: argparse.Namespace, nproc: int) -> None:
    """Threads of each process, where nobody has said how many: one, since a GPU computes; more where the optimizer steps on the CPU."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = 1
    if args.command[:1] == ["train"] and len(args.command) > 1:
        with contextlib.redirect_stderr(io.StringIO()):
            config = load_recipe(recipe(args.command[1]), Config, args.command[2:])
        path = config.distributed.deepspeed
        if path is not None and offloads_optimizer(read_deepspeed(path)):
            threads = max(1, len(os.sched_getaffinity(0)) // nproc)
            _say(
                f"{Path(path).name} steps the optimizer on the CPU: {threads} threads for each of {nproc} processes (OMP_NUM_THREADS)"
            )
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _retry_joining(join: Callable[[], None]) -> None:
    """Until node 0 is there: it may notice a lost process later than this node, and is not to be met before."""
    from torch.distributed import DistNetworkError, DistStoreError

    deadline = time.monotonic() + JOIN_S
    while True:
        try:
            return join()
        except (DistNetworkError, DistStoreError):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE_S)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"[launch] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
