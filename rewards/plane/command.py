"""`rewards services`: the reward services of a recipe, a compose file or of addresses, as a table, as JSON, or as a page."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rewards.plane.sources import read_plan
from rewards.plane.table import lines_of, wants_colour
from rewards.plane.targets import Plan, SourceError
from rewards.plane.watch import Look, Watch
from trainer.config.base import ConfigError
from wire.hosts import is_loopback

PORT = 8601
ALL_READY, NOT_ALL_READY, WRONG_ARGUMENTS = 0, 1, 2
_PAGE_LOOKS_S = 5.0  # between the looks of a page, where --watch says nothing else
_CLEAR = "\x1b[H\x1b[J"
_EPILOG = """\
sources:
  http://127.0.0.1:18082              a service by its address; name=ADDRESS,ADDRESS for several of one
  configs/sd35_medium_multi.yaml      a recipe, with overrides behind it, or the name of a shipped one
  docker-compose.yml                  the reward services whose ports a compose file publishes

exit status: 0 all that has to run is ready, 1 something is not, or refuses the token, 2 wrong arguments."""


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Watch reward services: what runs where, ready or why not, version, queue, times, errors, limits.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="addresses, recipes, compose files; see below")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="ask this service alone; repeatable"
    )
    parser.add_argument(
        "--profile", action="append", default=[], metavar="NAME", help="of compose, started; repeatable"
    )
    parser.add_argument(
        "--env-file", type=Path, metavar="FILE", help="variables of compose; default: .env beside the file"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="its first token is sent to all services")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="authorities (PEM) to believe over https, too")
    parser.add_argument("--timeout", type=_seconds, default=5.0, metavar="SECONDS", help="for one service (default: 5)")
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS", help="look again and again, so many seconds apart")
    parser.add_argument("--json", action="store_true", help="a JSON object a look in place of the table")
    parser.add_argument("--serve", action="store_true", help="a page in place of the table, until Ctrl-C")
    parser.add_argument("--host", default="127.0.0.1", help="where the page listens; default: this machine only")
    parser.add_argument("--port", type=int, default=PORT, help=f"of the page, 0 for any (default: {PORT})")
    parser.add_argument(
        "--page-token-file", type=Path, metavar="FILE", help="tokens for the page; needed where --host is not loopback"
    )
    return parser


def main(words: Sequence[str], prog: str = "rewards services") -> int:
    """The command. Returns the exit code."""
    options = build_parser(prog).parse_args(words)
    try:
        if options.serve and options.json:
            raise SourceError("--serve shows a page and --json prints: choose one (the page has /services.json)")
        plan = read_plan(
            options.sources,
            only=options.only,
            profiles=options.profile,
            env_file=options.env_file,
            token_file=options.token_file,
            ca_file=options.ca_file,
        )
        if options.serve:
            return _serve(plan, options)
        return asyncio.run(_print(plan, options))
    except (SourceError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_ARGUMENTS


async def _print(plan: Plan, options: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    if options.watch is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with Watch(plan, options.timeout) as watch:
        while True:
            look = await watch.look()
            _show(look, options)
            if options.watch is None or stopping.is_set():
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), options.watch)
            if stopping.is_set():
                break
    return ALL_READY if look.ok else NOT_ALL_READY


def _show(look: Look, options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(look.as_json(), ensure_ascii=False, allow_nan=False), flush=True)
        return
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((100, 24)).columns
    lines = lines_of(look, width, colour=wants_colour(is_terminal))
    if options.watch is not None:
        # A terminal shows the newest look in place; a file keeps them all.
        lines = [_CLEAR + lines[0], *lines[1:]] if is_terminal else [*lines, ""]
    print("\n".join(lines), flush=True)


def _serve(plan: Plan, options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C or SIGTERM. Raises SourceError and ConfigError."""
    from rewards.plane.site import Board, create_app
    from trainer.runs.serving import listening, serve
    from trainer.runs.shell import Guard, read_tokens

    tokens = read_tokens(options.page_token_file, "--page-token-file")
    if not is_loopback(options.host) and not tokens:
        raise SourceError(
            f"--host {options.host} is reachable from other machines: give --page-token-file with a token (`openssl rand -hex 32`), "
            f"or leave --host out and reach the page through `ssh -L {options.port}:127.0.0.1:{options.port}`"
        )
    board = Board(Watch(plan, options.timeout), options.watch or _PAGE_LOOKS_S)
    guard = Guard(options.host, tokens)
    with listening(options.host, options.port) as (sock, url):
        print(f"{len(plan.targets)} services of {plan.title}: {url}", flush=True)
        serve(create_app(board, guard), sock, guard, board.run)
    return ALL_READY


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text}: seconds above 0, at most a day")
    return value
