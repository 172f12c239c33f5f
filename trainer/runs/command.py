"""The command: serve the pages, or write them as files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import ConfigError
from wire.hosts import is_loopback

if TYPE_CHECKING:
    from trainer.runs.cache import Cache
    from trainer.runs.catalogue import Catalogue

PORT = 8600


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m trainer runs`."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("outputs"), help="Where runs are; default: outputs."
    )
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on; default: this machine only.")
    parser.add_argument("--port", type=int, default=PORT, help=f"Port to listen on, 0 for any; default: {PORT}.")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="Tokens, one a line; needed where --host is not loopback."
    )
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="Write the pages into a new folder, and serve nothing."
    )
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="RUN",
        help="Print the address of these runs' comparison; without names, of the two newest. With --export: the runs that are "
        "compared there.",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="Keep nothing of long runs for the next start in $XDG_CACHE_HOME/rewards/runs (without it, ~/.cache).",
    )


def show_runs(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, or export. Raises ConfigError."""
    if args.export is not None:
        from trainer.runs.export import export

        print(f"Wrote {export(args.folder, args.export, args.compare or ())}")
        return 0
    from trainer.runs.shell import Guard, read_tokens

    tokens = read_tokens(args.token_file)
    if not is_loopback(args.host) and not tokens:
        raise ConfigError(
            f"--host {args.host} is reachable from other machines: give --token-file with a token (`openssl rand -hex 32`), or "
            f"leave --host out and reach the page through `ssh -L {args.port}:127.0.0.1:{args.port}`"
        )
    from trainer.runs.app import create_app
    from trainer.runs.catalogue import Catalogue
    from trainer.runs.serving import listening, serve

    catalogue, guard = Catalogue(args.folder, _cache(args)), Guard(args.host, tokens)
    path = "" if args.compare is None else _comparison(catalogue, args.compare)
    with listening(args.host, args.port) as (sock, url):
        what = f"{len(catalogue.runs())} runs of {args.folder}" if not path else "The comparison"
        print(f"{what}: {url}{path}", flush=True)
        with catalogue:
            serve(create_app(catalogue, guard), sock, guard)
    return 0


def _comparison(catalogue: Catalogue, names: list[str]) -> str:
    """Path of a comparison's page. Raises ConfigError: a name is no run's, or there are not two runs."""
    from trainer.runs.compare import chosen
    from trainer.runs.look import served

    runs = chosen(catalogue.runs(), names, 2)
    if len(runs) < 2:
        raise ConfigError(
            f"--compare: {catalogue.root} has {len(runs)} run{'s' * (len(runs) != 1)} to compare, and two are needed; name others, "
            "or another folder"
        )
    return served().links.compare([run.name for run in runs])


def _cache(args: argparse.Namespace) -> Cache | None:
    from trainer.runs.cache import Cache, usual_folder

    folder = None if args.no_cache else usual_folder()
    return None if folder is None else Cache(folder)
