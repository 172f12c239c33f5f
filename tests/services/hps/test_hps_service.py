"""The service as a process: started by its command, asked over HTTP, stopped by a signal; and its settings."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.hps_reference import SMALL, State, score
from services.hps.scorer import HpsScorer
from services.hps.settings import HpsSettings, make_scorer
from services.hps.tokenizer import Tokenizer
from services.kit.dispatch.workers import ProcessPool
from services.kit.settings import load_settings
from tests.support.service_process import ready_service
from wire.images import encode, to_ref

CPU = ("--device", "cpu", "--threads", "1")


def command(*flags: object) -> list[str]:
    return [sys.executable, "-m", "services.hps", "--port", "0", *CPU, *map(str, flags)]


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with ready_service("hps", *CPU, "--checkpoint", folder) as address:
        yield address


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def post(url: str, *items: dict[str, Any]) -> dict[str, Any]:
    body = {"items": [{"id": str(index), **each} for index, each in enumerate(items)]}
    answer = httpx.post(f"{url}/v1/score", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_a_png_is_scored_as_open_clip_computes_it(url: str, state: State, tokenizer: Tokenizer) -> None:
    image, prompts = picture(), ["a red cat", "一只猫", "cat " * 100]
    reference = to_ref(image, "image/png").model_dump(exclude_none=True)
    answer = post(url, *({"prompt": prompt, "images": [reference]} for prompt in prompts))
    expected = [score(state, SMALL, image, tokenizer.encode(prompt).ids) for prompt in prompts]
    assert [each["score"] for each in answer["results"]] == pytest.approx(expected, abs=1e-5)
    assert [each["components"]["truncated_tokens"] for each in answer["results"]] == [0, 0, 25]
    assert answer["scorer"]["name"] == "hpsv2.1"


def test_info_names_version_weights_and_range(url: str) -> None:
    info = httpx.get(f"{url}/v1/info", timeout=30).json()
    [reward] = info["rewards"]
    assert (reward["name"], reward["range"]) == ("hpsv2.1", [-1.0, 1.0])
    assert re.fullmatch(r"2 v2\.1 sha256:[0-9a-f]{16} resize=bicubic-antialias-float fp32", reward["revision"])


def test_multipart_and_several_images_and_a_completion_without_image(url: str) -> None:
    items = [
        '{"id": "two", "prompt": "a cat", "images": [{"part": "a", "media_type": "image/png"}, '
        '{"part": "b", "media_type": "image/webp"}]}',
        '{"id": "none", "prompt": "a cat", "completion": "text"}',
        '{"id": "bad", "prompt": "a cat", "images": [{"part": "c", "media_type": "image/png"}]}',
    ]
    files = {
        "request": (None, f'{{"items": [{", ".join(items)}]}}', "application/json"),
        "a": ("a", encode(picture(), "image/png"), "image/png"),
        "b": ("b", encode(picture("RGBA"), "image/webp"), "image/webp"),
        "c": ("c", b"\x89PNG not really", "image/png"),
    }
    answer = httpx.post(f"{url}/v1/score", files=files, timeout=300)
    assert answer.status_code == 200, answer.text
    two, none, bad = answer.json()["results"]
    assert two["details"]["images"][0] == pytest.approx(two["details"]["images"][1], abs=1e-6)
    assert [each["error"]["code"] for each in (none, bad)] == ["bad_input", "bad_input"]


def test_a_published_file_is_served_as_it_is(published: Path, vocabulary: Path, url: str) -> None:
    item = {"prompt": "a red cat", "images": [to_ref(picture(), "image/png").model_dump(exclude_none=True)]}
    with ready_service("hps", *CPU, "--checkpoint", published, "--vocabulary", vocabulary) as address:
        assert post(address, item)["scorer"] == post(url, item)["scorer"]
        score_of_file, score_of_folder = (post(at, item)["results"][0]["score"] for at in (address, url))
        assert score_of_file == pytest.approx(score_of_folder, abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "{tmp}/nope.pt"], "nope.pt: no such file or folder"),
        (["--checkpoint", "{tmp}/weights.pt"], "give --version v2 or --version v2.1"),
        (["--checkpoint", "{published}"], "get it with `python -m services.hps vocabulary"),
    ],
)
def test_what_cannot_be_served_stops_the_start_with_one_sentence(
    tmp_path: Path, published: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    filled = [flag.format(tmp=tmp_path, published=published) for flag in flags]
    done = subprocess.run(command(*filled), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "hps did not start: " in done.stderr and message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_the_commands_and_an_unknown_one_is_refused() -> None:
    run = [sys.executable, "-m", "services.hps"]
    told = subprocess.run([*run, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in ("serve", "convert", "vocabulary"))
    wrong = subprocess.run([*run, "score"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "no command 'score'" in wrong.stderr


def test_settings_come_from_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPS_CHECKPOINT", "/model")
    monkeypatch.setenv("HPS_MAX_BATCH", "16")
    settings = load_settings(HpsSettings, ["--dtype", "bf16"])
    assert (settings.port, settings.checkpoint, settings.max_batch) == (18083, Path("/model"), 16)
    assert (settings.dtype, settings.device, settings.version) == ("bf16", "auto", None)


def test_a_checkpoint_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(HpsSettings, [])
    assert "--checkpoint is missing: give it, or the variable HPS_CHECKPOINT" in capsys.readouterr().err


def test_a_front_must_be_told_the_dtype_of_its_workers(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint", "/model", "--role", "front", "--redis", "redis://127.0.0.1/0"]
    with pytest.raises(SystemExit):
        load_settings(HpsSettings, flags)
    assert "give --dtype bf16 or fp32" in capsys.readouterr().err
    assert load_settings(HpsSettings, [*flags, "--dtype", "bf16"]).dtype == "bf16"


@pytest.mark.parametrize(("workers", "kind"), [("1", HpsScorer), ("2", ProcessPool)])
def test_several_workers_are_processes(folder: Path, workers: str, kind: type) -> None:
    settings = load_settings(HpsSettings, ["--checkpoint", str(folder), *CPU, "--workers", workers])
    assert isinstance(make_scorer(settings), kind)
