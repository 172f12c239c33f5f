"""The command: read the options, send the load, say what came of it."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loadtest.measurements import Measurements, rate_sentence
from loadtest.options import PROG, Options, UsageError, read_options
from loadtest.page import render_page
from loadtest.sender import Sender
from loadtest.workload import Workload, arrival_times, read_prompts
from wire.schema import ScorerInfo, ServiceInfo

_BAR = "{percentage:3.0f}% |{bar:20}| {n:.0f}/{total:.0f} s  {desc}"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Make one load test. Returns the exit status: 0, 1 (a limit does not hold) or 2 (no test could be made)."""
    options = read_options(argv, prog)
    try:
        _check_writable(options.report, options.json_out)
        sender = Sender(options, _read_token(options.token_file))
        service = sender.info()
        reward = _reward(service, options)
        measured = _run(options, sender, reward)
    except (UsageError, ValueError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    summary = {"about": _about(options, service, reward), **measured.summary()}
    print(_table(summary))
    if options.json_out is not None:
        options.json_out.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    if options.report is not None:
        options.report.write_text(render_page(summary, measured), "utf-8")
        print(f"report: {options.report}")
    problems = _broken_limits(options, measured)
    for problem in problems:
        print(f"loadtest: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _run(options: Options, sender: Sender, reward: ScorerInfo) -> Measurements:
    rng = random.Random(options.seed)
    print(f"drawing pictures for {options.url} ({reward.name})", file=sys.stderr)
    workload = Workload(
        options.mix,
        read_prompts(options.prompt_file, rng),
        encoding=options.encoding,
        body_format=options.body_format,
        items=options.items,
        reward=reward.name,
        grouped=reward.grouped,
        repeat_share=options.repeat_share,
        rng=rng,
    )
    times = arrival_times(options.rate, options.duration, options.arrivals, random.Random(options.seed + 1))
    with tqdm(total=options.duration, bar_format=_BAR) as bar:

        def on_progress(seconds: float, text: str) -> None:
            bar.n = min(seconds, options.duration)
            bar.set_description_str(text, refresh=True)

        return sender.run(times, workload.make, on_progress)


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {path} cannot be read: {error}") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UsageError(f"--token-file {path} holds no token")
    _, colon, rest = lines[0].partition(":")  # `token` or `name:token`; a service's own file may go on with limits
    return (rest if colon else lines[0]).split()[0]


def _check_writable(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path} cannot be written: the folder {path.absolute().parent} does not exist")


def _reward(service: ServiceInfo, options: Options) -> ScorerInfo:
    name = options.reward or service.default_reward
    found = next((each for each in service.rewards if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in service.rewards)
        raise UsageError(f"--reward {name!r}: {service.service} serves {known}")
    if found.grouped and options.items < 2:
        raise UsageError(f"reward {name!r} compares the items of a request: give --items 2 or more")
    return found


def _about(options: Options, service: ServiceInfo, reward: ScorerInfo) -> dict[str, Any]:
    return {
        "url": options.url,
        "service": service.service,
        "reward": reward.name,
        "revision": reward.revision,
        "arrivals": options.arrivals,
        "mix": [{"width": width, "height": height, "weight": weight} for width, height, weight in options.mix],
        "encoding": options.encoding,
        "format": options.body_format,
        "items": options.items,
        "repeat_share": options.repeat_share,
        "max_outstanding": options.max_outstanding,
        "seed": options.seed,
    }


def _table(summary: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    requests, rate, items = summary["requests"], summary["rate"], summary["items"]
    lines = [
        "",
        f"{requests['due']} requests were due, {requests['sent']} sent, {requests['answered']} answered "
        f"in {summary['seconds']:.1f} s",
        f"rate: {rate['asked']:g}/s asked, {rate['sent']:.2f}/s sent, {rate['answered']:.2f}/s answered, "
        f"{rate['scored_items']:.2f} items/s scored ({items['cached']} from the cache)",
        "",
        f"{'ms':<22}{'p50':>10}{'p95':>10}{'p99':>10}{'max':>10}",
    ]
    for name, label in (
        ("latency_ms", "latency"),
        ("service_queue_ms", "of it, service queue"),
        ("service_compute_ms", "of it, service compute"),
    ):
        values = (summary[name][key] for key in ("p50", "p95", "p99", "max"))
        lines.append(f"{label:<22}" + "".join("         -" if value is None else f"{value:>10.1f}" for value in values))
    lines += ["", f"items without a score: {summary['error_share']:.2%}"]
    lines += [f"  {code}: {count}" for code, count in summary["errors"].items()]
    if not rate["kept"]:
        lines.append(f"NOTE: {rate_sentence(summary)}")
    return "\n".join(lines)


def _broken_limits(options: Options, measured: Measurements) -> list[str]:
    problems = []
    p95, share = measured.strict_percentile_ms(0.95) if measured.exchanges else math.inf, measured.error_share()
    if options.p95_ms is not None and p95 > options.p95_ms:
        said = f"{p95:.1f} ms" if math.isfinite(p95) else "unknown: more than 5 % of the requests got no results"
        problems.append(f"the 95th percentile of the latency is {said}; the limit is {options.p95_ms:g} ms")
    if options.max_error_share is not None and share > options.max_error_share:
        problems.append(f"{share:.2%} of the items have no score; the limit is {options.max_error_share:.2%}")
    return problems
