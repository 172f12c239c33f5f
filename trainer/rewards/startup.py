"""Checks before the first step, and before going on after a pause: reachable, ready, the right reward, not constant."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence

import httpx
from pydantic import ValidationError

from trainer.config import RewardConfig
from trainer.rewards.answers import OnEvent, RewardEvent, RewardServiceError, readable
from trainer.rewards.asked import Asked, Requests
from trainer.rewards.canary import canary_call, judge
from trainer.rewards.certificates import is_untrusted
from trainer.rewards.endpoint import Endpoint
from trainer.rewards.identity import describe_change, differences
from trainer.rewards.transport import AttemptError, ServiceCaller, error_text, reason_of
from wire.schema import SCHEMA_VERSION, ScorerInfo, ServiceInfo

POLL_S = 0.25
_PROBE_TIMEOUT_S = 5.0
_LEAST_CANARY_S = 1.0
_FIRST_LINE_S = 5.0
_NEXT_LINE_S = 10.0


class WaitingLine:
    """Says what is waited for and why: after five seconds, and every ten from then on.

    Args:
        subject: the event's.
        what: a name for a person.
        limit_s: how long the wait may last.
    """

    def __init__(self, subject: str, what: str, limit_s: float, on_event: OnEvent) -> None:
        self._subject, self._what, self._limit_s, self._on_event = subject, what, limit_s, on_event
        self._since = time.monotonic()
        self._next_s = _FIRST_LINE_S

    def look(self, problem: str) -> None:
        """Say it, if it is time to."""
        waited_s = time.monotonic() - self._since
        if waited_s >= self._next_s:
            self._next_s = waited_s + _NEXT_LINE_S
            text = f"waiting for {self._what} for {waited_s:.0f} of at most {self._limit_s:.0f} s: {problem}"
            self._on_event(RewardEvent("waiting", self._subject, text))


async def wait_ready(caller: ServiceCaller, url: str, timeout_s: float, on_event: OnEvent | None = None) -> None:
    """Poll `/ready` until it answers 200. A refused connection, 429 and 5xx are waited for; another status is final, and so
    is a certificate that is not trusted.

    Args:
        on_event: told after some seconds what is waited for, again and again.

    Raises:
        RewardServiceError: not ready within `timeout_s`, or not such a service at all.
    """
    deadline = time.monotonic() + timeout_s
    line = WaitingLine(caller.name, url, timeout_s, on_event) if on_event is not None else None
    while True:
        try:
            response = await caller.get(url, "/ready", min(_PROBE_TIMEOUT_S, max(deadline - time.monotonic(), 0.05)))
        except (httpx.HTTPError, TimeoutError) as error:
            if is_untrusted(error):
                raise RewardServiceError(
                    f"service {caller.name} at {url}: its certificate is not trusted ({error}). Name the file with your CA's "
                    f"certificate in rewards.services.{caller.name}.ca_file, or in SSL_CERT_FILE"
                ) from error
            problem = reason_of(error)
        else:
            if response.status_code == 200:
                return
            problem = f"/ready answered {response.status_code}: {error_text(response.content)}"
            if response.status_code < 500 and response.status_code != 429:
                raise RewardServiceError(
                    f"service {caller.name} at {url}: {problem}. Something else answers there; correct "
                    f"rewards.services.{caller.name}.urls"
                )
        if time.monotonic() + POLL_S >= deadline:
            raise RewardServiceError(
                f"service {caller.name} at {url} was not ready within {round(timeout_s, 1):g} s: {problem}. Start it, correct "
                f"rewards.services.{caller.name}.urls, or raise rewards.ready_timeout_s"
            )
        if line is not None:
            line.look(problem)
        await asyncio.sleep(POLL_S)


async def check_service(
    caller: ServiceCaller,
    columns: Mapping[str, RewardConfig],
    timeout_s: float,
    canary: bool,
    on_event: OnEvent,
    requests: Requests | None = None,
) -> dict[str, ScorerInfo]:
    """All URLs of one service in parallel: ready, of this contract, with every reward that `columns` name, and room for
    `requests`.

    Returns what scores each column: the same at all URLs, and the same by the canary's answer as by `/v1/info`.

    Raises:
        RewardServiceError: naming the service, the URL and the remedy; several problems are listed together.
    """
    deadline = time.monotonic() + timeout_s
    checks = (
        _check_url(caller, endpoint, columns, deadline, canary, on_event, requests)
        for endpoint in caller.pool.endpoints
    )
    outcomes = await asyncio.gather(*checks, return_exceptions=True)
    raise_together(outcomes)
    found = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    first = caller.pool.endpoints[0]
    for scorers, endpoint in zip(found, caller.pool.endpoints, strict=True):
        for name in columns:
            one, other = differences(found[0][name], scorers[name])
            if one:
                listed = "; ".join(f"{k}: {first.url} has {one[k]}, {endpoint.url} has {other[k]}" for k in one)
                raise RewardServiceError(
                    f"reward {name}: the URLs of service {caller.name} would score differently ({listed}): run one revision"
                )
    return found[0]


def raise_together(outcomes: Sequence[object]) -> None:
    """Raise the RewardServiceErrors among gathered outcomes as one; anything else that was raised goes first."""
    problems = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for problem in problems:
        if not isinstance(problem, RewardServiceError):
            raise problem
    if problems:
        raise RewardServiceError("\n".join(str(problem) for problem in problems))


async def _check_url(
    caller: ServiceCaller,
    endpoint: Endpoint,
    columns: Mapping[str, RewardConfig],
    deadline: float,
    canary: bool,
    on_event: OnEvent,
    requests: Requests | None,
) -> dict[str, ScorerInfo]:
    """What scores each column at this URL."""
    url = endpoint.url
    await wait_ready(caller, url, deadline - time.monotonic(), on_event)
    info = await read_info(caller, url)
    known = {reward.name: reward for reward in info.rewards}
    _say_what_is_not_served(info, caller.name, on_event)
    scorers = {}
    for name, column in columns.items():
        wanted = column.reward or info.default_reward
        if wanted not in known:
            raise RewardServiceError(
                f"rewards.columns.{name}: service {caller.name} at {url} has no reward {wanted!r}; it serves: "
                f"{', '.join(known)}"
            )
        scorers[name] = known[wanted]
        _check_range(scorers[name], f"reward {name} (service {caller.name} at {url})")
        for asked in () if requests is None else requests.columns.get(name, ()):
            _check_room(info, scorers[name], asked, f"reward {name} (service {caller.name} at {url})")
    if canary:
        for name, column in columns.items():
            if column.canary != "none":
                texts = requests is not None and name in requests.texts
                scorer = await check_canary(caller, endpoint, name, column, deadline, on_event, texts=texts)
                if change := describe_change(scorers[name], scorer):
                    raise RewardServiceError(
                        f"reward {name} (service {caller.name} at {url}): its scores come from another scorer than /v1/info "
                        f"names ({change}): update the service, or point rewards.columns.{name} at the right one"
                    )
    on_event(RewardEvent("ready", caller.name, f"{url} is ready: {info.service} ({', '.join(known)})"))
    return scorers


def _say_what_is_not_served(info: ServiceInfo, service: str, on_event: OnEvent) -> None:
    """A file of reward functions may have more of them than were listed: only those that are listed are rewards."""
    files = info.about.get("not_served")
    for file, names in files.items() if isinstance(files, dict) else ():
        listed = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
        text = (
            f"{readable(str(file))} has more functions that could be rewards: {readable(listed)}. List those that are"
        )
        on_event(RewardEvent("hint", service, text))


def _check_room(info: ServiceInfo, scorer: ScorerInfo, asked: Asked, where: str) -> None:
    """Raises RewardServiceError when every request of training would be refused as too large."""
    field, count, limits = "micro_batch_size", asked.micro_batch_size, ["max_items"]
    if scorer.grouped:
        field, count, limits = "group_size", asked.group_size, ["max_group_items", "max_items"]
    for name in limits:
        most = info.limits.get(name)
        if most is not None and count > most:
            what = "items of one group" if name == "max_group_items" else "items in one request"
            raise RewardServiceError(
                f"{where}: {asked.section}.{field} is {count}, and the service takes at most {most:g} {what} ({name}): lower "
                f"{asked.section}.{field} to {most:g}, or start the service with --{name.replace('_', '-')} {count}"
            )


def _check_range(scorer: ScorerInfo, where: str) -> None:
    """Raises RewardServiceError when no score could ever be told to be inside the range."""
    ends = [end for end in scorer.range if end is not None]
    if not all(math.isfinite(end) for end in ends) or ends != sorted(ends):
        raise RewardServiceError(
            f"{where}: {scorer.name} declares the range {list(scorer.range)}; it must be the lowest and the highest score, "
            "finite, or null where there is no limit"
        )


async def check_canary(
    caller: ServiceCaller,
    endpoint: Endpoint,
    name: str,
    column: RewardConfig,
    deadline: float,
    on_event: OnEvent,
    *,
    texts: bool,
) -> ScorerInfo:
    """Score the probes, `texts` or images, at one URL. Returns what scored them.

    Raises:
        RewardServiceError: the reward is wrong, constant or gives no score.
    """
    call = canary_call(caller.config.probe_encoding, column.reward, texts=texts)
    where = f"reward {name} (service {caller.name} at {endpoint.url})"
    limit_s = min(caller.config.timeout_s, max(deadline - time.monotonic(), _LEAST_CANARY_S))
    try:
        answers, scorer = await caller.score_at(endpoint, call, limit_s)
    except AttemptError as error:
        raise RewardServiceError(f"{where}: the canary failed: {error.code}: {error.message}") from error
    wrong, unsure = judge(answers, must_differ=column.canary == "differ")
    if wrong:
        raise RewardServiceError(f"{where}: {wrong}")
    if unsure:
        on_event(RewardEvent("warning", name, f"{where}: {unsure}"))
    return scorer


async def read_info(caller: ServiceCaller, url: str) -> ServiceInfo:
    """What a service says of itself. Raises RewardServiceError when it is none, or of another version."""
    where = f"service {caller.name} at {url}"
    try:
        response = await caller.get(url, "/v1/info", _PROBE_TIMEOUT_S)
    except (httpx.HTTPError, TimeoutError) as error:
        raise RewardServiceError(f"{where}: /v1/info: {reason_of(error)}") from error
    if response.status_code in (401, 403):
        raise RewardServiceError(
            f"{where} refuses the token ({response.status_code}); set rewards.services.{caller.name}.token_file"
        )
    try:
        if response.status_code != 200:
            raise RewardServiceError(
                f"{where}: /v1/info answered {response.status_code}: {error_text(response.content)}"
            )
        info = ServiceInfo.model_validate_json(response.content)
    except ValidationError as error:
        raise RewardServiceError(f"{where}: /v1/info does not follow wire v1; is it a reward service?") from error
    if info.schema_version != SCHEMA_VERSION:
        raise RewardServiceError(
            f"{where} speaks wire {info.schema_version}, this client {SCHEMA_VERSION}: update the older of the two"
        )
    return info
