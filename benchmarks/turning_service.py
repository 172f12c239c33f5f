"""The waiting service with a latency for every turn of requests, so that one run meets all of them. For `pipeline_overlap.py`.

python -m benchmarks.turning_service --latencies-ms 0 50 --turn 8
"""

from __future__ import annotations

import argparse
import asyncio

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from services.kit.run import bind, url_of
from services.kit.testing.misbehaving import MisbehavingSettings, create_misbehaving_app


class Turns:
    """Requests 0..turn-1 wait `latencies_s[0]`, the next `turn` ones `latencies_s[1]`, and so on, round and round.

    The first `skip` scoring requests, a trainer's canaries, wait for nothing and are not counted.
    """

    def __init__(self, app: ASGIApp, latencies_s: list[float], turn: int, skip: int) -> None:
        self._app, self._latencies_s, self._turn, self._number = app, latencies_s, turn, -skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/score":
            number = self._number
            self._number += 1
            if number >= 0:
                await asyncio.sleep(self._latencies_s[number // self._turn % len(self._latencies_s)])
        await self._app(scope, receive, send)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--latencies-ms", type=float, nargs="+", required=True)
    parser.add_argument(
        "--turn", type=int, required=True, help="Scoring requests of one latency; a step's micro-batches."
    )
    parser.add_argument("--skip", type=int, default=0, help="Scoring requests before the first step.")
    args = parser.parse_args()
    settings = MisbehavingSettings(port=0)
    sock = bind(settings)
    print(f"turning listening on {url_of(sock)}", flush=True)
    app = Turns(
        create_misbehaving_app(settings), [latency_ms / 1000 for latency_ms in args.latencies_ms], args.turn, args.skip
    )
    uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)).run(
        sockets=[sock]
    )


if __name__ == "__main__":
    main()
