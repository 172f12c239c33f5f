"""The command line: what load, against whom, and what counts as failure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.workload import ENCODINGS, Mix, parse_mix
from wire.hosts import is_loopback

_DESCRIPTION = """\
Send requests to a reward service at a given rate and measure how long each takes from its scheduled time, so that
waiting for a service that fell behind is part of the latency. Every request differs, so that the score cache is no
help, unless --repeat-share says otherwise."""

_EPILOG = """\
exit status: 0; 1 when an --assert-p95-ms or --max-error-share does not hold; 2 when the test could not be made

example:
  python -m loadtest http://127.0.0.1:18082 --rate 20 --duration 30 --mix 256:0.5,512:0.4,1024x512:0.1"""


PROG = "python -m loadtest"


class UsageError(ValueError):
    """The test cannot be made as asked; the message says what to change."""


@dataclass(frozen=True)
class Options:
    """A load test. Times in seconds, the rate in requests per second, `p95_ms` in milliseconds."""

    url: str
    rate: float
    duration: float
    arrivals: str
    mix: Mix
    encoding: str
    body_format: str
    items: int
    reward: str | None
    prompt_file: Path | None
    token_file: Path | None
    ca_file: Path | None
    repeat_share: float
    max_outstanding: int
    timeout: float
    seed: int
    report: Path | None
    json_out: Path | None
    p95_ms: float | None
    max_error_share: float | None


def read_options(argv: Sequence[str] | None = None, prog: str = PROG) -> Options:
    """The options of a command line. Exits with status 2 and a sentence when one is wrong."""
    parser = _parser(prog)
    given = parser.parse_args(argv)
    try:
        _check_url(given.url, given.i_may_load_this_host)
        mix = parse_mix(given.mix)
    except ValueError as error:
        parser.error(str(error))
    return Options(
        url=given.url.rstrip("/"),
        rate=given.rate,
        duration=given.duration,
        arrivals=given.arrivals,
        mix=mix,
        encoding=given.encoding,
        body_format=given.format,
        items=given.items,
        reward=given.reward,
        prompt_file=given.prompt_file,
        token_file=given.token_file,
        ca_file=given.ca_file,
        repeat_share=given.repeat_share,
        max_outstanding=given.max_outstanding,
        timeout=given.timeout,
        seed=given.seed,
        report=given.report,
        json_out=given.json,
        p95_ms=given.assert_p95_ms,
        max_error_share=given.max_error_share,
    )


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", help="base URL of the service, such as http://127.0.0.1:18082")
    load = parser.add_argument_group("load")
    load.add_argument("--rate", type=_positive, default=10.0, help="requests per second (default %(default)g)")
    load.add_argument("--duration", type=_positive, default=30.0, help="seconds of load (default %(default)g)")
    load.add_argument(
        "--arrivals", choices=["poisson", "fixed"], default="poisson", help="random or even gaps (default %(default)s)"
    )
    load.add_argument(
        "--max-outstanding", type=_count, default=256, help="most unanswered requests (default %(default)s)"
    )
    load.add_argument(
        "--timeout", type=_positive, default=60.0, help="seconds to wait for an answer (default %(default)g)"
    )
    load.add_argument("--seed", type=int, default=0, help="of arrivals, sizes and texts (default %(default)s)")
    load.add_argument("--i-may-load-this-host", action="store_true", help="needed for a host other than this machine")
    content = parser.add_argument_group("content")
    content.add_argument(
        "--mix", default="512", help="image sizes with their shares: 256:0.5,512:0.4,1024x512:0.1 (default %(default)s)"
    )
    content.add_argument("--reward", help="which reward (default: the service's)")
    content.add_argument("--items", type=_count, default=1, help="items in a request (default %(default)s)")
    content.add_argument("--prompt-file", type=Path, help="a prompt a line; .jsonl: objects with `prompt`, `targets`")
    content.add_argument(
        "--encoding", choices=list(ENCODINGS), default="jpeg", help="of the images (default %(default)s)"
    )
    content.add_argument(
        "--format", choices=["multipart", "json"], default="multipart", help="of the body (default %(default)s)"
    )
    content.add_argument(
        "--repeat-share",
        type=_share,
        default=0.0,
        help="share of requests seen before, for the cache (default %(default)g)",
    )
    content.add_argument("--token-file", type=Path, help="file whose first token is sent, `token` or `name:token`")
    load.add_argument(
        "--ca-file", type=Path, help="certificates (PEM) to trust beside the usual ones, such as a company's own"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--report", type=Path, help="write a page with plots")
    result.add_argument("--json", type=Path, help="write all numbers")
    result.add_argument("--assert-p95-ms", type=_positive, help="fail when the 95th percentile is above")
    result.add_argument("--max-error-share", type=_share, help="fail when a larger share of items has no score")
    return parser


def _check_url(url: str, confirmed: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{url!r} is not the URL of a service: give one such as http://127.0.0.1:18082")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("the URL must have no user, query or fragment; a token goes into --token-file")
    if not is_loopback(parts.hostname) and not confirmed:
        raise UsageError(
            f"{parts.hostname} is another machine: load can take a service down for everybody who uses it; add "
            f"--i-may-load-this-host if you may do that"
        )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
