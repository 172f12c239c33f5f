"""CPU of a service for an image it receives: raw pixels beside PNG and JPEG, in memory and through Redis.

    python benchmarks/receiving.py
    python benchmarks/receiving.py --redis --items 1 8 --size 512
    python benchmarks/receiving.py --beside ../before

A fake service that scores nothing runs in a process of its own, in role `all`. Requests of `--items` images, all of them
new, go to it over loopback one after another, the encodings in turn, for `--rounds` rounds of `--requests`. A number is the
CPU time of the service (all threads) for an image, in milliseconds, the median of the rounds; behind it, with `--redis`, what
`redis-server` took. `--beside` names another checkout, whose service gets the same requests in turn; `ratio` is ours over
its. CPU times need no idle machine, but a busy one makes memory slower.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before ours are imported

from benchmarks.service_overhead import Client, make_body, make_image
from benchmarks.waiting_service import write_results
from tests.support.redis_server import RedisServer, why_no_redis
from wire.images import encode
from wire.schema import MediaType

ROOT = Path(__file__).resolve().parents[1]
TYPES: dict[str, MediaType] = {"rgb8": "image/x-rgb8", "png": "image/png", "jpeg": "image/jpeg"}


class Side:
    """A service of one checkout, and with Redis its own server."""

    def __init__(self, tree: Path, redis: RedisServer | None, stack: ExitStack) -> None:
        flags = [] if redis is None else [f"--redis={redis.url}"]
        self._service = stack.enter_context(_service(tree, *flags))
        self._redis = None if redis is None else _process_of(redis)
        self._stack = stack

    def connect(self) -> None:
        """Just before the first request: a connection that asks nothing for ten seconds is closed."""
        self.client = Client(self._service[0])
        self._stack.callback(self.client.close)

    def cpu_s(self) -> tuple[float, float]:
        """Of the service and of Redis so far, in seconds."""
        return _cpu_s(self._service[1]), 0.0 if self._redis is None else _cpu_s(self._redis)


@contextmanager
def _service(tree: Path, *flags: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "services.kit.testing.fakes", "--port=0", "--log-level=warning", *flags]
    with subprocess.Popen([*command, "--behaviour=constant"], stdout=subprocess.PIPE, text=True, cwd=tree) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            if process.stdout.readline().strip() != "fake ready":
                raise SystemExit(f"the service of {tree} did not start; its reason is above")
            yield url, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def _process_of(redis: RedisServer) -> psutil.Process:
    assert redis._process is not None
    return psutil.Process(redis._process.pid)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(
    sides: Sequence[Side], form: str, items: int, size: int, rounds: int, requests: int
) -> list[dict[str, Any]]:
    """A row for each encoding: medians over the rounds, milliseconds an image."""
    images = [make_image(seed, size) for seed in range(items)]
    encoded = {name: [encode(image, kind) for image in images] for name, kind in TYPES.items()}
    taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for side in sides:
        side.connect()
    for number in range(rounds + 1):
        for name, data in encoded.items():
            for place, side in enumerate(sides):
                before = side.cpu_s()
                for _ in range(requests if number else 3):  # the first round imports what is imported late
                    side.client.ask(*make_body(data, TYPES[name], size, form))
                if number:
                    spent = [
                        1000 * (now - then) / requests / items for now, then in zip(side.cpu_s(), before, strict=True)
                    ]
                    taken[name, place].append((spent[0], spent[1]))
    rows = []
    for name, data in encoded.items():
        row: dict[str, Any] = {"form": form, "encoding": name, "items": items, "kb": round(len(data[0]) / 1000)}
        for place, label in enumerate(("ours", "beside")[: len(sides)]):
            row[f"{label}_ms"] = round(statistics.median(each[0] for each in taken[name, place]), 2)
            row[f"{label}_redis_ms"] = round(statistics.median(each[1] for each in taken[name, place]), 2)
        if len(sides) == 2:
            pairs = zip(taken[name, 0], taken[name, 1], strict=True)
            row["ratio"] = round(statistics.median(mine[0] / theirs[0] for mine, theirs in pairs), 2)
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1, 8], help="images in a request")
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--forms", nargs="+", default=["multipart"], choices=["multipart", "json"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=24, help="of a round, for each encoding")
    parser.add_argument("--redis", action="store_true", help="jobs go through a Redis of their own")
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/receiving.json"))
    arguments = parser.parse_args()
    if arguments.redis and (missing := why_no_redis()) is not None:
        raise SystemExit(missing)
    trees = [ROOT] if arguments.beside is None else [ROOT, arguments.beside.resolve()]
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        sides = []
        for tree in trees:
            redis = None
            if arguments.redis:
                redis = RedisServer(Path(stack.enter_context(tempfile.TemporaryDirectory())))
                stack.callback(redis.kill)
            sides.append(Side(tree, redis, stack))
        for form in arguments.forms:
            for items in arguments.items:
                found = measure(sides, form, items, arguments.size, arguments.rounds, arguments.requests)
                if not rows:
                    print("| " + " | ".join(name.replace("_", " ") for name in found[0]) + " |")
                    print("|" + "---|" * len(found[0]))
                for row in found:
                    print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
                rows += found
    write_results(arguments.out, "receiving", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
