"""The service as a process: started by its command, asked over HTTP, stopped by a signal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont

from services.kit.dispatch.workers import ProcessPool
from services.kit.settings import load_settings
from services.ocr.settings import OcrSettings, make_scorer
from tests.support.service_process import ready_service
from wire.images import encode, to_ref


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "services.ocr", "--port", "0", *flags]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[str]:
    """The URL of a ready service with two workers, in a home of its own."""
    homes = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "ORT_DISABLE_TELEMETRY": None}
    with ready_service("ocr", "--mode", "line", "--workers", "2", env=homes) as url:
        yield url


def line_of(text: str) -> Image.Image:
    image = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(image).text((96, 24), text, font=ImageFont.load_default(32), fill="black", anchor="mm")
    return image


def post(url: str, items: list[dict[str, Any]], parts: dict[str, bytes] | None = None, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"items": items, **fields})
    with httpx.Client(base_url=url, timeout=30) as client:
        if parts is None:
            answer = client.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
        else:
            files = {"request": (None, body, "application/json")}
            files |= {name: (name, data, "application/octet-stream") for name, data in parts.items()}  # type: ignore[misc]
            answer = client.post("/v1/score", files=files)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_scores_come_back_in_order_over_json_and_multipart(service: str) -> None:
    words = ["OPEN", "SHUT", "BREAD", "HOTEL", "RADIO", "OCEAN", "RIVER", "NIGHT", "TOWER", "MUSIC"]
    images = [line_of(word) for word in words]
    parts = {f"p{n}": encode(image, "image/x-rgb8") for n, image in enumerate(images)}
    items = [
        {
            "id": str(n),
            "prompt": f'the word "{word}"',
            "images": [{"part": f"p{n}", "media_type": "image/x-rgb8", "width": 192, "height": 48}],
        }
        for n, word in enumerate(words)
    ]
    answer = post(service, items, parts)
    read = [result["details"]["images"][0]["lines"][0]["text"] for result in answer["results"]]
    assert read == words
    assert [result["score"] for result in answer["results"]] == [1.0] * len(words)
    assert answer["scorer"]["name"] == "multi"
    assert answer["scorer"]["range"] == [0.0, 1.0]

    as_json = [
        {**item, "images": [to_ref(image, "image/x-rgb8").model_dump(exclude_none=True)]}
        for item, image in zip(items, images, strict=True)
    ]
    again = post(service, as_json)
    assert [result["score"] for result in again["results"]] == [1.0] * len(words)
    assert all(result["cached"] for result in again["results"])  # the same bytes, however they travel


def test_a_bad_item_has_its_code_and_its_neighbour_a_score(service: str) -> None:
    good = to_ref(line_of("OPEN"), "image/png").model_dump(exclude_none=True)
    truncated = {"media_type": "image/png", "data": "iVBORw0KGgo="}
    items = [
        {"id": "truncated", "prompt": '"OPEN"', "images": [truncated]},
        {"id": "good", "prompt": '"OPEN"', "images": [good]},
        {"id": "no target", "prompt": "a plain prompt", "images": [good]},
        {"id": "no image", "prompt": '"OPEN"', "completion": "OPEN"},
    ]
    for reward in ("multi", "flow_grpo", "strict"):
        results = post(service, items, reward=reward)["results"]
        assert [result["score"] for result in results] == [None, 1.0, None, None]
        assert [result["error"] and result["error"]["code"] for result in results] == [
            "bad_input",
            None,
            "not_applicable",
            "bad_input",
        ]


def test_a_long_target_holds_no_worker(service: str) -> None:
    """Three hundred thousand characters that stand for eighteen each are refused; as many as fit are a bad item alone."""
    image = to_ref(line_of("HELLO"), "image/png").model_dump(exclude_none=True)
    long = {"id": "a", "prompt": "x", "targets": ["\ufdfa" * 300_000], "images": [image]}
    refused = httpx.post(f"{service}/v1/score", json={"items": [long]}, timeout=30)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "items.0.targets.0")
    assert "at most 4096 characters; got 300000" in refused.json()["error"]["message"]
    fitting = [{**long, "id": str(n), "targets": ["\ufdfa" * 4096]} for n in range(64)]
    good = {"id": "good", "prompt": "x", "targets": ["HELLO"], "images": [image]}
    *bad, last = post(service, [*fitting, good], deadline_ms=20_000)["results"]
    assert {result["error"]["code"] for result in bad} == {"bad_input"}
    assert last["score"] == 1.0


def test_a_score_does_not_depend_on_the_request_it_came_in(service: str) -> None:
    """Noise is added so that the reading is uncertain and any change of arithmetic would show in a confidence."""
    noisy = [Image.effect_noise((192, 48), 120).convert("RGB") for _ in range(12)]
    for image in noisy:
        ImageDraw.Draw(image).text((96, 24), "OPEN", font=ImageFont.load_default(32), fill="black", anchor="mm")
    items = [
        {"id": str(n), "prompt": '"OPEN"', "images": [to_ref(image, "image/png").model_dump(exclude_none=True)]}
        for n, image in enumerate(noisy)
    ]
    # Another target makes another cache key, so that everything is read again.
    others = [{**item, "targets": ["OPEN", f"key{n}"]} for n, item in enumerate(items)]
    together = post(service, items)["results"]
    alone = [post(service, [other])["results"][0] for other in others]
    assert not any(result["cached"] for result in alone)
    assert [r["details"]["images"][0]["lines"] for r in together] == [r["details"]["images"][0]["lines"] for r in alone]


def test_info_names_the_rewards_and_the_engine(service: str) -> None:
    info = httpx.get(f"{service}/v1/info").json()
    assert info["service"] == "ocr"
    assert info["default_reward"] == "multi"
    assert sorted(reward["name"] for reward in info["rewards"]) == ["deepgen_new", "flow_grpo", "multi", "strict"]
    assert all("rapidocr-" in reward["revision"] for reward in info["rewards"])
    assert list(info["about"]["scripts"]) == ["Han", "Latin", "Katakana", "Hiragana", "Greek"]
    assert info["about"]["characters"].startswith("20-7e ")


def test_nothing_is_recorded_about_the_user(service: str, home: Path) -> None:
    """onnxruntime keeps a device id and events to send below the cache folder, unless it is told not to."""
    image = to_ref(line_of("ALONE"), "image/png").model_dump(exclude_none=True)
    [result] = post(service, [{"id": "0", "prompt": '"ALONE"', "images": [image]}])["results"]
    assert result["score"] == 1 and not result["cached"]
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "ddddocr"], "--mode line"),
        (["--engine", "paddleocr"], "paddle"),
        (["--engine", "easyocr"], "rapidocr"),
        (["--det-side", "8"], "--det-side"),
        (["--min-confidence", "1.5"], "--min-confidence"),
        (["--rec-model", "none.onnx"], "--rec-model none.onnx: no such file"),
        (["--language", "eng; rm"], "--language"),
    ],
)
def test_wrong_flags_end_with_the_remedy(flags: list[str], words: str) -> None:
    done = subprocess.run(command(*flags), check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_come_from_flags_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCR_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("OCR_ENGINE", "ddddocr")
    monkeypatch.setenv("OCR_MODE", "line")
    monkeypatch.setenv("OCR_WORKERS", "3")
    settings = load_settings(OcrSettings, ["--case", "insensitive", "--workers", "2"])
    assert (settings.engine, settings.mode, settings.case, settings.workers) == ("ddddocr", "line", "insensitive", 2)
    assert settings.port == 18082
    scorer = make_scorer(settings)
    assert isinstance(scorer, ProcessPool)
    assert scorer.concurrency == 2
    assert "ddddocr-" in scorer.rewards["multi"].revision


@pytest.mark.parametrize(("mode", "expected"), [("page", 0.5), ("line", 0.0)])
def test_the_least_confidence_depends_on_the_mode(mode: str, expected: float) -> None:
    assert load_settings(OcrSettings, ["--mode", mode]).engine_options().min_confidence == expected
    assert (
        load_settings(OcrSettings, ["--mode", mode, "--min-confidence", "0.2"]).engine_options().min_confidence == 0.2
    )
