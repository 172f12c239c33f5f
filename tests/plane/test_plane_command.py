"""`rewards services`: the table, JSON, exit codes, looking again and again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from rewards.command import main as rewards
from rewards.plane.command import build_parser, main
from rewards.plane.rows import DASH, TITLES, Cell, Row
from rewards.plane.table import lines_of, wants_colour
from rewards.plane.watch import Look
from services.kit.testing.fakes import PromptLengthScorer
from tests.support.documents import ROOT, blocks_of
from tests.support.ports import free_port
from tests.support.serving_here import serving_here
from tests.support.waiting import wait_until

PAGE = ROOT / "docs/watching_services.md"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"lab:{TOKEN}\n")
    with serving_here(PromptLengthScorer(), token_file=tokens) as url:
        yield url


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    (tmp_path / "token").write_text(TOKEN)
    return str(tmp_path / "token")


def test_exit_codes_and_what_is_printed(url: str, token_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--token-file", token_file]
    assert main([url, *given]) == 0
    told = capsys.readouterr().out
    assert re.match(r"\d\d:\d\d:\d\d  1 of 1 ready; counted since its start\n", told) and "\x1b" not in told
    assert main([url]) == 1, "without a token nothing says that it would work"
    told += capsys.readouterr().out
    assert main([f"pair={url},http://127.0.0.1:{free_port()}", *given]) == 1
    told += capsys.readouterr().out
    assert "pair 2/2" in told and "no connection: Connection refused" in told and TOKEN not in told
    assert main(["http://user:secret@a"]) == 2
    assert "error: a URL with a password" in capsys.readouterr().err
    assert main([url, "--serve", "--json"]) == 2
    assert main([url, "--serve", "--host", "0.0.0.0"]) == 2
    assert "give --page-token-file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([url, "--watch", "0"])
    assert ended.value.code == 2


def test_json_has_null_and_a_reason_for_what_is_not_known(
    url: str, token_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([url, f"http://127.0.0.1:{free_port()}", "--json", "--token-file", token_file]) == 1
    told = json.loads(capsys.readouterr().out)
    good, gone = told["services"]
    assert (told["ok"], good["state"], good["p95"], good["queue"]["waiting"]) == (False, "ready", None, 0)
    assert good["unknown"]["p95"] == "nothing was scored since its start"
    assert gone["requests"] is None and set(gone["unknown"]) == set(TITLES)
    assert TOKEN not in json.dumps(told)


def test_it_looks_again_and_again_until_it_is_told_to_stop(
    url: str, token_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after three looks; the exit code is the last look's."""

    def asked() -> float:
        text = httpx.get(url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False).text
        return sum(float(each) for each in re.findall(r'^reward_requests_total{path="/ready".*} (.*)$', text, re.M))

    before = asked()

    def interrupt() -> None:
        wait_until(lambda: asked() >= before + 3)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    code = main([url, "--token-file", token_file, "--json", "--watch", "0.01"])
    waiting.join()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0 and len(told) >= 3
    assert [each["services"][0]["over"] for each in told[:1]] == ["since its start"]
    assert all(each["services"][0]["over"].startswith("in the last ") for each in told[1:])


def test_the_commands_of_the_page(url: str, token_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As they stand there, but for the address: a service of the test's is in its place, and the second is a free port."""
    (block,) = [each for each in blocks_of(PAGE) if "--json" in each.text]
    kinds = []
    for typed in block.commands:
        line = typed.replace(":18082", url.removeprefix("http://127.0.0.1")).replace(":18083", f":{free_port()}")
        program, *words = shlex.split(line)
        assert program == "rewards"
        if "--watch" in words:  # for ever: the word is understood, and one look taken
            at = words.index("--watch")
            assert build_parser("").parse_args(words[1:]).watch == 5
            del words[at : at + 2]
        code = rewards([*words, "--token-file", token_file])
        kinds.append((code, capsys.readouterr().out))
    (alone, table), (two, rows), (_, told) = kinds
    assert (alone, two) == (0, 1) and "1 of 1 ready" in table and "ocr 2/2" in rows
    assert json.loads(told)["ok"] is True


def look(**of_first: str) -> Look:
    known = {"version": "1.0", "queue": "0", "left": "lab: 5 of 600 items/min", **of_first}
    cells = {key: Cell(known[key]) if key in known else Cell(DASH, why="nothing was scored") for key in TITLES}
    gone = {key: Cell(DASH, why="it does not answer") for key in TITLES}
    first = Row("ocr", "ocr", "http://127.0.0.1:18082", "ready", "", True, "since its start", (), cells)
    reason = "no connection: Connection refused"
    second = Row("hps", "hps", "http://127.0.0.1:18083", "unreachable", reason, False, "", (), gone)
    return Look(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), (first, second), ("not asked: redis",))


def test_a_wide_terminal_has_a_table_and_a_narrow_one_lines() -> None:
    wide = lines_of(look(), 140)
    assert wide[0] == "03:04:05  1 of 2 ready; counted since its start"
    assert wide[2].split() == ["service", "where", "state", *TITLES.values()]
    assert [line.index("1.0") for line in wide if "1.0 " in line] == [wide[2].index("version")]
    assert wide[-3:] == [
        "ocr: – revision, busy, requests, p50, p95, errors, cached: nothing was scored",
        "hps: no connection: Connection refused",
        "not asked: redis",
    ]
    for width in (24, 40, 79):
        narrow = lines_of(look(), width)
        assert max(map(len, narrow)) <= width, narrow
        assert "ready" in "\n".join(narrow) and "version 1.0" in "\n".join(narrow)
        assert "".join("".join(narrow).split()).count("Connectionrefused") == 1


def test_colour_is_for_terminals_and_adds_no_words() -> None:
    plain, painted = lines_of(look(), 140), lines_of(look(), 140, colour=True)
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == plain and "\x1b[31munreachable" in "\n".join(
        painted
    )
    assert wants_colour(True, {}) and not wants_colour(False, {})
    assert not wants_colour(True, {"NO_COLOR": "1"}) and not wants_colour(True, {"TERM": "dumb"})


def test_a_services_words_cannot_steer_the_terminal() -> None:
    lines = lines_of(look(version="1\x1b[2J\n\r2"), 140)
    assert "\x1b" not in "\n".join(lines) and sum("1 [2J  2" in line for line in lines) == 1
