"""What a look says of services as they are: real ones, ready or not, and what else may be found at an address."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from rewards import __version__
from rewards.plane.rows import DASH, Row
from rewards.plane.targets import Plan, Target
from rewards.plane.watch import Look, Watch
from services.kit.app import create_app
from services.kit.run import bind, url_of
from services.kit.settings import ServiceSettings
from services.kit.testing.fakes import ConstantScorer, FailEveryNthScorer, PromptLengthScorer
from tests.support.certificates import make_company, secure_server
from tests.support.every_service import every_service
from tests.support.ports import free_port
from tests.support.service_process import running_service
from tests.support.serving_here import serving_here
from tests.support.strangers import INFO, READY, fixed_answers, hanging
from tests.support.waiting import wait_until

TOKEN = "correct-horse-battery-staple"
GIVEN = "it wants a token, and none was given (--token-file)"


def looks(targets: Sequence[Target], *between: Callable[[], object], timeout_s: float = 30.0) -> list[Look]:
    """A look, and one more after each call of `between`."""

    async def run() -> list[Look]:
        async with Watch(Plan("here", tuple(targets)), timeout_s) as watch:
            found = [await watch.look()]
            for act in between:
                await asyncio.to_thread(act)
                found.append(await watch.look())
            return found

    return asyncio.run(run())


def row(target: Target | str, timeout_s: float = 30.0) -> Row:
    (look,) = looks([Target("", target) if isinstance(target, str) else target], timeout_s=timeout_s)
    return look.rows[0]


def score(url: str, *prompts: str, token: str = "") -> httpx.Response:
    items = [{"id": str(n), "prompt": prompt, "completion": "c"} for n, prompt in enumerate(prompts)]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(url + "/v1/score", json={"items": items}, headers=headers, trust_env=False)


def test_a_service_that_has_done_nothing_has_dashes_and_no_zeros() -> None:
    with serving_here(PromptLengthScorer()) as url:
        found = row(url)
    assert (found.state, found.ok, found.group, found.reason) == ("ready", True, "test", "")
    texts = {key: cell.text for key, cell in found.cells.items()}
    assert texts == {
        "version": __version__,
        "revision": "1",
        "queue": "0",
        "busy": "0",
        "requests": "0",
        "p50": DASH,
        "p95": DASH,
        "errors": DASH,
        "cache": DASH,
        "left": "no limits",
    }
    assert found.remarks() == ["– p50, p95, errors, cached: nothing was scored since its start"]


def test_counts_are_since_the_start_and_then_since_the_last_look() -> None:
    with serving_here(FailEveryNthScorer(2)) as url:
        target = Target("", url)
        first, second, third = looks(
            [target],
            lambda: [score(url, "a", "b"), score(url, "a"), httpx.post(url + "/v1/score", content=b"{}")],
            lambda: None,
        )
    (start,), (then,), (quiet,) = first.rows, second.rows, third.rows
    assert start.over == "since its start"
    assert re.fullmatch(r"in the last [\d.e-]+ s", then.over)
    told = then.as_json()
    assert told["requests"]["count"] == 3 and told["requests"]["per_second"] > 0
    assert told["errors"]["items"] == 3 and told["errors"]["requests_by_status"] == {"415": 1}
    assert told["errors"]["by_code"] == {"parse_error": 1}
    assert then.cells["errors"].bad and "HTTP 415: 1" in then.cells["errors"].text
    assert told["cache"]["items"] == 3 and then.cells["cache"].text.endswith("%")
    assert 0 <= told["p50"]["low"] <= told["p50"]["seconds"] <= told["p50"]["high"] <= told["p95"]["high"]
    assert {quiet.cells[key].text for key in ("p50", "p95", "errors", "cache")} == {DASH}
    assert quiet.cells["requests"].text == "0/s" and "nothing was scored in the last" in quiet.remarks()[0]


def test_tokens_are_sent_refused_and_their_limits_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"lab:{TOKEN} items_per_minute=60\nother:{TOKEN[::-1]} requests_per_minute=5000\n")
    with serving_here(PromptLengthScorer(), token_file=file) as url:
        assert score(url, *("abc" * 20)).status_code == 401
        assert score(url, *("abcdefghij" * 6), token=TOKEN).status_code == 200
        known, wrong, none = (row(Target("", url, token)) for token in (TOKEN, "another-token-of-nobody", None))
        assert json.dumps(known.as_json()).count(TOKEN) == 0 and TOKEN not in repr(Target("", url, TOKEN))
    assert known.ok and re.fullmatch(r"lab: [0-4] of 60 items/min \(\+1\)", known.cells["left"].text)
    assert known.cells["left"].bad
    left = {(each["client"], each["unit"]): each for each in known.as_json()["left"]["clients"]}
    assert left["other", "requests"]["per_minute"] == 5000 and left["lab", "items"]["left"] <= 4
    # That it is ready is known without a token; nothing else is, and it cannot be said to work for who asks.
    for each, said in ((wrong, "it does not know the token that was sent"), (none, GIVEN)):
        assert (each.state, each.ok, each.reason) == ("ready", False, said)
        assert all(cell.text == DASH and cell.why == said for cell in each.cells.values())


class LoadsWhenTold(ConstantScorer):
    """Loads once `gate` is set, and then fails to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def load(self) -> None:
        assert self.gate.wait(60)
        raise RuntimeError("weights are missing")


@contextmanager
def serving_unready(scorer: ConstantScorer) -> Iterator[tuple[str, FastAPI]]:
    settings = ServiceSettings(port=0)
    app = create_app(scorer, "test", settings)
    sock = bind(settings)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        yield url_of(sock), app
    finally:
        scorer.gate.set()
        server.should_exit = True
        thread.join()
        sock.close()


def test_a_service_that_loads_or_cannot_start_says_so_itself() -> None:
    scorer = LoadsWhenTold()
    with serving_unready(scorer) as (url, app):

        def fail() -> None:
            scorer.gate.set()
            wait_until(lambda: app.state.service.failure)

        loading, failed = (look.rows[0] for look in looks([Target("", url)], fail))
    assert (loading.state, loading.ok, loading.reason) == ("not ready", False, "test is loading; poll /ready")
    assert (failed.state, failed.reason) == ("not ready", "test did not start: loading failed: weights are missing")
    assert failed.cells["version"].text == __version__, "what it counts is told all the same"


def test_nothing_there_a_name_that_is_not_known_and_one_that_hangs() -> None:
    with hanging() as silent, serving_here(ConstantScorer()) as well:
        targets = [
            Target("gone", f"http://127.0.0.1:{free_port()}"),
            Target("", "http://nobody.invalid:1"),
            Target("silent", silent),
            Target("well", well),
        ]
        (look,) = looks(targets, timeout_s=2.0)
    gone, nobody, silent_row, good = look.rows
    assert (gone.state, gone.reason) == ("unreachable", "no connection: Connection refused")
    assert nobody.state == "unreachable" and nobody.reason.startswith("no connection: ")
    assert (silent_row.state, silent_row.reason) == ("no answer", "no answer to GET /ready within 2 s")
    assert (gone.label, nobody.label) == ("gone", "http://nobody.invalid:1")
    assert good.ok, "one that hangs costs no other its answer"
    assert not look.ok and look.summary == "1 of 4 ready"
    for each in (gone, nobody, silent_row):
        assert all(cell.text == DASH and cell.why == "it does not answer" for cell in each.cells.values())


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "another program: GET /ready gave 404, text/html: '<h1>Not found</h1>'"),
        ({"/ready": (200, "text/plain", "OK")}, "another program: GET /ready gave 200, text/plain: 'OK'"),
        ({"/ready": (200, "text/plain", "\x1b[2Jx")}, "another program: GET /ready gave 200, text/plain: '?[2Jx'"),
        ({"/ready": READY}, "another program: GET /v1/info gave 404, text/html: '<h1>Not found</h1>'"),
        ({"/ready": READY, "/v1/info": READY}, "another program: GET /v1/info gave application/json: "),
    ],
)
def test_another_program_at_the_port(answers: dict[str, tuple[int, str, str]], said: str) -> None:
    with fixed_answers(answers) as server:
        found = row(server.url)
    assert found.state == "no service" and not found.ok and found.reason.startswith(said)


def test_a_version_without_a_metric_and_one_with_more_than_is_known_here() -> None:
    old = "# TYPE reward_items_total counter\n# TYPE reward_requests_total counter\nreward_queue_depth 3.0\n"
    with fixed_answers({"/ready": READY, "/v1/info": INFO, "/metrics": (200, "text/plain", old)}) as server:
        found = row(Target("ocr", server.url, expects="ocr"))
    assert (found.state, found.ok) == ("ready", True)
    assert (found.cells["queue"].text, found.cells["revision"].text) == ("3", "r1")
    missing = {key: found.cells[key].why for key in ("version", "busy", "p95", "cache", "left")}
    assert missing == {
        "version": "this version has no metric reward_build",
        "busy": "this version has no metric reward_items_in_flight",
        "p95": "this version has no metric reward_request_seconds",
        "cache": "this version has no metric reward_cache_hits_total",
        "left": "this version has no metric reward_allowance_left",
    }


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ((200, "text/html", "<p>no metrics"), "/metrics is not Prometheus' text: line 1 is no sample: '<p>no metrics'"),
        ((500, "application/json", '{"error": {"code": "internal", "message": "a bug"}}'), "it answered 500: a bug"),
    ],
)
def test_metrics_that_cannot_be_read_are_not_zero(metrics: tuple[int, str, str], said: str) -> None:
    with fixed_answers({"/ready": READY, "/v1/info": INFO, "/metrics": metrics}) as server:
        found = row(server.url)
    assert found.ok and found.cells["revision"].text == "r1"
    assert {cell.why for key, cell in found.cells.items() if key != "revision"} == {said}


def test_a_proxy_before_a_service_that_is_gone() -> None:
    bad = (502, "text/html", "<h1>Bad gateway</h1>")
    with fixed_answers({"/ready": bad, "/v1/info": bad, "/metrics": bad}) as server:
        found = row(server.url)
    assert (found.state, found.reason) == (
        "not ready",
        "what stands before it answered 502: '<h1>Bad gateway</h1>'",
    )


def test_a_process_that_was_started_anew_is_counted_from_its_own_start() -> None:
    def told(started: int, items: int) -> tuple[int, str, str]:
        text = (
            f'reward_start_time_seconds {started}\nreward_items_total{{code="ok"}} {items}\nreward_requests_total 1\n'
        )
        return 200, "text/plain", text

    answers = {"/ready": READY, "/v1/info": INFO, "/metrics": told(1, 100)}
    with fixed_answers(answers) as server:

        def again(started: int, items: int) -> Callable[[], None]:
            return lambda: server.answers.update({"/metrics": told(started, items)})

        found = [look.rows[0] for look in looks([Target("", server.url)], again(1, 130), again(2, 150), again(2, 150))]
        asked = server.asked.count("/v1/info")
    counted = [each.cells["errors"].value and each.cells["errors"].value["items"] for each in found]
    assert counted == [100, 30, 150, None]
    assert found[2].over == "since it was started anew" and found[3].over.startswith("in the last ")
    assert asked == 2, "each process is asked once what it is"


def test_several_addresses_of_a_service_are_rows_of_their_own_and_one_may_die(tmp_path: Path) -> None:
    with running_service() as dying, serving_here(ConstantScorer()) as staying:
        dying.wait_ready()

        def kill() -> None:
            dying.process.kill()
            dying.process.wait()

        targets = [Target("fake", dying.url), Target("fake", staying), Target("alone", staying)]
        before, after = looks(targets, kill)
    assert [each.name for each in before.rows] == ["fake 1/2", "fake 2/2", "alone"] and before.ok
    assert [(each.group, each.state) for each in after.rows] == [
        ("fake", "unreachable"),
        ("fake", "ready"),
        ("alone", "ready"),
    ]
    assert not after.ok and after.rows[0].cells["requests"].text == DASH


def test_another_service_or_one_without_the_reward_is_not_the_right_one() -> None:
    with serving_here(ConstantScorer()) as url:
        other = row(Target("ocr", url, expects="ocr"))
        lacking = row(Target("mine", url, columns={"a": "constant", "b": "brightness", "c": None}))
        right = row(Target("mine", url, expects="test", columns={"a": "constant", "c": None}))
    assert (other.state, other.reason) == ("wrong service", "this is the service test, and ocr is to be there")
    assert lacking.state == "wrong service" and not lacking.ok
    assert lacking.reason == "it does not serve brightness (column b); it serves constant"
    assert right.ok and right.columns == ("a", "c") and right.cells["revision"].value == {"constant": "1"}


def test_certificates_that_are_not_trusted_and_servers_that_speak_no_tls(tmp_path: Path) -> None:
    company = make_company(tmp_path)
    server = secure_server(company)
    try:
        untrusted, trusted = row(server.url), row(Target("", server.url, ca_file=company / "ca.pem"))
        plain = row(server.url.replace("https:", "http:"), timeout_s=5.0)
    finally:
        server.close()
    assert untrusted.state == "not trusted" and "name that one's file with --ca-file" in untrusted.reason
    assert trusted.state == "ready" and trusted.cells["revision"].text == "1"
    assert plain.state in ("no service", "unreachable", "no answer") and not plain.ok
    with serving_here(ConstantScorer()) as url:
        found = row(url.replace("http:", "https:"))
    assert found.state == "not trusted" and "write http:// if that is meant" in found.reason


def test_a_service_with_a_judge_says_how_many_calls_are_free(tmp_path: Path) -> None:
    with every_service("textjudge", tmp_path) as url:
        found = row(Target("textjudge", url, expects="textjudge"))
    assert found.ok and re.fullmatch(r"judge: (\d+) of \1 calls free", found.cells["left"].text)


def test_what_need_not_run_is_no_failure_and_is_shown_where_it_runs() -> None:
    with serving_here(ConstantScorer()) as url:
        targets = [
            Target("shelf", f"http://127.0.0.1:{free_port()}", optional=True, absent="of the profile shelf"),
            Target("named", url, optional=True, absent="of the profile shelf"),
            Target("local", absent="the run starts it"),
        ]
        (look,) = looks(targets)
    assert [(each.state, each.ok) for each in look.rows] == [
        ("not started", True),
        ("ready", True),
        ("not started", False),
    ]
    assert look.rows[0].reason == "of the profile shelf" and look.rows[2].reason == "the run starts it"
    assert look.summary == "1 of 3 ready, 1 not started"
