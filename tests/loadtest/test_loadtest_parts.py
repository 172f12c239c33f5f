"""The parts of the load test that send nothing: arrivals, mixes, bodies, percentiles, options, the page."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from loadtest.measurements import Exchange, Measurements, percentile
from loadtest.options import read_options
from loadtest.page import render_page
from loadtest.workload import Prompt, Workload, arrival_times, draw, parse_mix, read_prompts
from services.kit.http.intake import parse_request
from services.kit.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
URL = "http://127.0.0.1:1"


def make_workload(mix: str = "64", prompts: list[Prompt] | None = None, **changes) -> Workload:
    settings = {
        "encoding": "png",
        "body_format": "multipart",
        "items": 1,
        "reward": "r",
        "grouped": False,
        "repeat_share": 0.0,
        "rng": random.Random(0),
    }
    return Workload(parse_mix(mix), prompts or [Prompt('a "CAT"', "CAT")], **(settings | changes))


def parsed(body):
    return parse_request(body.content, body.content_type, ServiceSettings())


def test_fixed_arrivals_are_evenly_spaced() -> None:
    times = list(arrival_times(4.0, 2.0, "fixed", random.Random(0)))
    assert times == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_poisson_arrivals_have_exponential_gaps() -> None:
    """Mean 1/rate, and a share exp(-1) of the gaps above it; the bounds are about five standard errors wide."""
    times = list(arrival_times(50.0, 400.0, "poisson", random.Random(1)))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert len(gaps) == pytest.approx(20_000, rel=0.036)
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.017)
    assert times == sorted(times) and times[-1] < 400
    assert times == list(arrival_times(50.0, 400.0, "poisson", random.Random(1)))


def test_parse_mix() -> None:
    assert parse_mix("256:0.5, 512:.4,1024x512:0.1") == ((256, 256, 0.5), (512, 512, 0.4), (1024, 512, 0.1))
    assert parse_mix("64,32:0") == ((64, 64, 1.0),)


@pytest.mark.parametrize("text", ["", "x", "512:", "512:-1", "0", "9000", "64:0", "512x", "1e3"])
def test_a_wrong_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--mix"):
        parse_mix(text)


def test_sizes_come_in_their_shares() -> None:
    workload = make_workload("16:3,32x16:1")
    sizes = Counter(
        (ref.width, ref.height) for _ in range(600) for ref in parsed(workload.make()).request.items[0].images
    )
    assert sizes[(16, 16)] / 600 == pytest.approx(0.75, abs=0.08) and set(sizes) == {(16, 16), (32, 16)}


@pytest.mark.parametrize("body_format", ["multipart", "json"])
@pytest.mark.parametrize("encoding", ["jpeg", "png", "webp", "rgb8"])
def test_bodies_are_valid_requests_with_pictures_of_their_size(body_format: str, encoding: str) -> None:
    got = parsed(make_workload("48x24", body_format=body_format, encoding=encoding, items=2).make())
    assert [item.prompt for item in got.request.items] == ['a "CAT"'] * 2
    for item in got.request.items:
        [ref] = item.images
        data = base64.b64decode(ref.data) if ref.data is not None else bytes(got.parts[ref.part])
        assert (ref.width, ref.height, item.group_id) == (48, 24, None)
        if encoding == "rgb8":
            assert len(data) == 48 * 24 * 3
        else:
            assert Image.open(io.BytesIO(data)).size == (48, 24)


def test_every_request_is_new_to_a_cache_unless_repeats_are_asked_for() -> None:
    def numbers(**changes) -> Counter:
        workload = make_workload(**changes)
        return Counter(json.dumps(parsed(workload.make()).request.items[0].metadata) for _ in range(500))

    new = numbers()
    assert len(new) == 500
    assert len(numbers(repeat_share=0.6)) == pytest.approx(200, abs=55)
    assert not set(new) & set(numbers())  # of two tests with one seed


def test_items_of_a_comparing_reward_are_one_group_of_their_own() -> None:
    workload = make_workload(items=3, grouped=True)
    groups = [{item.group_id for item in parsed(workload.make()).request.items} for _ in range(2)]
    assert [len(group) for group in groups] == [1, 1] and groups[0] != groups[1]


def test_the_text_of_a_prompt_is_drawn_inside_the_picture() -> None:
    image = draw(Prompt("p", "HARBOUR"), 256, 128, random.Random(0)).convert("L")
    left, top, right, bottom = image.point(lambda value: 255 if value < 100 else 0).getbbox()
    assert right - left > 100 and left > 0 and right < 256 and top > 0 and bottom < 128


def test_prompts_from_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('a "ONE" and “two”\n\nplain\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "targets": ["A", "B"]}\n{"prompt": "a \\"C\\""}\n')
    one, plain = read_prompts(tmp_path / "p.txt", random.Random(0))
    assert (one.prompt, one.text, one.targets) == ('a "ONE" and “two”', "ONE two", None)
    assert plain.prompt == "plain" and plain.text
    given = read_prompts(tmp_path / "p.jsonl", random.Random(0))
    assert [(each.text, each.targets) for each in given] == [("A B", ("A", "B")), ("C", None)]
    for name, text in (("bad.jsonl", '{"prompt": "x"}\n[1]\n'), ("empty.txt", "\n")):
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"bad\.jsonl:2 is not an object"):
        read_prompts(tmp_path / "bad.jsonl", random.Random(0))
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt", random.Random(0))
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt", random.Random(0))


def test_percentiles_are_nearest_rank() -> None:
    values = list(range(1, 101))
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert [percentile([7.0], share) for share in (0.0, 0.5, 1.0)] == [7.0] * 3
    assert percentile([1, 2, 3, 4], 0.75) == 3 and percentile([1, 2, 3, 4], 0.76) == 4


def ok(due: float, done: float, **changes) -> Exchange:
    return Exchange(due=due, sent=changes.pop("sent", due), done=done, items=2, answered=True, **changes)


def test_latency_counts_from_when_a_request_was_due() -> None:
    """Ten requests due every 0.1 s, of which a service that hung for a second answered all at 1.0 s."""
    measured = Measurements([ok(n / 10, 1.0, sent=0.9) for n in range(10)], 10.0, 1.0)
    summary = measured.summary()
    assert summary["latency_ms"] == {
        "p50": pytest.approx(500),
        "p95": pytest.approx(1000),
        "p99": pytest.approx(1000),
        "max": pytest.approx(1000),
    }
    assert summary["send_lag_ms"]["p99"] == pytest.approx(900) and not summary["rate"]["kept"]


def test_errors_are_counted_by_item_and_what_never_left_counts_too() -> None:
    lost = Exchange(0.0, 0.0, 9.0, 2, False, {"429 overloaded": 2})
    measured = Measurements(
        [ok(0.0, 0.1, failed={"parse_error": 1}, queue_ms=3.0, compute_ms=5.0), ok(0.1, 0.3, cached=2), lost],
        2.0,
        2.0,
        1,
        2,
    )
    summary = measured.summary()
    assert summary["errors"] == {"429 overloaded": 2, "not_sent": 2, "parse_error": 1}
    assert summary["error_share"] == 5 / 8
    assert summary["requests"] == {"due": 4, "sent": 3, "answered": 2}
    assert summary["items"] == {"sent": 6, "scored": 3, "cached": 2}
    assert summary["rate"] == {"asked": 2.0, "sent": 1.5, "answered": 1.0, "scored_items": 1.5, "kept": False}
    assert summary["latency_ms"]["max"] == pytest.approx(200)  # of those that were answered
    assert measured.strict_percentile_ms(0.5) == pytest.approx(200)
    assert measured.strict_percentile_ms(0.95) == math.inf  # two of four have no results
    assert (summary["service_queue_ms"]["p50"], summary["service_compute_ms"]["p50"]) == (3.0, 5.0)


def test_nothing_measured_is_nothing_said() -> None:
    summary = Measurements([], 1.0, 0.0).summary()
    assert (summary["latency_ms"]["p50"], summary["error_share"], summary["rate"]["sent"]) == (None, 0.0, 0.0)


ABOUT = {
    "url": URL, "service": "<b>ocr", "reward": "r", "revision": "<script>", "arrivals": "fixed", "encoding": "png", "format": "json",
    "mix": [{"width": 2, "height": 3, "weight": 1.0}], "items": 1, "repeat_share": 0.0, "max_outstanding": 7, "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_the_page_stands_alone_and_does_not_grow(count: int) -> None:
    exchanges = [ok(n / 100, n / 100 + 0.001 * (1 + n % 50)) for n in range(count)]
    exchanges += [Exchange(n / 100, 0, 1, 1, False, {"<i>": 1}) for n in range(0, count, 10)]
    measured = Measurements(exchanges, 100.0, max(1.0, count / 100))
    page = render_page({"about": ABOUT, **measured.summary()}, measured)
    assert len(page) < 600_000
    assert "&lt;b&gt;ocr" in page and "&lt;script&gt;" in page
    assert not re.search(r"<script|<b>|<i>|\bsrc=|\bhref=|url\(|@import", page)
    assert "default-src 'none'" in page
    assert page.count("<svg") == (2 if count else 1)
    if count == 20_000:
        assert 2000 < page.count("<circle") <= 3000 and "the 95th" not in page
        counted = [int(text) for text in re.findall(r"ms: (\d+)</title>", page)]
        assert sum(counted) == 20_000


def test_options_are_read() -> None:
    options = read_options([URL + "/", "--rate", "20", "--mix", "256:0.5,512", "--json", "x.json", "--format", "json"])
    assert (options.url, options.rate, options.duration, options.body_format) == (URL, 20.0, 30.0, "json")
    assert options.mix == ((256, 256, 0.5), (512, 512, 1.0)) and options.json_out == Path("x.json")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["http://10.1.2.3:80"], "10.1.2.3 is another machine"),
        (["http://rewards.example"], "--i-may-load-this-host"),
        (["http://127.0.0.1.example"], "another machine"),
        (["127.0.0.1:18082"], "is not the URL of a service"),
        (["file:///etc/passwd"], "is not the URL of a service"),
        (["http://a:b@127.0.0.1"], "a token goes into --token-file"),
        ([URL, "--rate", "0"], "0 is not a positive number"),
        ([URL, "--duration", "inf"], "inf is not a positive number"),
        ([URL, "--mix", "big"], "--mix 'big' is not a size"),
        ([URL, "--max-error-share", "5"], "5 is not between 0 and 1"),
        ([URL, "--items", "0"], "0 is below 1"),
    ],
)
def test_wrong_options_are_refused_with_a_reason(argv: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        read_options(argv)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_another_host_needs_a_confirmation_and_loopback_none() -> None:
    assert read_options(["http://10.1.2.3:80", "--i-may-load-this-host"]).url == "http://10.1.2.3:80"
    for url in ("http://localhost:1", "http://[::1]:1", "http://127.9.9.9"):
        assert read_options([url]).url == url


def test_importing_the_parts_changes_nothing_in_the_process() -> None:
    """Locust replaces blocking calls when it is imported: that must wait for a test."""
    code = "import sys, loadtest.command; print(*(n for n in ('locust', 'gevent', 'torch') if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
