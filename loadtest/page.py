"""The report as one page: numbers, latency over time, and how latencies are spread. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from loadtest.measurements import Measurements, rate_sentence
from loadtest.plots import histogram, over_time

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1b29;--soft:#5f5d72;--ground:#f4f4f8;--panel:#fff;--edge:#dddce6;--dot:#5146e5;--bad:#b3152d}
@media(prefers-color-scheme:dark){:root{--ink:#ecebf5;--soft:#a5a3b8;--ground:#14131c;--panel:#1e1d29;--edge:#35334a;--dot:#8f88ff;--bad:#ff8b9a}}
*{box-sizing:border-box}body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}h1{font-size:1.5rem;margin:.5rem 0 0}h2{font-size:1rem;margin:0 0 .5rem}
p{margin:.2rem 0;color:var(--soft)}.bad{color:var(--bad)}section{background:var(--panel);border:1px solid var(--edge);
border-radius:14px;padding:1.1rem;margin:1rem 0}dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
dl div{background:var(--panel);border:1px solid var(--edge);border-radius:12px;padding:.6rem .8rem}dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.35rem;font-weight:650;font-variant-numeric:tabular-nums}svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}svg .grid{stroke:var(--edge)}svg .dot{fill:var(--dot);fill-opacity:.45}
svg .bar{fill:var(--dot)}svg .lost{stroke:var(--bad);stroke-width:2}table{border-collapse:collapse;width:100%}
td,th{text-align:start;padding:.25rem .5rem .25rem 0;border-bottom:1px solid var(--edge)}td,th+th{text-align:end}td:first-child{text-align:start}
"""


def render_page(summary: Mapping[str, Any], measured: Measurements) -> str:
    """The page of one test."""
    about, rate = summary["about"], summary["rate"]
    title = f"Load test of {about['service']} ({about['reward']})"
    sizes = ", ".join(f"{size['width']}x{size['height']} ({size['weight']:g})" for size in about["mix"])
    said = (
        f"{about['url']}, revision {about['revision']}; {about['arrivals']} arrivals for {summary['seconds']:.1f} s; "
        f"{about['items']} item(s) a request, {about['encoding']} as {about['format']}, sizes {sizes}; "
        f"at most {about['max_outstanding']} unanswered; seed {about['seed']}."
    )
    tiles = [(name, _ms(summary["latency_ms"][name])) for name in ("p50", "p95", "p99", "max")]
    tiles += [("asked rate", f"{rate['asked']:g}/s"), ("sent", f"{rate['sent']:.2f}/s")]
    tiles += [("items scored", f"{rate['scored_items']:.1f}/s"), ("without a score", f"{summary['error_share']:.2%}")]
    kept = "" if rate["kept"] else f'<p class="bad">Note: {escape(rate_sentence(summary))}</p>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(said)}</p>{kept}"
        f"<dl>{''.join(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>' for name, value in tiles)}</dl>"
        f"<section><h2>Latency over time</h2><p>From the time a request was due to its answer, in ms. "
        f"Red lines at the top: requests without results.</p>{over_time(measured)}</section>"
        f"<section><h2>How latencies are spread</h2><p>Requests by latency in ms.</p>{histogram(measured)}</section>"
        f"<section><h2>Where the time went</h2>{_times(summary)}</section>"
        f"<section><h2>Items without a score</h2>{_errors(summary['errors'])}</section></body></html>\n"
    )


def _times(summary: Mapping[str, Any]) -> str:
    names = ("p50", "p95", "p99", "max")
    rows = ""
    for key, label in (
        ("latency_ms", "latency"),
        ("service_queue_ms", "service queue"),
        ("service_compute_ms", "service compute"),
    ):
        rows += f"<tr><th>{label}</th>{''.join(f'<td>{_ms(summary[key][name])}</td>' for name in names)}</tr>"
    return f"<table><tr><th></th>{''.join(f'<th>{name}</th>' for name in names)}</tr>{rows}</table>"


def _errors(errors: Mapping[str, int]) -> str:
    if not errors:
        return "<p>None.</p>"
    rows = "".join(f"<tr><td>{escape(code)}</td><td>{count}</td></tr>" for code, count in errors.items())
    return f"<table>{rows}</table>"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
