"""The pages of the runs server, asked over HTTP."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from benchmarks.run_folders import add_samples, make_run, rows_of
from tests.trainer.runs.conftest import HOSTILE, Served, serving
from trainer.__main__ import main
from trainer.evaluation.seen import MAX_TEXT, seen
from trainer.runs.catalogue import Catalogue
from trainer.runs.command import _comparison
from trainer.runs.compare import outcomes_of, paired
from trainer.runs.folder import Folder
from trainer.runs.look import ServedLinks
from trainer.runs.look import served as served_look
from trainer.runs.pages import TableQuery, runs_page
from trainer.runs.run import Run
from trainer.runs.samples import cards, ordered, records_of

TOKEN = "correct-horse-battery-staple"


def get(served: Served, path: str, **more) -> httpx.Response:
    return httpx.get(served.url + path, trust_env=False, timeout=60, **more)


def cells(page: str, run: str) -> dict[str, str]:
    """Of a run's row in the table what each cell says, tags left out."""
    row = re.search(rf'<tr data-run="{re.escape(html.escape(run))}"[^>]*>(.*?)</tr>', page, re.S)[1]
    found = re.findall(r'<td [^>]*data-cell="([^"]*)"[^>]*>(.*?)</td>', row, re.S)
    return {key: html.unescape(re.sub(r"<[^>]+>", "|", text)).strip("|") for key, text in found}


def names(page: str) -> list[str]:
    return [html.unescape(name) for name in re.findall(r'<tr data-run="([^"]*)"', page)]


def test_the_table_says_what_became_of_each_run(served):
    for name in ("first", "group/crashed"):  # read by now, whatever the threads have done
        assert get(served, f"/run/{name}").status_code == 200
    page = get(served, "/").text
    told = cells(page, "first")
    assert told["state"] == "finished" and told["step"].startswith("40 of 40") and told["failed"] == "0"
    assert told["eval/ocr"] == "0.900||0.870 to 0.930\n+0.400 (+0.360 to +0.440)"
    assert told["time"] == "1 min 32 s||CPU 2 min 00 s\nGPU 3 min 04 s"
    told = cells(page, "group/crashed")
    assert (told["state"], told["alarms"], told["failed"]) == ("failed", "1||diversity", "3")
    assert "RewardError: ocr is gone" in page and "Not followed, as symbolic links: outside" in page


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("sort=-eval/ocr", ["first", "second"]),
        ("sort=eval/ocr", ["second", "first"]),
        ("sort=name", ["first", "second"]),
        ("sort=-step&state=finished&q=FIRST", ["first"]),
        ("state=failed", ["group/crashed"]),
        ("q=nobody", []),
        ("sort=nonsense&page=99", None),
    ],
)
def test_the_table_is_sorted_and_filtered(served, query, order):
    shown = names(get(served, f"/?{query}").text)
    expected = shown if order is None else order
    assert [name for name in shown if order is None or name in {"first", "second", *order}] == expected
    assert order is None or "q=" not in query or shown == order


def test_names_are_text_and_addresses_lead_back(served):
    name = HOSTILE.replace("/", "")
    page = get(served, "/").text
    assert "<img src=x" not in page and name in names(page)
    for address in (ServedLinks().run(name), ServedLinks().gallery(name), ServedLinks().compare([name, "first"])):
        answer = get(served, address)
        assert answer.status_code == 200 and "<img src=x" not in answer.text


def test_a_run_says_why_it_failed_with_log_lines_and_the_flight_record(served):
    page = get(served, "/run/group/crashed").text
    assert "<img src=x" not in page
    for told in ("It crashed: RewardError", "All images of a prompt have become alike.", "the queue is full", "Killed"):
        assert told in page
    assert "not_ready" not in page, "a probe before it was ready is no failure"
    record = html.unescape(re.search(r'href="([^"]*flight[^"]*json)"', page)[1])
    assert get(served, record).json()["error"]["type"] == "RewardError"
    assert page.count('<figure class="chart"') > 20 and "What each metric means" in page


def test_a_runs_page_leads_to_its_report_which_can_reach_nothing(served):
    page = get(served, "/run/first").text
    answer = get(served, html.unescape(re.search(r'href="([^"]*report.html)"', page)[1]))
    assert "the report" in answer.text
    assert "<li><code>metrics.jsonl</code> every number</li>" in answer.text, "no link leads to what is not shown"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'") and "allow-same-origin" not in policy


@pytest.mark.parametrize("axis", ["seconds", "cpu", "gpu", "images"])
def test_curves_are_drawn_over_what_was_spent(served, axis):
    told = get(served, f"/charts/first?x={axis}").json()
    ocr = next(each["numbers"] for each in told if each["name"] == "Rewards/ocr")
    assert ocr["x_label"] == {"cpu": "CPU seconds", "gpu": "GPU seconds"}.get(axis, axis)
    assert ocr["series"][0]["x"][-1] == {"seconds": 88, "cpu": 120, "gpu": 176, "images": 3840}[axis]


def test_two_runs_are_compared_by_prompt(served, folders):
    """(.75, 1, .25) against (.75, .75, no score): differences 0 and -.25 of the two prompts that both have."""
    page = get(served, "/compare?run=first&run=second").text
    row = re.search(r"<th [^>]*>second</th>(<td [^>]*>40</td>.*?)</tr>", page)[1]
    step, reward, difference, *rest = [html.unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", row)]
    assert (step, reward, rest) == ("40", "ocr", ["0.750", "0.667", "2"]) and difference.startswith("−0.125 (")
    found = paired([Run(Folder(folders, (name,))) for name in ("first", "second")], None)[0].differences[0]
    assert (found.held.gain, found.held.gain_low, found.held.gain_high) == (-0.125, -0.25, 0.0)
    fields = re.findall(r"<code>([a-z_.]+)</code></th>", page)
    assert fields == ["optim.lr"]
    assert "ocr, held-out" in page and page.count("Same prompt, same noise") == 1
    assert page.count("word &#34;CAT&#34;</p>") == 1 and "second, step 40" in page


def test_a_comparison_may_stop_at_a_step_and_says_what_is_missing(served):
    page = get(served, "/compare?run=first&run=second&run=group/crashed&at=20&key=grad_norm&x=seconds").text
    assert "after step 0" in page and "second, step 0" in page and "grad_norm" in page
    assert "group/crashed has no evaluation with scores by prompt" not in page  # it has one at step 10
    assert get(served, "/compare").status_code == 400
    assert get(served, "/compare?run=first&run=absent").status_code == 404


@pytest.mark.parametrize(
    ("order", "first"), [("file", "CAT"), ("worst", "FOX"), ("best", "DOG"), ("changed", "DOG"), ("lost", "CAT")]
)
def test_the_gallery_is_ordered_by_scores(served, order, first):
    page = get(served, f"/gallery/first?order={order}&reward=ocr").text
    assert re.findall(r"word &#34;([A-Z]+)&#34;</p>", page)[0] == first


def test_the_gallery_shows_what_the_services_saw(served):
    page = get(served, "/gallery/first?q=dog&step=40").text
    assert re.findall(r"word &#34;([A-Z]+)&#34;</p>", page) == ["DOG"]
    assert '<polygon points="5,5 40,5 40,18 5,18"' in page and "<code>DOG</code> 75 %" in page and "read DOG" in page
    image = html.unescape(re.search(r'<img src="([^"]*)"', page)[1])
    assert get(served, image).content.startswith(b"\x89PNG")


def test_cards_without_a_score_come_last_whatever_the_order(tmp_path):
    folder = make_run(tmp_path / "run", rows_of(2, every=2))
    add_samples(folder, 2, ["A", "B", "C"], [0.5, 0.1, 0.9])
    listing = folder / "samples" / "step_000002.json"
    records = json.loads(listing.read_text())
    records[1]["scores"]["ocr"] = None
    records[2]["image"] = "../../../etc/passwd"
    listing.write_text(json.dumps(records))
    kept = Folder(tmp_path, ("run",))
    found = cards([("step 2", "run", kept, records_of(kept, 2))])
    assert [card.targets for card in ordered(found, "worst", "ocr")] == ["A", "C", "B"]
    assert [card.targets for card in ordered(found, "best", "ocr")] == ["C", "A", "B"]
    assert found[2].shots[0].image is None


def test_downloads_are_the_rows(served, folders):
    rows = [json.loads(line) for line in (folders / "first" / "metrics.jsonl").read_text().splitlines()]
    told = list(csv.DictReader(io.StringIO(get(served, "/download/metrics.csv?run=first").text)))
    assert [float(each["grad_norm"]) for each in told[1:]] == [row["grad_norm"] for row in rows[1:]]
    assert told[0]["grad_norm"] == "" and {key for row in rows for key in row} == set(told[0])
    table = pq.read_table(io.BytesIO(get(served, "/download/metrics.parquet?run=first").content))
    assert table["grad_norm"].to_pylist() == [row.get("grad_norm") for row in rows]
    scores = pq.read_table(io.BytesIO(get(served, "/download/scores.parquet?run=second").content)).to_pylist()
    assert [each["score/ocr"] for each in scores] == [0.5, 0.25, 0.0, 0.75, 0.75, None]
    assert scores[-1]["error/ocr"] == "timeout" and scores[-1]["prompt_id"] == "word-2"
    runs = {each["name"]: each for each in csv.DictReader(io.StringIO(get(served, "/download/runs.csv").text))}
    assert runs["first"]["eval/ocr/mean"] == "0.9" and runs["group/crashed"]["alarms"] == "diversity"


@pytest.mark.parametrize(
    "path",
    [
        "/run/absent",
        "/run/outside",
        "/run/..%2F..%2Fetc",
        "/run/first%2Flogs",
        "/gallery/../../etc",
        "/image/first?path=../../../etc/passwd",
        "/image/first?path=samples/step_000040/../../config.yaml",
        "/image/first?path=samples/step_000040/9.png",
        "/file/first?path=config.yaml",
        "/file/first?path=flight/../config.yaml",
        "/file/first?path=metrics.jsonl",
        "/download/metrics.csv?run=outside",
        "/download/metrics.xml?run=first",
        "/assets/..%2Fpage.css",
        "/events?run=absent",
    ],
)
def test_what_is_not_shown_is_not_there(served, path):
    answer = get(served, path)
    assert answer.status_code == 404 and "root:" not in answer.text


def test_only_its_own_pages_may_ask_and_nothing_may_be_changed(served):
    assert get(served, "/", headers={"Host": "evil.example"}).status_code == 421
    assert get(served, "/", headers={"Origin": "http://evil.example"}).status_code == 403
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, served.url + "/", trust_env=False).status_code == 405
    assert get(served, f"/?q={'x' * 20_000}").status_code == 414
    headers = get(served, "/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_a_token_is_asked_for_where_there_is_one(tmp_path):
    make_run(tmp_path / "outputs" / "run", rows_of(2, every=2))
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# who may look\n{TOKEN}\n")
    for served in serving(tmp_path / "outputs", "--token-file", str(tokens)):
        page, port = get(served, "/run/run"), served.url.rpartition(":")[2]
        assert page.status_code == 401 and 'type="password"' in page.text and "grad_norm" not in page.text
        assert get(served, "/", headers={"Authorization": f"Bearer {TOKEN}x"}).status_code == 401
        assert get(served, "/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert get(served, "/", headers={"Cookie": f"rewards_{port}={'0' * 64}"}).status_code == 401
        assert get(served, "/events").status_code == 401
        with httpx.Client(base_url=served.url, trust_env=False, follow_redirects=True) as browser:
            assert browser.post("/enter", data={"token": "wrong"}).status_code == 401
            assert browser.post("/enter", data={"token": TOKEN}).status_code == 200
            assert browser.get("/run/run").status_code == 200
            assert TOKEN not in str(browser.cookies.jar)
        # A browser keeps the cookies of a host together: of another port, be it one of a tunnel, they have another name.
        names = []
        for host in (f"127.0.0.1:{port}", "localhost:8601", "localhost", "[::1]:8602"):
            answer = httpx.post(f"{served.url}/enter", data={"token": TOKEN}, headers={"Host": host}, trust_env=False)
            names.append(answer.headers["set-cookie"].partition("=")[0])
        assert names == [f"rewards_{port}", "rewards_8601", "rewards", "rewards_8602"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["absent"], "no folder at .*absent; give the folder that runs are in"),
        ([".", "--host", "0.0.0.0"], "reachable from other machines: give --token-file .* or leave --host out"),
        ([".", "--port", "99999"], "127.0.0.1:99999 cannot be listened on"),
        ([".", "--token-file", "short"], "has 5 characters, and needs at least 16"),
        ([".", "--compare", "a"], "no run 'a'"),
        ([".", "--compare"], "has 0 runs to compare, and two are needed"),
        ([".", "--export", "out", "--compare", "absent"], "no run 'absent'"),
        ([".", "--export", "."], r"--export: \. is there already"),
    ],
)
def test_a_wrong_command_says_what_to_do(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("12345\n")
    assert main(["runs", *flags]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_the_two_newest_are_compared_by_one_flag_or_one_click(tmp_path, served):
    """The older one is the reference, whatever they are called; named runs are compared in the order of their names."""
    for name, age in (("b", 300), ("c", 200), ("a", 100)):
        metrics = make_run(tmp_path / name, rows_of(2, every=2)) / "metrics.jsonl"
        os.utime(metrics, (time.time() - age,) * 2)
    catalogue = Catalogue(tmp_path)
    assert _comparison(catalogue, []) == "/compare?run=c&run=a"
    assert _comparison(catalogue, ["b", "a"]) == "/compare?run=b&run=a"
    assert 'href="/compare?run=c&amp;run=a">Compare the two newest<' in runs_page(
        catalogue, served_look(), TableQuery()
    )
    newest = re.search(r'href="([^"]+)">Compare the two newest<', get(served, "/").text)
    assert newest and get(served, html.unescape(newest[1])).status_code == 200


def test_what_services_saw_is_kept_short():
    told = seen({"ocr": {"text": "x" * 5000, "lines": list(range(80)), "deep": [[[[[[[[[[1]]]]]]]]]]}, "none": {}})
    assert len(told["ocr"]["text"]) < MAX_TEXT + 30 and told["ocr"]["lines"][-1] == "… (80 in all)"
    assert "…" in json.dumps(told["ocr"]["deep"], ensure_ascii=False) and "none" not in told


def test_scores_that_cannot_be_read_are_left_out(folders, tmp_path):
    folder = make_run(tmp_path / "run", rows_of(2, every=2))
    place = folder / "eval" / "step_000002"
    place.mkdir(parents=True)
    whole = (folders / "first" / "eval" / "step_000040" / "scores.jsonl").read_text()
    (place / "scores.jsonl").write_text("no line\n[]\n{}\n" + whole)
    assert [each.scores["ocr"] for each in outcomes_of(Folder(tmp_path, ("run",)), 2)] == [0.75, 1.0, 0.25]


def test_an_empty_folder_says_what_will_be_there(tmp_path):
    catalogue = Catalogue(tmp_path)
    page = runs_page(catalogue, served_look(), TableQuery())
    assert "No run yet." in page and "output_dir" in page and "No run matches" not in page
    assert "No run matches." in runs_page(catalogue, served_look(), TableQuery(words="x"))
