"""`rewards score`: its table, its JSON lines, its exit status; and every example of docs/client.md, run as it stands there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from services.kit.samples import sign
from services.kit.testing.fakes import FailEveryNthScorer, PromptLengthScorer
from services.ocr.scorer import OcrScorer
from tests.support.every_service import every_service
from tests.support.serving_here import serving_here
from wire.client.command import score

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/client.md").read_text("utf-8")
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving_here(PromptLengthScorer()) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images and a file that is none."""
    (tmp_path / "images").mkdir()
    for name in ("b.png", "a.JPG"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_table_of_a_folder_and_a_summary(url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts.txt").write_text("four\nseven..\n")
    assert score([url, str(folder / "images"), "--prompts", str(folder / "prompts.txt")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["item        score", "a.JPG           4  images 1", "b.png           7  images 1"]
    assert err == "2 of 2 scored by prompt_length, revision 1\n"


def test_json_lines_of_rows_with_their_own_images(url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "one", "image": "images/a.JPG", "metadata": {"k": 1}},
        {"prompt": "three", "image": "images/b.png"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    assert score([url, "--prompts", str(folder / "rows.jsonl"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["score"]) for line in lines] == [("one", 3.0), ("three", 5.0)]
    assert lines[0]["image"] == str(folder / "images/a.JPG") and lines[0]["components"] == {"images": 1.0}
    texts = [{"prompt": "a question", "completion": "words"}]
    (folder / "texts.jsonl").write_text(json.dumps(texts[0]))
    assert score([url, "--prompts", str(folder / "texts.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "item 0          10  images 0"


def test_a_missing_score_is_a_dash_with_its_reason_and_the_status_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving_here(FailEveryNthScorer(2), max_wait_ms=0) as url:
        assert score([url, str(folder / "images"), "--prompt", "abc"]) == 1
        out, err = capsys.readouterr()
        assert sorted(line[5:].split(None, 2)[:2] for line in out.splitlines()[1:]) == [
            ["3", "images"],
            ["–", "parse_error:"],
        ]
        assert err.startswith("1 of 2 scored by fail_every_nth")
        score([url, str(folder / "images/b.png"), str(folder / "images/none.png"), "--json"])
        failed = json.loads(capsys.readouterr().out.splitlines()[1])
    assert failed["score"] is None and failed["code"] == "bad_input" and "No such file" in failed["message"]


def test_a_token_is_read_from_a_file_such_as_the_services_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tokens").write_text(f"# who\n\nme:{TOKEN} items_per_minute=60\n")
    image = str(folder / "images/b.png")
    with serving_here(PromptLengthScorer(), token_file=folder / "tokens") as url:
        assert score([url, image, "--token-file", str(folder / "tokens")]) == 0
        assert score([url, image]) == 3
    assert "wants a token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is nothing to score: name images or a folder"),
        (["images", "--prompts", "one.txt"], "one.txt has 1 prompts and there are 2 images"),
        (["images", "--prompts", "bad.jsonl"], "bad.jsonl, line 2: no field 'promt'; there are: prompt, image"),
        (["images", "--prompts", "absent.txt"], "No such file"),
        (["images/b.png", "--prompts", "named.jsonl"], "names its images: give the one folder that they are in"),
        (["images", "--reward", "other"], "no reward 'other'"),
        (["images", "--token-file", "empty"], "empty holds no token"),
        (["empty_folder"], "empty_folder holds no image (.png, .jpg, .jpeg, .webp)"),
    ],
)
def test_wrong_arguments_are_said_with_the_status_2(
    url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(folder)
    Path("one.txt").write_text("one\n")
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    Path("named.jsonl").write_text('{"prompt": "a", "image": "images/a.JPG"}\n')
    Path("empty").write_text("# nobody\n")
    Path("empty_folder").mkdir()
    with pytest.raises(SystemExit) as exited:
        score([url, *arguments])
    assert exited.value.code == 2 and words in capsys.readouterr().err


# The page's examples, against the service that it names.


@pytest.fixture(scope="module")
def ocr() -> Iterator[str]:
    with serving_here(OcrScorer(), "ocr") as url:
        yield url


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    sign("OPEN").save(tmp_path / "sign.png")
    Image.new("RGB", (96, 64), "white").save(tmp_path / "blank.png")
    rows = [{"prompt": 'a sign that says "OPEN"', "image": "sign.png"}, {"prompt": "no text", "image": "blank.png"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.S | re.M)


def run(command: list[str], folder: Path, status: int = 0) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PATH": _path(), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout


def _path() -> str:
    return f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_examples_by_curl(ocr: str, signs: Path) -> None:
    sample, own = (block.replace("http://127.0.0.1:18082", ocr) for block in blocks("bash")[:2])
    for block in (sample, own):
        [result] = json.loads(run(["bash", "-ec", block], signs))["results"]
        assert result["score"] == 1.0


def test_the_first_example_in_python(ocr: str, signs: Path) -> None:
    (signs / "example.py").write_text(blocks("python")[0].replace("http://127.0.0.1:18082", ocr))
    assert run([sys.executable, "example.py"], signs).splitlines() == ["0 1.0", "1 0.0"]


@pytest.mark.slow
def test_the_example_of_groups(tmp_path: Path) -> None:
    """Two pictures that differ are more diverse than one picture twice."""
    (tmp_path / "weights").mkdir()
    for name, color in (("red", "red"), ("green", "green")):
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{name}.png")
    with every_service("clip", tmp_path / "weights") as url:
        (tmp_path / "example.py").write_text(blocks("python")[1].replace("http://127.0.0.1:18080", url))
        values = json.loads(run([sys.executable, "example.py"], tmp_path))
    assert len(values) == 4 and values[0] == values[1] > values[2] == values[3] == 0.0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_request_of_the_page_on_services(ocr: str, tmp_path: Path) -> None:
    """docs/services.md: its service is started by the fixture, and the finished run has one picture."""
    page = (ROOT / "docs/services.md").read_text("utf-8")
    [block] = [each for each in re.findall(r"^```bash\n(.*?)^```", page, re.S | re.M) if "flow_grpo" in each]
    started, ready, request = block.split("\n", 2)
    assert "services.ocr" in started and "/ready" in ready
    picture = tmp_path / "outputs/quickstart/samples/step_000060/0.png"
    picture.parent.mkdir(parents=True)
    sign("TYP6").save(picture)
    [result] = json.loads(run(["bash", "-ec", request.replace("http://127.0.0.1:18082", ocr)], tmp_path))["results"]
    assert result["id"] == "a" and result["score"] == 1.0


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_example_in_javascript(ocr: str, signs: Path) -> None:
    [code] = blocks("javascript")
    (signs / "score.mjs").write_text(code.replace("http://127.0.0.1:18082", ocr))
    assert run(["node", "score.mjs"], signs) == "a 1\n"


def test_the_examples_on_the_command_line(ocr: str, signs: Path) -> None:
    block = blocks("bash")[2].replace("http://127.0.0.1:18082", ocr).replace(".venv/bin/python", sys.executable)
    first, second = block.strip().splitlines()
    table = run(["bash", "-ec", first], signs)
    assert [line.split()[:2] for line in table.splitlines()] == [
        ["item", "score"],
        ["sign.png", "1"],
        ["blank.png", "0"],
    ]
    lines = [json.loads(line) for line in run(["bash", "-ec", second], signs, status=1).splitlines()]
    assert [(line["score"], line.get("code")) for line in lines] == [(1.0, None), (None, "not_applicable")]


def test_every_block_of_the_page_is_run_by_a_test_above() -> None:
    assert [len(blocks(language)) for language in ("bash", "python", "javascript")] == [3, 2, 1]
    assert len(re.findall(r"^```\w+", PAGE, re.M)) == 6
