"""A row of the table: what two looks at one service say. What is not known is a dash with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.plane.ask import STARTED, Seen, State
from rewards.plane.exposition import Exposition, Histogram, Quantile
from rewards.plane.targets import Target

DASH = "–"
# The cells of a row by their key, with what stands above them.
TITLES = {
    "version": "version",
    "revision": "revision",
    "queue": "queue",
    "busy": "busy",
    "requests": "requests",
    "p50": "p50",
    "p95": "p95",
    "errors": "errors",
    "cache": "cached",
    "left": "left",
}
_NO_ERRORS = ("ok", "not_applicable")  # a reward that does not apply has not failed
_SCORING = ("/v1/score", "/compute", "/")  # of our contract, and of other trainers' clients
_ALMOST = 0.9  # of a limit: worth a second look


@dataclass(frozen=True)
class Cell:
    """What is shown, and the same for programs. `why`: why it is not known, or a remark beside it. `bad`: look at it."""

    text: str
    value: Any = None
    why: str = ""
    bad: bool = False

    @property
    def known(self) -> bool:
        return self.text != DASH


@dataclass(frozen=True)
class Row:
    """One address.

    Attributes:
        name: the service's, with its place among the addresses of its group where there are several.
        over: what its counts are of, as in "since its start".
        ok: it is ready and takes the token, or need not run.
        columns: names of a recipe's rewards that it scores.
    """

    group: str
    name: str
    url: str
    state: State
    reason: str
    ok: bool
    over: str
    columns: tuple[str, ...]
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        """Its name in a legend: of an address whose service has not said its own yet, the address."""
        return self.url if self.name == DASH else self.name

    def remarks(self) -> list[str]:
        """What the cells do not say: why it is not ready, and why numbers of one that answers are not known."""
        found = [self.reason] if self.reason else []
        why: dict[str, list[str]] = {}
        for key, cell in self.cells.items():
            if not cell.known and cell.why not in self.reason and self.state in ("ready", "not ready"):
                why.setdefault(cell.why, []).append(TITLES[key])
        return [*found, *(f"{DASH} {', '.join(titles)}: {reason}" for reason, titles in why.items())]

    def as_json(self) -> dict[str, Any]:
        """For programs: null where nothing is known, and why under `unknown`."""
        return {
            "group": self.group,
            "url": self.url or None,
            "state": self.state,
            "reason": self.reason,
            "ok": self.ok,
            "over": self.over,
            "columns": list(self.columns),
            **{key: cell.value for key, cell in self.cells.items()},
            "unknown": {key: cell.why for key, cell in self.cells.items() if not cell.known},
        }


def row_of(target: Target, place: str, seen: Seen, before: Seen | None) -> Row:
    """The row of a look, counted from `before`, an earlier look at the same address, where the process is the same since.

    `place`: such as " 2/3", of several addresses of a group.
    """
    counts = _Counts.of(seen, before)
    group = target.group or (seen.told.service if seen.told is not None else DASH)
    ok = (seen.state == "ready" and not seen.locked) or (
        target.optional and seen.state in ("not started", "unreachable")
    )
    state, reason = seen.state, seen.reason
    if target.optional and state == "unreachable":
        state, reason = "not started", target.absent
    if seen.locked:
        reason = "; ".join(filter(None, [reason, seen.no_told or seen.no_metrics]))
    return Row(
        group,
        group + place,
        target.url,
        state,
        reason,
        ok,
        counts.over if counts is not None else "",
        tuple(target.columns),
        {key: _cell(key, target, seen, counts) for key in TITLES},
    )


@dataclass(frozen=True)
class _Counts:
    """Counters of a reading, less those of an earlier one if its process is the same; `seconds` lie between the two."""

    now: Exposition
    before: Exposition | None
    seconds: float | None
    over: str

    @classmethod
    def of(cls, seen: Seen, before: Seen | None) -> _Counts | None:
        if seen.metrics is None:
            return None
        if before is None or before.metrics is None:
            return cls(seen.metrics, None, None, "since its start")
        now, then = seen.metrics, before.metrics
        anew = now.total(STARTED) != then.total(STARTED) or any(
            (now.total(name) or 0.0) < (then.total(name) or 0.0)
            for name in ("reward_requests_total", "reward_items_total")
        )
        if anew:
            return cls(now, None, None, "since it was started anew")
        seconds = seen.at - before.at
        return cls(now, then, seconds, f"in the last {seconds:.3g} s")

    def by(self, name: str, label: str) -> dict[str, float]:
        """How far a counter rose, for each value of a label."""
        then = {} if self.before is None else self.before.by(name, label)
        return {key: value - then.get(key, 0.0) for key, value in self.now.by(name, label).items()}

    def total(self, name: str) -> float:
        return (self.now.total(name) or 0.0) - ((self.before.total(name) or 0.0) if self.before is not None else 0.0)

    def histogram(self, name: str) -> Histogram | None:
        now = self.now.histogram(name)
        then = None if self.before is None else self.before.histogram(name)
        return now if now is None or then is None or now.ends != then.ends else now.since(then)


def _cell(key: str, target: Target, seen: Seen, counts: _Counts | None) -> Cell:
    if key == "revision":
        return _revision(target, seen)
    if counts is None:
        return Cell(DASH, why=seen.no_metrics)
    needs, make = _MADE[key]
    lacking = [name for name in needs if not counts.now.knows(name)]
    if lacking:
        return Cell(DASH, why=f"this version has no metric {lacking[0]}")
    return make(seen, counts)


def _revision(target: Target, seen: Seen) -> Cell:
    """Of the rewards that the recipe asks for; else of the default one."""
    told = seen.told
    if told is None:
        return Cell(DASH, why=seen.no_told)
    wanted = set(target.columns.values()) or {None}
    names = sorted({told.default_reward if each is None else each for each in wanted})
    found = {name: revision for name in names if (revision := told.revision(name)) is not None}
    if not found:
        return Cell(DASH, why=seen.reason)
    return Cell(", ".join(dict.fromkeys(found.values())), found, why=f"of {', '.join(found)}")


def _version(_seen: Seen, counts: _Counts) -> Cell:
    labels = next((labels for labels, _ in counts.now.series("reward_build")), {})
    version, role = labels.get("version", ""), labels.get("role", "all")
    if not version:
        return Cell(DASH, why="reward_build names no version")
    return Cell(version if role == "all" else f"{version} {role}", {"version": version, "role": role})


def _queue(_seen: Seen, counts: _Counts) -> Cell:
    """Items that wait for a batch, and jobs of all fronts where they go through Redis."""
    waiting, stream = counts.now.total("reward_queue_depth"), counts.now.total("reward_stream_depth")
    assert waiting is not None, "a cell's metrics are there"
    value = {"waiting": waiting, "stream": stream}
    return Cell(f"{waiting:g}" + ("" if stream is None else f" + {stream:g} in Redis"), value)


def _busy(seen: Seen, counts: _Counts) -> Cell:
    """Items that were taken in and are not answered yet, of how many there may be."""
    busy = counts.now.total("reward_items_in_flight")
    assert busy is not None, "a cell's metrics are there"
    limit = None if seen.told is None else seen.told.limits.get("queue_size")
    value = {"in_flight": busy, "limit": limit}
    return Cell(
        f"{busy:g}", value, "" if limit is None else f"of {limit:g}", bad=limit is not None and busy >= _ALMOST * limit
    )


def _requests(_seen: Seen, counts: _Counts) -> Cell:
    count = counts.total("reward_request_seconds_count")
    rate = None if counts.seconds is None else count / counts.seconds
    value = {"count": count, "per_second": rate}
    return Cell(f"{count:,.0f}" if rate is None else f"{rate:.3g}/s", value)


def _quantile(share: float) -> Callable[[Seen, _Counts], Cell]:
    def make(_seen: Seen, counts: _Counts) -> Cell:
        histogram = counts.histogram("reward_request_seconds")
        found = None if histogram is None else histogram.quantile(share)
        if found is None:
            return Cell(DASH, why=f"nothing was scored {counts.over}")
        last = found.high == float("inf")
        value = {"seconds": None if last else found.value, "low": found.low, "high": None if last else found.high}
        return Cell(_of(found), value)

    return make


def _errors(_seen: Seen, counts: _Counts) -> Cell:
    """Items without a score by code, and scoring requests that were refused as a whole, by status."""
    codes = {code: count for code, count in counts.by("reward_items_total", "code").items() if count and code != "ok"}
    statuses, earlier = _refused(counts.now), {} if counts.before is None else _refused(counts.before)
    refused = {status: rise for status, count in statuses.items() if (rise := count - earlier.get(status, 0.0))}
    items = sum(counts.by("reward_items_total", "code").values())
    words = [f"{code} {count:,.0f}" for code, count in sorted(codes.items(), key=lambda each: -each[1])]
    words += [f"HTTP {status}: {count:,.0f}" for status, count in sorted(refused.items())]
    value = {"items": items, "by_code": codes, "requests_by_status": refused}
    if not words and not items:
        return Cell(DASH, why=f"nothing was scored {counts.over}")
    return Cell(
        ", ".join(words) or "0",
        value,
        f"of {items:,.0f} items",
        bad=bool(refused) or not codes.keys() <= set(_NO_ERRORS),
    )


def _refused(metrics: Exposition) -> dict[str, float]:
    """Scoring requests that were answered with an error, by status."""
    found: dict[str, float] = {}
    for labels, count in metrics.series("reward_requests_total"):
        status = labels.get("status", "")
        if labels.get("path") in _SCORING and status[:1] in ("4", "5"):
            found[status] = found.get(status, 0.0) + count
    return found


def _cache(_seen: Seen, counts: _Counts) -> Cell:
    """Items that cost nothing: known from before, or joined to the same item in flight."""
    hits = counts.total("reward_cache_hits_total") + counts.total("reward_coalesced_total")
    asked = hits + counts.total("reward_cache_misses_total")
    if not asked:
        return Cell(DASH, why=f"nothing was scored {counts.over}")
    return Cell(f"{100 * hits / asked:.3g} %", {"hits": hits, "items": asked}, f"{hits:,.0f} of {asked:,.0f} items")


def _left(_seen: Seen, counts: _Counts) -> Cell:
    """The least that any client has left of its minute's allowance, and the calls that a judge could take at once."""
    allowed = {(each["client"], each["unit"]): value for each, value in counts.now.series("reward_allowance")}
    clients = [
        (each["client"], each["unit"], left, allowed[each["client"], each["unit"]])
        for each, left in counts.now.series("reward_allowance_left")
    ]
    words, bad = [], False
    if clients:
        client, unit, left, most = min(clients, key=lambda each: each[2] / each[3])
        more = f" (+{len(clients) - 1})" if len(clients) > 1 else ""
        words.append(f"{client}: {left:g} of {most:g} {unit}/min{more}")
        bad = left < (1 - _ALMOST) * most
    slots, busy = counts.now.total("reward_judge_slots"), counts.now.total("reward_judge_in_flight")
    judge = None
    if slots and busy is not None:
        judge = {"slots": slots, "free": max(0.0, slots - busy)}
        words.append(f"judge: {judge['free']:g} of {slots:g} calls free")
    told = [dict(zip(("client", "unit", "left", "per_minute"), each, strict=True)) for each in clients]
    return Cell("; ".join(words) or "no limits", {"clients": told, "judge": judge}, bad=bad)


_MADE: Mapping[str, tuple[tuple[str, ...], Callable[[Seen, _Counts], Cell]]] = {
    "version": (("reward_build",), _version),
    "queue": (("reward_queue_depth",), _queue),
    "busy": (("reward_items_in_flight",), _busy),
    "requests": (("reward_request_seconds",), _requests),
    "p50": (("reward_request_seconds",), _quantile(0.5)),
    "p95": (("reward_request_seconds",), _quantile(0.95)),
    "errors": (("reward_items_total", "reward_requests_total"), _errors),
    "cache": (("reward_cache_hits_total", "reward_cache_misses_total"), _cache),
    "left": (("reward_allowance_left",), _left),
}


def _of(found: Quantile) -> str:
    """A time as it is shown: three digits; above the last bucket's lower end where no more is known."""
    seconds = found.value
    text = f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
    return f"> {text}" if found.high == float("inf") else text
