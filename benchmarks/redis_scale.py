"""Jobs over worker processes that are killed again and again, through a Redis that is restarted in between.

    python benchmarks/redis_scale.py
    python benchmarks/redis_scale.py --jobs 600 --kill-every-s 1 --concurrency 8

First: `--fronts` fronts and `--workers` workers share a Redis with an append-only file. Every `--kill-every-s` seconds
a worker is killed (SIGKILL) and replaced. When half of the items are answered, Redis is killed, loses the end of its
file, as in a power failure, and is started again. Every item must be answered exactly once, with its own score; the
streams must be empty afterwards. Then: the same load on one process without Redis and with a small queue, from more
clients than it can hold; its memory must stay bounded, and what it cannot take it must refuse with 429.

Pictures are 64x64 raw pixels, all distinct but for `--repeats` that come again later, which the cache should know.
Exits with 1 when something was lost, answered twice, or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scale_load import Process, Report, make_requests, run_load
from benchmarks.waiting_service import write_results
from tests.support.redis_server import RedisServer, why_no_redis

LOST_BYTES = 100_000  # of the append-only file
MOST_GROWTH = 512 * 1024**2  # of a process whose load is bounded by its queue


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="distinct items (default: %(default)s)")
    parser.add_argument("--repeats", type=int, help="items that come again (default: a fifth of --jobs)")
    parser.add_argument("--workers", type=int, default=4, help="worker processes (default: %(default)s)")
    parser.add_argument("--fronts", type=int, default=2, help="front processes (default: %(default)s)")
    parser.add_argument("--kill-every-s", type=float, default=2.0, help="seconds between kills (default: %(default)s)")
    parser.add_argument("--visibility-s", type=float, default=2.0, help="visibility timeout (default: %(default)s)")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of a batch of 8 (default: %(default)s)")
    parser.add_argument("--items-per-request", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=24, help="requests in flight (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the repeats and the kills (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/redis_scale.json"))
    args = parser.parse_args()
    if args.repeats is None:
        args.repeats = args.jobs // 5
    return args


class Workers:
    """A pool of worker processes of which one at a time is killed and replaced."""

    def __init__(self, start: Callable[[], Process], count: int, seed: int) -> None:
        self._start = start
        self._draw = random.Random(seed)
        self.processes = [start() for _ in range(count)]
        self.kills = 0
        self.measured: Counter[str] = Counter()  # of those that were killed, just before
        for process in self.processes:
            assert process.url

    def kill_one(self) -> None:
        place = self._draw.randrange(len(self.processes))
        with suppress(httpx.TransportError):  # it may be too young to be asked
            self.measured.update(self.processes[place].metrics())
        self.processes[place].kill()
        self.processes[place] = self._start()
        self.kills += 1

    def close(self) -> None:
        for process in self.processes:
            process.kill()


async def torment(
    args: argparse.Namespace, workers: Workers, redis: RedisServer, report: Report, total: int, restarts: list[float]
) -> None:
    """Kill a worker every so often; restart Redis once, half-way, and note when."""
    next_kill = time.monotonic() + args.kill_every_s
    with tqdm(total=total, unit="item", file=sys.stderr) as bar:
        while True:
            await asyncio.sleep(0.05)
            done = report.answered.total()
            bar.update(done - bar.n)
            if not restarts and done >= total / 2:
                restarts.append(time.monotonic())
                await asyncio.to_thread(redis.kill_and_lose, LOST_BYTES)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(redis.start)
            if time.monotonic() >= next_kill:
                next_kill = time.monotonic() + args.kill_every_s
                await asyncio.to_thread(workers.kill_one)


def with_redis(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    requests = make_requests(args.jobs, args.repeats, args.items_per_request, args.seed)
    total, report, restarts = sum(map(len, requests)), Report(), list[float]()
    with ExitStack() as stack:
        redis = RedisServer(folder)
        stack.callback(redis.kill)
        shared = [f"--redis={redis.url}", f"--visibility-timeout-s={args.visibility_s}", "--max-deliveries=20"]

        def start_worker() -> Process:
            return Process(folder / "worker.log", *shared, "--role=worker", f"--latency-ms={args.latency_ms}")

        workers = Workers(start_worker, args.workers, args.seed)
        stack.callback(workers.close)
        fronts = [Process(folder / "front.log", *shared, "--role=front") for _ in range(args.fronts)]
        for front in fronts:
            stack.callback(front.kill)

        async def run() -> None:
            tormenting = asyncio.create_task(torment(args, workers, redis, report, total, restarts))
            await run_load([front.url for front in fronts], requests, args.concurrency, report)
            tormenting.cancel()
            with suppress(asyncio.CancelledError):
                await tormenting

        asyncio.run(run())
        time.sleep(args.visibility_s + 3)  # what was scored twice comes in late, and is dropped
        measured = workers.measured
        for process in (*fronts, *workers.processes):
            measured.update(process.metrics())
        with redis.client() as client:
            left = {key: client.xlen(key) for key in client.scan_iter(match="*:jobs:*")}
            open_jobs = sum(client.scard(key) for key in client.scan_iter(match="*:open:*"))
    row = row_of("redis", report, total)
    row |= {
        "kills": workers.kills,
        "restarts": len(restarts),
        "resent": measured["reward_stream_resent_total"],
        "redelivered": measured["reward_stream_redelivered_total"],
        "duplicates": measured["reward_stream_duplicates_total"],
        "left_in_streams": sum(left.values()) + open_jobs,
    }
    return row


def without_redis(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    requests = make_requests(args.jobs, args.repeats, args.items_per_request, args.seed)
    total, report = sum(map(len, requests)), Report()
    limits = [f"--max-items={args.items_per_request}", f"--queue-size={8 * args.items_per_request}"]
    process = Process(folder / "alone.log", *limits, f"--latency-ms={args.latency_ms}")
    try:
        before = psutil.Process(process.pid).memory_info().rss if process.url else 0
        asyncio.run(run_load([process.url], requests, 2 * args.concurrency, report))
        crashed = not process.alive
        after = psutil.Process(process.pid).memory_info().rss
    finally:
        process.kill()
    return row_of("one process", report, total) | {
        "rss_before_mb": round(before / 1e6),
        "rss_after_mb": round(after / 1e6),
        "grew_too_much": after - before > MOST_GROWTH,
        "crashed": crashed,
    }


def row_of(name: str, report: Report, total: int) -> dict[str, Any]:
    return {
        "run": name,
        "items": total,
        "answered_once": sum(count == 1 for count in report.answered.values()),
        "answered_twice": sum(count > 1 for count in report.answered.values()),
        "failed": dict(report.failed),
        "wrong": report.wrong,
        "cache_hit_ratio": round(report.cached / total, 4),
        "refused_429": report.refused[429],
        "refused_503": report.refused[503],
        "disconnects": report.disconnects,
        "wall_s": round(report.wall_s, 1),
        "items_per_s": round(total / report.wall_s),
        "p50_ms": round(report.percentile_ms(0.5)),
        "p95_ms": round(report.percentile_ms(0.95)),
        "p99_ms": round(report.percentile_ms(0.99)),
    }


def is_good(row: dict[str, Any]) -> bool:
    broken = row["failed"] or row["wrong"] or row["answered_twice"] or row["answered_once"] != row["items"]
    return not (broken or row.get("left_in_streams") or row.get("crashed") or row.get("grew_too_much"))


def main() -> None:
    args = parse_arguments()
    missing = why_no_redis()
    if missing is not None:
        raise SystemExit(missing)
    with tempfile.TemporaryDirectory() as folder:
        rows = [with_redis(args, Path(folder)), without_redis(args, Path(folder))]
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(["measure", *(str(row["run"]) for row in rows)]) + " |")
    print("|---" * (1 + len(rows)) + "|")
    for name in names[1:]:
        print("| " + " | ".join([name, *(str(row.get(name, "-")) for row in rows)]) + " |")
    write_results(args.out, "redis_scale", rows)
    raise SystemExit(0 if all(map(is_good, rows)) else 1)


if __name__ == "__main__":
    main()
