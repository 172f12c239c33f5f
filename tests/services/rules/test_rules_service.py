"""`python -m services.rules` as a real process over HTTP, and its settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from services.kit.settings import load_settings
from services.rules.__main__ import RulesSettings
from tests.support.service_process import ready_service
from trainer.config.service_names import REWARDS
from wire.images import to_ref

ROOT = Path(__file__).resolve().parents[3]

MY_REWARDS = """
from services.rules import reward

@reward(range=(0, None))
def prompt_length(item):
    if item.prompt == "raise":
        raise RuntimeError("asked to")
    return {"nan": float("nan"), "none": None}.get(item.prompt, len(item.prompt))

def helper(x):
    return x
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("rewards with space") / "my_rewards.py"
    path.write_text(MY_REWARDS)
    with ready_service("rules", "--functions", path) as address:
        yield address


def post(url: str, reward: str | None, *items: dict[str, Any]) -> dict[str, Any]:
    body = {"items": [{"id": str(index), **item} for index, item in enumerate(items)], "reward": reward}
    answer = httpx.post(f"{url}/v1/score", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def picture(color: str) -> dict[str, Any]:
    image = Image.new("RGB", (16, 16), "white")
    image.paste(color, (4, 4, 12, 12))  # type: ignore[arg-type]
    return to_ref(image, "image/png").model_dump(exclude_none=True)


def test_info_lists_builtin_and_own_rewards_but_no_helper(url: str) -> None:
    info = httpx.get(f"{url}/v1/info", timeout=30).json()
    names = [each["name"] for each in info["rewards"]]
    assert names == [*REWARDS["rules"], "prompt_length"]
    assert info["default_reward"] == "color_match"
    ranges = {each["name"]: each["range"] for each in info["rewards"]}
    assert ranges["jpeg_compressibility"] == [None, 0.0]
    assert ranges["prompt_length"] == [0.0, None]


def test_color_match_over_http(url: str) -> None:
    answer = post(
        url,
        None,
        {"prompt": 'the word "K7QX" in red', "images": [picture("red")]},
        {"prompt": 'the word "RED" in blue', "images": [picture("red")]},
        {"prompt": "a picture", "images": [picture("red")]},
        {"prompt": "a picture", "images": [picture("red")], "metadata": {"color": "red"}},
        {"prompt": "in red", "images": [picture("red")], "metadata": {"color": "teal"}},
    )
    results = answer["results"]
    assert [each["score"] for each in results] == [1.0, 0.0, None, 1.0, None]
    assert results[2]["error"]["code"] == "not_applicable"
    assert results[4]["error"]["code"] == "bad_input"
    assert results[0]["details"] == {"target": "red", "ink_pixels": 64, "shares": {"red": 1.0}}
    assert answer["scorer"]["name"] == "color_match"


def test_jpeg_rewards_over_http_are_negatives_of_each_other(url: str) -> None:
    item = {"prompt": "x", "images": [picture("green")]}
    small = post(url, "jpeg_compressibility", item)["results"][0]["score"]
    assert small < 0
    assert post(url, "jpeg_incompressibility", item)["results"][0]["score"] == -small


def test_own_function_over_http_isolates_each_item(url: str) -> None:
    prompts = ["four", "raise", "nan", "none", "seven77"]
    results = post(url, "prompt_length", *({"prompt": prompt, "completion": ""} for prompt in prompts))["results"]
    assert [each["score"] for each in results] == [4.0, None, None, None, 7.0]
    assert results[1]["error"] == {"code": "internal", "message": "prompt_length raised RuntimeError: asked to"}
    assert [each["error"]["code"] for each in results[2:4]] == ["non_finite", "not_applicable"]


def test_worker_processes_serve_own_functions(tmp_path: Path) -> None:
    path = tmp_path / "my_rewards.py"
    path.write_text(MY_REWARDS)
    with ready_service("rules", "--functions", path, "--workers", "2") as address:
        result = post(address, "prompt_length", {"prompt": "four", "completion": ""})["results"][0]
        assert result["score"] == 4.0


def test_a_wrong_file_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.rules", "--port", "0", "--functions", str(tmp_path / "nope.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "nope.py (No such file or directory); correct the path" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "functions"),
    [
        ([], ()),
        (["--functions", "a.py"], ("a.py",)),
        (["--functions", "a.py:f,g", "--functions", "my dir/b.py"], ("a.py:f,g", "my dir/b.py")),
    ],
)
def test_functions_flag_is_repeatable(flags: list[str], functions: tuple[str, ...]) -> None:
    assert load_settings(RulesSettings, flags).functions == functions


def test_environment_gives_functions_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RULES_FUNCTIONS", "a.py:f,g,b.py")
    monkeypatch.setenv("RULES_PORT", "19000")
    monkeypatch.setenv("RULES_URL", "http://127.0.0.1:1")  # the trainer's; the service must not mind it
    settings = load_settings(RulesSettings, [])
    assert settings.functions == ("a.py:f,g", "b.py")
    assert settings.port == 19000


def test_default_port() -> None:
    assert RulesSettings.model_fields["port"].default == 18084
